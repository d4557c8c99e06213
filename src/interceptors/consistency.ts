import type { Message } from "@bufbuild/protobuf";
import type { Interceptor } from "@connectrpc/connect";
import { keys } from "../context.ts";
import { type ConsistencyTokens, nowhere, Sight } from "../database/consistency.ts";
import { fail } from "../errors.ts";
import { through } from "./streams.ts";
import type { Sessions } from "./unit-of-work.ts";

/** Metadata of a request, and a trailer of each response. */
const field = "roster-consistency-token";

/**
 * Gives each response a token of what it has seen, a stream at its end. A call that comes with one sees at least that.
 */
export const consistency =
  ({ replica }: Sessions, tokens: ConsistencyTokens): Interceptor =>
  (next) =>
  async (request) => {
    const token = request.header.get(field);
    const asked = token === null ? undefined : tokens.open(token);
    if (token !== null && asked === undefined) throw fail("CONSISTENCY_TOKEN_INVALID", { field });
    const sight = replica && new Sight(asked);
    request.contextValues.set(keys.sight, sight);
    const response = await next(request);
    const tell = (): void =>
      response.trailer.set(field, tokens.seal(sight ? sight.reached : nowhere));
    if (response.stream) return through(response, (messages) => followed(messages, tell));
    tell();
    return response;
  };

async function* followed(
  messages: AsyncIterable<Message>,
  end: () => void,
): AsyncGenerator<Message> {
  yield* messages;
  end();
}
