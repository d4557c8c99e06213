import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { OrgState } from "../src/gen/roster/v1/org_pb.ts";
import { byHand } from "./console.ts";
import { type Callers, refusal, slug, useHarness } from "./harness.ts";

const harness = useHarness();

/** An org with its owner alone. */
const made = async (): Promise<{ orgId: string; ownerId: string; owner: Callers }> => {
  const ownerId = await harness.current.user();
  const { org } = await harness.current.ops.orgs.createOrg({
    org: { name: "Org", slug: slug(), externalId: randomUUID() },
    ownerUserId: ownerId,
  });
  return { orgId: org?.id ?? "", ownerId, owner: await harness.current.as(ownerId) };
};

describe("OrgService.DeleteOrg", () => {
  test("marks the org, to be purged 30 days later, and frees its external_id at once", async () => {
    const { orgId, ownerId, owner } = await made();
    const { org } = await owner.orgs.deleteOrg({ orgId });
    expect(org).toMatchObject({ id: orgId, etag: '"2"' });
    const { deleteTime, purgeTime, externalId = "" } = org ?? {};
    expect((purgeTime?.seconds ?? 0n) - (deleteTime?.seconds ?? 0n)).toBe(30n * 24n * 3600n);
    const again = { name: "Org", slug: org?.slug ?? "", externalId };
    const next = await harness.current.ops.orgs.createOrg({ org: again, ownerUserId: ownerId });
    expect(next.org).toMatchObject(again);
  });

  test("shuts members out at once, with the very bytes of an org that never was", async () => {
    const { orgId, memberId, owner, member } = await harness.current.tenant();
    await member.orgs.getOrg({ orgId });
    await owner.orgs.deleteOrg({ orgId, force: true });
    const calls = [owner, member].flatMap(({ orgs, users, teams }) => [
      (id: string) => orgs.getOrg({ orgId: id }),
      (id: string) => orgs.updateOrg({ org: { id, name: "X" } }),
      (id: string) => orgs.deleteOrg({ orgId: id }),
      (id: string) => orgs.listOrgMembers({ orgId: id }),
      (id: string) => orgs.removeOrgMember({ orgId: id, userId: memberId }),
      (id: string) => users.getUser({ orgId: id, userId: memberId }),
      (id: string) => users.getCaller({ orgId: id }),
      (id: string) => teams.listTeams({ orgId: id }),
    ]);
    for (const call of calls) {
      const deleted = await refusal(call(orgId));
      const absent = await refusal(call(randomUUID()));
      expect(deleted).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
      expect([deleted.message, deleted.error.details]).toEqual([
        absent.message,
        absent.error.details,
      ]);
    }
    const mine = await member.users.listUserOrgs({ userId: memberId });
    expect(mine.userOrgs).toEqual([]);
  });

  test("leaves the deleted org to be read by platform alone, and to nobody for writing", async () => {
    const { orgId, ownerId } = await made();
    const { ops } = harness.current;
    const { org } = await ops.orgs.deleteOrg({ orgId });
    expect((await ops.orgs.getOrg({ orgId })).org).toEqual(org);
    const service = await harness.current.as("service:crm", { scope: "org.get members.get" });
    const pinned = await harness.current.as("service:crm", { org: orgId, scope: "org.get" });
    const missing = { code: "NotFound", reason: "ORG_NOT_FOUND" };
    for (const call of [
      () => service.orgs.getOrg({ orgId }),
      () => ops.orgs.updateOrg({ org: { id: orgId, name: "X" } }),
      () => ops.orgs.deleteOrg({ orgId }),
      () => ops.orgs.listOrgMembers({ orgId }),
      () => ops.orgs.addOrgMember({ orgId, userId: ownerId }),
    ]) {
      expect(await refusal(call()), call.toString()).toMatchObject(missing);
    }
    expect(await refusal(pinned.orgs.getOrg({}))).toMatchObject({ reason: "ORG_NOT_ALLOWED" });
  });

  test("FAILED_PRECONDITION while there are teams, or members beside the owners, unless forced", async () => {
    const { ops } = harness.current;
    const { orgId, owner } = await made();
    const blocked = { code: "FailedPrecondition", reason: "ORG_HAS_CHILDREN" };
    const second = await harness.current.user();
    await owner.orgs.addOrgMember({ orgId, userId: second, role: "member" });
    expect(await refusal(owner.orgs.deleteOrg({ orgId }))).toMatchObject(blocked);
    await owner.orgs.updateOrgMember({ member: { orgId, userId: second, role: "owner" } });
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
    expect(await refusal(owner.orgs.deleteOrg({ orgId, etag: '"1"' }))).toMatchObject(blocked);
    await owner.teams.deleteTeam({ orgId, teamId: team?.id ?? "" });
    const gone = await harness.current.user();
    await owner.orgs.addOrgMember({ orgId, userId: gone });
    await ops.users.deleteUser({ userId: gone });
    expect((await owner.orgs.deleteOrg({ orgId })).org?.deleteTime).toBeDefined();

    const forced = await harness.current.tenant();
    const { org } = await forced.owner.orgs.deleteOrg({ orgId: forced.orgId, force: true });
    expect(org?.deleteTime).toBeDefined();
  });

  test("ABORTED when the etag sent is stale, before anything else is said", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await owner.orgs.updateOrg({ org: { id: orgId, name: "Two" } });
    for (const force of [false, true]) {
      expect(await refusal(owner.orgs.deleteOrg({ orgId, etag: '"1"', force }))).toMatchObject({
        code: "Aborted",
        reason: "ETAG_STALE",
        metadata: { etag: '"2"' },
      });
    }
    const malformed = await refusal(owner.orgs.deleteOrg({ orgId, etag: "2" }));
    expect(malformed).toMatchObject({ reason: "ETAG_MALFORMED", fields: ["etag"] });
    await owner.orgs.deleteOrg({ orgId, etag: '"2"', force: true });
  });

  test("PERMISSION_DENIED for all roles but owner, and for services whatever their scope", async () => {
    const { orgId, admin, member, guest } = await harness.current.tenant();
    const service = await harness.current.as("service:crm", { scope: "org.delete" });
    for (const { orgs } of [admin, member, guest, service]) {
      expect(await refusal(orgs.deleteOrg({ orgId, force: true }))).toMatchObject({
        code: "PermissionDenied",
        reason: "PERMISSION_MISSING",
        metadata: { permission: "org.delete" },
      });
    }
  });
});

