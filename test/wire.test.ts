import { randomUUID } from "node:crypto";
import { gzipSync } from "node:zlib";
import grpc from "@grpc/grpc-js";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { OrgService } from "../src/gen/roster/v1/org_service_pb.ts";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { slug, tokenFor, useHarness } from "./harness.ts";
import { type Answer, frame, loggedAs, RawClient, sendBytes } from "./raw-client.ts";

const harness = useHarness();

let client: RawClient;
beforeAll(() => {
  client = new RawClient(harness.current.server.port);
});
afterAll(() => client.close());

const { getTeam, createTeam, updateTeam, listTeams, addTeamMember } = TeamService.method;
const { getUser, getCaller, createUser } = UserService.method;
const { createOrg, getOrg, removeOrgMember } = OrgService.method;

const uuidPattern = /^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$/;

/** Where the correlation id came back: at the head of an answer, at the end of a refusal. */
const echoed = ({ header, trailer }: Answer): unknown[] => [
  ...header.get("x-request-id"),
  ...trailer.get("x-request-id"),
];

const typesOf = ({ details }: Answer): string[] =>
  details.map(([type]) => type.replace("google.rpc.", ""));

describe("an answer", () => {
  test("OK carries the message, no details, and the correlation id at its head", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const made = await client.call(
      createTeam,
      { team: { orgId, name: "Crew" } },
      { token: owner.token, metadata: { "x-request-id": "abc.123" } },
    );
    expect(made).toMatchObject({ code: "OK", text: "OK", details: [] });
    expect(made.response?.team).toMatchObject({ orgId, name: "Crew" });
    expect(echoed(made)).toEqual(["abc.123"]);
  });

  test("gets a correlation id when none is sent, or none that can be printed in one line", async () => {
    const token = await tokenFor("service:some");
    const bad = ["", "two words", "é", "x".repeat(129)].map((id) => ({ "x-request-id": id }));
    // grpc-js refuses to send what is not ASCII.
    for (const metadata of [{}, ...bad.filter((m) => !m["x-request-id"].includes("é"))]) {
      const [id, ...more] = echoed(await client.call(getCaller, {}, { token, metadata }));
      expect(id).toMatch(uuidPattern);
      expect(more).toEqual([]);
    }
    const twice = { "x-request-id": ["one", "two"] };
    expect(echoed(await client.call(getCaller, {}, { token, metadata: twice }))[0]).toMatch(
      uuidPattern,
    );
  });
});

