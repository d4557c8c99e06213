/** The protocols of the HTTP port by Connect's own clients, with answers as the plain grpc-js client gives them. */
import {
  type DescMessage,
  type DescMethodUnary,
  fromBinary,
  type MessageInitShape,
} from "@bufbuild/protobuf";
import { ConnectError, type Transport } from "@connectrpc/connect";
import grpc from "@grpc/grpc-js";
import { type Answer, detailSchemas, RawClient, type RawOptions } from "./raw-client.ts";

const metadataOf = (headers: Headers): grpc.Metadata => {
  const metadata = new grpc.Metadata();
  // A header on the wire may hold bytes that metadata may not.
  for (const [name, value] of headers) if (!name.endsWith("-bin")) metadata.set(name, value);
  return metadata;
};

export class ConnectClient {
  private readonly transport: Transport;

  constructor(transport: Transport) {
    this.transport = transport;
  }

  start<Input extends DescMessage, Output extends DescMessage>(
    method: DescMethodUnary<Input, Output>,
    request: MessageInitShape<Input>,
    options?: RawOptions,
  ): { readonly answer: Promise<Answer<Output>>; readonly cancel: () => void } {
    const hangUp = new AbortController();
    const answer = this.answer(method, request, hangUp.signal, options);
    return { answer, cancel: () => hangUp.abort() };
  }

  call<Input extends DescMessage, Output extends DescMessage>(
    method: DescMethodUnary<Input, Output>,
    request: MessageInitShape<Input>,
    options?: RawOptions,
  ): Promise<Answer<Output>> {
    return this.start(method, request, options).answer;
  }

  private async answer<Input extends DescMessage, Output extends DescMessage>(
    method: DescMethodUnary<Input, Output>,
    request: MessageInitShape<Input>,
    signal: AbortSignal,
    { token, metadata = {}, timeoutMs }: RawOptions = {},
  ): Promise<Answer<Output>> {
    const headers = new Headers();
    if (token) headers.set("authorization", `Bearer ${token}`);
    for (const [name, values] of Object.entries(metadata))
      for (const value of [values].flat()) headers.append(name, value);
    const startMs = performance.now();
    const told = { details: [], status: undefined, reason: undefined };
    try {
      const { message, header, trailer } = await this.transport.unary(
        method,
        signal,
        timeoutMs,
        headers,
        request,
      );
      return {
        ...told,
        code: "OK",
        text: "OK",
        response: message,
        header: metadataOf(header),
        trailer: metadataOf(trailer),
        elapsedMs: performance.now() - startMs,
      };
    } catch (thrown) {
      const error = ConnectError.from(thrown);
      const details = error.details.map((detail) => {
        if (!("type" in detail)) throw new Error("a detail that did not travel");
        const schema = detailSchemas.find(({ typeName }) => detail.type === typeName);
        const message = schema && fromBinary(schema, detail.value);
        return [detail.type, { ...message } as Record<string, unknown>] as const;
      });
      return {
        ...told,
        code: grpc.status[error.code] ?? "",
        text: error.rawMessage,
        response: undefined,
        header: new grpc.Metadata(),
        trailer: metadataOf(error.metadata),
        details,
        reason: details[0]?.[1].reason,
        elapsedMs: performance.now() - startMs,
      };
    }
  }
}

/** What both kinds of client can do. */
export type AnyClient = Pick<ConnectClient, "start" | "call">;

/** A plain gRPC client, of which nothing is asked but messages. */
export const grpcClient = (port: number): AnyClient & { close(): void } => new RawClient(port);
