/** The gRPC port and every protocol of the HTTP port beside each other: by their answers nobody can tell them apart. */
import { randomUUID } from "node:crypto";
import { toJson } from "@bufbuild/protobuf";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
} from "@connectrpc/connect-node";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { OrgService } from "../src/gen/roster/v1/org_service_pb.ts";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { type AnyClient, ConnectClient, grpcClient } from "./connect-client.ts";
import { type Harness, startHarness, tokenFor, useHarness } from "./harness.ts";
import { type Answer, loggedAs, RawClient, type RawOptions } from "./raw-client.ts";

const harness = useHarness();
const { getTeam, createTeam, updateTeam, deleteTeam, listTeams, addTeamMember } =
  TeamService.method;
const { getUser, getCaller, createUser, exportUser } = UserService.method;
const { createOrg, getOrg, removeOrgMember, addOrgMember } = OrgService.method;

type Call = (client: AnyClient, options: RawOptions) => Promise<Answer>;

const toClose: { close(): void }[] = [];
afterAll(() => {
  for (const client of toClose) client.close();
});

/** A client of each protocol, the gRPC port's first. */
const clientsOf = ({ server }: Harness): ReadonlyMap<string, AnyClient> => {
  const baseUrl = `http://127.0.0.1:${server.httpPort}`;
  const plain = [grpcClient(server.port), grpcClient(server.httpPort ?? 0)] as const;
  toClose.push(...plain);
  const json = { baseUrl, httpVersion: "1.1", useBinaryFormat: false } as const;
  return new Map<string, AnyClient>([
    ["gRPC, its own port", plain[0]],
    ["gRPC", plain[1]],
    ["gRPC-Web", new ConnectClient(createGrpcWebTransport({ baseUrl, httpVersion: "1.1" }))],
    ["gRPC-Web, JSON", new ConnectClient(createGrpcWebTransport(json))],
    ["Connect", new ConnectClient(createConnectTransport({ baseUrl, httpVersion: "2" }))],
    ["Connect, JSON", new ConnectClient(createConnectTransport(json))],
    ["Connect, GET", new ConnectClient(createConnectTransport({ ...json, useHttpGet: true }))],
    ["gRPC, JSON", new ConnectClient(createGrpcTransport({ baseUrl, useBinaryFormat: false }))],
  ]);
};

let clients: ReadonlyMap<string, AnyClient>;
beforeAll(() => {
  clients = clientsOf(harness.current);
});

const uuidPattern = /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/;

/** All that a caller can see of an answer and that must not depend on the way it came. */
const seen = ({ code, text, details, header, trailer, response }: Answer) => ({
  code,
  // grpc-js says so of itself.
  text: code === "OK" ? "" : text,
  details,
  ids: [...header.get("x-request-id"), ...trailer.get("x-request-id")],
  tokens: trailer.get("roster-consistency-token").length,
  response,
});

/** Makes a call by every protocol, sees that all are answered alike, and gives that answer. */
const alike = async (call: Call, options: RawOptions = {}) => {
  const metadata = { "x-request-id": "one-for-all", ...options.metadata };
  const [first, ...others] = await Promise.all(
    [...clients].map(async ([name, client]) => ({
      name,
      ...seen(await call(client, { ...options, metadata })),
    })),
  );
  if (!first) throw new Error("no clients");
  for (const { name, ...answer } of others) expect({ name, ...answer }).toEqual({ ...first, name });
  return first;
};

