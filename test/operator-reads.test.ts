import { randomUUID } from "node:crypto";
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import pg from "pg";
import { describe, expect, test } from "vitest";
import type { Step } from "../src/database/exchange.ts";
import { ActorKind, AuditOutcome } from "../src/gen/roster/v1/audit_pb.ts";
import { log, methodsOf, newest } from "./audit-log.ts";
import { flushesOfRead, type Harness, refusal, useHarness } from "./harness.ts";
import { tenantWithTeam } from "./made-team.ts";

const harness = useHarness();
const demanding = useHarness({ operatorReason: "required" });

/** An operator who gives this reason with every call. */
const support = (current: Harness, reason?: string) =>
  current.as(
    "service:support",
    { scope: "roster.platform" },
    reason === undefined ? {} : { "roster-reason": reason },
  );

describe("An operator's read", () => {
  test("of an org is in its log, with the reason that they gave", async () => {
    const { orgId, owner, team } = await tenantWithTeam(harness.current);
    const { teams } = await support(harness.current, "ticket 4711: asks for their teams");
    await teams.getTeam({ orgId, teamId: team.id });
    expect(await newest(owner, orgId)).toMatchObject({
      orgId,
      actor: { subject: "service:support", kind: ActorKind.SERVICE },
      method: "roster.v1.TeamService/GetTeam",
      outcome: AuditOutcome.SUCCEEDED,
      operatorReason: "ticket 4711: asks for their teams",
      changes: [],
    });
    await teams.listTeams({ orgId });
    const filter = 'operator_reason = "ticket 4711*"';
    const { auditEntries } = await owner.audit.listAuditEntries({ orgId, filter });
    expect(methodsOf(auditEntries)).toEqual(["ListTeams", "GetTeam"]);
  });

  test("outside any org is in the platform's log, and their own list leaves itself out", async () => {
    const { users, audit } = await support(harness.current, "monthly report");
    await users.listUsers({});
    const { auditEntries } = await audit.listAuditEntries({ pageSize: 1 });
    expect(auditEntries).toMatchObject([
      { orgId: "", method: "roster.v1.UserService/ListUsers", operatorReason: "monthly report" },
    ]);
    await users.getCaller({});
    expect(methodsOf(await log(harness.current.ops, "", 2))).toEqual([
      "ListAuditEntries",
      "ListUsers",
    ]);
  });

  test("costs one round trip like any other, and changes nothing else", async () => {
    const { orgId, team } = await tenantWithTeam(harness.current);
    const { teams } = await support(harness.current);
    const cost = await harness.current.flushesOf(() => teams.getTeam({ orgId, teamId: team.id }));
    expect(cost).toBe(flushesOfRead);
  });

  test("can change nothing behind its entry, whatever statement is sent", async () => {
    const { orgId, team } = await tenantWithTeam(harness.current);
    const { teams } = await support(harness.current);
    const entering: Step[] = [];
    const listen = (steps: unknown): void => {
      entering.push(...(steps as Step[]).filter(({ text }) => text.includes("roster.enter(")));
    };
    subscribe("roster:flush", listen);
    await teams.getTeam({ orgId, teamId: team.id });
    unsubscribe("roster:flush", listen);
    const [step] = entering;
    const client = new pg.Client({ connectionString: harness.current.urls.app });
    await client.connect();
    await client.query("begin");
    await client.query(step?.text ?? "", [...(step?.values ?? [])]);
    const write = client.query("update roster.teams set name = 'Spoilt'");
    await expect(write).rejects.toMatchObject({ code: "25006" });
    await client.end();
  });

  test("of many pages is one entry", async () => {
    const { orgId } = await harness.current.tenant();
    const id = randomUUID();
    const { users } = await harness.current.as(
      "service:support",
      { scope: "roster.platform" },
      { "x-request-id": id },
    );
    const { memberId: userId } = await harness.current.tenant();
    for await (const _ of users.exportUser({ userId }));
    const entries = await log(harness.current.ops, "", 20);
    expect(entries.filter(({ correlationId }) => correlationId === id)).toHaveLength(1);
    expect(orgId).not.toBe("");
  });

  test("that is refused or finds no org leaves none", async () => {
    const { audit, teams } = await support(harness.current);
    const before = await log(harness.current.ops, "", 5);
    expect((await refusal(teams.listTeams({ orgId: randomUUID() }))).code).toBe("NotFound");
    expect((await refusal(audit.listAuditEntries({ filter: "nonsense" }))).code).toBe(
      "InvalidArgument",
    );
    expect((await log(harness.current.ops, "", 6)).slice(1)).toEqual(before.slice(0, 5));
  });

  test("is nothing that members and services do: their reads leave none, whatever reason they send", async () => {
    const { orgId, owner, ownerId } = await harness.current.tenant();
    const before = await log(owner, orgId);
    const reason = { "roster-reason": "curious" };
    const scope = "teams.get roster.platform";
    for (const { teams } of [
      await harness.current.as(ownerId, {}, reason),
      await harness.current.as("service:crm", { scope: "teams.get" }, reason),
      await harness.current.as("service:own", { org: orgId, scope }, reason),
    ])
      await teams.listTeams({ orgId });
    expect(await log(owner, orgId)).toEqual(before);
  });
});

