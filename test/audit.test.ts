import { randomUUID } from "node:crypto";
import pg from "pg";
import { describe, expect, test } from "vitest";
import { ActorKind, AuditOutcome } from "../src/gen/roster/v1/audit_pb.ts";
import { log, methodsOf, newest } from "./audit-log.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";
import { told } from "./samples.ts";

const harness = useHarness();

describe("A refused mutation", () => {
  test("of a member is in the log of their org, with the reason and without a change", async () => {
    const { orgId, owner, member, memberId, admin, outsiderId } = await harness.current.tenant();
    await refusal(makeTeam(member, { orgId, name: "Crew" }));
    expect(await newest(owner, orgId)).toMatchObject({
      orgId,
      actor: { subject: memberId, kind: ActorKind.USER },
      method: "roster.v1.TeamService/CreateTeam",
      outcome: AuditOutcome.DENIED,
      reason: "PERMISSION_MISSING",
      changes: [],
      changeCount: 0,
    });
    // Refused by a trigger, after the entry of a success was written: that one is rolled back.
    const seen = (await log(owner, orgId)).length;
    const asOwner = { orgId, userId: outsiderId, role: "owner" };
    await refusal(admin.orgs.addOrgMember(asOwner));
    const [entry, ...rest] = await log(owner, orgId);
    expect(entry).toMatchObject({ outcome: AuditOutcome.DENIED, reason: "ROLE_NOT_GRANTABLE" });
    expect(rest).toHaveLength(seen);
  });

  test("of a service is in the log of the org that its credential names", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const service = await harness.current.as("service:crm", { org: orgId, scope: "teams.get" });
    await refusal(makeTeam(service, { orgId, name: "Crew" }));
    expect(await newest(owner, orgId)).toMatchObject({
      actor: { subject: "service:crm", kind: ActorKind.SERVICE },
      outcome: AuditOutcome.DENIED,
    });
  });

  test("is on record too when the database was never asked", async () => {
    const { orgId, owner, ownerId, memberId } = await harness.current.tenant();
    const other = await harness.current.tenant();
    const pinned = await harness.current.as(ownerId, { org: orgId });
    await refusal(makeTeam(pinned, { orgId: other.orgId, name: "Crew" }));
    expect(await newest(owner, orgId)).toMatchObject({
      actor: { subject: ownerId },
      outcome: AuditOutcome.DENIED,
      reason: "ORG_NOT_ALLOWED",
    });
    // The name is missing, but whoever lacks the permission learns that first.
    const member = await harness.current.as(memberId, { org: orgId });
    await refusal(makeTeam(member, { name: "" }));
    expect(await newest(owner, orgId)).toMatchObject({
      actor: { subject: memberId },
      outcome: AuditOutcome.DENIED,
      reason: "PERMISSION_MISSING",
    });
  });

  test("of an outsider is in no org's log, but in that of the platform", async () => {
    const { orgId, owner, outsider, outsiderId } = await harness.current.tenant();
    const other = await harness.current.tenant();
    const before = await log(owner, orgId);
    await refusal(makeTeam(outsider, { orgId, name: "Crew" }));
    await refusal(makeTeam(other.member, { orgId, name: "Crew" }));
    expect(await log(owner, orgId)).toEqual(before);
    const [second, first] = await log(harness.current.ops, "", 2);
    for (const [entry, subject] of [
      [first, outsiderId],
      [second, other.memberId],
    ] as const) {
      expect(entry).toMatchObject({
        orgId: "",
        actor: { subject },
        outcome: AuditOutcome.DENIED,
        reason: "ORG_NOT_ALLOWED",
      });
    }
  });

  test("for another reason than permission leaves no entry, nor does a read", async () => {
    const { orgId, owner, member } = await tenantWithTeam(harness.current);
    const before = await log(owner, orgId);
    await refusal(makeTeam(owner, { orgId, name: "CREW" }));
    await refusal(owner.teams.deleteTeam({ orgId, teamId: randomUUID() }));
    await refusal(makeTeam(owner, { orgId, name: "" }));
    await refusal(member.audit.listAuditEntries({ orgId }));
    await owner.teams.listTeams({ orgId });
    expect(await log(owner, orgId)).toEqual(before);
  });
});

