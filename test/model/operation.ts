/** One call: what the model says of it, and how it is sent. */
import type { CallOptions } from "@connectrpc/connect";
import fc from "fast-check";
import type { Callers } from "../harness.ts";
import type { Real } from "./real.ts";
import { type Answer, type Call, platform, type World } from "./world.ts";

/** A call that knows what it is about. */
export interface Operation {
  readonly rpc: string;
  readonly by: number;
  /** Changes the world as the call should, or throws why it should be refused. */
  readonly predict: (world: World) => Answer;
  readonly send: (real: Real, clients: Callers, options: CallOptions) => Promise<Answer>;
}

/** A call as it was drawn. What it is about may depend on what there is when its turn comes. */
export interface Draw {
  readonly text: string;
  /** @param key names what the call makes */
  readonly aim: (world: World, key: string) => Operation;
}

/** An RPC, of which `Input` is drawn; `Aimed` is that with what it is about. */
interface Rpc<Input extends Call, Aimed extends Call> {
  readonly input: fc.Arbitrary<Input>;
  readonly aim: (input: Input, world: World, key: string) => Aimed;
  readonly predict: (world: World, aimed: Aimed) => Answer;
  readonly send: (
    real: Real,
    clients: Callers,
    aimed: Aimed,
    options: CallOptions,
  ) => Promise<Answer>;
}

/** One call of an RPC. */
const callOf = <Input extends Call, Aimed extends Call>(
  rpc: string,
  { aim, predict, send }: Rpc<Input, Aimed>,
  input: Input,
): Draw => ({
  text: `${rpc} ${JSON.stringify(input)}`,
  aim: (world, key) => {
    const aimed = aim(input, world, key);
    return {
      rpc,
      by: aimed.by,
      predict: (now) => predict(now, aimed),
      send: (real, clients, options) => send(real, clients, aimed, options),
    };
  },
});

/** Calls of an RPC, drawn or one `with` what a test wants. */
type Calls<Input> = fc.Arbitrary<Draw> & { readonly with: (input: Input) => Draw };

/** Calls of an RPC that look at the world before they know what they are about. */
export const aimedCalls = <Input extends Call, Aimed extends Call>(
  rpc: string,
  parts: Rpc<Input, Aimed>,
): Calls<Input> => {
  const one = (input: Input) => callOf(rpc, parts, input);
  return Object.assign(parts.input.map(one), { with: one });
};

/** Calls of an RPC that are about what was drawn. */
export const calls = <Input extends Call>(
  rpc: string,
  parts: Omit<Rpc<Input, Input>, "aim">,
): Calls<Input> => aimedCalls(rpc, { ...parts, aim: (input: Input) => input });

export const person = fc.nat(5);
/** Most calls are about the first org, so that they meet. */
const org = fc.constantFrom(0, 0, 0, 1);
/** Platform, and people who mostly are somebody in the first org. */
const by = fc.constantFrom(platform, 0, 1, 3, 2, 4, 5, platform, 0, 1, 3);
export const role = fc.constantFrom("member", "owner", "admin", "guest", "crew", "desk", "owner");
export const end = fc.constantFrom("never", "later", "over", "never");

/** One of the things that there are; without any, what is given for them. */
export const among = <Thing>(things: readonly Thing[], pick: number, none: Thing): Thing =>
  things[pick % things.length] ?? none;

/** A call with what else it takes. */
export const callWith = <More extends object>(
  more: { [Name in keyof More]: fc.Arbitrary<More[Name]> },
) => fc.record({ by, org, ...more }) as fc.Arbitrary<Call & More>;
