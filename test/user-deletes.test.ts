import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { refusal, useHarness } from "./harness.ts";
import { address, makeUser, type UserInit } from "./made-user.ts";

const harness = useHarness();

const made = (user: UserInit = {}) => makeUser(harness.current, user);

describe("UserService.DeleteUser", () => {
  test("marks the user, to be purged 30 days later", async () => {
    const { id } = await made();
    const { user } = await harness.current.ops.users.deleteUser({ userId: id });
    expect(user).toMatchObject({ id, name: "Some One", etag: '"2"' });
    const { deleteTime, purgeTime } = user ?? {};
    expect((purgeTime?.seconds ?? 0n) - (deleteTime?.seconds ?? 0n)).toBe(30n * 24n * 3600n);
    expect(purgeTime?.nanos).toBe(deleteTime?.nanos);
  });

  test("frees email and external_id at once, as often as one likes", async () => {
    const keys = { email: address(), externalId: randomUUID() };
    for (let round = 0; round < 3; round++) {
      const { id } = await made(keys);
      await harness.current.ops.users.deleteUser({ userId: id });
    }
    expect(await made(keys)).toMatchObject(keys);
  });

  test("takes memberships, lists and profiles along at once", async () => {
    const { orgId, memberId, owner } = await harness.current.tenant();
    const { ops } = harness.current;
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
    const teamId = team?.id ?? "";
    await owner.teams.addTeamMember({ orgId, teamId, userId: memberId });
    await ops.users.deleteUser({ userId: memberId });

    const { members } = await owner.orgs.listOrgMembers({ orgId });
    const { users } = await owner.users.listUsers({ orgId });
    const { members: crew } = await owner.teams.listTeamMembers({ orgId, teamId });
    expect(members.map(({ userId }) => userId)).not.toContain(memberId);
    expect(users.map(({ id }) => id)).not.toContain(memberId);
    expect([members.length, users.length, crew.length]).toEqual([3, 3, 0]);

    const userId = memberId;
    for (const [reason, call] of [
      ["ORG_MEMBER_NOT_FOUND", () => owner.orgs.getOrgMember({ orgId, userId })],
      [
        "ORG_MEMBER_NOT_FOUND",
        () => owner.orgs.updateOrgMember({ member: { orgId, userId, role: "guest" } }),
      ],
      ["ORG_MEMBER_NOT_FOUND", () => owner.orgs.removeOrgMember({ orgId, userId })],
      ["TEAM_MEMBER_NOT_FOUND", () => owner.teams.getTeamMember({ orgId, teamId, userId })],
      ["ORG_MEMBER_NOT_FOUND", () => owner.teams.addTeamMember({ orgId, teamId, userId })],
      ["USER_NOT_FOUND", () => owner.users.getUser({ orgId, userId })],
      ["USER_NOT_FOUND", () => ops.users.getProfile({ userId })],
      ["USER_NOT_FOUND", () => owner.users.getProfile({ orgId, userId })],
      ["USER_NOT_FOUND", () => ops.users.updateProfile({ profile: { userId, bio: "b" } })],
      ["USER_NOT_FOUND", () => owner.users.updateProfile({ profile: { userId, orgId, bio: "b" } })],
      ["USER_NOT_FOUND", () => ops.users.listUserOrgs({ userId })],
      ["USER_NOT_FOUND", () => ops.users.updateUser({ user: { id: userId, name: "X" } })],
    ] as const) {
      expect(await refusal(call()), call.toString()).toMatchObject({ code: "NotFound", reason });
    }
  });

  test("PERMISSION_DENIED for the deleted user from the very next call", async () => {
    const { orgId, memberId, member } = await harness.current.tenant();
    await member.orgs.getOrg({ orgId });
    await harness.current.ops.users.deleteUser({ userId: memberId });
    for (const call of [
      () => member.orgs.getOrg({ orgId }),
      () => member.users.getUser({ userId: memberId }),
      () => member.users.updateUser({ user: { id: memberId, name: "Ghost" } }),
      () => member.users.getCaller({}),
    ]) {
      expect(await refusal(call())).toMatchObject({
        code: "PermissionDenied",
        reason: "CALLER_INACTIVE",
      });
    }
  });

  test("leaves the deleted user to be read by platform alone", async () => {
    const { ops } = harness.current;
    const { id } = await made();
    const { user: deleted } = await ops.users.deleteUser({ userId: id });
    expect((await ops.users.getUser({ userId: id })).user).toEqual(deleted);
    const service = await harness.current.as("service:crm", { scope: "users.get" });
    const hidden = await refusal(service.users.getUser({ userId: id }));
    const random = randomUUID();
    const absent = await refusal(service.users.getUser({ userId: random }));
    expect(hidden).toMatchObject({ code: "NotFound", reason: "USER_NOT_FOUND" });
    expect(absent.message).toBe(hidden.message.replace(id, random));
  });

  test("NOT_FOUND the second time, and for a user who never was", async () => {
    const { id } = await made();
    const { deleteUser } = harness.current.ops.users;
    await deleteUser({ userId: id });
    for (const userId of [id, randomUUID()]) {
      expect(await refusal(deleteUser({ userId }))).toMatchObject({
        code: "NotFound",
        reason: "USER_NOT_FOUND",
      });
    }
  });

  test("ABORTED with the current etag when the one sent is stale; malformed ones are INVALID_ARGUMENT", async () => {
    const { ops } = harness.current;
    const { id, etag } = await made();
    await ops.users.updateUser({ user: { id, name: "Two" } });
    expect(await refusal(ops.users.deleteUser({ userId: id, etag }))).toMatchObject({
      code: "Aborted",
      reason: "ETAG_STALE",
      metadata: { etag: '"2"' },
    });
    const malformed = await refusal(ops.users.deleteUser({ userId: id, etag: "2" }));
    expect(malformed).toMatchObject({ reason: "ETAG_MALFORMED", fields: ["etag"] });
    await ops.users.deleteUser({ userId: id, etag: '"2"' });
  });

  test("PERMISSION_DENIED for everyone but platform, the user included", async () => {
    const { orgId, memberId, member, owner } = await harness.current.tenant();
    const service = await harness.current.as("service:crm", { scope: "users.update users.get" });
    const pinned = await harness.current.as("service:ops", {
      org: orgId,
      scope: "roster.platform",
    });
    for (const { users } of [member, owner, service, pinned]) {
      expect(await refusal(users.deleteUser({ userId: memberId }))).toMatchObject({
        code: "PermissionDenied",
        reason: "PERMISSION_MISSING",
        metadata: { permission: "roster.platform" },
      });
    }
  });
});
