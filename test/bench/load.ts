/** The process that calls: a closed loop of callers over real gRPC, which counts and times what it gets. */
import { readFileSync } from "node:fs";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import grpc from "@grpc/grpc-js";
import { importJWK, type JWK, SignJWT } from "jose";
import { bytesOf, operationOf, pathOf, type Sender } from "./operations.ts";

/** Signs the callers' tokens. */
export interface LoadOptions {
  readonly signingKey: JWK;
  readonly issuer: string;
  readonly audience: string;
}

/** Calls that a run repeats in turn, as they go over the wire. */
export interface GivenCalls {
  readonly path: string;
  /** The request's bytes in base64. */
  readonly calls: readonly { readonly sender?: string; readonly bytes: string }[];
}

/** One run. */
export interface Run {
  readonly port: number;
  /** The name of an operation of the list, or calls of another one. */
  readonly operation: string | GivenCalls;
  /** Calls the answer from memory that the floor offers beside each operation. */
  readonly echo: boolean;
  readonly seconds: number;
  readonly callers: number;
}

/** What a run gave. */
export interface Counted {
  readonly calls: number;
  readonly seconds: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
}

const { signingKey, issuer, audience }: LoadOptions = JSON.parse(
  readFileSync(process.argv[2] ?? "", "utf8"),
);
const key = await importJWK(signingKey, "ES256");

const metadatas = new Map<Sender, Promise<grpc.Metadata>>();

/** A sender's metadata, with one token however many calls they send. */
const metadataOf = (sender: Sender): Promise<grpc.Metadata> => {
  let metadata = metadatas.get(sender);
  if (!metadata) {
    metadata = makeMetadata(sender);
    metadatas.set(sender, metadata);
  }
  return metadata;
};

/** The floor and the naive composition check no token and take the bare id. */
const makeMetadata = async (sender: Sender): Promise<grpc.Metadata> => {
  const token = await new SignJWT(sender === undefined ? { scope: "roster.platform" } : {})
    .setProtectedHeader({ alg: "ES256", kid: "bench" })
    .setSubject(sender ?? "service:bench")
    .setIssuer(issuer)
    .setAudience(audience)
    .setExpirationTime("6h")
    .sign(key);
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  if (sender !== undefined) metadata.set("actor", sender);
  return metadata;
};

const clients = new Map<number, grpc.Client>();
const clientOf = (port: number): grpc.Client => {
  const known = clients.get(port);
  if (known) return known;
  const client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": 16 * 1024 * 1024,
  });
  clients.set(port, client);
  return client;
};

interface Call {
  readonly metadata: grpc.Metadata;
  readonly bytes: Buffer;
}

/** Where each operation is in its numbering: no number is used twice, whichever system takes the call. */
const used = new Map<string, number>();
const prepared = 2_000;
/** The numbers before are for who learns the statements. */
const firstNumber = 10;
const readCalls = new Map<string, readonly Call[]>();

/** What a run calls, and what makes its next call. */
interface Calls {
  readonly path: string;
  readonly next: () => Call | Promise<Call>;
}

const givenCalls = async ({ path, calls }: GivenCalls): Promise<Calls> => {
  const known = await Promise.all(
    calls.map(async ({ sender, bytes }) => ({
      metadata: await metadataOf(sender),
      bytes: Buffer.from(bytes, "base64"),
    })),
  );
  let n = 0;
  return { path, next: () => known[n++ % known.length] as Call };
};

const listedCalls = async (name: string, echo: boolean): Promise<Calls> => ({
  path: `${pathOf(operationOf(name).method)}${echo ? "Echo" : ""}`,
  next: await nextOf(name),
});

const callOf = async (name: string, n: number): Promise<Call> => {
  const operation = operationOf(name);
  const { sender, request } = operation.call(n);
  return { metadata: await metadataOf(sender), bytes: bytesOf(operation.method, request) };
};

/** Makes the next call. Reads repeat some that were made before, writes are new each time. */
const nextOf = async (name: string): Promise<() => Call | Promise<Call>> => {
  const take = (): number => {
    const n = used.get(name) ?? firstNumber;
    used.set(name, n + 1);
    return n;
  };
  if (operationOf(name).method.idempotency !== Idempotency.NO_SIDE_EFFECTS)
    return () => callOf(name, take());
  let calls = readCalls.get(name);
  if (!calls) {
    calls = await Promise.all(Array.from({ length: prepared }, (_, n) => callOf(name, n)));
    readCalls.set(name, calls);
  }
  const known = calls;
  return () => known[take() % prepared] as Call;
};

const send = (client: grpc.Client, path: string, { metadata, bytes }: Call): Promise<number> =>
  new Promise((resolve, reject) => {
    client.makeUnaryRequest(
      path,
      (request: Buffer) => request,
      (answer: Buffer) => answer.length,
      bytes,
      metadata,
      (error, length) =>
        error ? reject(new Error(`${path}: ${error.message}`)) : resolve(length ?? 0),
    );
  });

const drive = async (run: Run): Promise<Counted> => {
  const client = clientOf(run.port);
  const { path, next } =
    typeof run.operation === "string"
      ? await listedCalls(run.operation, run.echo)
      : await givenCalls(run.operation);
  const latencies: number[] = [];
  const begin = performance.now();
  const end = begin + run.seconds * 1000;
  const caller = async (): Promise<void> => {
    for (;;) {
      const call = await next();
      const start = performance.now();
      if (start >= end) return;
      const length = await send(client, path, call);
      if (length === 0) throw new Error(`${path}: an empty answer`);
      latencies.push(performance.now() - start);
    }
  };
  await Promise.all(Array.from({ length: run.callers }, caller));
  const seconds = (performance.now() - begin) / 1000;
  latencies.sort((a, b) => a - b);
  const at = (part: number): number => latencies[Math.floor(latencies.length * part)] ?? Number.NaN;
  return { calls: latencies.length, seconds, p50Ms: at(0.5), p99Ms: at(0.99) };
};

process.on("message", (run: Run) => {
  drive(run).then(
    (counted) => process.send?.({ counted }),
    (error: Error) => process.send?.({ error: error.message }),
  );
});
process.send?.({ ready: true });
