import fc from "fast-check";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { callersOf, useHarness } from "./harness.ts";
import { Real } from "./model/real.ts";
import { lookAround, type Model, steps } from "./model/step.ts";

/** `npm run test:model` sets how many; what a failure prints replays it. */
const { MODEL_SEQUENCES, MODEL_SEED, MODEL_PATH } = process.env;
const sequences = Number(MODEL_SEQUENCES ?? 100);
const seed = Number(MODEL_SEED ?? Date.now() % 1_000_000);
const [path = "", replayPath = ""] = MODEL_PATH?.split(" ") ?? [];
/** So many sequences run at once, each on orgs and people of its own. */
const lanes = MODEL_PATH ? 1 : 4;

// A busy machine may take its time; the pool outside orgs has a quarter of the connections.
const harness = useHarness({
  poolSize: 24,
  deadlines: { defaultMs: 30_000, maximumMs: 60_000, streamMs: 60_000 },
});

let admin: pg.Pool;
beforeAll(() => {
  admin = new pg.Pool({ connectionString: harness.current.urls.admin, max: lanes });
});
afterAll(() => admin.end());

/** How often calls ended how: the RPC, and that it succeeded or why it did not. */
const tally = new Map<string, number>();

/** Runs sequences one after the other, and says how one failed. */
const run = async (lane: number): Promise<string> => {
  const connections = Array.from({ length: 3 }, () => callersOf(harness.current.baseUrl, ""));
  const commands = fc.commands([...steps], {
    maxCommands: 18,
    size: "max",
    ...(replayPath ? { replayPath } : {}),
  });
  const property = fc.asyncProperty(commands, async (sequence) => {
    const real = new Real(harness.current, connections, admin, tally);
    const model: Model = { worlds: [await real.settle()] };
    await fc.asyncModelRun(() => ({ model, real }), sequence);
    await lookAround(model, real, MODEL_SEQUENCES ? 1 : 4);
  });
  const details = await fc.check(property, {
    seed: seed + lane,
    numRuns: Math.ceil(sequences / lanes),
    ...(path ? { path } : {}),
  });
  if (!details.failed) return "";
  const replay = /replayPath="([^"]*)"/.exec(String(details.counterexample))?.[1] ?? "";
  return [
    `after ${details.numRuns} sequences, made shorter ${details.numShrinks} times`,
    `MODEL_SEED=${details.seed} MODEL_PATH='${details.counterexamplePath} ${replay}' npm run test:model`,
    String(details.counterexample).replaceAll("],", "],\n"),
    String(details.errorInstance),
  ].join("\n");
};

describe(`A model of members, roles, invitations, teams and owners, from the seed ${seed}`, () => {
  test(
    `foretells ${sequences} sequences of calls, also of calls at the same instant`,
    async () => {
      const failures = await Promise.all(Array.from({ length: lanes }, (_, lane) => run(lane)));
      if (MODEL_SEQUENCES)
        console.log(
          [...tally]
            .map((line) => line.join(": "))
            .sort()
            .join("\n"),
        );
      expect(failures.filter(Boolean).join("\n\n")).toBe("");
    },
    60_000 + sequences * 500,
  );

  test.runIf(sequences >= 1_000)("succeeds with every kind of call, and is refused", () => {
    const endings = [...tally.keys()].map((ending) => ending.split(" "));
    const succeeded = new Set(endings.flatMap(([rpc, how]) => (how === "SUCCEEDED" ? [rpc] : [])));
    expect(endings.filter(([rpc]) => rpc !== "Get" && !succeeded.has(rpc))).toEqual([]);
    const reasons = endings.map(([, how]) => how);
    const ofRights = ["LAST_OWNER", "ROLE_IN_USE", "ROLE_NOT_GRANTABLE"];
    const ofTeams = ["TEAM_CYCLE", "TEAM_TOO_DEEP", "TEAM_NAME_TAKEN", "TEAM_HAS_CHILDREN"];
    const refusals = [...ofRights, ...ofTeams, "INVITATION_EXISTS", "ORG_LIMIT_REACHED"];
    expect(reasons).toEqual(expect.arrayContaining(refusals));
  });
});