describe("The audit tables", () => {
  const connect = async (url: string): Promise<pg.Client> => {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    return client;
  };

  test("can only be read by the roles through which callers come", async () => {
    const { app, directory } = harness.current.urls;
    await harness.current.tenant();
    const { rows } = await harness.current.admin.query<{ name: string }>(
      `select oid::regclass::text as name from pg_class
        where relnamespace = 'roster'::regnamespace and relkind in ('r', 'p')
          and relname like 'audit%' and relname <> 'audit_feed'`,
    );
    expect(rows.length).toBeGreaterThan(20);
    for (const url of [app, directory]) {
      const client = await connect(url);
      for (const { name } of rows) {
        for (const statement of [
          `insert into ${name} select * from ${name}`,
          `update ${name} set org_id = org_id`,
          `delete from ${name}`,
          `truncate ${name}`,
        ]) {
          await expect(client.query(statement), statement).rejects.toMatchObject({ code: "42501" });
        }
      }
      await client.end();
    }
  });

  test("take note of every write: one that did not enter raises, also inside its org", async () => {
    const { orgId, owner, team } = await tenantWithTeam(harness.current);
    const client = await connect(harness.current.urls.app);
    await client.query("begin");
    await client.query("select set_config('roster.org_id', $1, true)", [orgId]);
    await client.query("select set_config('roster.team_sight', 'all', true)");
    const { rowCount } = await client.query("select from roster.teams");
    expect(rowCount).toBe(1);
    const write = client.query("update roster.teams set name = 'Unseen'");
    await expect(write).rejects.toMatchObject({ code: "RS000" });
    await client.end();
    const read = await owner.teams.getTeam({ orgId, teamId: team.id });
    expect(read.team?.name).toBe("Crew");
  });
});

describe("AuditService.ListAuditEntries", () => {
  test("lists the newest first, each once over pages, also while more is written", async () => {
    const { orgId, owner } = await harness.current.tenant();
    for (let i = 0; i < 5; i++) await makeTeam(owner, { orgId, name: `Team ${i}` });
    const all = await log(owner, orgId);
    expect(methodsOf(all)).toEqual([
      ...Array<string>(5).fill("CreateTeam"),
      ...Array<string>(3).fill("AddOrgMember"),
      "CreateOrg",
    ]);
    const seen: string[] = [];
    let pageToken = "";
    do {
      const page = await owner.audit.listAuditEntries({ orgId, pageSize: 2, pageToken });
      seen.push(...page.auditEntries.map(({ id }) => id));
      pageToken = page.nextPageToken;
      await makeTeam(owner, { orgId, name: `Late ${seen.length}` });
    } while (pageToken !== "");
    expect(seen).toEqual(all.map(({ id }) => id));
  });

  test("lists all orgs for platform; INVALID_ARGUMENT for others without an org", async () => {
    const one = await tenantWithTeam(harness.current);
    const other = await tenantWithTeam(harness.current);
    const orgs = (await log(harness.current.ops)).map(({ orgId }) => orgId);
    expect(orgs).toContain(one.orgId);
    expect(orgs).toContain(other.orgId);
    const service = await harness.current.as("service:crm", { scope: "audit.read" });
    for (const { audit } of [one.owner, service]) {
      for (const call of [
        () => audit.listAuditEntries({}),
        () => audit.getAuditEntry({ auditEntryId: randomUUID() }),
      ]) {
        const refused = await refusal(call());
        expect(refused).toMatchObject({ code: "InvalidArgument", reason: "ORG_REQUIRED" });
      }
    }
    expect(await log(service, one.orgId)).toEqual(await log(one.owner, one.orgId));
  });

  test("PERMISSION_DENIED for guests, members, and services without audit.read", async () => {
    const { orgId, guest, member } = await harness.current.tenant();
    const service = await harness.current.as("service:crm", { org: orgId, scope: "org.get" });
    for (const { audit } of [guest, member, service]) {
      const refused = await refusal(audit.listAuditEntries({ orgId }));
      expect(refused).toMatchObject({ code: "PermissionDenied", reason: "PERMISSION_MISSING" });
    }
  });
});

describe("AuditService.GetAuditEntry", () => {
  test("NOT_FOUND for an entry of another org, like for one that never was", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const other = await tenantWithTeam(harness.current);
    const { id } = await newest(other.owner, other.orgId);
    const random = randomUUID();
    const ask = (callers: Callers, auditEntryId: string) =>
      refusal(callers.audit.getAuditEntry({ orgId, auditEntryId }));
    for (const callers of [owner, harness.current.ops]) {
      const absent = await ask(callers, random);
      expect(absent).toMatchObject({ code: "NotFound", reason: "AUDIT_ENTRY_NOT_FOUND" });
      expect(told(await ask(callers, id), id)).toBe(told(absent, random));
    }
    const everywhere = await harness.current.ops.audit.getAuditEntry({ auditEntryId: id });
    expect(everywhere.auditEntry?.orgId).toBe(other.orgId);
  });
});