describe("A suspended org", () => {
  test("is FAILED_PRECONDITION to members and services, and open to platform", async () => {
    const { orgId, ownerId, memberId, owner, member, outsider } = await harness.current.tenant();
    await byHand(
      harness.current.admin,
      "update roster.orgs set state = 'SUSPENDED' where id = $1",
      [orgId],
    );
    const service = await harness.current.as("service:crm", { scope: "org.get" });
    for (const call of [
      () => owner.orgs.getOrg({ orgId }),
      () => owner.orgs.updateOrg({ org: { id: orgId, name: "X" } }),
      () => member.users.getUser({ orgId, userId: memberId }),
      () => member.users.getCaller({ orgId }),
      () => member.orgs.removeOrgMember({ orgId, userId: memberId }),
      () => service.orgs.getOrg({ orgId }),
    ]) {
      expect(await refusal(call()), call.toString()).toMatchObject({
        code: "FailedPrecondition",
        reason: "ORG_SUSPENDED",
        metadata: { org_id: orgId },
      });
    }
    expect(await refusal(outsider.orgs.getOrg({ orgId }))).toMatchObject({
      reason: "ORG_NOT_ALLOWED",
    });
    const { ops } = harness.current;
    expect((await ops.orgs.getOrg({ orgId })).org?.state).toBe(OrgState.SUSPENDED);
    await ops.orgs.updateOrg({ org: { id: orgId, name: "By platform" } });
    await ops.orgs.removeOrgMember({ orgId, userId: memberId });
    const mine = await owner.users.listUserOrgs({ userId: ownerId });
    expect(mine.userOrgs.map(({ org }) => org?.state)).toEqual([OrgState.SUSPENDED]);
  });
});
