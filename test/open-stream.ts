/** A server stream as a grpc-js client reads it: a message at a time, so that a reader can be slow. */
import { once } from "node:events";
import {
  create,
  type DescMessage,
  type DescMethodServerStreaming,
  fromBinary,
  type MessageInitShape,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import grpc from "@grpc/grpc-js";
import { onTestFinished } from "vitest";
import { ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import { StatusSchema } from "../src/gen/google/rpc/status_pb.ts";
import type { RawOptions } from "./raw-client.ts";

/** How a stream ended. */
export interface Ending {
  /** Such as "OK". */
  readonly code: string;
  readonly reason: string;
  /** How many messages came in all. */
  readonly received: number;
  readonly trailer: grpc.Metadata;
  /** Undefined when the stream ended before its first message. */
  readonly header: grpc.Metadata | undefined;
}

/** Opens a stream over a connection of its own. */
export const openStream = <Input extends DescMessage, Output extends DescMessage>(
  port: number,
  method: DescMethodServerStreaming<Input, Output>,
  request: MessageInitShape<Input>,
  { token, metadata = {}, timeoutMs }: RawOptions = {},
) => {
  const client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
  const sent = new grpc.Metadata();
  if (token) sent.set("authorization", `Bearer ${token}`);
  for (const [name, values] of Object.entries(metadata))
    for (const value of [values].flat()) sent.add(name, value);
  const stream = client.makeServerStreamRequest(
    `/${method.parent.typeName}/${method.name}`,
    (message: MessageShape<Input>) => Buffer.from(toBinary(method.input, message)),
    (bytes: Buffer) => fromBinary(method.output, bytes),
    create(method.input, request),
    sent,
    timeoutMs === undefined ? {} : { deadline: Date.now() + timeoutMs },
  );
  onTestFinished(() => {
    stream.cancel();
    client.close();
  });
  let header: grpc.Metadata | undefined;
  let received = 0;
  const status = new Promise<grpc.StatusObject>((resolve) => stream.once("status", resolve));
  stream.once("metadata", (given) => {
    header = given;
  });
  // The status tells it already.
  stream.on("error", () => undefined);
  return {
    /** Reads one message and then no more, until asked again. */
    read: async (): Promise<MessageShape<Output>> => {
      for (;;) {
        const message: MessageShape<Output> | null = stream.read();
        if (message !== null) {
          received++;
          return message;
        }
        await once(stream, "readable");
      }
    },
    /** Reads what is left and says how it ended. */
    rest: async (): Promise<Ending> => {
      stream.on("data", () => received++);
      const { code, metadata: trailer } = await status;
      const [bytes] = trailer.get("grpc-status-details-bin");
      const [detail] = bytes ? fromBinary(StatusSchema, bytes as Buffer).details : [];
      const reason = detail ? fromBinary(ErrorInfoSchema, detail.value).reason : "";
      return { code: grpc.status[code] ?? "", reason, received, trailer, header };
    },
    cancel: () => stream.cancel(),
  };
};
