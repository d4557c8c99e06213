/** The gRPC port: the services of this process, health, reflection, and how it stops. */
import { readFileSync } from "node:fs";
import { fromBinary, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import type { Interceptor } from "@connectrpc/connect";
import grpc from "@grpc/grpc-js";
import { ReflectionService } from "@grpc/reflection";
import { HealthImplementation } from "grpc-health-check";
import type { Peer } from "../context.ts";
import { fail } from "../errors.ts";
import type { Route } from "../routes.ts";
import { MetadataHeaders, peerOfCall } from "./call.ts";
import { type Certificates, RenewedCredentials } from "./certificates.ts";
import { limits } from "./limits.ts";
import { mount, type OpenCalls, type OpenStreams, statusOf } from "./mount.ts";

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
  /** Undefined: cleartext. */
  readonly certificates?: Certificates | undefined;
  readonly routes: readonly Route[];
  readonly interceptors: readonly Interceptor[];
  /** Judges who may use reflection; undefined: anyone who reaches the port. */
  readonly mayReflect: Guard | undefined;
}

/** Throws when the sender of this `authorization`, with this certificate, may not go on. */
type Guard = (authorization: string | null, peer: Peer | undefined) => Promise<void>;

const options: grpc.ServerOptions = {
  "grpc.max_receive_message_length": limits.receiveBytes,
  "grpc.max_send_message_length": limits.sendBytes,
  "grpc.max_concurrent_streams": limits.streams,
  // Nobody asks for its counters, and keeping them costs each call.
  "grpc.enable_channelz": 0,
  // grpc-js adds jitter.
  "grpc.max_connection_age_ms": limits.connectionAgeMs,
  "grpc.max_connection_age_grace_ms": limits.connectionAgeGraceMs,
};

/** Opens the port. @throws Error that names the address when it cannot be had */
export const serveGrpc = async ({
  host,
  port,
  certificates,
  routes,
  interceptors,
  mayReflect,
}: GrpcOptions): Promise<GrpcServer> => {
  const server = new grpc.Server(options);
  const open: OpenStreams = new Set();
  const running: OpenCalls = new Set();
  for (const route of routes) mount(server, route, interceptors, open, running);

  const names = ["", ...routes.map(({ service }) => service.typeName)];
  const health = new HealthImplementation(
    Object.fromEntries(names.map((name) => [name, "SERVING" as const])),
  );
  health.addToServer(new Streams(server, open) as unknown as grpc.Server);
  reflectionService().addToServer(new Streams(server, open, mayReflect) as unknown as grpc.Server);

  return {
    port: await listen(
      server,
      host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`,
      certificates ? new RenewedCredentials(certificates) : grpc.ServerCredentials.createInsecure(),
    ),
    setServing: (serving) => {
      for (const name of names) health.setStatus(name, serving ? "SERVING" : "NOT_SERVING");
    },
    stop: (graceMs) =>
      new Promise((resolve) => {
        const cut = setTimeout(() => {
          // grpc-js lets them go on, and their SQL with them.
          for (const call of running) call.hangUp.end(fail("STREAM_ENDED"));
          server.forceShutdown();
          // A session whose peer has stopped reading never says that it is closed.
          resolve();
        }, graceMs);
        for (const end of open) end();
        server.tryShutdown(() => {
          clearTimeout(cut);
          resolve();
        });
      }),
  };
};

const listen = (
  server: grpc.Server,
  address: string,
  credentials: grpc.ServerCredentials,
): Promise<number> =>
  new Promise((resolve, reject) => {
    server.bindAsync(address, credentials, (error, port) => {
      // grpc-js wraps what the system says: "No address added … errors: [listen EADDRINUSE: …]".
      const said = /errors: \[(.*)\]$/.exec(error?.message ?? "")?.[1] ?? error?.message;
      if (error) reject(new Error(`cannot listen on ${address}: ${said}`, { cause: error }));
      else resolve(port);
    });
  });

type Stream = grpc.ServerWritableStream<unknown, unknown>;
type StreamHandler = (stream: Stream) => void;

const shuttingDown = { code: grpc.status.UNAVAILABLE, details: "the server is shutting down" };

/**
 * Takes the services of packages in the server's place and remembers their open streams: a health watch
 * never ends by itself, and every stop would wait for it until the grace is over. A guard judges each stream
 * before its service hears of it.
 */
class Streams {
  private readonly server: grpc.Server;
  private readonly open: OpenStreams;
  private readonly guard: Guard | undefined;

  constructor(server: grpc.Server, open: OpenStreams, guard?: Guard) {
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
      const end = () => stream.emit("error", shuttingDown);
      open.add(end);
      stream.once("cancelled", () => open.delete(end));
      if (!guard) {
        handle(stream);
        return;
      }
      const authorization = new MetadataHeaders(stream.metadata).get("authorization");
      guard(authorization, peerOfCall(stream)).then(
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
