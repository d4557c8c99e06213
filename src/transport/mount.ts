/**
 * Connect services and interceptors on a grpc-js server. The corridor sees every call as one request with one
 * message; the answer has one message, or of a stream an iterable of them.
 */
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  fromBinary,
  type Message,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import { anyPack, MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import {
  Code,
  ConnectError,
  type HandlerContext,
  type Interceptor,
  type StreamResponse,
  type UnaryRequest,
  type UnaryResponse,
} from "@connectrpc/connect";
import type grpc from "@grpc/grpc-js";
import { fail } from "../errors.ts";
import { StatusSchema } from "../gen/google/rpc/status_pb.ts";
import type { Route } from "../routes.ts";
import { Answer, Call, metadataOf, Undecodable } from "./call.ts";

export type Init = MessageInitShape<DescMessage>;
export type Handler<Output> = (request: Message, context: HandlerContext) => Output;
type Next<Response> = (request: UnaryRequest) => Promise<Response>;

/** Ends of the streams that are open: what the server calls when it stops. */
export type OpenStreams = Set<() => void>;

/** Calls with one answer that are under way. */
export type OpenCalls = Set<Call>;

/** Mounts a service. @throws Error for an RPC that is not implemented, or of a kind that is not served */
export const mount = (
  server: grpc.Server,
  { service, implementation }: Route,
  interceptors: readonly Interceptor[],
  open: OpenStreams,
  running: OpenCalls,
): void => {
  const definition: Record<string, grpc.MethodDefinition<Message | Undecodable, Message>> = {};
  const handlers: grpc.UntypedServiceImplementation = {};
  for (const method of service.methods) {
    const handler = (implementation as Record<string, never>)[method.localName];
    if (!handler) throw new Error(`${method.name}: no implementation`);
    definition[method.name] = {
      path: `/${service.typeName}/${method.name}`,
      requestStream: false,
      responseStream: method.methodKind === "server_streaming",
      requestSerialize: () => Buffer.alloc(0),
      requestDeserialize: (bytes) => decode(method, bytes),
      responseSerialize: (message) => {
        const { buffer, byteOffset, length } = toBinary(method.output as DescMessage, message);
        return Buffer.from(buffer, byteOffset, length);
      },
      responseDeserialize: () => create(method.output as DescMessage),
    };
    handlers[method.name] = handling(method, handler, interceptors, open, running);
  }
  server.addService(definition, handlers);
};

const handling = (
  method: DescMethod,
  handler: never,
  interceptors: readonly Interceptor[],
  open: OpenStreams,
  running: OpenCalls,
): grpc.UntypedHandleCall => {
  switch (method.methodKind) {
    case "unary":
      return unary(method as DescMethodUnary, handler, interceptors, running);
    case "server_streaming":
      // A mutation is one transaction, which would stay open while a slow reader reads.
      if (method.idempotency !== Idempotency.NO_SIDE_EFFECTS)
        throw new Error(`${method.name}: a stream only reads`);
      return streaming(method as DescMethodServerStreaming, handler, interceptors, open);
    default:
      throw new Error(`${method.name}: streams of requests are not served`);
  }
};

/** The corridor, with what lies behind it. */
export const chainOf = <Response>(
  interceptors: readonly Interceptor[],
  last: Next<Response>,
): Next<Response> =>
  interceptors.reduceRight(
    (next, interceptor) => interceptor(next as never) as unknown as Next<Response>,
    last,
  );

const decode = (method: DescMethod, bytes: Buffer): Message | Undecodable => {
  try {
    return fromBinary(method.input, bytes);
  } catch {
    return new Undecodable();
  }
};

const unary = (
  method: DescMethodUnary,
  handler: Handler<Promise<Init>>,
  interceptors: readonly Interceptor[],
  running: OpenCalls,
): grpc.handleUnaryCall<Message | Undecodable, Message> => {
  const chain = chainOf<UnaryResponse>(interceptors, async (request) => {
    const call = request as Call;
    const output = await handler(request.message, call);
    return new Answer(call, create(method.output as DescMessage, output));
  });
  return (call, callback) => {
    const request = new Call(call, method);
    running.add(request);
    chain(request).then(
      (response) => {
        request.answered = true;
        running.delete(request);
        call.sendMetadata(metadataOf(response.header));
        callback(null, response.message, metadataOf(response.trailer));
      },
      (error: unknown) => {
        request.answered = true;
        running.delete(request);
        callback(statusOf(error));
      },
    );
  };
};

const streaming = (
  method: DescMethodServerStreaming,
  handler: Handler<AsyncIterable<Init>>,
  interceptors: readonly Interceptor[],
  open: OpenStreams,
): grpc.handleServerStreamingCall<Message | Undecodable, Message> => {
  const chain = chainOf<StreamResponse>(interceptors, async (request) => {
    const call = request as Call;
    const message = messagesOf(method, handler(request.message, call));
    const { service, responseHeader: header, responseTrailer: trailer } = call;
    return { stream: true, service, method, header, trailer, message };
  });
  return (stream) => {
    const call = new Call(stream, method);
    const end = (): void => call.hangUp.end(fail("STREAM_ENDED"));
    open.add(end);
    // grpc-js says so at the end of every call.
    stream.once("cancelled", () => open.delete(end));
    send(chain(call), call, stream).then(
      () => stream.end(metadataOf(call.responseTrailer)),
      (error: unknown) => stream.emit("error", statusOf(error)),
    );
  };
};

export async function* messagesOf(
  { output }: DescMethod,
  inits: AsyncIterable<Init>,
): AsyncGenerator<Message> {
  for await (const init of inits) yield create(output, init);
}

/** Sends each message as it comes, and asks for the next one when the reader has room for it. */
const send = async (
  answering: Promise<StreamResponse>,
  call: Call,
  stream: grpc.ServerWritableStream<unknown, Message>,
): Promise<void> => {
  try {
    const { header, message: messages } = await answering;
    // Headers leave with the first message, so that what fails before it is told in trailers alone.
    let begun = false;
    for await (const message of messages as AsyncIterable<Message>) {
      if (!begun) stream.sendMetadata(metadataOf(header));
      begun = true;
      // Who hung up reads no more; the next message tells that the stream is over.
      if (!stream.write(message) && !call.hangUp.aborted) await drained(stream);
    }
    if (!begun) stream.sendMetadata(metadataOf(header));
  } finally {
    call.answered = true;
  }
};

/** Waits until the reader has taken what was written, or the stream is over. */
const drained = (stream: grpc.ServerWritableStream<unknown, Message>): Promise<void> =>
  new Promise((resolve) => {
    const go = (): void => {
      stream.off("drain", go);
      stream.off("cancelled", go);
      resolve();
    };
    stream.on("drain", go);
    stream.on("cancelled", go);
  });

/** The status of an error, with its details as google.rpc.Status beside the plain code and message. */
export const statusOf = (thrown: unknown): Partial<grpc.StatusObject> => {
  const error = ConnectError.from(thrown, Code.Internal);
  const metadata = metadataOf(error.metadata);
  const details = error.details.flatMap((detail) =>
    "desc" in detail ? [anyPack(detail.desc, create(detail.desc, detail.value))] : [],
  );
  const status = create(StatusSchema, { code: error.code, message: error.rawMessage, details });
  metadata.set("grpc-status-details-bin", Buffer.from(toBinary(StatusSchema, status)));
  // Connect's codes are gRPC's, by number.
  return { code: error.code as number as grpc.status, details: error.rawMessage, metadata };
};
