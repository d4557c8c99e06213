/**
 * The same services and the same corridor by Connect's own handlers, which speak Connect, gRPC-Web and gRPC in binary
 * and JSON. As on the gRPC port the corridor sees every call as one request with one message.
 */
import {
  create,
  type DescMethod,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type DescService,
  type Message,
} from "@bufbuild/protobuf";
import {
  Code,
  ConnectError,
  type ContextValues,
  createConnectRouter,
  createContextKey,
  createContextValues,
  type HandlerContext,
  type Interceptor,
  type StreamResponse,
  type UnaryRequest,
  type UnaryResponse,
} from "@connectrpc/connect";
import {
  createAsyncIterable,
  encodeEnvelope,
  type UniversalHandler,
  type UniversalServerRequest,
  type UniversalServerResponse,
} from "@connectrpc/connect/protocol";
import { compressionGzip } from "@connectrpc/connect-node";
import { keys, type Peer } from "../context.ts";
import { fail } from "../errors.ts";
import type { Route } from "../routes.ts";
import { undecodable } from "./call.ts";
import { limits } from "./limits.ts";
import { chainOf, type Handler, type Init, messagesOf, type OpenStreams } from "./mount.ts";

/** Answers one request for one RPC. */
export type Answering = (
  request: UniversalServerRequest,
  peer?: Peer | undefined,
) => Promise<UniversalServerResponse>;

/** What travels with one HTTP request beside what Connect knows of it. */
interface Attempt {
  /** Aborted when the caller hangs up, and for nothing else. */
  readonly caller: AbortSignal;
  /** Why the request is no message of the RPC; it is refused when the corridor looks at the message. */
  readonly undecodable: string | undefined;
  /** Aborted with the error that Connect answers by. */
  told?: AbortSignal;
  /** Whether the corridor was entered. */
  entered: boolean;
}

const attemptKey = createContextKey<Attempt | undefined>(undefined);
const attemptOf = (values: ContextValues): Attempt => {
  const attempt = values.get(attemptKey);
  if (!attempt) throw new Error("the attempt is missing");
  return attempt;
};

/** What answers each path, such as `/roster.v1.TeamService/GetTeam`. */
export const answers = (
  routes: readonly Route[],
  interceptors: readonly Interceptor[],
  open: OpenStreams,
): ReadonlyMap<string, Answering> => {
  const router = createConnectRouter({
    readMaxBytes: limits.receiveBytes,
    writeMaxBytes: limits.sendBytes,
    // Brotli stays off: CVE-2026-111497.
    acceptCompression: [compressionGzip],
    requestGate: ({ values, signal }) => {
      attemptOf(values).told = signal;
    },
  });
  for (const { service, implementation } of routes) {
    for (const method of service.methods) {
      const handler = (implementation as Record<string, never>)[method.localName] as never;
      router.rpc(
        method as DescMethodUnary,
        (method.methodKind === "unary"
          ? unary(method as DescMethodUnary, handler, interceptors)
          : streaming(method as DescMethodServerStreaming, handler, interceptors, open)) as never,
      );
    }
  }
  return new Map(router.handlers.map((handler) => [handler.requestPath, answering(handler)]));
};

/** Connect decodes before anything else. What is no message goes through the corridor all the same, as its refusal. */
const answering =
  (handler: UniversalHandler): Answering =>
  async (request, peer) => {
    const attempt = async (
      asked: UniversalServerRequest,
      why?: string,
    ): Promise<[UniversalServerResponse, Attempt]> => {
      const made: Attempt = { caller: request.signal, undecodable: why, entered: false };
      const contextValues = createContextValues().set(attemptKey, made).set(keys.peer, peer);
      return [await handler({ ...asked, contextValues }), made];
    };
    const [response, { told, entered }] = await attempt(request);
    const error = told?.aborted && !entered ? told.reason : undefined;
    if (!(error instanceof ConnectError && isNoMessage(error))) return legible(response);
    const json = isJson(request);
    const [refusal] = await attempt(emptied(request, json), json ? `: ${error.rawMessage}` : "");
    return legible(refusal);
  };

/** Escapes of grpc-message what must be and no more, or grpc-js shows its callers `%3A` for a colon. */
const legible = (response: UniversalServerResponse): UniversalServerResponse => {
  const { trailer } = response;
  if (!trailer) return response;
  return {
    ...response,
    // Known when the body has been sent.
    get trailer(): Headers {
      const message = trailer.get("grpc-message");
      if (message) trailer.set("grpc-message", encodeURI(decodeURIComponent(message)));
      return trailer;
    },
  };
};

/** Connect's words for bytes and for JSON that it cannot decode. */
const isNoMessage = ({ code, rawMessage }: ConnectError): boolean =>
  code === Code.InvalidArgument ||
  (code === Code.Internal && rawMessage.startsWith("parse binary:"));

const contentTypeOf = ({ header }: UniversalServerRequest): string =>
  header.get("content-type") ?? "";

