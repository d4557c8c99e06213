/** The trace that a call is part of: what came in by W3C Trace Context, and a span where somebody listens. */
import type { Message } from "@bufbuild/protobuf";
import type { StreamRequest, UnaryRequest } from "@connectrpc/connect";
import {
  type Context,
  context,
  createTraceState,
  isSpanContextValid,
  ProxyTracerProvider,
  type Span,
  type SpanContext,
  SpanKind,
  SpanStatusCode,
  type Tracer,
  trace,
} from "@opentelemetry/api";

type Request = UnaryRequest | StreamRequest;

/** https://www.w3.org/TR/trace-context/#traceparent-header; a later version may say more behind the flags. */
const traceparent = /^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?$/;

/** The caller's span; undefined when none was sent, or none that can be read. */
export const callerSpanOf = (header: Headers): SpanContext | undefined => {
  const sent = header.get("traceparent");
  if (sent === null) return undefined;
  const [, version, traceId = "", spanId = "", flags = "", more] = traceparent.exec(sent) ?? [];
  if (version === "ff" || (version === "00" && more !== undefined)) return undefined;
  const span = { traceId, spanId, traceFlags: Number.parseInt(flags, 16) & 1, isRemote: true };
  return isSpanContextValid(span) ? span : undefined;
};

/** The tracer of whoever registered an SDK. Asked at each call, which costs a look at a global. */
const tracerInUse = (): Tracer | undefined => {
  const provider = trace.getTracerProvider();
  return provider instanceof ProxyTracerProvider
    ? provider.getDelegateTracer("roster")
    : provider.getTracer("roster");
};

/** Connect's own protocol is another system than gRPC; gRPC-Web is not. */
export const systemOf = (request: Request): "grpc" | "connectrpc" =>
  (request as { readonly protocolName?: string }).protocolName === "connect"
    ? "connectrpc"
    : "grpc";

/** A span that runs, and the context in which the call's work belongs to it. */
export interface RunningSpan {
  readonly span: Span;
  readonly inside: Context;
}

/** Begins the span of a call; undefined, and nothing made, where no SDK is registered. */
export const beginSpan = (
  request: Request,
  caller: SpanContext | undefined,
): RunningSpan | undefined => {
  const tracer = tracerInUse();
  if (!tracer) return undefined;
  const method = `${request.service.typeName}/${request.method.name}`;
  const attributes = { "rpc.system.name": systemOf(request), "rpc.method": method };
  const parent = parentOf(request.header, caller);
  const span = tracer.startSpan(method, { kind: SpanKind.SERVER, attributes }, parent);
  return { span, inside: trace.setSpan(parent, span) };
};

/** A span that is active already, such as that of an instrumented HTTP server, is nearer than the caller's. */
const parentOf = (header: Headers, caller: SpanContext | undefined): Context => {
  const active = context.active();
  if (!caller || trace.getSpan(active)) return active;
  const state = header.get("tracestate");
  const traceState = state === null ? undefined : createTraceState(state);
  return trace.setSpanContext(active, traceState ? { ...caller, traceState } : caller);
};

/** Codes that are the server's fault, by the conventions for gRPC. */
const faults = new Set([
  "UNKNOWN",
  "DEADLINE_EXCEEDED",
  "UNIMPLEMENTED",
  "INTERNAL",
  "UNAVAILABLE",
  "DATA_LOSS",
]);

/** Ends the span of a call with its code by name, and the reason where it failed. */
export const endSpan = (span: Span, code: string, reason: string | undefined): void => {
  span.setAttribute("rpc.status_code", code);
  if (reason !== undefined) span.setAttribute("roster.error_reason", reason);
  if (faults.has(code)) {
    span.setAttribute("error.type", code);
    span.setStatus({ code: SpanStatusCode.ERROR });
  }
  span.end();
};

/** Messages that are made within a span, whoever asks for them. */
export async function* madeWithin(
  { inside }: RunningSpan,
  messages: AsyncIterable<Message>,
): AsyncGenerator<Message> {
  const source = messages[Symbol.asyncIterator]();
  try {
    for (;;) {
      const { done, value } = await context.with(inside, () => source.next());
      if (done) return;
      yield value;
    }
  } finally {
    await context.with(inside, () => source.return?.());
  }
}
