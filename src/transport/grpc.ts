/**
 * Connect services and interceptors on a grpc-js server: the programming model of the one at the price of
 * the other. What a handler rarely touches (headers, signal, url) is built when it is touched.
 */
import { readFileSync } from "node:fs";
import {
  create,
  type DescMessage,
  type DescMethod,
  type DescMethodUnary,
  type DescService,
  fromBinary,
  type Message,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import {
  anyPack,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";
import {
  Code,
  ConnectError,
  type ContextValues,
  createContextValues,
  type HandlerContext,
  type Interceptor,
  type UnaryRequest,
  type UnaryResponse,
} from "@connectrpc/connect";
import grpc from "@grpc/grpc-js";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation } from "grpc-health-check";
import { keys } from "../context.ts";
import { fail } from "../errors.ts";
import { StatusSchema } from "../gen/google/rpc/status_pb.ts";
import type { Route } from "../routes.ts";

/** A running gRPC port. */
export interface GrpcServer {
  /** The port it listens on, also when 0 was asked. */
  readonly port: number;
  /** What health answers for every service. */
  setServing(serving: boolean): void;
  /** Refuses new calls, ends streams, lets running calls end for `graceMs` milliseconds, then cuts them. */
  stop(graceMs: number): Promise<void>;
}

/** What the port serves. */
export interface GrpcOptions {
  readonly host: string;
  readonly port: number;
  readonly routes: readonly Route[];
  readonly interceptors: readonly Interceptor[];
  /** Judges who may use reflection, by their `authorization`; undefined: anyone who reaches the port. */
  readonly mayReflect: Guard | undefined;
}

/** Throws when the sender of this `authorization` may not go on. */
type Guard = (authorization: string | null) => Promise<void>;

const mebibyte = 1024 * 1024;
const minuteMs = 60_000;

const limits: grpc.ServerOptions = {
  "grpc.max_receive_message_length": mebibyte,
  "grpc.max_send_message_length": 4 * mebibyte,
  "grpc.max_concurrent_streams": 250,
  // Nobody asks for its counters, and keeping them costs each call.
  "grpc.enable_channelz": 0,
  // Old connections are asked to go, so that clients spread again over new processes. grpc-js adds jitter.
  "grpc.max_connection_age_ms": 30 * minuteMs,
  "grpc.max_connection_age_grace_ms": minuteMs,
};

/** Opens the port. @throws Error that names the address when it cannot be had */
export const serveGrpc = async ({
  host,
  port,
  routes,
  interceptors,
  mayReflect,
}: GrpcOptions): Promise<GrpcServer> => {
  const server = new grpc.Server(limits);
  for (const { service, implementation } of routes)
    mount(server, service, implementation, interceptors);

  const names = ["", ...routes.map(({ service }) => service.typeName)];
  const health = new HealthImplementation(
    Object.fromEntries(names.map((name) => [name, "SERVING" as const])),
  );
  const open = new Set<Stream>();
  health.addToServer(new Streams(server, open) as unknown as grpc.Server);
  reflectionService().addToServer(new Streams(server, open, mayReflect) as unknown as grpc.Server);

  return {
    port: await listen(server, host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`),
    setServing: (serving) => {
      for (const name of names) health.setStatus(name, serving ? "SERVING" : "NOT_SERVING");
    },
    stop: (graceMs) =>
      new Promise((resolve) => {
        const cut = setTimeout(() => server.forceShutdown(), graceMs);
        const status = { code: grpc.status.UNAVAILABLE, details: "the server is shutting down" };
        for (const stream of open) stream.emit("error", status);
        server.tryShutdown(() => {
          clearTimeout(cut);
          resolve();
        });
      }),
  };
};

const listen = (server: grpc.Server, address: string): Promise<number> =>
  new Promise((resolve, reject) => {
    server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, port) => {
      // grpc-js wraps what the system says: "No address added … errors: [listen EADDRINUSE: …]".
      const said = /errors: \[(.*)\]$/.exec(error?.message ?? "")?.[1] ?? error?.message;
      if (error) reject(new Error(`cannot listen on ${address}: ${said}`, { cause: error }));
      else resolve(port);
    });
  });

type Stream = grpc.ServerWritableStream<unknown, unknown>;
type StreamHandler = (stream: Stream) => void;

/**
 * Takes the services of packages in the server's place and remembers their open streams: a health watch
 * never ends by itself, and every stop would wait for it until the grace is over. A guard judges each stream
 * before its service hears of it.
 */
class Streams {
  private readonly server: grpc.Server;
  private readonly open: Set<Stream>;
  private readonly guard: Guard | undefined;

  constructor(server: grpc.Server, open: Set<Stream>, guard?: Guard) {
    this.server = server;
    this.open = open;
    this.guard = guard;
  }

  addService(
    definition: grpc.ServiceDefinition,
    implementation: grpc.UntypedServiceImplementation,
  ): void {
    const handlers = { ...implementation };
    for (const [name, { responseStream }] of Object.entries(definition)) {
      // Packages name their handlers as the RPC or in camel case.
      const key = [name, `${name[0]?.toLowerCase()}${name.slice(1)}`].find((k) => k in handlers);
      if (!responseStream || key === undefined) continue;
      handlers[key] = this.watch(handlers[key] as StreamHandler);
    }
    this.server.addService(definition, handlers);
  }

  private watch(handle: StreamHandler): StreamHandler {
    const { guard, open } = this;
    return (stream) => {
      open.add(stream);
      stream.once("cancelled", () => open.delete(stream));
      if (!guard) {
        handle(stream);
        return;
      }
      const authorization = new MetadataHeaders(stream.metadata).get("authorization");
      guard(authorization).then(
        () => handle(stream),
        (error: unknown) => stream.emit("error", statusOf(error)),
      );
    };
  }
}

/** Reflection from the descriptors that buf wrote: proto-loader's own would serve files without imports. */
const reflectionService = (): ReflectionService => {
  const set = fromBinary(
    FileDescriptorSetSchema,
    readFileSync(new URL("../gen/roster.binpb", import.meta.url)),
  );
  const fileDescriptorProtos = set.file.map((file) =>
    Buffer.from(toBinary(FileDescriptorProtoSchema, file)),
  );
  return new ReflectionService({
    all: { format: "Protocol Buffer 3 DescriptorProto", type: {}, fileDescriptorProtos },
  });
};

type Handler = (
  request: Message,
  context: HandlerContext,
) => Promise<MessageInitShape<DescMessage>>;
type Next = (request: UnaryRequest) => Promise<UnaryResponse>;

const mount = (
  server: grpc.Server,
  service: DescService,
  implementation: object,
  interceptors: readonly Interceptor[],
): void => {
  const definition: Record<string, grpc.MethodDefinition<Message | Undecodable, Message>> = {};
  const handlers: grpc.UntypedServiceImplementation = {};
  for (const method of service.methods) {
    if (method.methodKind !== "unary")
      throw new Error(`${method.name}: only unary RPCs are mounted here`);
    const handler = (implementation as Record<string, Handler>)[method.localName];
    if (!handler) throw new Error(`${method.name}: no implementation`);
    definition[method.name] = {
      path: `/${service.typeName}/${method.name}`,
      requestStream: false,
      responseStream: false,
      requestSerialize: () => Buffer.alloc(0),
      requestDeserialize: (bytes) => decode(method, bytes),
      responseSerialize: (message) => {
        const { buffer, byteOffset, length } = toBinary(method.output as DescMessage, message);
        return Buffer.from(buffer, byteOffset, length);
      },
      responseDeserialize: () => create(method.output as DescMessage),
    };
    handlers[method.name] = unary(method as DescMethodUnary, handler, interceptors);
  }
  server.addService(definition, handlers);
};

/** A request whose bytes are no message of the RPC. It is refused when the corridor looks at the message. */
class Undecodable {}

const decode = (method: DescMethod, bytes: Buffer): Message | Undecodable => {
  try {
    return fromBinary(method.input, bytes);
  } catch {
    return new Undecodable();
  }
};

const unary = (
  method: DescMethodUnary,
  handler: Handler,
  interceptors: readonly Interceptor[],
): grpc.handleUnaryCall<Message | Undecodable, Message> => {
  const last: Next = async (request) => {
    const call = request as Call;
    const output = await handler(request.message, call);
    return new Answer(call, create(method.output as DescMessage, output));
  };
  const chain = interceptors.reduceRight(
    (next, interceptor) => interceptor(next as never) as Next,
    last,
  );
  return (call, callback) => {
    const request = new Call(call, method);
    chain(request).then(
      (response) => {
        request.answered = true;
        call.sendMetadata(metadataOf(response.header));
        callback(null, response.message, request.trailer);
      },
      (error: unknown) => {
        request.answered = true;
        callback(statusOf(error));
      },
    );
  };
};

/** One call: the interceptors' request and the handler's context in one object. */
class Call implements UnaryRequest, HandlerContext {
  readonly stream = false;
  readonly requestMethod = "POST";
  readonly protocolName = "grpc";
  readonly method: DescMethodUnary;
  readonly contextValues: ContextValues = createContextValues();
  /** grpc-js says `cancelled` at the end of every call; after the answer nobody needs to hear it. */
  answered = false;
  private readonly call: grpc.ServerUnaryCall<Message | Undecodable, Message>;
  private headers: Headers | undefined;
  private response: Headers | undefined;
  private trailers: Headers | undefined;
  private hangUp: HangUp | undefined;

  constructor(call: grpc.ServerUnaryCall<Message | Undecodable, Message>, method: DescMethodUnary) {
    this.call = call;
    this.method = method;
    const timeoutMs = this.timeoutMs();
    if (timeoutMs !== undefined) this.contextValues.set(keys.timeoutMs, timeoutMs);
  }

  get message(): Message {
    const { request } = this.call;
    if (request instanceof Undecodable) {
      throw fail("FIELD_INVALID", {
        field: "request",
        rule: `must be a ${this.method.input.typeName}`,
      });
    }
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

  /** What the trailers hold, undefined when nobody touched them. */
  get trailer(): grpc.Metadata | undefined {
    return this.trailers && metadataOf(this.trailers);
  }

  /** Aborted when the caller hangs up. */
  get signal(): AbortSignal {
    this.hangUp ??= new HangUp(this.call, this);
    return this.hangUp as unknown as AbortSignal;
  }

  timeoutMs(): number | undefined {
    const deadline = this.call.getDeadline();
    if (deadline === Number.POSITIVE_INFINITY) return undefined;
    return Number(deadline) - Date.now();
  }
}

/** The interceptors' response to a call. */
class Answer implements UnaryResponse {
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
  private readonly call: grpc.ServerUnaryCall<Message | Undecodable, Message>;
  private readonly request: Call;

  constructor(call: grpc.ServerUnaryCall<Message | Undecodable, Message>, request: Call) {
    this.call = call;
    this.request = request;
  }

  get aborted(): boolean {
    return this.call.cancelled && !this.request.answered;
  }

  addEventListener(_type: "abort", listener: () => void): void {
    this.call.once("cancelled", () => {
      if (!this.request.answered) listener();
    });
  }
}

/** The part of Headers that is used here, on top of grpc-js's metadata and without a copy of it. */
class MetadataHeaders {
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

const metadataOf = (headers: Headers): grpc.Metadata => {
  if (headers instanceof MetadataHeaders) return headers.metadata;
  const metadata = new grpc.Metadata();
  headers.forEach((value, name) => {
    metadata.set(name, value);
  });
  return metadata;
};

/** The status of an error, with its details as google.rpc.Status beside the plain code and message. */
const statusOf = (thrown: unknown): Partial<grpc.StatusObject> => {
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