describe("a refusal", () => {
  test("says the same in grpc-status, grpc-message and grpc-status-details-bin", async () => {
    const teamId = randomUUID();
    const { orgId, owner } = await harness.current.tenant();
    const metadata = { "x-request-id": "r-1" };
    const refused = await client.call(getTeam, { orgId, teamId }, { token: owner.token, metadata });
    expect(refused.code).toBe("NOT_FOUND");
    expect(refused.text).toContain(teamId);
    expect(refused.status).toEqual({ code: grpc.status.NOT_FOUND, message: refused.text });
    expect(echoed(refused)).toEqual(["r-1"]);
  });

  test("names domain, reason and every variable in ErrorInfo, ahead of what else there is to say", async () => {
    const { orgId, ownerId, owner, member, memberId } = await harness.current.tenant();
    const { token } = owner;
    const teamId = randomUUID();
    const ops = harness.current.ops.token;
    const refusals: [string, string, object, string[], Promise<Answer>][] = [
      ["UNAUTHENTICATED", "CREDENTIAL_MISSING", {}, [], client.call(getTeam, {})],
      [
        "PERMISSION_DENIED",
        "PERMISSION_MISSING",
        { permission: "teams.create" },
        [],
        client.call(createTeam, { team: { orgId, name: "X" } }, { token: member.token }),
      ],
      [
        "NOT_FOUND",
        "TEAM_NOT_FOUND",
        { team_id: teamId },
        ["ResourceInfo"],
        client.call(getTeam, { orgId, teamId }, { token }),
      ],
      [
        "INVALID_ARGUMENT",
        "FIELD_INVALID",
        { field: "page_size", rule: expect.any(String) },
        ["BadRequest"],
        client.call(listTeams, { orgId, pageSize: -1 }, { token }),
      ],
      [
        "INVALID_ARGUMENT",
        "UPDATE_MASK_INVALID",
        { field: "update_mask", path: "etag" },
        ["BadRequest"],
        client.call(
          updateTeam,
          { team: { orgId, id: teamId }, updateMask: { paths: ["etag"] } },
          { token },
        ),
      ],
      [
        "ALREADY_EXISTS",
        "ORG_MEMBER_EXISTS",
        { field: "user_id" },
        [],
        client.call(OrgService.method.addOrgMember, { orgId, userId: memberId }, { token }),
      ],
      [
        "FAILED_PRECONDITION",
        "LAST_OWNER",
        { org_ids: orgId },
        ["PreconditionFailure"],
        client.call(removeOrgMember, { orgId, userId: ownerId }, { token }),
      ],
      [
        "INVALID_ARGUMENT",
        "SLUG_RESERVED",
        { field: "org.slug" },
        ["BadRequest"],
        client.call(
          createOrg,
          { org: { name: "X", slug: "admin" }, ownerUserId: ownerId },
          { token: ops },
        ),
      ],
    ];
    for (const [code, reason, metadata, more, call] of refusals) {
      const refused = await call;
      expect({ code: refused.code, types: typesOf(refused) }).toEqual({
        code,
        types: ["ErrorInfo", ...more],
      });
      expect(refused.details[0]?.[1]).toMatchObject({ domain: "roster", reason, metadata });
    }
  });

  test("names in BadRequest each field by its path, in ResourceInfo and PreconditionFailure the id", async () => {
    const { orgId, ownerId, owner } = await harness.current.tenant();
    const { token } = owner;
    const bad = await client.call(addTeamMember, { orgId, teamId: "x", userId: "y" }, { token });
    expect(bad.details[1]?.[1]).toMatchObject({
      fieldViolations: [
        { field: "team_id", reason: "FIELD_INVALID" },
        { field: "user_id", reason: "FIELD_INVALID" },
      ],
    });
    const teamId = randomUUID();
    const absent = await client.call(getTeam, { orgId, teamId }, { token });
    expect(absent.details[1]?.[1]).toMatchObject({ resourceType: "team", resourceName: teamId });
    const last = await client.call(removeOrgMember, { orgId, userId: ownerId }, { token });
    expect(last.details[1]?.[1]).toMatchObject({
      violations: [{ type: "LAST_OWNER", subject: orgId }],
    });
  });

  test("stays small enough for headers however much is wrong", async () => {
    const token = harness.current.ops.token;
    const labels = Object.fromEntries(
      Array.from({ length: 1_000 }, (_, index) => [`${index} ${"é".repeat(200)}`, "x"]),
    );
    const many = await client.call(createUser, { user: { labels } }, { token });
    const { orgId, owner } = await harness.current.tenant();
    const long = await client.call(
      updateTeam,
      { team: { orgId, id: randomUUID() }, updateMask: { paths: ["\u{1f600}".repeat(20_000)] } },
      { token: owner.token },
    );
    for (const refused of [many, long]) {
      expect(refused.code).toBe("INVALID_ARGUMENT");
      expect(typesOf(refused)).toEqual(["ErrorInfo", "BadRequest"]);
      const bytes = JSON.stringify(refused.trailer.toHttp2Headers()).length;
      expect(bytes + encodeURI(refused.text).length).toBeLessThan(8 * 1024);
    }
  });
});

describe("a request that is none", () => {
  const token = () => tokenFor("service:some", { scope: "teams.get" });

  test("INVALID_ARGUMENT for bytes that are no message, once the caller is known", async () => {
    const garbage = Buffer.from("ffffffffffff", "hex");
    const unknown = await client.call(getTeam, garbage);
    expect(unknown).toMatchObject({ code: "UNAUTHENTICATED", reason: "CREDENTIAL_MISSING" });
    const known = await client.call(getTeam, garbage, { token: await token() });
    expect(known).toMatchObject({ code: "INVALID_ARGUMENT", reason: "FIELD_INVALID" });
    expect(known.text).toContain("roster.v1.GetTeamRequest");
  });

  test("INVALID_ARGUMENT for text that is not UTF-8, and for NUL inside it", async () => {
    const { orgId, owner } = await harness.current.tenant();
    // Field 1, a length of 2, half a surrogate pair's encoding.
    const broken = await client.call(getTeam, Buffer.from("0a02eda0", "hex"), {
      token: await token(),
    });
    expect(broken).toMatchObject({ code: "INVALID_ARGUMENT", reason: "FIELD_INVALID" });
    const nul = await client.call(
      createTeam,
      { team: { orgId, name: "a\0b" } },
      { token: owner.token },
    );
    expect(nul).toMatchObject({ code: "INVALID_ARGUMENT", reason: "FIELD_INVALID" });
  });

  test("RESOURCE_EXHAUSTED above 1 MiB, packed or not, and the next call is served", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const description = "x".repeat(1024 * 1024);
    const request = { team: { orgId, name: "Big", description } };
    const big = await client.call(createTeam, request, { token: owner.token });
    expect(big.code).toBe("RESOURCE_EXHAUSTED");
    const bomb = frame(gzipSync(Buffer.alloc(64 * 1024 * 1024)), true);
    const { port } = harness.current.server;
    const path = "/roster.v1.TeamService/CreateTeam";
    expect(await sendBytes(port, path, bomb, { "grpc-encoding": "gzip" })).toBe(
      "RESOURCE_EXHAUSTED",
    );
    const fits = { team: { orgId, name: "Big", description: "x".repeat(900 * 1024) } };
    const judged = await client.call(createTeam, fits, { token: owner.token });
    expect(judged).toMatchObject({ code: "INVALID_ARGUMENT", reason: "FIELD_INVALID" });
  });

  test("UNIMPLEMENTED for a method and for a service that are not there", async () => {
    const fakes = [
      { ...getTeam, name: "BurnTeam" },
      { ...getTeam, parent: { ...TeamService, typeName: "roster.v2.TeamService" } },
    ];
    for (const fake of fakes) {
      const refused = await client.call(fake as unknown as typeof getTeam, {});
      expect(refused.code).toBe("UNIMPLEMENTED");
    }
  });
});

