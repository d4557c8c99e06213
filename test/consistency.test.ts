import { once } from "node:events";
import { type AddressInfo, createServer, type Socket } from "node:net";
import { createClient } from "@connectrpc/connect";
import { beforeAll, describe, expect, test } from "vitest";
import {
  ConsistencyTokens,
  later,
  lsnText,
  nowhere,
  positionOf,
} from "../src/database/consistency.ts";
import { tokenKey } from "../src/database/page.ts";
import { type Callers, refusal, startHarness, type Tenant, useHarness } from "./harness.ts";
import { makeWorld, type World } from "./samples/world.ts";
import { callersFor, methods, requestOf, type Way, ways } from "./samples.ts";

const harness = useHarness();

const field = "roster-consistency-token";
const secret = "a secret of at least thirty-two characters";
let world: World;
let tenant: Tenant;

beforeAll(async () => {
  world = await makeWorld(harness.current);
  tenant = await harness.current.tenant();
});

/** The token that the answer to a call brings, of a stream at its end. */
const tokenOf = async (
  { transport }: Callers,
  { method }: Pick<Way, "method">,
  request: object,
  headers: Record<string, string> = {},
): Promise<string | null> => {
  let token: string | null = null;
  const client = createClient(method.parent, transport) as unknown as Record<
    string,
    (request: object, options: object) => Promise<object> | AsyncIterable<object>
  >;
  const onTrailer = (trailer: Headers): void => {
    token = trailer.get(field);
  };
  const answer = client[method.localName]?.(request, { headers, onTrailer });
  if (answer && Symbol.asyncIterator in answer) for await (const _message of answer);
  else await answer;
  return token;
};

// What watches comes to no end, and its errors bring no token.
const firsts = ways.filter(({ name }) => methods.has(name) && !name.includes(".Watch"));
const wayOf = (name: string) => ways.find((way) => way.name === name) as Way;
const getOrg = wayOf("OrgService.GetOrg");

/** A world that the sample may take apart. */
const worldFor = async ({ name }: Way): Promise<World> =>
  name === "OrgService.DeleteOrg" ? makeWorld(harness.current) : world;

describe("A consistency token", () => {
  test.each(firsts.map((way) => [way.name, way] as const))(
    "comes with each answer, and goes with each request: %s",
    async (_name, way) => {
      const its = await worldFor(way);
      const callers = await callersFor(harness.current, way, its);
      const before = await tokenOf(tenant.owner, getOrg, { orgId: tenant.orgId });
      const headers = { [field]: before ?? "" };
      const token = await tokenOf(callers, way, await requestOf(way, its), headers);
      expect(token).toMatch(/^[\w-]{38,}$/);
    },
  );

  const asked = (token: string) => ({ headers: { [field]: token } });
  const invalid = {
    code: "InvalidArgument",
    reason: "CONSISTENCY_TOKEN_INVALID",
    metadata: { field },
    fields: [field],
  };

  test("comes with the answer to a mutation that is sent again", async () => {
    const way = wayOf("TeamService.CreateTeam");
    const requestId = crypto.randomUUID();
    const request = { team: { orgId: tenant.orgId, name: "Twice" }, requestId };
    for (let i = 0; i < 2; i++)
      expect(await tokenOf(tenant.owner, way, request)).toMatch(/^[\w-]{38,}$/);
  });

  test("INVALID_ARGUMENT when it is made up, touched, doubled, or of another kind", async () => {
    const { orgId, owner } = tenant;
    const token = (await tokenOf(owner, getOrg, { orgId })) ?? "";
    const { nextPageToken } = await owner.orgs.listOrgMembers({ orgId, pageSize: 1 });
    const other = new ConsistencyTokens(tokenKey(`${secret}!`, "consistency"));
    const touched = [...token].map((letter, i) =>
      [token.slice(0, i), letter === "A" ? "B" : "A", token.slice(i + 1)].join(""),
    );
    const bad = ["", "x", "0/16B3748", `${token}A`, token.slice(0, -1), `${token}, ${token}`];
    for (const forged of [...bad, ...touched, nextPageToken, other.seal(nowhere)])
      expect(await refusal(owner.orgs.getOrg({ orgId }, asked(forged)))).toMatchObject(invalid);
    const change = owner.orgs.updateOrg({ org: { id: orgId, name: "N" } }, asked("x"));
    expect(await refusal(change)).toMatchObject(invalid);
    await owner.orgs.getOrg({ orgId }, asked(token));
  });

  test("says nothing to who holds it, and is the same for all processes with one secret", () => {
    const [one, two] = [1, 2].map(() => new ConsistencyTokens(tokenKey(secret, "consistency")));
    const position = positionOf("7711763805293612444-0000000A 1F/1EDC1A8");
    const token = one?.seal(position) ?? "";
    expect(Buffer.from(token, "base64url").toString("latin1")).not.toMatch(/77117638|1EDC1A8/);
    expect(two?.open(token)).toEqual(position);
    expect(one?.open(token)).toEqual(position);
    expect(two?.open(one?.seal(nowhere) ?? "")).toBe(nowhere);
  });
});

test("A standby that says nothing delays few reads, and none beyond a part of its deadline", async () => {
  const sockets: Socket[] = [];
  const silent = createServer((socket) => sockets.push(socket)).listen(0, "127.0.0.1");
  await once(silent, "listening");
  const replica = `postgres://roster_app@127.0.0.1:${(silent.address() as AddressInfo).port}/roster`;
  const { app, directory } = harness.current.urls;
  const database = { app, directory, worker: undefined, replica };
  const its = await startHarness({ database });
  try {
    const { orgId, ownerId } = tenant;
    const { orgs } = await its.as(ownerId);
    let slow = 0;
    const begin = performance.now();
    for (let i = 0; i < 40; i++) {
      const start = performance.now();
      await orgs.getOrg({ orgId }, { timeoutMs: 2_400 });
      if (performance.now() - start > 250) slow++;
    }
    expect(sockets.length).toBeGreaterThan(0);
    expect(slow).toBeGreaterThan(0);
    // A part of the deadline is 600 ms, which forty reads would all have waited.
    expect(performance.now() - begin).toBeLessThan(9_000);
  } finally {
    silent.close();
    for (const socket of sockets) socket.destroy();
    await its.stop();
  }
});

describe("A position", () => {
  test("is read and written as PostgreSQL has it, and nowhere when it is not known", () => {
    for (const lsn of ["0/0", "0/1EDC1A8", "1F/0", "FFFFFFFF/FFFFFFFF"])
      expect(lsnText(positionOf(`1-00000001 ${lsn}`))).toBe(lsn);
    for (const unknown of [null, undefined, "", "1-00000001"])
      expect(positionOf(unknown)).toBe(nowhere);
  });

  test("lies behind another by its number, and by none of another history", () => {
    const [low, high] = [positionOf("1-00000001 0/FFFFFFFF"), positionOf("1-00000001 1/0")];
    expect([later(low, high), later(high, low)]).toEqual([high, high]);
    const others = [positionOf("2-00000001 0/1"), positionOf("1-00000002 0/1"), nowhere];
    for (const other of others) expect(later(low, other)).toBe(nowhere);
  });
});
