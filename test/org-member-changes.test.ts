import { randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";

const harness = useHarness();

const later = () => timestampFromMs(Date.now() + 3_600_000);
const earlier = () => timestampFromMs(Date.now() - 1_000);

const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };

/** Adds a new user. */
const add = async ({ orgs }: Callers, orgId: string, role = "member") => {
  const userId = await harness.current.user();
  const { member } = await orgs.addOrgMember({ orgId, userId, role });
  return member ?? expect.fail("no member came back");
};

describe("OrgService.UpdateOrgMember", () => {
  test("changes the populated fields, or the masked ones and clears those that are not set", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { userId } = await add(owner, orgId, "admin");
    const update = async (member: object, ...paths: string[]) => {
      const mask = paths.length > 0 ? { updateMask: { paths } } : {};
      return (await owner.orgs.updateOrgMember({ member: { orgId, userId, ...member }, ...mask }))
        .member;
    };
    const expireTime = later();
    expect(await update({ expireTime })).toMatchObject({ role: "admin", expireTime, etag: '"2"' });
    const masked = await update({ role: "guest", state: OrgMemberState.SUSPENDED }, "state");
    expect(masked).toMatchObject({ role: "admin", state: OrgMemberState.SUSPENDED, expireTime });
    expect(await update({ role: "guest" })).toMatchObject({ role: "guest", expireTime });
    const everything = await update({}, "*");
    expect(everything).toMatchObject({ role: "member", state: OrgMemberState.ACTIVE });
    expect(everything?.expireTime).toBeUndefined();
    for (const path of ["user", "user_id", "org_id", "join_time", "nope"]) {
      const refused = await refusal(update({ role: "guest" }, "role", path));
      expect(refused).toMatchObject({ code: "InvalidArgument", reason: "UPDATE_MASK_INVALID" });
      expect(refused.metadata.path).toBe(path);
    }
  });

  test("ABORTED with the current etag when the one sent is stale, as RemoveOrgMember says too", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { userId, etag } = await add(owner, orgId);
    await owner.orgs.updateOrgMember({ member: { orgId, userId, role: "guest", etag } });
    for (const [field, call] of [
      [
        "member.etag",
        (given: string) =>
          owner.orgs.updateOrgMember({ member: { orgId, userId, role: "member", etag: given } }),
      ],
      ["etag", (given: string) => owner.orgs.removeOrgMember({ orgId, userId, etag: given })],
    ] as const) {
      expect(await refusal(call(etag))).toMatchObject({
        code: "Aborted",
        reason: "ETAG_STALE",
        metadata: { etag: '"2"' },
      });
      const malformed = await refusal(call("2"));
      expect(malformed).toMatchObject({ reason: "ETAG_MALFORMED", fields: [field] });
    }
    expect((await owner.orgs.removeOrgMember({ orgId, userId, etag: '"2"' })).member?.role).toBe(
      "guest",
    );
  });

  test("INVALID_ARGUMENT names the field that breaks a rule", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { userId } = await add(owner, orgId);
    for (const [field, reason, member] of [
      ["member.user_id", "FIELD_REQUIRED", { orgId, role: "guest" }],
      ["member.role", "FIELD_INVALID", { orgId, userId, role: "A B" }],
      ["member.role", "ROLE_UNKNOWN", { orgId, userId, role: "crew" }],
      [
        "member.expire_time",
        "FIELD_INVALID",
        { orgId, userId, role: "owner", expireTime: later() },
      ],
      ["member.expire_time", "FIELD_INVALID", { orgId, userId, expireTime: { nanos: -1 } }],
    ] as const) {
      const refused = await refusal(owner.orgs.updateOrgMember({ member }));
      expect(refused, reason).toMatchObject({ code: "InvalidArgument", reason, fields: [field] });
    }
  });

  test("NOT_FOUND for who is not a member, as RemoveOrgMember says too", async () => {
    const { orgId, outsiderId, owner } = await harness.current.tenant();
    for (const userId of [outsiderId, randomUUID()]) {
      for (const call of [
        () => owner.orgs.updateOrgMember({ member: { orgId, userId, role: "guest" } }),
        () => owner.orgs.removeOrgMember({ orgId, userId, etag: '"1"' }),
      ]) {
        expect(await refusal(call())).toMatchObject({
          code: "NotFound",
          reason: "ORG_MEMBER_NOT_FOUND",
        });
      }
    }
  });
});