describe("every protocol", () => {
  test("answers reads alike, at both ends of the answer", async () => {
    const { orgId, ownerId, owner } = await harness.current.tenant();
    const { token } = owner;
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Crew é" } });
    const got = await alike(
      (client, o) => client.call(getTeam, { orgId, teamId: team?.id ?? "" }, o),
      {
        token,
      },
    );
    expect(got).toMatchObject({ code: "OK", ids: ["one-for-all"], tokens: 1, response: { team } });
    await alike((client, o) => client.call(getUser, { userId: ownerId }, o), { token });
    await alike((client, o) => client.call(listTeams, { orgId, pageSize: 1 }, o), { token });
    const metadata = { "roster-org-id": orgId };
    expect(
      await alike((client, o) => client.call(getOrg, {}, o), { token, metadata }),
    ).toMatchObject({ response: { org: { id: orgId } } });
  });

  test("makes a correlation id where none is sent or a bad one", async () => {
    const token = await tokenFor("service:some");
    for (const metadata of [{}, { "x-request-id": "two words" }, { "x-request-id": ["a", "b"] }])
      for (const [name, client] of clients) {
        const answer = await client.call(getCaller, {}, { token, metadata });
        expect(seen(answer).ids, name).toEqual([expect.stringMatching(uuidPattern)]);
      }
  });

  test("answers alike what is sent again, and what is missing already", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { token } = owner;
    const request = { team: { orgId, name: "Once" }, requestId: randomUUID() };
    const made = await owner.teams.createTeam(request);
    const again = await alike((client, o) => client.call(createTeam, request, o), { token });
    expect(again).toMatchObject({ code: "OK", tokens: 1, response: { team: made.team } });
    const missing = { orgId, teamId: randomUUID(), allowMissing: true };
    const gone = await alike((client, o) => client.call(deleteTeam, missing, o), { token });
    expect(gone).toMatchObject({ code: "OK", ids: ["one-for-all"], response: {} });
    expect((await owner.teams.listTeams({ orgId })).teams).toHaveLength(1);
  });

  test("refuses alike, with the same details", async () => {
    const [mine, other] = [await harness.current.tenant(), await harness.current.tenant()];
    const { orgId, ownerId, owner, member, memberId } = mine;
    const { token } = owner;
    const ops = { token: harness.current.ops.token };
    const teamId = randomUUID();
    const twice = { "roster-org-id": [orgId, orgId] };
    const long = "\u{1f600}".repeat(20_000);
    const labels = Object.fromEntries(
      Array.from({ length: 1_000 }, (_, index) => [`${index} ${"é".repeat(200)}`, "x"]),
    );
    const refusals: readonly [string, string, RawOptions, Call][] = [
      ["UNAUTHENTICATED", "CREDENTIAL_MISSING", {}, (c, o) => c.call(getTeam, {}, o)],
      ["UNAUTHENTICATED", "CREDENTIAL_INVALID", { token: "x" }, (c, o) => c.call(getTeam, {}, o)],
      [
        "UNAUTHENTICATED",
        "CREDENTIAL_EXPIRED",
        { token: await tokenFor(ownerId, { expires: Math.floor(Date.now() / 1000) - 90 }) },
        (c, o) => c.call(getTeam, {}, o),
      ],
      [
        "PERMISSION_DENIED",
        "PERMISSION_MISSING",
        { token: member.token },
        (c, o) => c.call(createTeam, { team: { orgId, name: "X" } }, o),
      ],
      ["PERMISSION_DENIED", "ORG_NOT_ALLOWED", { token }, (c, o) => c.call(getOrg, other, o)],
      ["NOT_FOUND", "TEAM_NOT_FOUND", { token }, (c, o) => c.call(getTeam, { orgId, teamId }, o)],
      [
        "INVALID_ARGUMENT",
        "ORG_MALFORMED",
        { token, metadata: twice },
        (c, o) => c.call(getOrg, { orgId }, o),
      ],
      [
        "INVALID_ARGUMENT",
        "CONSISTENCY_TOKEN_INVALID",
        { token, metadata: { "roster-consistency-token": "x" } },
        (c, o) => c.call(getOrg, { orgId }, o),
      ],
      [
        "INVALID_ARGUMENT",
        "FIELD_INVALID",
        { token },
        (c, o) => c.call(addTeamMember, { orgId, teamId: "x", userId: "y" }, o),
      ],
      [
        "INVALID_ARGUMENT",
        "FIELD_INVALID",
        ops,
        (c, o) => c.call(createUser, { user: { labels } }, o),
      ],
      [
        "INVALID_ARGUMENT",
        "FILTER_INVALID",
        { token },
        (c, o) => c.call(listTeams, { orgId, filter: `name = ${long.slice(0, 900)} ?` }, o),
      ],
      [
        "ALREADY_EXISTS",
        "ORG_MEMBER_EXISTS",
        { token },
        (c, o) => c.call(addOrgMember, { orgId, userId: memberId }, o),
      ],
      [
        "FAILED_PRECONDITION",
        "LAST_OWNER",
        { token },
        (c, o) => c.call(removeOrgMember, { orgId, userId: ownerId }, o),
      ],
      [
        "INVALID_ARGUMENT",
        "SLUG_RESERVED",
        ops,
        (c, o) => c.call(createOrg, { org: { name: "X", slug: "admin" }, ownerUserId: ownerId }, o),
      ],
    ];
    for (const [code, reason, options, call] of refusals) {
      const refused = await alike(call, options);
      expect(refused).toMatchObject({ code, ids: ["one-for-all"], tokens: 0 });
      expect(refused.details[0]).toMatchObject(["google.rpc.ErrorInfo", { reason }]);
    }
  });

  test("UNIMPLEMENTED for a method and for a service that are not there", async () => {
    const fakes = [
      { ...getTeam, name: "BurnTeam" },
      { ...getTeam, parent: { ...TeamService, typeName: "roster.v2.TeamService" } },
    ] as unknown as (typeof getTeam)[];
    for (const fake of fakes)
      for (const [name, client] of clients) {
        const { code } = await client.call(fake, {});
        expect({ name, code }).toEqual({ name, code: "UNIMPLEMENTED" });
      }
  });

  test("INVALID_ARGUMENT for bytes that are no message, once the caller is known", async () => {
    const { server, ops } = harness.current;
    const garbage = Buffer.from("ffffffffffff", "hex");
    const [first, second] = [new RawClient(server.port), new RawClient(server.httpPort ?? 0)];
    toClose.push(first, second);
    for (const [reason, token] of [
      ["CREDENTIAL_MISSING", ""],
      ["FIELD_INVALID", ops.token],
    ] as const) {
      const options = { token, metadata: { "x-request-id": "garbage" } };
      const told = seen(await second.call(getTeam, garbage, options));
      expect(told).toEqual(seen(await first.call(getTeam, garbage, options)));
      expect(told).toMatchObject({
        ids: ["garbage"],
        details: [[expect.anything(), { reason }], ...told.details.slice(1)],
      });
    }
  });

  test("RESOURCE_EXHAUSTED above 1 MiB, and the next call is served", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { token } = owner;
    const sized = (bytes: number) => ({
      team: { orgId, name: "Big", description: "x".repeat(bytes) },
    });
    for (const [name, client] of clients) {
      const { code } = await client.call(createTeam, sized(1024 * 1024), { token });
      expect({ name, code }).toEqual({ name, code: "RESOURCE_EXHAUSTED" });
    }
    const judged = await alike((c, o) => c.call(createTeam, sized(900 * 1024), o), { token });
    expect(judged).toMatchObject({ code: "INVALID_ARGUMENT" });
  });
});

