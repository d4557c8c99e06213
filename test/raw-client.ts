/** A plain grpc-js client, through which tests see what travels: status, metadata and details as bytes. */
import { once } from "node:events";
import http2 from "node:http2";
import {
  create,
  type DescMessage,
  type DescMethod,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import grpc from "@grpc/grpc-js";
import { expect } from "vitest";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  PreconditionFailureSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
} from "../src/gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "../src/gen/google/rpc/status_pb.ts";
import type { Harness } from "./harness.ts";

export const detailSchemas = [
  ErrorInfoSchema,
  BadRequestSchema,
  PreconditionFailureSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
];

export interface RawOptions {
  readonly token?: string;
  /** Values of one name are sent one by one. */
  readonly metadata?: Readonly<Record<string, string | readonly string[]>>;
  /** Milliseconds. */
  readonly timeoutMs?: number;
}

/** All that came back for one unary call. */
export interface Answer<Output extends DescMessage = DescMessage> {
  /** Such as "OK". */
  readonly code: string;
  /** grpc-message, as the client decoded it. */
  readonly text: string;
  readonly response: MessageShape<Output> | undefined;
  readonly header: grpc.Metadata;
  readonly trailer: grpc.Metadata;
  /** The messages in grpc-status-details-bin, as [type name, message]. */
  readonly details: readonly (readonly [string, Record<string, unknown>])[];
  /** code and message of grpc-status-details-bin. */
  readonly status: { readonly code: number; readonly message: string } | undefined;
  readonly reason: unknown;
  readonly elapsedMs: number;
}

type Method<Input extends DescMessage, Output extends DescMessage> = DescMethod & {
  readonly input: Input;
  readonly output: Output;
};

export class RawClient {
  readonly grpc: grpc.Client;

  /** @param ports of this machine; with several the service config says how they are shared */
  constructor(ports: number | readonly number[], options: grpc.ClientOptions = {}) {
    const target = `ipv4:${[ports]
      .flat()
      .map((port) => `127.0.0.1:${port}`)
      .join(",")}`;
    this.grpc = new grpc.Client(target, grpc.credentials.createInsecure(), options);
  }

  close(): void {
    this.grpc.close();
  }

  /** Starts a call; bytes in place of a message are sent as they are. */
  start<Input extends DescMessage, Output extends DescMessage>(
    method: Method<Input, Output>,
    request: MessageInitShape<Input> | Buffer,
    { token, metadata = {}, timeoutMs }: RawOptions = {},
  ): { readonly answer: Promise<Answer<Output>>; readonly cancel: () => void } {
    const sent = new grpc.Metadata();
    if (token) sent.set("authorization", `Bearer ${token}`);
    for (const [name, values] of Object.entries(metadata))
      for (const value of [values].flat()) sent.add(name, value);
    const startMs = performance.now();
    const { promise, resolve } = Promise.withResolvers<Answer<Output>>();
    let header = new grpc.Metadata();
    let response: MessageShape<Output> | undefined;
    const call = this.grpc.makeUnaryRequest(
      `/${method.parent.typeName}/${method.name}`,
      (bytes: Buffer) => bytes,
      (bytes: Buffer) => fromBinary(method.output, bytes),
      Buffer.isBuffer(request)
        ? request
        : Buffer.from(
            toBinary(method.input, create(method.input, request as MessageInitShape<Input>)),
          ),
      sent,
      timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs },
      (_error, message) => {
        response = message;
      },
    );
    call.on("metadata", (received) => {
      header = received;
    });
    call.on("status", ({ code, details: text, metadata: trailer }) => {
      const [bytes] = trailer.get("grpc-status-details-bin");
      const status = bytes === undefined ? undefined : fromBinary(StatusSchema, bytes as Buffer);
      const details = (status?.details ?? []).map((any) => {
        const schema = detailSchemas.find(({ typeName }) => any.typeUrl.endsWith(`/${typeName}`));
        const message = schema && anyUnpack(any, schema);
        return [
          schema?.typeName ?? any.typeUrl,
          { ...message } as Record<string, unknown>,
        ] as const;
      });
      resolve({
        code: grpc.status[code] ?? String(code),
        text,
        response,
        header,
        trailer,
        details,
        status: status && { code: status.code, message: status.message },
        reason: details[0]?.[1].reason,
        elapsedMs: performance.now() - startMs,
      });
    });
    return { answer: promise, cancel: () => call.cancel() };
  }

  /** One unary call to its end. */
  call<Input extends DescMessage, Output extends DescMessage>(
    method: Method<Input, Output>,
    request: MessageInitShape<Input> | Buffer,
    options?: RawOptions,
  ): Promise<Answer<Output>> {
    return this.start(method, request, options).answer;
  }
}

/** Sends bytes as they are, below any gRPC client, and reads the status that comes back at once. */
export const sendBytes = async (
  port: number,
  path: string,
  bytes: Buffer,
  headers: Readonly<Record<string, string>>,
): Promise<string> => {
  const session = http2.connect(`http://127.0.0.1:${port}`);
  try {
    const stream = session.request({
      ":method": "POST",
      ":path": path,
      "content-type": "application/grpc",
      te: "trailers",
      ...headers,
    });
    stream.end(bytes);
    const [answer] = await once(stream, "response");
    return grpc.status[Number(answer["grpc-status"])] ?? "";
  } finally {
    session.destroy();
  }
};

/** A message as it travels: a flag that says whether it is compressed, its length, its bytes. */
export const frame = (message: Uint8Array, compressed = false): Buffer => {
  const head = Buffer.alloc(5);
  head.writeUInt8(compressed ? 1 : 0);
  head.writeUInt32BE(message.length, 1);
  return Buffer.concat([head, message]);
};

/** What the log says of one call. */
export const loggedAs = async (
  { logs }: Harness,
  correlationId: string,
): Promise<Record<string, unknown>> => {
  const lines = () => logs.filter((line) => line.correlation_id === correlationId);
  await expect.poll(() => lines().length).toBe(1);
  return lines()[0] ?? {};
};