const isJson = (request: UniversalServerRequest): boolean =>
  request.method === "GET"
    ? new URL(request.url).searchParams.get("encoding") === "json"
    : contentTypeOf(request).includes("json");

/** The same request with an empty message. */
const emptied = (request: UniversalServerRequest, json: boolean): UniversalServerRequest => {
  const header = new Headers(request.header);
  const encodings = ["content-encoding", "connect-content-encoding", "grpc-encoding"];
  for (const name of ["content-length", ...encodings]) header.delete(name);
  if (request.method === "GET")
    header.set("content-type", json ? "application/json" : "application/proto");
  const message = new TextEncoder().encode(json ? "{}" : "");
  const bare = /^application\/(json|proto)\b/.test(header.get("content-type") ?? "");
  const body = createAsyncIterable([bare ? message : encodeEnvelope(0, message)]);
  return { ...request, method: "POST", header, body };
};

const unary = (
  method: DescMethodUnary,
  handler: Handler<Promise<Init>>,
  interceptors: readonly Interceptor[],
) => {
  const chain = chainOf<UnaryResponse>(interceptors, async (request) => {
    const { context } = request as Call;
    const message = create(method.output, await handler(request.message, context));
    const { responseHeader: header, responseTrailer: trailer } = context;
    return { stream: false, service: method.parent, method, header, trailer, message };
  });
  return async (message: Message, context: HandlerContext): Promise<Message> => {
    const call = new Call(method, message, context);
    try {
      const response = await chain(call);
      hand(response, context);
      return response.message;
    } finally {
      call.answered = true;
    }
  };
};

const streaming = (
  method: DescMethodServerStreaming,
  handler: Handler<AsyncIterable<Init>>,
  interceptors: readonly Interceptor[],
  open: OpenStreams,
) => {
  const chain = chainOf<StreamResponse>(interceptors, async (request) => {
    const { context } = request as Call;
    const message = messagesOf(method, handler(request.message, context));
    const { responseHeader: header, responseTrailer: trailer } = context;
    return { stream: true, service: method.parent, method, header, trailer, message };
  });
  return async function* (message: Message, context: HandlerContext): AsyncGenerator<Message> {
    const call = new Call(method, message, context);
    const end = (): void => call.signal.end(fail("STREAM_ENDED"));
    open.add(end);
    try {
      const response = await chain(call as never);
      hand(response, context);
      yield* response.message as AsyncIterable<Message>;
      hand(response, context);
    } finally {
      call.answered = true;
      open.delete(end);
    }
  };
};

/** Puts an answer's head and end where Connect sends them from, which an answer that no handler made does not. */
const hand = (
  { header, trailer }: UnaryResponse | StreamResponse,
  { responseHeader, responseTrailer }: HandlerContext,
): void => {
  for (const [from, to] of [
    [header, responseHeader],
    [trailer, responseTrailer],
  ] as const) {
    if (from === to) continue;
    from.forEach((value, name) => {
      to.set(name, value);
    });
  }
};

/** One call as the corridor sees it. */
class Call implements UnaryRequest {
  readonly stream = false;
  readonly method: DescMethodUnary;
  readonly context: HandlerContext;
  readonly signal: HangUp & AbortSignal;
  private readonly decoded: Message;
  private readonly attempt: Attempt;

  constructor(method: DescMethod, message: Message, context: HandlerContext) {
    this.method = method as DescMethodUnary;
    this.context = context;
    this.decoded = message;
    this.attempt = attemptOf(context.values);
    this.attempt.entered = true;
    this.signal = new HangUp(this.attempt.caller) as HangUp & AbortSignal;
    context.values.set(keys.timeoutMs, context.timeoutMs());
  }

  set answered(answered: boolean) {
    this.signal.answered = answered;
  }

  get message(): Message {
    const { undecodable: why } = this.attempt;
    if (why !== undefined) throw undecodable(this.method, why);
    return this.decoded;
  }

  get requestMethod(): string {
    return this.context.requestMethod;
  }

  get protocolName(): string {
    return this.context.protocolName;
  }

  get service(): DescService {
    return this.method.parent;
  }

  get url(): string {
    return this.context.url;
  }

  get header(): Headers {
    return this.context.requestHeader;
  }

  get contextValues(): ContextValues {
    return this.context.values;
  }
}

/** The part of AbortSignal that is used here: the caller hangs up before the answer, or the server ends a stream. */
class HangUp {
  /** Why the server ended the stream; undefined when it was the caller. */
  reason: ConnectError | undefined;
  answered = false;
  private readonly caller: AbortSignal;
  private readonly listeners: (() => void)[] = [];

  constructor(caller: AbortSignal) {
    this.caller = caller;
  }

  get aborted(): boolean {
    return (this.caller.aborted || this.reason !== undefined) && !this.answered;
  }

  end(reason: ConnectError): void {
    this.reason = reason;
    for (const listener of this.listeners) listener();
  }

  addEventListener(_type: "abort", listener: () => void): void {
    this.listeners.push(listener);
    this.caller.addEventListener("abort", () => {
      if (!this.answered) listener();
    });
  }
}