describe("An operator's mutation", () => {
  test("carries their reason too; a member's carries none", async () => {
    const { orgId, owner, ownerId } = await harness.current.tenant();
    const { teams } = await support(harness.current, "asked by phone");
    await teams.createTeam({ team: { orgId, name: "Crew" } });
    expect(await newest(owner, orgId)).toMatchObject({ operatorReason: "asked by phone" });
    const chatty = await harness.current.as(ownerId, {}, { "roster-reason": "mine" });
    await chatty.teams.createTeam({ team: { orgId, name: "Mates" } });
    expect(await newest(owner, orgId)).toMatchObject({
      actor: { subject: ownerId },
      operatorReason: "",
    });
  });
});

describe("Where a reason is required", () => {
  const tenant = async () => {
    const { users, orgs } = await support(demanding.current, "set up");
    const email = `${randomUUID()}@example.com`;
    const { user } = await users.createUser({ user: { email, name: "Owner" } });
    const slug = `o${randomUUID()}`;
    const org = { name: "Org", slug };
    const made = await orgs.createOrg({ org, ownerUserId: user?.id ?? "" });
    return { orgId: made.org?.id ?? "", ownerId: user?.id ?? "" };
  };

  test("INVALID_ARGUMENT names the metadata to operators who give none, and nothing is done", async () => {
    const { orgId, ownerId } = await tenant();
    const { teams, users } = await support(demanding.current);
    const blank = await support(demanding.current, " ");
    const { rows: before } = await demanding.current.admin.query(
      "select count(*) from roster.audit_entries",
    );
    for (const call of [
      () => teams.listTeams({ orgId }),
      () => users.listUsers({}),
      () => teams.createTeam({ team: { orgId, name: "Crew" } }),
      () => blank.teams.listTeams({ orgId }),
    ])
      expect(await refusal(call())).toMatchObject({
        code: "InvalidArgument",
        reason: "OPERATOR_REASON_REQUIRED",
        metadata: { key: "roster-reason" },
      });
    const { rows: after } = await demanding.current.admin.query(
      "select count(*) from roster.audit_entries",
    );
    expect(after).toEqual(before);
    // Nobody else has to say why, nor who asks who they are.
    await users.getCaller({});
    const owner = await demanding.current.as(ownerId);
    expect((await owner.teams.listTeams({ orgId })).teams).toEqual([]);
  });

  test("INVALID_ARGUMENT for a reason that is too long", async () => {
    const { orgId } = await tenant();
    const { teams } = await support(demanding.current, "x".repeat(201));
    expect(await refusal(teams.listTeams({ orgId }))).toMatchObject({
      code: "InvalidArgument",
      reason: "OPERATOR_REASON_INVALID",
      metadata: { key: "roster-reason" },
    });
    const longest = await support(demanding.current, "x".repeat(200));
    await longest.teams.listTeams({ orgId });
  });

  // gRPC itself drops metadata that is not printable ASCII.
  test.each(["f\u00fcr den Kunden", "a\tb"])("%j counts as none", async (reason) => {
    const { orgId } = await tenant();
    const { teams } = await support(demanding.current, reason);
    const refused = await refusal(teams.listTeams({ orgId }));
    expect(refused.reason).toBe("OPERATOR_REASON_REQUIRED");
  });
});
