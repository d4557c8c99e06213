/** Commands of the model: a call, or a few at the same instant, and what there can be after them. */
import { isDeepStrictEqual } from "node:util";
import fc from "fast-check";
import { expect } from "vitest";
import { crowds } from "./crowds.ts";
import { invitationCalls, timePasses } from "./invitations.ts";
import { updateOrgLimits } from "./limits.ts";
import { lookingCalls, viewsOf } from "./lists.ts";
import { lifeCalls } from "./lives.ts";
import { duels, memberCalls } from "./members.ts";
import type { Draw, Operation } from "./operation.ts";
import type { Real } from "./real.ts";
import { roleCalls } from "./roles.ts";
import { teamCalls } from "./teams.ts";
import { usurpers } from "./usurpers.ts";
import { Anew, type Answer, Refused, type World } from "./world.ts";

/** The worlds that there may be: several where calls of one instant could have come in several orders. */
export interface Model {
  worlds: readonly World[];
}

/** A world, and what calls were answered on the way to it, in the order in which they were drawn. */
interface Course {
  readonly world: World;
  readonly answers: readonly Answer[];
}

/**
 * What an operation makes of a world. One that is refused leaves it as it was.
 *
 * @param before what there was when the operation came in
 */
const after = (world: World, operation: Operation, before = world): readonly [World, Answer] => {
  const next = structuredClone(world);
  try {
    const answer = operation.predict(before === world ? next : { ...next, before });
    return [next, answer];
  } catch (error) {
    if (error instanceof Refused) return [world, error.answer];
    if (error instanceof Anew) return after(world, operation);
    throw error;
  }
};

const ordersOf = (places: readonly number[]): number[][] =>
  places.length < 2
    ? [[...places]]
    : places.flatMap((first) =>
        ordersOf(places.filter((place) => place !== first)).map((rest) => [first, ...rest]),
      );

/**
 * Every course that operations can take: one after the other in whatever order, each let in by what there was at some
 * moment until then.
 */
const coursesOf = (world: World, operations: readonly Operation[]): Course[] => {
  const follow = (
    past: readonly World[],
    order: readonly number[],
    answers: Answer[],
  ): Course[] => {
    const now = past.at(-1) as World;
    const [place, ...rest] = order;
    if (place === undefined) return [{ world: now, answers }];
    return past.flatMap((before) => {
      const [next, answer] = after(now, operations[place] as Operation, before);
      const known = next === now ? past : [...past, next];
      return follow(known, rest, Object.assign([...answers], { [place]: answer }));
    });
  };
  return ordersOf([...operations.keys()]).flatMap((order) => follow([world], order, []));
};

/**
 * Whether an answer to one of calls at the same instant is the one foretold. Whose membership ends between the two
 * looks of `enter`, at the membership and then at roles in teams, is told what they lack and not that they are out.
 */
const isForetold = (answer: Answer | undefined, foretold: Answer | undefined): boolean =>
  isDeepStrictEqual(answer, foretold) ||
  (isDeepStrictEqual(answer, { refused: "PERMISSION_MISSING" }) &&
    isDeepStrictEqual(foretold, { refused: "ORG_NOT_ALLOWED" }));

/** Sends operations at the same instant, and keeps the worlds that their answers leave possible. */
const perform = async (
  model: Model,
  real: Real,
  draws: readonly Draw[],
  held = false,
): Promise<void> => {
  const operations = draws.map(({ aim }) =>
    aim(model.worlds[0] as World, String(real.operations++).padStart(3, "0")),
  );
  const sent = operations.map(
    ({ rpc, by, send }, connection) =>
      () =>
        real.call(rpc, by, connection, (clients, options) => send(real, clients, options)),
  );
  const answers = await (held ? real.together(sent) : Promise.all(sent.map((call) => call())));
  const courses = model.worlds.flatMap((world) => coursesOf(world, operations));
  const possible = courses.filter(({ answers: foretold }) =>
    operations.length === 1
      ? isDeepStrictEqual(foretold, answers)
      : answers.every((answer, place) => isForetold(answer, foretold[place])),
  );
  if (possible.length === 0) {
    const what = draws.map(({ text }) => text).join(" together with ");
    const foretold = new Set(courses.map((course) => JSON.stringify(course.answers)));
    expect.fail(`${what} gave ${JSON.stringify(answers)} and not ${[...foretold].join(" or ")}`);
  }
  model.worlds = possible
    .map(({ world }) => world)
    .filter((world, place, all) => all.findIndex((w) => isDeepStrictEqual(w, world)) === place);
};

/** One or more calls at the same instant. */
class Step implements fc.AsyncCommand<Model, Real> {
  private readonly draws: readonly Draw[];
  private readonly held: boolean;

  /** @param held whether each stops after its first change until all have come so far */
  constructor(draws: readonly Draw[], held = false) {
    this.draws = draws;
    this.held = held;
  }

  check(): boolean {
    return true;
  }

  run(model: Model, real: Real): Promise<void> {
    return perform(model, real, this.draws, this.held);
  }

  toString(): string {
    return this.draws.map(({ text }) => text).join(this.held ? " held with " : " together with ");
  }
}

const mutations = fc.oneof(
  ...memberCalls,
  ...roleCalls,
  ...invitationCalls,
  ...lifeCalls,
  updateOrgLimits,
  updateOrgLimits,
);
const ofTeams = fc.oneof(...teamCalls);
const anything = fc.oneof({ weight: 3, arbitrary: mutations }, { weight: 1, arbitrary: ofTeams });
const single = fc.oneof(
  { weight: 10, arbitrary: mutations },
  { weight: 6, arbitrary: ofTeams },
  { weight: 2, arbitrary: fc.oneof(...lookingCalls) },
  { weight: 1, arbitrary: timePasses },
);

/** What comes at the same instant: anything, or what is about the same few rights, or the same room. */
const instant = fc.oneof(
  { weight: 3, arbitrary: fc.array(anything, { minLength: 2, maxLength: 3 }) },
  {
    weight: 2,
    arbitrary: fc.array(fc.oneof(...memberCalls, ...roleCalls), { minLength: 2, maxLength: 3 }),
  },
  { weight: 2, arbitrary: duels },
  { weight: 2, arbitrary: crowds },
  { weight: 3, arbitrary: fc.array(ofTeams, { minLength: 2, maxLength: 3 }) },
  { weight: 2, arbitrary: usurpers },
);

const inTurn = single.map((draw) => new Step([draw]));

/** What sequences are made of. Calls that look are not among those at once: they read as they go. */
export const steps = [
  inTurn,
  inTurn,
  inTurn,
  fc.tuple(instant, fc.boolean()).map(([draws, held]) => new Step(draws, held)),
];

/**
 * Compares all that there is with what there should be.
 *
 * @param share one view in so many is looked at, in each sequence others
 */
export const lookAround = async (model: Model, real: Real, share: number): Promise<void> => {
  const views = viewsOf(model.worlds[0] as World);
  const chosen = views.filter((_, place) => (place + real.operations) % share === 0);
  await Promise.all(chosen.map((view) => perform(model, real, [view])));
  expect(await real.faults()).toEqual([]);
  expect(await real.misreported()).toEqual([]);
};