/** A team whose row somebody holds, and how many statements wait for it. */
const heldTeam = async () => {
  const { current } = harness;
  const { orgId, owner } = await current.tenant();
  const { team } = await owner.teams.createTeam({ team: { orgId, name: "Before" } });
  const holder = new pg.Client({ connectionString: current.urls.admin });
  await holder.connect();
  onTestFinished(() => holder.end());
  const hold = async (): Promise<void> => {
    await holder.query("begin");
    await holder.query("select from roster.teams where id = $1 for update", [team?.id]);
  };
  await hold();
  const release = () => holder.query("rollback");
  const waiting = async (): Promise<number> => {
    const { rowCount } = await current.admin.query(`
      select from pg_stat_activity where datname = current_database()
        and wait_event_type = 'Lock' and query like '%update roster.teams%'`);
    return rowCount ?? 0;
  };
  const request = { team: { orgId, id: team?.id ?? "", name: "After" } };
  return { request, token: owner.token, waiting, hold, release };
};

describe("time", () => {
  test("is over for all at the caller's deadline, and their SQL ends", async () => {
    const { request, token, waiting } = await heldTeam();
    for (const [name, client] of clients) {
      const id = randomUUID();
      const options = { token, timeoutMs: 400, metadata: { "x-request-id": id } };
      const { code } = await client.call(updateTeam, request, options);
      expect({ name, code }).toEqual({ name, code: "DEADLINE_EXCEEDED" });
      await expect.poll(waiting).toBe(0);
      // Connect's clients count from before they connect, and may hang up well before the server's clock strikes.
      const { code: logged } = await loggedAs(harness.current, id);
      expect(logged, name).toMatch(/^(DEADLINE_EXCEEDED|CANCELLED)$/);
    }
  });

  test("is the server's default where the caller names none, and its maximum where they name more", async () => {
    const { current } = harness;
    const hasty = await startHarness({
      database: current.urls,
      deadlines: { defaultMs: 300, maximumMs: 600, streamMs: 600 },
    });
    onTestFinished(() => hasty.stop());
    const { request, token } = await heldTeam();
    const clients = clientsOf(hasty);
    for (const [timeouts, least] of [
      [{}, 300],
      [{ timeoutMs: 60_000 }, 600],
    ] as const)
      await Promise.all(
        [...clients].map(async ([name, client]) => {
          const options = { token, ...timeouts };
          const { code, reason, elapsedMs } = await client.call(updateTeam, request, options);
          expect({ name, code, reason }).toEqual({
            name,
            code: "DEADLINE_EXCEEDED",
            reason: "DEADLINE_EXCEEDED",
          });
          expect(elapsedMs).toBeGreaterThan(least - 5);
        }),
      );
  });

  test("CANCELLED in the log for who hangs up, and nothing is written", async () => {
    const { request, token, waiting, hold, release } = await heldTeam();
    for (const [name, client] of clients) {
      const id = randomUUID();
      const call = client.start(updateTeam, request, { token, metadata: { "x-request-id": id } });
      await expect.poll(waiting, { interval: 20 }).toBe(1);
      call.cancel();
      expect({ name, code: (await call.answer).code }).toEqual({ name, code: "CANCELLED" });
      expect(await loggedAs(harness.current, id), name).toMatchObject({ code: "CANCELLED" });
      await release();
      await expect.poll(waiting, { interval: 20 }).toBe(0);
      await hold();
    }
    const { admin } = harness.current;
    const { rows } = await admin.query("select name from roster.teams where id = $1", [
      request.team.id,
    ]);
    expect(rows).toEqual([{ name: "Before" }]);
  });
});

