/**
 * One call as interceptors and handlers see it, on top of grpc-js's objects. What a handler rarely touches
 * (headers, signal, url) is built when it is touched.
 */
import type { DescMethod, DescMethodUnary, DescService, Message } from "@bufbuild/protobuf";
import {
  type ConnectError,
  type ContextValues,
  createContextValues,
  type HandlerContext,
  type UnaryRequest,
  type UnaryResponse,
} from "@connectrpc/connect";
import grpc from "@grpc/grpc-js";
import { keys, type Peer } from "../context.ts";
import { fail } from "../errors.ts";
import { peerOf } from "./certificates.ts";

/** A request whose bytes are no message of the RPC. It is refused when the corridor looks at the message. */
export class Undecodable {}

/** How such a request is refused. */
export const undecodable = ({ input }: DescMethod, why = ""): ConnectError =>
  fail("FIELD_INVALID", { field: "request", rule: `must be a ${input.typeName}${why}` });

type Incoming =
  | grpc.ServerUnaryCall<Message | Undecodable, Message>
  | grpc.ServerWritableStream<Message | Undecodable, Message>;

/** What the certificate of a call's connection says; undefined without one that its CA vouches for. */
export const peerOfCall = (
  call: Incoming | grpc.ServerWritableStream<unknown, unknown>,
): Peer | undefined => {
  const { sslPeerCertificate } = call.getAuthContext();
  return sslPeerCertificate && peerOf(sslPeerCertificate);
};

/** One call: the interceptors' request and the handler's context in one object. */
export class Call implements UnaryRequest, HandlerContext {
  readonly stream = false;
  readonly requestMethod = "POST";
  readonly protocolName = "grpc";
  readonly method: DescMethodUnary;
  readonly contextValues: ContextValues = createContextValues();
  /** grpc-js says `cancelled` at the end of every call; after the answer nobody needs to hear it. */
  answered = false;
  private readonly call: Incoming;
  private headers: Headers | undefined;
  private response: Headers | undefined;
  private trailers: Headers | undefined;
  private hanging: HangUp | undefined;

  constructor(call: Incoming, method: DescMethod) {
    this.call = call;
    this.method = method as DescMethodUnary;
    const timeoutMs = this.timeoutMs();
    if (timeoutMs !== undefined) this.contextValues.set(keys.timeoutMs, timeoutMs);
    const peer = peerOfCall(call);
    if (peer) this.contextValues.set(keys.peer, peer);
  }

  get message(): Message {
    const { request } = this.call;
    if (request instanceof Undecodable) throw undecodable(this.method);
    return request;
  }

  get values(): ContextValues {
    return this.contextValues;
  }

  get service(): DescService {
    return this.method.parent;
  }

  get url(): string {
    return `http://${this.call.getHost()}${this.call.getPath()}`;
  }

  get header(): Headers {
    this.headers ??= new MetadataHeaders(this.call.metadata) as unknown as Headers;
    return this.headers;
  }

  get requestHeader(): Headers {
    return this.header;
  }

  get responseHeader(): Headers {
    this.response ??= new MetadataHeaders(new grpc.Metadata()) as unknown as Headers;
    return this.response;
  }

  get responseTrailer(): Headers {
    this.trailers ??= new MetadataHeaders(new grpc.Metadata()) as unknown as Headers;
    return this.trailers;
  }

  /** Aborted when the caller hangs up, and for a stream when the server ends it. */
  get signal(): AbortSignal {
    return this.hangUp as unknown as AbortSignal;
  }

  get hangUp(): HangUp {
    this.hanging ??= new HangUp(this.call, this);
    return this.hanging;
  }

  timeoutMs(): number | undefined {
    const deadline = this.call.getDeadline();
    if (deadline === Number.POSITIVE_INFINITY) return undefined;
    return Number(deadline) - Date.now();
  }
}

/** The interceptors' response to a call. */
export class Answer implements UnaryResponse {
  readonly stream = false;
  readonly message: Message;
  private readonly call: Call;

  constructor(call: Call, message: Message) {
    this.call = call;
    this.message = message;
  }

  get service(): DescService {
    return this.call.service;
  }

  get method(): DescMethodUnary {
    return this.call.method;
  }

  get header(): Headers {
    return this.call.responseHeader;
  }

  get trailer(): Headers {
    return this.call.responseTrailer;
  }
}

/** The part of AbortSignal that is used here, on top of grpc-js's events: a real one costs more than all else. */
class HangUp {
  /** Why the server ended the stream; undefined when it was the caller. */
  reason: ConnectError | undefined;
  private readonly call: Incoming;
  private readonly request: Call;

  constructor(call: Incoming, request: Call) {
    this.call = call;
    this.request = request;
  }

  get aborted(): boolean {
    return (this.call.cancelled || this.reason !== undefined) && !this.request.answered;
  }

  /** Ends a stream as if its caller had hung up, but for this reason. */
  end(reason: ConnectError): void {
    this.reason = reason;
    this.call.emit("cancelled");
  }

  addEventListener(_type: "abort", listener: () => void): void {
    this.call.once("cancelled", () => {
      if (!this.request.answered) listener();
    });
  }
}

/** The part of Headers that is used here, on top of grpc-js's metadata and without a copy of it. */
export class MetadataHeaders {
  readonly metadata: grpc.Metadata;

  constructor(metadata: grpc.Metadata) {
    this.metadata = metadata;
  }

  get(name: string): string | null {
    const values = this.metadata.get(name);
    return values.length === 0 ? null : values.join(", ");
  }

  has(name: string): boolean {
    return this.metadata.get(name).length > 0;
  }

  set(name: string, value: string): void {
    this.metadata.set(name, value);
  }

  append(name: string, value: string): void {
    this.metadata.add(name, value);
  }

  delete(name: string): void {
    this.metadata.remove(name);
  }

  forEach(visit: (value: string, name: string) => void): void {
    for (const [name, value] of Object.entries(this.metadata.getMap())) visit(String(value), name);
  }
}

export const metadataOf = (headers: Headers): grpc.Metadata => {
  if (headers instanceof MetadataHeaders) return headers.metadata;
  const metadata = new grpc.Metadata();
  headers.forEach((value, name) => {
    metadata.set(name, value);
  });
  return metadata;
};
