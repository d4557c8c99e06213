import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { ActorKind, AuditOutcome, ChangeKind } from "../src/gen/roster/v1/audit_pb.ts";
import { log, methodsOf, newest } from "./audit-log.ts";
import { byHand } from "./console.ts";
import { refusal, useHarness } from "./harness.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";

const harness = useHarness();

const { CREATED, UPDATED, DELETED } = ChangeKind;

describe("An audit entry", () => {
  test("says who did what for whom, under which correlation id, in which org", async () => {
    const { orgId, adminId, owner } = await harness.current.tenant();
    const act = { sub: "service:web", act: { sub: "service:edge" } };
    const headers = { "x-request-id": `trace-${randomUUID()}` };
    const admin = await harness.current.as(adminId, { claims: { act } }, headers);
    const team = await makeTeam(admin, { orgId, name: "Crew" });
    const entry = await newest(owner, orgId);
    expect(entry).toMatchObject({
      orgId,
      actor: {
        subject: adminId,
        kind: ActorKind.USER,
        onBehalfOf: ["service:web", "service:edge"],
      },
      method: "roster.v1.TeamService/CreateTeam",
      correlationId: headers["x-request-id"],
      outcome: AuditOutcome.SUCCEEDED,
      reason: "",
      changeCount: 1,
    });
    expect(entry.createTime).toEqual(team.createTime);
    const service = await harness.current.as("service:crm", { org: orgId, scope: "teams.create" });
    await makeTeam(service, { orgId, name: "Bots" });
    const { actor, correlationId } = await newest(owner, orgId);
    expect(actor).toMatchObject({
      subject: "service:crm",
      kind: ActorKind.SERVICE,
      onBehalfOf: [],
    });
    expect(correlationId).toMatch(/^[0-9a-f-]{36}$/);
  });

  test("holds what was before, what is after, and the fields that differ", async () => {
    const { orgId, owner, team } = await tenantWithTeam(harness.current, { labels: { a: "1" } });
    const made = await newest(owner, orgId);
    const { id } = team;
    expect(made.changes).toMatchObject([
      { orgId, resourceType: "team", resourceId: id, kind: CREATED, after: { id, name: "Crew" } },
    ]);
    expect(made.changes[0]?.before).toBeUndefined();
    await owner.teams.updateTeam({ team: { orgId, id, name: "Bakers", labels: { b: "2" } } });
    const { changes } = await newest(owner, orgId);
    expect(changes).toMatchObject([
      {
        kind: UPDATED,
        before: { name: "Crew", labels: { a: "1" } },
        after: { name: "Bakers", labels: { a: "1", b: "2" } },
        changedFields: ["labels", "name"],
      },
    ]);
    for (const image of [changes[0]?.before, changes[0]?.after]) {
      for (const hidden of ["version", "name_key"]) expect(image).not.toHaveProperty(hidden);
    }
  });

  test("tells of an update that changed nothing, without a change", async () => {
    const { orgId, owner, team } = await tenantWithTeam(harness.current);
    await owner.teams.updateTeam({ team: { orgId, id: team.id, name: "Crew" } });
    const entry = await newest(owner, orgId);
    expect(methodsOf([entry])).toEqual(["UpdateTeam"]);
    expect(entry).toMatchObject({ changes: [], changeCount: 0 });
  });

  test("of CreateOrg belongs to the new org, with its first owner", async () => {
    const { orgId, owner, ownerId } = await harness.current.tenant();
    const entry = (await log(owner, orgId)).at(-1);
    expect(entry).toMatchObject({
      orgId,
      actor: { subject: "service:ops" },
      method: "roster.v1.OrgService/CreateOrg",
    });
    expect(entry?.changes).toMatchObject([
      { orgId, resourceType: "org", resourceId: orgId, kind: CREATED },
      { orgId, resourceType: "org_member", resourceId: ownerId, kind: CREATED },
    ]);
  });

  test("of RemoveOrgMember lists the team memberships and the profile that went along", async () => {
    const { orgId, owner, team, memberId: userId } = await tenantWithTeam(harness.current);
    await owner.teams.addTeamMember({ orgId, teamId: team.id, userId });
    await owner.users.updateProfile({ profile: { orgId, userId, bio: "Here" } });
    await owner.orgs.removeOrgMember({ orgId, userId });
    const { changes, changeCount } = await newest(owner, orgId);
    expect(changes.map(({ after }) => after)).toEqual([undefined, undefined, undefined]);
    expect(changes).toMatchObject([
      { orgId, resourceType: "org_member", resourceId: userId, kind: DELETED },
      { orgId, resourceType: "profile", kind: ChangeKind.PURGED, before: { bio: "Here" } },
      { orgId, resourceType: "team_member", resourceId: `${team.id}/${userId}`, kind: DELETED },
    ]);
    expect(changeCount).toBe(3);
  });

  test("of a forced DeleteTeam lists the subtree, 100 of its teams at most, and counts them all", async () => {
    const { orgId, owner, team } = await tenantWithTeam(harness.current);
    await byHand(
      harness.current.admin,
      `insert into roster.teams (org_id, id, parent_team_id, name)
        select $1, gen_random_uuid(), $2, 'Team ' || n from generate_series(1, 104) n`,
      [orgId, team.id],
    );
    await owner.teams.deleteTeam({ orgId, teamId: team.id, force: true });
    const { changes, changeCount } = await newest(owner, orgId);
    expect([changes.length, changeCount]).toEqual([100, 105]);
    expect(new Set(changes.map(({ resourceId }) => resourceId)).size).toBe(100);
    expect(new Set(changes.map(({ kind }) => kind))).toEqual(new Set([DELETED]));
    expect(changes[0]?.changedFields).toEqual(["delete_time", "purge_time"]);
  });
});

