import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { flushesOfRead, type Refusal, refusal, useHarness } from "./harness.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";
import { overlap } from "./overlap.ts";
import { told } from "./samples.ts";

const harness = useHarness();

const { MEMBER, MAINTAINER } = TeamRole;
const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };
const noTeam = { code: "NotFound", reason: "TEAM_NOT_FOUND" };
const noMember = { code: "NotFound", reason: "TEAM_MEMBER_NOT_FOUND" };
const stale = { code: "Aborted", reason: "ETAG_STALE", metadata: { etag: '"2"' } };

/** An org with a team of which its member is a member; `ask` names that membership. */
const joined = async () => {
  const tenant = await tenantWithTeam(harness.current);
  const { orgId, owner, team, memberId: userId } = tenant;
  const ask = { orgId, teamId: team.id, userId };
  const { member: membership } = await owner.teams.addTeamMember(ask);
  return { ...tenant, ask, membership: membership ?? expect.fail("no member came back") };
};

/** Ids at which no team is for this org: deleted, another org's, and one that never was, the random one first. */
const teamsNotThere = async ({ orgId, owner }: Awaited<ReturnType<typeof joined>>) => {
  const deleted = await makeTeam(owner, { orgId, name: "Gone" });
  await owner.teams.deleteTeam({ orgId, teamId: deleted.id });
  const foreign = await tenantWithTeam(harness.current);
  return [randomUUID(), deleted.id, foreign.team.id] as const;
};

/** Expects refusals like `like` that differ in nothing but the id that was asked. */
const expectAlike = async (
  ids: readonly string[],
  call: (id: string) => Promise<unknown>,
  like: object,
) => {
  const [first = "", ...others] = ids;
  const absent = await refusal(call(first));
  expect(absent).toMatchObject(like);
  for (const id of others) expect(told(await refusal(call(id)), id)).toBe(told(absent, first));
};

