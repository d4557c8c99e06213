import type { Message } from "@bufbuild/protobuf";
import type { StreamResponse } from "@connectrpc/connect";

/**
 * A streamed answer whose messages come through `flow`. Interceptors see a stream as a request with one message,
 * like any other, and an answer whose messages are made as they are read: what is thrown then, and the end, an
 * interceptor sees in here.
 */
export const through = (
  { service, method, header, trailer, message }: StreamResponse,
  flow: (messages: AsyncIterable<Message>) => AsyncIterable<Message>,
): StreamResponse => ({ stream: true, service, method, header, trailer, message: flow(message) });

/** Messages of which a failure becomes what `failing` throws. */
export async function* rethrowing(
  messages: AsyncIterable<Message>,
  failing: (error: unknown) => Promise<never> | never,
): AsyncGenerator<Message> {
  try {
    yield* messages;
  } catch (error) {
    await failing(error);
  }
}