test("every protocol streams alike", async () => {
  const { current } = harness;
  const userId = await current.user();
  const baseUrl = `http://127.0.0.1:${current.server.httpPort}`;
  const json = { baseUrl, httpVersion: "1.1", useBinaryFormat: false } as const;
  const transports = [
    createGrpcTransport({ baseUrl: `http://127.0.0.1:${current.server.port}` }),
    createGrpcTransport({ baseUrl }),
    createGrpcWebTransport(json),
    createConnectTransport(json),
    createConnectTransport({ baseUrl, httpVersion: "2" }),
  ];
  const answers = await Promise.all(
    transports.map(async (transport) => {
      async function* one() {
        yield { userId };
      }
      const headers = { authorization: `Bearer ${current.ops.token}`, "x-request-id": "s-1" };
      const answer = await transport.stream(exportUser, undefined, undefined, headers, one());
      const items: unknown[] = [];
      for await (const message of answer.message) items.push(toJson(exportUser.output, message));
      return {
        items,
        id: answer.header.get("x-request-id"),
        token: answer.trailer.has("roster-consistency-token"),
      };
    }),
  );
  expect(answers[0]).toMatchObject({ id: "s-1", token: true });
  expect(answers[0]?.items.length).toBeGreaterThan(3);
  for (const answer of answers) expect(answer).toEqual(answers[0]);
});