describe("metadata roster-org-id", () => {
  test("selects the org of a credential that is pinned to none", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const metadata = { "roster-org-id": orgId.toUpperCase() };
    const got = await client.call(getOrg, {}, { token: owner.token, metadata });
    expect(got.response?.org?.id).toBe(orgId);
  });

  test("INVALID_ARGUMENT ORG_MALFORMED when it is no UUID or comes twice", async () => {
    const { orgId, owner } = await harness.current.tenant();
    for (const value of ["", "acme", `${orgId} ${orgId}`, [orgId, orgId], [orgId, randomUUID()]]) {
      const metadata = { "roster-org-id": value };
      const refused = await client.call(getOrg, { orgId }, { token: owner.token, metadata });
      expect(refused, JSON.stringify(value)).toMatchObject({
        code: "INVALID_ARGUMENT",
        reason: "ORG_MALFORMED",
      });
    }
  });

  test("INVALID_ARGUMENT ORG_MISMATCH when the request names another org", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const metadata = { "roster-org-id": randomUUID() };
    const refused = await client.call(getOrg, { orgId }, { token: owner.token, metadata });
    expect(refused).toMatchObject({ code: "INVALID_ARGUMENT", reason: "ORG_MISMATCH" });
  });

  test("narrows an operator's call to the org", async () => {
    const { orgId, ownerId, outsiderId } = await harness.current.tenant();
    const { token } = harness.current.ops;
    const metadata = { "roster-org-id": orgId };
    const outside = await client.call(getUser, { userId: outsiderId }, { token });
    expect(outside.code).toBe("OK");
    const inside = await client.call(getUser, { userId: outsiderId }, { token, metadata });
    expect(inside).toMatchObject({ code: "NOT_FOUND", reason: "USER_NOT_FOUND" });
    const member = await client.call(getUser, { userId: ownerId }, { token, metadata });
    expect(member.code).toBe("OK");
  });

  test("PERMISSION_DENIED for an org that the caller is not in, whatever the credential is pinned to", async () => {
    const [mine, other] = [await harness.current.tenant(), await harness.current.tenant()];
    const metadata = { "roster-org-id": other.orgId };
    for (const token of [mine.owner.token, await tokenFor(mine.ownerId, { org: mine.orgId })]) {
      const refused = await client.call(getOrg, {}, { token, metadata });
      expect(refused).toMatchObject({ code: "PERMISSION_DENIED", reason: "ORG_NOT_ALLOWED" });
    }
  });
});

describe("the log", () => {
  test("has one line for each RPC, with ids and outcome and nothing personal", async () => {
    const { current } = harness;
    const [name, email] = [`Canary ${slug()}`, `${slug()}@canary.example`];
    const token = current.ops.token;
    const [first, second, third] = [randomUUID(), randomUUID(), randomUUID()];
    const user = { email, name, labels: { canary: name }, externalId: slug() };
    const send = (id: string, method: typeof createUser, request: object) =>
      client.call(method, request, { token, metadata: { "x-request-id": id } });
    await send(first, createUser, { user, profile: { bio: `bio of ${name}` } });
    await send(second, createUser, { user });
    await send(third, createUser, { user: { ...user, email: `not an address ${email}` } });
    expect(await loggedAs(current, first)).toMatchObject({
      method: "roster.v1.UserService/CreateUser",
      code: "OK",
      duration_ms: expect.any(Number),
      caller: "service:ops",
    });
    expect(await loggedAs(current, second)).toMatchObject({
      code: "ALREADY_EXISTS",
      reason: "EMAIL_TAKEN",
    });
    expect(await loggedAs(current, third)).toMatchObject({
      code: "INVALID_ARGUMENT",
      reason: "FIELD_INVALID",
    });
    const all = JSON.stringify(current.logs);
    expect(all).not.toContain(name);
    expect(all).not.toContain(email);
    expect(all).not.toContain(user.externalId);
    expect(all).not.toContain(token);
  });
});
