import { randomUUID } from "node:crypto";
import { create, toBinary } from "@bufbuild/protobuf";
import grpc from "@grpc/grpc-js";
import { describe, expect, onTestFinished, test } from "vitest";
import { UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { removeExpiredKeys } from "../src/jobs/expired-keys.ts";
import { pipelined, refusal, slug, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { asAdmin, enter, useConnections, within } from "./sessions.ts";

const harness = useHarness();
const connect = useConnections();

const user = () => ({ email: `${randomUUID()}@example.com`, name: "Some One" });

/** How many rows there are for a condition. */
const count = async (from: string, ...values: unknown[]): Promise<number> =>
  (await harness.current.admin.query(`select count(*)::int as n from roster.${from}`, values))
    .rows[0].n;

describe("A mutation with a request_id", () => {
  test("is done once and answered alike, however often it is sent", async () => {
    const { users } = harness.current.ops;
    const request = {
      user: { ...user(), labels: { b: "2", a: "1", 7: "seven" } },
      profile: { settings: { z: [1, { y: null }], a: "é" } },
      requestId: randomUUID(),
    };
    const first = await users.createUser(request);
    for (let i = 0; i < 3; i++) expect(await users.createUser(request)).toEqual(first);
    expect(await count("users where email = $1", request.user.email)).toBe(1);
    expect(await count("audit_changes where resource_id = $1 and not copied", first.user?.id)).toBe(
      1,
    );
  });

  test("is answered with the very bytes of the first answer", async () => {
    const { server, ops } = harness.current;
    const client = new grpc.Client(`127.0.0.1:${server.port}`, grpc.credentials.createInsecure());
    onTestFinished(() => client.close());
    const method = UserService.method.createUser;
    const bytes = toBinary(
      method.input,
      create(method.input, {
        user: { ...user(), labels: { b: "2", a: "1", 7: "seven" } },
        profile: { settings: { z: [1, { y: null }], a: "é", 1: true } },
        requestId: randomUUID(),
      }),
    );
    const metadata = new grpc.Metadata();
    metadata.set("authorization", `Bearer ${ops.token}`);
    const path = `/${UserService.typeName}/${method.name}`;
    const same = (buffer: Buffer): Buffer => buffer;
    const ask = (): Promise<Buffer> =>
      new Promise((resolve, reject) => {
        client.makeUnaryRequest(path, same, same, Buffer.from(bytes), metadata, (error, answer) =>
          answer ? resolve(answer) : reject(error),
        );
      });
    const first = await ask();
    expect(first.length).toBeGreaterThan(100);
    expect((await ask()).equals(first)).toBe(true);
  });

  test("is answered as it was then, whatever happened since", async () => {
    const { owner, orgId } = await harness.current.tenant();
    const request = { team: { orgId, name: "Crew" }, requestId: randomUUID() };
    const { team } = await owner.teams.createTeam(request);
    await owner.teams.updateTeam({ team: { orgId, id: team?.id ?? "", name: "Renamed" } });
    await owner.teams.deleteTeam({ orgId, teamId: team?.id ?? "" });
    expect((await owner.teams.createTeam(request)).team).toEqual(team);
    expect(await count("teams where org_id = $1", orgId)).toBe(1);
  });

  test("has one effect and equal answers when it is sent many times at once", async () => {
    const { ops } = harness.current;
    const request = {
      org: { name: "Org", slug: slug() },
      ownerUserId: await harness.current.user(),
      requestId: randomUUID(),
    };
    const answers = await Promise.all(
      Array.from({ length: 12 }, () => ops.orgs.createOrg(request)),
    );
    for (const answer of answers) expect(answer).toEqual(answers[0]);
    const id = answers[0]?.org?.id;
    expect(await count("orgs where slug = $1", request.org.slug)).toBe(1);
    expect(await count("audit_entries where org_id = $1", id)).toBe(1);
  });

  test("is done by the second when the first gives up", async () => {
    const { owner, orgId, memberId } = await harness.current.tenant();
    const { id: teamId } = await makeTeam(owner, { orgId, name: "Crew" });
    const requestId = randomUUID();
    const request = { orgId, teamId, userId: memberId, requestId };
    const { admin } = harness.current;
    // Whoever is first waits for the team's row until its time is over.
    await admin.query("begin");
    await admin.query("select from roster.teams where id = $1 for update", [teamId]);
    const first = refusal(owner.teams.addTeamMember(request, { timeoutMs: 300 }));
    const second = owner.teams.addTeamMember(request, { timeoutMs: 10_000 });
    expect((await first).code).toBe("DeadlineExceeded");
    await admin.query("rollback");
    expect((await second).member?.userId).toBe(memberId);
    expect(await owner.teams.addTeamMember(request)).toEqual(await second);
  });

  test("INVALID_ARGUMENT REQUEST_ID_REUSED for another request, which changes nothing", async () => {
    const { users } = harness.current.ops;
    const request = { user: user(), requestId: randomUUID() };
    await users.createUser(request);
    const other = { ...request, user: { ...request.user, email: user().email } };
    expect(await refusal(users.createUser(other))).toMatchObject({
      code: "InvalidArgument",
      reason: "REQUEST_ID_REUSED",
      fields: ["request_id"],
    });
    expect(await count("users where email = $1", other.user.email)).toBe(0);
  });

  test("is the same request when only the order of its labels differs, or the case of the id", async () => {
    const { users } = harness.current.ops;
    const base = user();
    const requestId = randomUUID();
    const first = await users.createUser({
      user: { ...base, labels: { a: "1", b: "2" } },
      requestId,
    });
    const again = {
      user: { ...base, labels: { b: "2", a: "1" } },
      requestId: requestId.toUpperCase(),
    };
    expect(await users.createUser(again)).toEqual(first);
  });

  test("leaves no key when it fails, so that the next try counts", async () => {
    const { users } = harness.current.ops;
    const request = { user: user(), requestId: randomUUID() };
    const { user: holder } = await users.createUser({ user: request.user });
    expect((await refusal(users.createUser(request))).reason).toBe("EMAIL_TAKEN");
    await users.deleteUser({ userId: holder?.id ?? "" });
    expect((await users.createUser(request)).user?.email).toBe(request.user.email);
  });

  test("that missed what it was to take away misses it again, also when it is there by then", async () => {
    const { owner, orgId, outsiderId: userId } = await harness.current.tenant();
    const request = { orgId, userId, allowMissing: true, requestId: randomUUID() };
    expect((await owner.orgs.removeOrgMember(request)).member).toBeUndefined();
    await owner.orgs.addOrgMember({ orgId, userId });
    expect((await owner.orgs.removeOrgMember(request)).member).toBeUndefined();
    expect((await owner.orgs.getOrgMember({ orgId, userId })).member?.userId).toBe(userId);
  });

  test("INVALID_ARGUMENT when the id is no UUID", async () => {
    const call = harness.current.ops.users.createUser({ user: user(), requestId: "again" });
    expect(await refusal(call)).toMatchObject({ code: "InvalidArgument", fields: ["request_id"] });
  });

  test.runIf(pipelined)("costs two flushes, as one without, and its replay three", async () => {
    const { owner, orgId } = await harness.current.tenant();
    const request = { team: { orgId, name: "Crew" }, requestId: randomUUID() };
    const flushes = () => harness.current.flushesOf(() => owner.teams.createTeam(request));
    expect(await flushes()).toBe(2);
    // What met the key, its rollback, and the read of the answer.
    expect(await flushes()).toBe(3);
  });
});

describe("A request_id", () => {
  test("belongs to its caller, RPC and org: elsewhere it is as new", async () => {
    const requestId = randomUUID();
    const one = await harness.current.tenant();
    const other = await harness.current.tenant();
    const { ops } = harness.current;
    await ops.orgs.addOrgMember({ orgId: one.orgId, userId: other.ownerId, role: "owner" });
    const created = [
      await one.owner.teams.createTeam({ team: { orgId: one.orgId, name: "A" }, requestId }),
      await other.owner.teams.createTeam({ team: { orgId: one.orgId, name: "B" }, requestId }),
      await other.owner.teams.createTeam({ team: { orgId: other.orgId, name: "C" }, requestId }),
      await ops.teams.createTeam({ team: { orgId: other.orgId, name: "D" }, requestId }),
    ];
    expect(new Set(created.map(({ team }) => team?.id)).size).toBe(4);
    const { org } = await one.owner.orgs.updateOrg({
      org: { id: one.orgId, name: "Renamed" },
      requestId,
    });
    expect(org?.name).toBe("Renamed");
    const same = { org: { id: one.orgId, name: "Again" }, requestId: randomUUID() };
    const callers = [one.owner, other.owner];
    const answers = [];
    for (const { orgs } of callers) answers.push(await orgs.updateOrg(same));
    expect(new Set(answers.map((answer) => answer.org?.etag)).size).toBe(2);
    for (const [index, { orgs }] of callers.entries())
      expect(await orgs.updateOrg(same)).toEqual(answers[index]);
  });

  test("is out of reach from another org, and for roster_app from outside any", async () => {
    const { orgId, owner, ownerId } = await harness.current.tenant();
    const elsewhere = await harness.current.tenant();
    const requestId = randomUUID();
    await owner.teams.createTeam({ team: { orgId, name: "Crew" }, requestId });
    const made = { user: user(), requestId };
    await harness.current.ops.users.createUser(made);
    const app = await connect(harness.current.urls.app);
    const hash = `select encode(request_hash, 'hex') as hex from roster.idempotency_keys
      where request_id = '${requestId}' and subject = $1`;
    const stored = async (org: string, actor: string, subject: string, method: string) => {
      const { rows } = await harness.current.admin.query(hash, [subject]);
      const read =
        "select roster.stored_response($1, $2, $3, decode($4, 'hex')) is not null as found";
      const values = [subject, `roster.v1.${method}`, requestId, rows[0].hex];
      return (await within(app, enter(org, actor), read, values)).rows[0]?.found;
    };
    const create = "TeamService/CreateTeam";
    expect(await stored(orgId, ownerId, ownerId, create)).toBe(true);
    expect(await stored(elsewhere.orgId, elsewhere.ownerId, ownerId, create)).toBe(false);
    expect(await stored(orgId, ownerId, "service:ops", "UserService/CreateUser")).toBe(false);
  });

  test("replays to nobody who may no longer do it", async () => {
    const { owner, admin, adminId, orgId } = await harness.current.tenant();
    const request = { team: { orgId, name: "Crew" }, requestId: randomUUID() };
    await admin.teams.createTeam(request);
    await owner.orgs.updateOrgMember({ member: { orgId, userId: adminId, role: "member" } });
    expect((await refusal(admin.teams.createTeam(request))).code).toBe("PermissionDenied");
    await owner.orgs.removeOrgMember({ orgId, userId: adminId });
    expect((await refusal(admin.teams.createTeam(request))).reason).toBe("ORG_NOT_ALLOWED");
  });

  test("may be used anew after a day, and is removed in the background", async () => {
    const { users } = harness.current.ops;
    const request = { user: user(), requestId: randomUUID() };
    const { user: first } = await users.createUser(request);
    const key = "idempotency_keys where request_id = $1";
    const age = () =>
      asAdmin(
        harness.current,
        "update roster.idempotency_keys set expire_time = now() where request_id = $1",
        [request.requestId],
      );
    await age();
    const other = { ...request, user: user() };
    const { user: second } = await users.createUser(other);
    expect(second?.id).not.toBe(first?.id);
    expect((await users.createUser(other)).user).toEqual(second);
    expect(await removeExpiredKeys(harness.current.urls.worker)).toBe(0);
    await age();
    expect(await removeExpiredKeys(harness.current.urls.worker)).toBe(1);
    expect(await count(key, request.requestId)).toBe(0);
  });
});