describe("TeamService.AddTeamMember", () => {
  test("makes an org member a team member, which GetTeamMember reads back", async () => {
    const { ask, owner, membership, adminId } = await joined();
    expect(membership).toMatchObject({ ...ask, role: MEMBER, etag: '"1"', viaTeamIds: [] });
    expect(membership.joinTime).toBeDefined();
    expect((await owner.teams.getTeamMember(ask)).member).toEqual(membership);
    const { member } = await owner.teams.addTeamMember({
      ...ask,
      userId: adminId,
      role: MAINTAINER,
    });
    expect(member?.role).toBe(MAINTAINER);
  });

  test("ALREADY_EXISTS for a member of the team; of many calls at once a single one succeeds", async () => {
    const { ask, owner, adminId } = await joined();
    expect(await refusal(owner.teams.addTeamMember({ ...ask, role: MAINTAINER }))).toMatchObject({
      code: "AlreadyExists",
      reason: "TEAM_MEMBER_EXISTS",
      metadata: { field: "user_id" },
    });
    expect((await owner.teams.getTeamMember(ask)).member?.role).toBe(MEMBER);
    const race = Array.from({ length: 6 }, () =>
      owner.teams.addTeamMember({ ...ask, userId: adminId }),
    );
    const done = await Promise.allSettled(race);
    expect(done.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  });

  test("NOT_FOUND for who is no member of the org, is deleted or never was, all alike", async () => {
    const { ask, owner, outsiderId, adminId } = await joined();
    await harness.current.ops.users.deleteUser({ userId: adminId });
    await expectAlike(
      [randomUUID(), outsiderId, adminId],
      (userId) => owner.teams.addTeamMember({ ...ask, userId }),
      { code: "NotFound", reason: "ORG_MEMBER_NOT_FOUND" },
    );
  });

  test("NOT_FOUND for who leaves the org at the same time, like for who left before", async () => {
    const { ask, owner, orgId, adminId: userId } = await joined();
    const add = () => refusal(owner.teams.addTeamMember({ ...ask, userId }));
    const [, added] = await overlap(
      harness.current,
      () => owner.orgs.removeOrgMember({ orgId, userId }),
      add,
    );
    const during = added?.status === "fulfilled" ? (added.value as Refusal) : expect.fail("added");
    const after = await add();
    expect(after).toMatchObject({ code: "NotFound", reason: "ORG_MEMBER_NOT_FOUND" });
    expect(told(during, userId)).toBe(told(after, userId));
  });

  test("NOT_FOUND for a team that is deleted, another org's or never was, all alike", async () => {
    const tenant = await joined();
    const { ask, owner } = tenant;
    const call = (teamId: string) => owner.teams.addTeamMember({ ...ask, teamId });
    await expectAlike(await teamsNotThere(tenant), call, noTeam);
  });

  test("INVALID_ARGUMENT names the field that breaks a rule", async () => {
    const { ask, owner } = await joined();
    for (const [field, fault] of [
      ["org_id", { orgId: "org" }],
      ["team_id", { teamId: "" }],
      ["user_id", { userId: "me" }],
      ["role", { role: 9 as TeamRole }],
    ] as const) {
      const refused = await refusal(owner.teams.addTeamMember({ ...ask, ...fault }));
      expect(refused).toMatchObject({ code: "InvalidArgument", fields: [field] });
    }
  });
});

describe("TeamService.GetTeamMember", () => {
  test("NOT_FOUND for who is not in the team itself, is deleted or never was, all alike", async () => {
    const { ask, owner, orgId, adminId, guestId, outsiderId } = await joined();
    const below = await makeTeam(owner, { orgId, name: "Below", parentTeamId: ask.teamId });
    await owner.teams.addTeamMember({ ...ask, teamId: below.id, userId: adminId });
    await owner.teams.addTeamMember({ ...ask, userId: guestId });
    await harness.current.ops.users.deleteUser({ userId: guestId });
    const call = (userId: string) => owner.teams.getTeamMember({ ...ask, userId });
    await expectAlike([randomUUID(), adminId, guestId, outsiderId], call, noMember);
  });

  test("NOT_FOUND for a team that is deleted, another org's or never was, all alike", async () => {
    const tenant = await joined();
    const { ask, owner } = tenant;
    const call = (teamId: string) => owner.teams.getTeamMember({ ...ask, teamId });
    await expectAlike(await teamsNotThere(tenant), call, noTeam);
  });
});

describe("TeamService.ListTeamMembers", () => {
  test("lists each member once over pages, without those who are deleted", async () => {
    const { ask, owner, orgId, ownerId, adminId, guestId } = await joined();
    const more = await harness.current.user();
    await harness.current.ops.orgs.addOrgMember({ orgId, userId: more });
    const everyone = [ownerId, adminId, guestId, more];
    for (const userId of everyone) await owner.teams.addTeamMember({ ...ask, userId });
    await harness.current.ops.users.deleteUser({ userId: adminId });
    for (const view of [View.BASIC, View.FULL]) {
      const seen: string[] = [];
      let pageToken = "";
      do {
        const page = await owner.teams.listTeamMembers({ ...ask, pageSize: 1, pageToken, view });
        seen.push(...page.members.map(({ userId }) => userId));
        pageToken = page.nextPageToken;
      } while (pageToken !== "");
      const live = [...everyone, ask.userId].filter((id) => id !== adminId);
      expect(seen).toEqual(live.sort());
    }
  });

  test("brings users with their profiles in one round trip, without what is not the caller's to see", async () => {
    const { ask, owner, member, memberId, ownerId } = await joined();
    await owner.teams.addTeamMember({ ...ask, userId: ownerId });
    await harness.current.ops.users.updateUser({
      user: { id: ownerId, labels: { plan: "pro" }, externalId: randomUUID() },
    });
    await owner.users.updateProfile({
      profile: { userId: ownerId, bio: "Hi", settings: { a: 1 } },
    });
    const ask2 = { ...ask, view: View.FULL };
    await member.teams.listTeamMembers(ask2);
    const before = harness.current.server.roundTrips();
    const { members } = await member.teams.listTeamMembers(ask2);
    expect(harness.current.server.roundTrips() - before).toBe(flushesOfRead);
    const [first, second] = [ownerId, memberId].map((id) =>
      members.find(({ userId }) => userId === id),
    );
    expect(first?.user).toMatchObject({ id: ownerId, name: "Owner", externalId: "", labels: {} });
    expect(first?.user?.profile).toMatchObject({ userId: ownerId, bio: "Hi" });
    expect(first?.user?.profile?.settings).toBeUndefined();
    expect(second?.user?.profile?.userId).toBe(memberId);
    const basic = await member.teams.listTeamMembers(ask);
    expect(basic.members.map(({ user }) => user)).toEqual([undefined, undefined]);
  });

  test("NOT_FOUND for a team that is deleted, another org's or never was; empty for one without members", async () => {
    const tenant = await joined();
    const { ask, owner, orgId } = tenant;
    const ids = await teamsNotThere(tenant);
    for (const view of [View.BASIC, View.FULL]) {
      await expectAlike(
        ids,
        (teamId) => owner.teams.listTeamMembers({ orgId, teamId, view }),
        noTeam,
      );
    }
    await owner.teams.removeTeamMember(ask);
    const { members, nextPageToken } = await owner.teams.listTeamMembers(ask);
    expect([members, nextPageToken]).toEqual([[], ""]);
  });
});

describe("TeamService.UpdateTeamMember", () => {
  test("changes the role and counts the version; in the mask and unset it is the default", async () => {
    const { ask, owner, membership } = await joined();
    const raised = await owner.teams.updateTeamMember({ member: { ...ask, role: MAINTAINER } });
    expect(raised.member).toMatchObject({ role: MAINTAINER, etag: '"2"' });
    expect(raised.member?.joinTime).toEqual(membership.joinTime);
    for (const path of ["role", "*"]) {
      await owner.teams.updateTeamMember({ member: { ...ask, role: MAINTAINER } });
      const cleared = { member: ask, updateMask: { paths: [path] } };
      expect((await owner.teams.updateTeamMember(cleared)).member?.role).toBe(MEMBER);
    }
  });

  test("INVALID_ARGUMENT for a mask path that is unknown or output only, and for no team or user", async () => {
    const { ask, owner } = await joined();
    for (const path of ["user_id", "team_id", "join_time", "user", "etag", "x"]) {
      const update = {
        member: { ...ask, role: MAINTAINER },
        updateMask: { paths: ["role", path] },
      };
      expect(await refusal(owner.teams.updateTeamMember(update))).toMatchObject({
        code: "InvalidArgument",
        reason: "UPDATE_MASK_INVALID",
        metadata: { path },
        fields: ["update_mask"],
      });
    }
    const noUser = await refusal(owner.teams.updateTeamMember({ member: { ...ask, userId: "" } }));
    expect(noUser).toMatchObject({ reason: "FIELD_REQUIRED", fields: ["member.user_id"] });
    const none = await refusal(owner.teams.updateTeamMember({ member: { ...ask, teamId: "" } }));
    expect(none).toMatchObject({ reason: "FIELD_REQUIRED", fields: ["member.team_id"] });
  });

  test("ABORTED with the current etag when the one sent is stale", async () => {
    const { ask, owner, membership } = await joined();
    const update = (etag: string, role: TeamRole) =>
      owner.teams.updateTeamMember({ member: { ...ask, role, etag } });
    await update(membership.etag, MAINTAINER);
    expect(await refusal(update(membership.etag, MEMBER))).toMatchObject(stale);
    expect((await refusal(update("1", MEMBER))).fields).toEqual(["member.etag"]);
    expect((await owner.teams.getTeamMember(ask)).member?.role).toBe(MAINTAINER);
  });

  test("NOT_FOUND for a team or a member that is not there", async () => {
    const tenant = await joined();
    const { ask, owner, adminId, outsiderId } = tenant;
    const update = (change: object) =>
      owner.teams.updateTeamMember({ member: { ...ask, role: MAINTAINER, ...change } });
    await expectAlike(await teamsNotThere(tenant), (teamId) => update({ teamId }), noTeam);
    const ids = [randomUUID(), adminId, outsiderId];
    await expectAlike(ids, (userId) => update({ userId }), noMember);
    await expectAlike(ids, (userId) => update({ userId, etag: '"1"' }), noMember);
  });
});

describe("TeamService.RemoveTeamMember", () => {
  test("ends the membership and returns it as it was; members may leave by themselves", async () => {
    const { ask, owner, member, membership, guest, guestId } = await joined();
    const left = await member.teams.removeTeamMember({ ...ask, etag: membership.etag });
    expect(left.member).toEqual(membership);
    expect(await refusal(owner.teams.getTeamMember(ask))).toMatchObject(noMember);
    expect(await refusal(member.teams.removeTeamMember(ask))).toMatchObject(noMember);
    await owner.teams.addTeamMember({ ...ask, userId: guestId });
    await guest.teams.removeTeamMember({ ...ask, userId: guestId });
    expect((await owner.teams.listTeamMembers(ask)).members).toEqual([]);
  });

  test("ABORTED with the current etag when the one sent is stale, and the member stays", async () => {
    const { ask, owner, membership } = await joined();
    await owner.teams.updateTeamMember({ member: { ...ask, role: MAINTAINER } });
    const { etag } = membership;
    expect(await refusal(owner.teams.removeTeamMember({ ...ask, etag }))).toMatchObject(stale);
    expect((await owner.teams.getTeamMember(ask)).member?.etag).toBe('"2"');
  });

  test("NOT_FOUND for a team or a member that is not there", async () => {
    const tenant = await joined();
    const { ask, owner, adminId, outsiderId } = tenant;
    const remove = (change: object) => owner.teams.removeTeamMember({ ...ask, ...change });
    await expectAlike(await teamsNotThere(tenant), (teamId) => remove({ teamId }), noTeam);
    await expectAlike(
      [randomUUID(), adminId, outsiderId],
      (userId) => remove({ userId }),
      noMember,
    );
  });

  test("PERMISSION_DENIED for removing others without being a maintainer", async () => {
    const { ask, owner, member, guest, adminId } = await joined();
    await owner.teams.addTeamMember({ ...ask, userId: adminId });
    for (const { teams } of [member, guest]) {
      const call = teams.removeTeamMember({ ...ask, userId: adminId });
      expect(await refusal(call)).toMatchObject(denied);
    }
  });
});

describe("OrgService.RemoveOrgMember", () => {
  test("takes all team memberships in that org along, and adding the user again brings none back", async () => {
    const { ask, owner, orgId, memberId: userId } = await joined();
    const below = await makeTeam(owner, { orgId, name: "Below", parentTeamId: ask.teamId });
    await owner.teams.addTeamMember({ ...ask, teamId: below.id });
    const other = await tenantWithTeam(harness.current);
    await harness.current.ops.orgs.addOrgMember({ orgId: other.orgId, userId });
    const elsewhere = { orgId: other.orgId, teamId: other.team.id, userId };
    await other.owner.teams.addTeamMember(elsewhere);

    await owner.orgs.removeOrgMember({ orgId, userId });
    for (const again of [false, true]) {
      if (again) await owner.orgs.addOrgMember({ orgId, userId });
      for (const teamId of [ask.teamId, below.id]) {
        expect((await owner.teams.listTeamMembers({ orgId, teamId })).members).toEqual([]);
        expect(await refusal(owner.teams.getTeamMember({ ...ask, teamId }))).toMatchObject(
          noMember,
        );
      }
    }
    expect((await other.owner.teams.getTeamMember(elsewhere)).member?.userId).toBe(userId);
  });
});