describe("A membership that is suspended or has expired", () => {
  test("counts as none from the very next call, and again as one when it is active or made anew", async () => {
    const { orgId, memberId: userId, owner, member } = await harness.current.tenant();
    const activate = () =>
      owner.orgs.updateOrgMember({ member: { orgId, userId, state: OrgMemberState.ACTIVE } });
    for (const [end, restore] of [
      [{ state: OrgMemberState.SUSPENDED }, activate],
      [{ expireTime: earlier() }, () => owner.orgs.addOrgMember({ orgId, userId })],
    ] as const) {
      await member.orgs.getOrg({ orgId });
      await owner.orgs.updateOrgMember({ member: { orgId, userId, ...end } });
      for (const call of [
        () => member.orgs.getOrg({ orgId }),
        () => member.users.getUser({ orgId, userId }),
        () => member.orgs.removeOrgMember({ orgId, userId }),
        () => member.users.getCaller({ orgId }),
      ]) {
        expect(await refusal(call())).toMatchObject({
          code: "PermissionDenied",
          reason: "ORG_NOT_ALLOWED",
        });
      }
      for (const { users } of [member, harness.current.ops]) {
        expect((await users.listUserOrgs({ userId })).userOrgs).toEqual([]);
      }
      await restore();
      expect((await member.orgs.getOrg({ orgId })).org?.id).toBe(orgId);
      expect((await member.users.listUserOrgs({ userId })).userOrgs).toHaveLength(1);
    }
  });
});

describe("OrgService.RemoveOrgMember", () => {
  test("ends the membership and those in teams, at the very next call", async () => {
    const { orgId, memberId: userId, owner, member } = await harness.current.tenant();
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
    const teamId = team?.id ?? "";
    await owner.teams.addTeamMember({ orgId, teamId, userId });
    const { member: was } = await owner.orgs.removeOrgMember({ orgId, userId });
    expect(was).toMatchObject({ userId, role: "member", etag: '"1"' });
    expect(await refusal(member.orgs.getOrg({ orgId }))).toMatchObject({
      reason: "ORG_NOT_ALLOWED",
    });
    await owner.orgs.addOrgMember({ orgId, userId });
    expect((await owner.teams.listTeamMembers({ orgId, teamId })).members).toEqual([]);
  });

  test("lets everyone leave by themselves, and PERMISSION_DENIED to remove others", async () => {
    const { orgId, ownerId, memberId, guestId, adminId, owner, admin, member, guest } =
      await harness.current.tenant();
    expect(await refusal(member.orgs.removeOrgMember({ orgId, userId: guestId }))).toMatchObject(
      denied,
    );
    expect(await refusal(guest.orgs.removeOrgMember({ orgId, userId: memberId }))).toMatchObject(
      denied,
    );
    for (const [{ orgs }, userId] of [
      [guest, guestId],
      [member, memberId],
      [admin, adminId],
    ] as const) {
      expect((await orgs.removeOrgMember({ orgId, userId })).member?.userId).toBe(userId);
    }
    const { members } = await owner.orgs.listOrgMembers({ orgId });
    expect(members.map(({ userId }) => userId)).toEqual([ownerId]);
  });

  test("lets them leave also with a token that is narrowed to members.remove and to no less", async () => {
    const { orgId, memberId, owner } = await harness.current.tenant();
    const { userId: second } = await add(owner, orgId, "owner");
    for (const userId of [memberId, second]) {
      const other = await harness.current.as(userId, { scope: "members.get" });
      expect(await refusal(other.orgs.removeOrgMember({ orgId, userId }))).toMatchObject(denied);
      const { orgs } = await harness.current.as(userId, { scope: "members.remove" });
      expect((await orgs.removeOrgMember({ orgId, userId })).member?.userId).toBe(userId);
    }
  });
});

describe("A member whose membership ends", () => {
  test("PERMISSION_DENIED to make it last longer by themselves; shorter they may", async () => {
    const { ops } = harness.current;
    const { orgId, adminId: userId, admin } = await harness.current.tenant();
    const at = (minutes: number) => timestampFromMs(Date.now() + minutes * 60_000);
    const update = (callers: typeof admin, expireTime: ReturnType<typeof at> | undefined) =>
      callers.orgs.updateOrgMember({
        member: { orgId, userId, ...(expireTime && { expireTime }) },
        updateMask: { paths: ["expire_time"] },
      });
    await update(ops, at(10));
    for (const longer of [at(20), undefined])
      expect(await refusal(update(admin, longer))).toMatchObject({
        code: "PermissionDenied",
        reason: "ROLE_NOT_GRANTABLE",
      });
    expect((await update(admin, at(5))).member?.expireTime).toBeDefined();
    expect((await update(ops, undefined)).member?.expireTime).toBeUndefined();
  });
});
