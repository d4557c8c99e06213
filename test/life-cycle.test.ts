import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { OrgState } from "../src/gen/roster/v1/org_pb.ts";
import { UserState } from "../src/gen/roster/v1/user_pb.ts";
import { refusal, slug, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";

const harness = useHarness();

describe("UserService.SuspendUser and ReactivateUser", () => {
  test("keep a user out of everything, and let them in again", async () => {
    const { ops } = harness.current;
    const { orgId, member, memberId: userId } = await harness.current.tenant();
    const { user } = await ops.users.suspendUser({ userId });
    expect(user?.state).toBe(UserState.SUSPENDED);
    for (const call of [
      () => member.orgs.getOrg({ orgId }),
      () => member.users.getUser({ userId }),
      () => member.users.getCaller({}),
    ])
      expect(await refusal(call())).toMatchObject({
        code: "PermissionDenied",
        reason: "CALLER_INACTIVE",
      });
    expect((await ops.orgs.getOrgMember({ orgId, userId })).member?.userId).toBe(userId);
    expect((await ops.users.reactivateUser({ userId })).user?.state).toBe(UserState.ACTIVE);
    expect((await member.orgs.getOrg({ orgId })).org?.id).toBe(orgId);
  });

  test("change nothing the second time, and no etag", async () => {
    const { users } = harness.current.ops;
    const userId = await harness.current.user();
    const { user: first } = await users.suspendUser({ userId });
    expect((await users.suspendUser({ userId, etag: first?.etag ?? "" })).user).toEqual(first);
    const { user: active } = await users.reactivateUser({ userId });
    expect((await users.reactivateUser({ userId })).user).toEqual(active);
  });

  test("FAILED_PRECONDITION LAST_OWNER names the orgs that would have no owner", async () => {
    const { orgId, ownerId: userId, adminId } = await harness.current.tenant();
    const { ops } = harness.current;
    const refused = await refusal(ops.users.suspendUser({ userId }));
    expect(refused).toMatchObject({ code: "FailedPrecondition", reason: "LAST_OWNER" });
    expect(refused.message).toContain(orgId);
    await ops.orgs.updateOrgMember({ member: { orgId, userId: adminId, role: "owner" } });
    expect((await ops.users.suspendUser({ userId })).user?.state).toBe(UserState.SUSPENDED);
  });

  test("NOT_FOUND for a deleted user", async () => {
    const { users } = harness.current.ops;
    const userId = await harness.current.user();
    await users.deleteUser({ userId });
    for (const change of [users.suspendUser, users.reactivateUser])
      expect((await refusal(change({ userId }))).code).toBe("NotFound");
  });
});

describe("UserService.UndeleteUser", () => {
  test("brings back the user, their profile, memberships and teams", async () => {
    const { ops } = harness.current;
    const { orgId, owner, member, memberId: userId } = await harness.current.tenant();
    const { id: teamId } = await makeTeam(owner, { orgId, name: "Crew" });
    await owner.teams.addTeamMember({ orgId, teamId, userId });
    const { user: before } = await ops.users.getUser({ userId });
    const { profile } = await ops.users.getProfile({ userId });
    await ops.users.deleteUser({ userId });
    const { user } = await ops.users.undeleteUser({ userId });
    const {
      etag: _old,
      updateTime: _then,
      ...same
    } = before ?? { etag: "", updateTime: undefined };
    expect(user).toMatchObject(same);
    expect(user?.deleteTime).toBeUndefined();
    expect(user?.purgeTime).toBeUndefined();
    expect((await ops.users.getProfile({ userId })).profile).toEqual(profile);
    expect((await member.teams.getTeamMember({ orgId, teamId, userId })).member?.teamId).toBe(
      teamId,
    );
  });

  test("ALREADY_EXISTS when the e-mail or external id was taken meanwhile, and changes nothing", async () => {
    const { users } = harness.current.ops;
    for (const [taken, reason] of [
      [{ email: `${randomUUID()}@example.com` }, "EMAIL_TAKEN"],
      [{ externalId: randomUUID() }, "USER_EXTERNAL_ID_TAKEN"],
    ] as const) {
      const base = () => ({ email: `${randomUUID()}@example.com`, name: "Some One" });
      const { user } = await users.createUser({ user: { ...base(), ...taken } });
      await users.deleteUser({ userId: user?.id ?? "" });
      const { user: taker } = await users.createUser({ user: { ...base(), ...taken } });
      const call = () => users.undeleteUser({ userId: user?.id ?? "" });
      expect(await refusal(call())).toMatchObject({ code: "AlreadyExists", reason });
      await users.deleteUser({ userId: taker?.id ?? "" });
      expect((await call()).user?.id).toBe(user?.id);
    }
  });

  test("ALREADY_EXISTS NOT_DELETED for a live user, NOT_FOUND for one who never was", async () => {
    const { users } = harness.current.ops;
    const live = users.undeleteUser({ userId: await harness.current.user() });
    expect(await refusal(live)).toMatchObject({ code: "AlreadyExists", reason: "NOT_DELETED" });
    const never = users.undeleteUser({ userId: randomUUID() });
    expect((await refusal(never)).reason).toBe("USER_NOT_FOUND");
  });
});

describe("OrgService.SuspendOrg and ReactivateOrg", () => {
  test("close an org to its people and services, but not to platform, and open it again", async () => {
    const { ops } = harness.current;
    const { orgId, owner } = await harness.current.tenant();
    const crm = await harness.current.as("service:crm", { scope: "org.get" });
    expect((await ops.orgs.suspendOrg({ orgId })).org?.state).toBe(OrgState.SUSPENDED);
    for (const { orgs } of [owner, crm])
      expect(await refusal(orgs.getOrg({ orgId }))).toMatchObject({
        code: "FailedPrecondition",
        reason: "ORG_SUSPENDED",
      });
    expect((await ops.orgs.getOrg({ orgId })).org?.state).toBe(OrgState.SUSPENDED);
    expect((await ops.orgs.reactivateOrg({ orgId })).org?.state).toBe(OrgState.ACTIVE);
    expect((await owner.orgs.getOrg({ orgId })).org?.id).toBe(orgId);
  });

  test("change nothing the second time, and no etag", async () => {
    const { orgs } = harness.current.ops;
    const { orgId } = await harness.current.tenant();
    const { org: first } = await orgs.suspendOrg({ orgId });
    expect((await orgs.suspendOrg({ orgId })).org).toEqual(first);
  });

  test("FAILED_PRECONDITION LAST_OWNER when no active owner is left to open it for", async () => {
    const { ops } = harness.current;
    const { orgId, ownerId: userId } = await harness.current.tenant();
    await ops.orgs.suspendOrg({ orgId });
    await ops.users.suspendUser({ userId });
    const refused = await refusal(ops.orgs.reactivateOrg({ orgId }));
    expect(refused).toMatchObject({ code: "FailedPrecondition", reason: "LAST_OWNER" });
    await ops.users.reactivateUser({ userId });
    expect((await ops.orgs.reactivateOrg({ orgId })).org?.state).toBe(OrgState.ACTIVE);
  });
});

describe("OrgService.UndeleteOrg", () => {
  test("brings back the org with its teams, people and slugs, former ones too", async () => {
    const { ops } = harness.current;
    const { orgId, owner, member, memberId } = await harness.current.tenant();
    const former = (await ops.orgs.getOrg({ orgId })).org?.slug ?? "";
    await owner.orgs.updateOrg({ org: { id: orgId, slug: slug() } });
    const { id: teamId } = await makeTeam(owner, { orgId, name: "Crew" });
    await owner.teams.addTeamMember({ orgId, teamId, userId: memberId });
    await owner.orgs.deleteOrg({ orgId, force: true });
    expect((await refusal(member.orgs.getOrg({ orgId }))).code).toBe("PermissionDenied");
    const { org } = await ops.orgs.undeleteOrg({ orgId });
    expect(org?.deleteTime).toBeUndefined();
    expect((await member.teams.getTeam({ orgId, teamId })).team?.id).toBe(teamId);
    const by = (value: string) => ops.orgs.lookupOrg({ key: { case: "slug", value } });
    expect((await by(org?.slug ?? "")).renamed).toBe(false);
    expect(await by(former)).toMatchObject({ org: { id: orgId }, renamed: true });
  });

  test("ALREADY_EXISTS when its slug was taken meanwhile; a former one stays with who took it", async () => {
    const { ops } = harness.current;
    const { orgId, owner, ownerId } = await harness.current.tenant();
    const former = (await ops.orgs.getOrg({ orgId })).org?.slug ?? "";
    const current = slug();
    await owner.orgs.updateOrg({ org: { id: orgId, slug: current } });
    await owner.orgs.deleteOrg({ orgId, force: true });
    const take = async (name: string) =>
      (await ops.orgs.createOrg({ org: { name: "Taker", slug: name }, ownerUserId: ownerId })).org
        ?.id ?? "";
    const [second, first] = [await take(former), await take(current)];
    expect(await refusal(ops.orgs.undeleteOrg({ orgId }))).toMatchObject({
      code: "AlreadyExists",
      reason: "SLUG_TAKEN",
    });
    await ops.orgs.deleteOrg({ orgId: first });
    await ops.orgs.undeleteOrg({ orgId });
    const by = (value: string) => ops.orgs.lookupOrg({ key: { case: "slug", value } });
    expect((await by(current)).org?.id).toBe(orgId);
    expect((await by(former)).org?.id).toBe(second);
  });

  test("FAILED_PRECONDITION LAST_OWNER when its owner went meanwhile", async () => {
    const { ops } = harness.current;
    const { orgId, owner, ownerId: userId } = await harness.current.tenant();
    await owner.orgs.deleteOrg({ orgId, force: true });
    await ops.users.deleteUser({ userId });
    expect((await refusal(ops.orgs.undeleteOrg({ orgId }))).reason).toBe("LAST_OWNER");
    await ops.users.undeleteUser({ userId });
    expect((await ops.orgs.undeleteOrg({ orgId })).org?.id).toBe(orgId);
  });

  test("ALREADY_EXISTS NOT_DELETED for a live org, which nobody but platform is told", async () => {
    const { ops } = harness.current;
    const { orgId, owner } = await harness.current.tenant();
    expect((await refusal(ops.orgs.undeleteOrg({ orgId }))).reason).toBe("NOT_DELETED");
    expect((await refusal(owner.orgs.undeleteOrg({ orgId }))).code).toBe("PermissionDenied");
  });
});

describe("TeamService.UndeleteTeam", () => {
  test("brings back the subtree that went with it, and no team that went before", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const team = (name: string, parentTeamId = "") =>
      makeTeam(owner, { orgId, name, parentTeamId });
    const { id: top } = await team("Top");
    const { id: inner } = await team("Inner", top);
    const { id: innermost } = await team("Innermost", inner);
    const { id: earlier } = await team("Earlier", top);
    await owner.teams.deleteTeam({ orgId, teamId: earlier });
    await owner.teams.deleteTeam({ orgId, teamId: top, force: true });
    const { team: back } = await owner.teams.undeleteTeam({ orgId, teamId: top });
    expect(back?.deleteTime).toBeUndefined();
    const { teams } = await owner.teams.listTeams({ orgId });
    expect(teams.map(({ id }) => id).sort()).toEqual([top, inner, innermost].sort());
  });

  test("FAILED_PRECONDITION TEAM_PARENT_DELETED under a deleted team, which it names", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { id: top } = await makeTeam(owner, { orgId, name: "Top" });
    const { id: inner } = await makeTeam(owner, { orgId, name: "Inner", parentTeamId: top });
    await owner.teams.deleteTeam({ orgId, teamId: top, force: true });
    const refused = await refusal(owner.teams.undeleteTeam({ orgId, teamId: inner }));
    expect(refused).toMatchObject({ code: "FailedPrecondition", reason: "TEAM_PARENT_DELETED" });
    expect(refused.message).toContain(top);
  });

  test("ALREADY_EXISTS when a sibling took the name, and for a live team", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { id: teamId } = await makeTeam(owner, { orgId, name: "Crew" });
    const undelete = () => owner.teams.undeleteTeam({ orgId, teamId });
    expect((await refusal(undelete())).reason).toBe("NOT_DELETED");
    await owner.teams.deleteTeam({ orgId, teamId });
    const { id: taker } = await makeTeam(owner, { orgId, name: "crew" });
    expect(await refusal(undelete())).toMatchObject({
      code: "AlreadyExists",
      reason: "TEAM_NAME_TAKEN",
    });
    await owner.teams.deleteTeam({ orgId, teamId: taker });
    expect((await undelete()).team?.id).toBe(teamId);
  });
});
