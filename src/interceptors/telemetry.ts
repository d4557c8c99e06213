import { randomUUID } from "node:crypto";
import type { DescMethod, Message } from "@bufbuild/protobuf";
import { ConnectError, type Interceptor } from "@connectrpc/connect";
import { context } from "@opentelemetry/api";
import type { Logger } from "pino";
import { keys } from "../context.ts";
import { reasonOf } from "../errors.ts";
import { Code, CodeSchema } from "../gen/google/rpc/code_pb.ts";
import { through } from "./streams.ts";
import { beginSpan, callerSpanOf, endSpan, madeWithin, systemOf } from "./tracing.ts";

/** By number, which Connect's codes and gRPC's have in common. */
const codeNames = new Map<number, string>(
  CodeSchema.values.map(({ number, name }) => [number, name]),
);
const printable = /^[\x21-\x7e]{1,128}$/;

/** Counts calls, by method and outcome alone. */
export interface CallMeter {
  started(): void;
  /** @param code by name, such as `NOT_FOUND` */
  ended(system: "grpc" | "connectrpc", method: DescMethod, code: string, ms: number): void;
  /** That call failed. @param reason undefined where it has none */
  failed(reason: string | undefined): void;
}

/**
 * Gives the call its correlation id and its place in a trace; when it ends, a stream with its last message, counts it
 * and writes one line. Line and span hold ids and outcomes, never what a request or a row says.
 */
export const telemetry =
  (log: Logger, meter: CallMeter): Interceptor =>
  (next) =>
  async (request) => {
    const start = performance.now();
    meter.started();
    const given = request.header.get("x-request-id");
    const correlationId = given !== null && printable.test(given) ? given : randomUUID();
    const { contextValues: values } = request;
    values.set(keys.correlationId, correlationId);
    const callerSpan = callerSpanOf(request.header);
    const running = beginSpan(request, callerSpan);
    const traced = running?.span.spanContext() ?? callerSpan;
    const ids = traced && { trace_id: traced.traceId, span_id: traced.spanId };
    if (ids) values.set(keys.trace, ids);
    const line = (number: number, reason?: string, messages?: number): void => {
      const code = codeNames.get(number) ?? "UNKNOWN";
      const ms = performance.now() - start;
      meter.ended(systemOf(request), request.method, code, ms);
      if (number !== Code.OK) meter.failed(reason);
      if (running) endSpan(running.span, code, reason);
      log.info({
        method: `${request.service.typeName}/${request.method.name}`,
        code,
        reason,
        messages,
        duration_ms: Math.round(ms * 1000) / 1000,
        org_id: values.get(keys.access)?.orgId,
        caller: values.get(keys.caller)?.subject,
        correlation_id: correlationId,
        ...ids,
      });
    };
    const failed = (error: unknown): ConnectError => {
      const failure = ConnectError.from(error);
      failure.metadata.set("x-request-id", correlationId);
      return failure;
    };
    try {
      const response = await (running
        ? context.with(running.inside, () => next(request))
        : next(request));
      response.header.set("x-request-id", correlationId);
      if (response.stream)
        return through(response, (messages) =>
          counted(running ? madeWithin(running, messages) : messages, failed, line),
        );
      line(Code.OK);
      return response;
    } catch (error) {
      const failure = failed(error);
      line(failure.code, reasonOf(failure));
      throw failure;
    }
  };

/** Messages that are counted as they are sent; who reads no further has hung up. */
async function* counted(
  messages: AsyncIterable<Message>,
  failed: (error: unknown) => ConnectError,
  line: (code: number, reason: string | undefined, messages: number) => void,
): AsyncGenerator<Message> {
  let outcome: readonly [code: number, reason: string | undefined] = [Code.CANCELLED, "CANCELLED"];
  let sent = 0;
  try {
    for await (const message of messages) {
      sent++;
      yield message;
    }
    outcome = [Code.OK, undefined];
  } catch (error) {
    const failure = failed(error);
    outcome = [failure.code, reasonOf(failure)];
    throw failure;
  } finally {
    line(...outcome, sent);
  }
}