describe("A change of a user who is in several orgs", () => {
  const shared = async () => {
    const one = await harness.current.tenant();
    const other = await harness.current.tenant();
    const { ops } = harness.current;
    await ops.orgs.addOrgMember({ orgId: other.orgId, userId: one.memberId });
    return { one, other, id: one.memberId, ops };
  };

  test("is in the log of each, without what only the platform may see", async () => {
    const { one, other, id, ops } = await shared();
    const labels = { plan: "pro" };
    await ops.users.updateUser({ user: { id, name: "New", labels, externalId: randomUUID() } });
    for (const { owner, orgId } of [one, other]) {
      const entry = await newest(owner, orgId);
      expect(entry).toMatchObject({ orgId: "", changeCount: 1, actor: { subject: "service:ops" } });
      expect(entry.changes).toMatchObject([
        { orgId, resourceType: "user", resourceId: id, kind: UPDATED, changedFields: ["name"] },
      ]);
      for (const image of [entry.changes[0]?.before, entry.changes[0]?.after]) {
        expect(image).toHaveProperty("name");
        for (const secret of ["labels", "external_id"]) expect(image).not.toHaveProperty(secret);
      }
      const got = await owner.audit.getAuditEntry({ orgId, auditEntryId: entry.id });
      expect(got.auditEntry).toEqual(entry);
    }
    const whole = await newest(ops);
    expect(whole).toMatchObject({ orgId: "", changeCount: 1 });
    expect(whole.changes).toMatchObject([
      { orgId: "", changedFields: ["external_id", "labels", "name"], after: { labels } },
    ]);
  });

  test("is in no org's log when it is of private fields alone, nor in that of orgs they are not in", async () => {
    const { one, other, id, ops } = await shared();
    const foreign = await harness.current.tenant();
    await ops.users.updateUser({ user: { id, labels: { plan: "pro" } } });
    const entry = await newest(ops);
    for (const { owner, orgId } of [one, other, foreign]) {
      expect(methodsOf(await log(owner, orgId))).not.toContain("UpdateUser");
      const refused = await refusal(owner.audit.getAuditEntry({ orgId, auditEntryId: entry.id }));
      expect(refused.reason).toBe("AUDIT_ENTRY_NOT_FOUND");
    }
    await ops.users.deleteUser({ userId: id });
    for (const { owner, orgId } of [one, other]) {
      const { changes } = await newest(owner, orgId);
      expect(changes).toMatchObject([{ resourceType: "user", resourceId: id, kind: DELETED }]);
    }
    expect(methodsOf(await log(foreign.owner, foreign.orgId))).not.toContain("DeleteUser");
  });

  test("tells each org of a default profile that its user changed, whichever org the token names", async () => {
    const { one, other, id, ops } = await shared();
    await ops.users.updateUser({ user: { id, name: "New" } });
    const inOne = await harness.current.as(id, { org: one.orgId });
    for (const bio of ["A", "B", "C"]) {
      await inOne.users.updateProfile({ profile: { userId: id, bio } });
    }
    for (const { owner, orgId } of [one, other]) {
      const seen: string[] = [];
      let pageToken = "";
      while (seen.length < 4) {
        const page = await owner.audit.listAuditEntries({ orgId, pageSize: 1, pageToken });
        seen.push(...methodsOf(page.auditEntries));
        pageToken = page.nextPageToken;
      }
      expect(seen).toEqual(["UpdateProfile", "UpdateProfile", "UpdateProfile", "UpdateUser"]);
    }
  });
});
