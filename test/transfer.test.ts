import { describe, expect, test } from "vitest";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { newest } from "./audit-log.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";
import { overlap } from "./overlap.ts";
import { activeOwners, ownedOrg } from "./owned-org.ts";

const harness = useHarness();

const later = () => ({ seconds: BigInt(Math.floor(Date.now() / 1000) + 3_600), nanos: 0 });

const transfer = (
  { orgs }: Callers,
  orgId: string,
  fromUserId: string,
  toUserId: string,
  formerRole = "",
) => orgs.transferOrgOwnership({ orgId, fromUserId, toUserId, formerRole });

describe("OrgService.TransferOrgOwnership", () => {
  test("makes a member the owner in the place of the last one, who becomes an admin", async () => {
    const { orgId, ownerId, memberId, owner, member } = await harness.current.tenant();
    await owner.orgs.updateOrgMember({
      member: { orgId, userId: memberId, expireTime: later() },
    });
    const { from, to } = await transfer(owner, orgId, ownerId, memberId);
    expect(from).toMatchObject({ userId: ownerId, role: "admin", etag: '"2"' });
    expect(to).toMatchObject({ userId: memberId, role: "owner", etag: '"3"' });
    expect(to?.expireTime).toBeUndefined();
    expect((await owner.users.getCaller({ orgId })).role).toBe("admin");
    const read = await member.orgs.getOrgMember({ orgId, userId: ownerId });
    expect(read.member).toEqual(from);
    const { changes } = await newest(member, orgId);
    expect(changes.map(({ resourceId, changedFields }) => [resourceId, changedFields])).toEqual(
      expect.arrayContaining([
        [memberId, ["expire_time", "role"]],
        [ownerId, ["role"]],
      ]),
    );
    expect(await refusal(transfer(owner, orgId, memberId, ownerId))).toMatchObject({
      reason: "PERMISSION_MISSING",
    });
  });

  test("gives the former owner any role that the org has, and leaves other owners alone", async () => {
    const { ops } = harness.current;
    const { orgId, ownerIds } = await ownedOrg(harness.current, 3);
    const [a = "", b = "", c = ""] = ownerIds;
    await ops.access.createRole({ role: { orgId, name: "emeritus", permissions: ["org.get"] } });
    const owner = await harness.current.as(a);
    expect((await transfer(owner, orgId, b, c, "emeritus")).from?.role).toBe("emeritus");
    expect((await transfer(ops, orgId, c, b)).to).toMatchObject({ userId: b, role: "owner" });
    const { members } = await owner.orgs.listOrgMembers({ orgId, filter: "role = owner" });
    expect(members.map(({ userId }) => userId).sort()).toEqual([a, b].sort());
    expect(await refusal(transfer(owner, orgId, a, c, "nothing"))).toMatchObject({
      code: "InvalidArgument",
      reason: "ROLE_UNKNOWN",
      fields: ["former_role"],
    });
    expect(await refusal(transfer(owner, orgId, a, a.toUpperCase()))).toMatchObject({
      code: "InvalidArgument",
      fields: ["to_user_id"],
    });
  });

  test("refuses who cannot go and who cannot come, and then changes nothing", async () => {
    const { ops } = harness.current;
    const { orgId, ownerId, adminId, memberId, guestId, outsiderId, owner } =
      await harness.current.tenant();
    const absent = (userId: string) => ({
      code: "NotFound",
      reason: "ORG_MEMBER_NOT_FOUND",
      metadata: { user_id: userId },
    });
    const state = OrgMemberState.SUSPENDED;
    await owner.orgs.updateOrgMember({ member: { orgId, userId: guestId, state } });
    await ops.users.suspendUser({ userId: memberId });
    for (const [from, to, told] of [
      [outsiderId, adminId, absent(outsiderId)],
      [ownerId, outsiderId, absent(outsiderId)],
      [ownerId, guestId, absent(guestId)],
      [
        adminId,
        ownerId,
        {
          code: "FailedPrecondition",
          reason: "ORG_MEMBER_NOT_OWNER",
          metadata: { user_id: adminId },
        },
      ],
      [ownerId, memberId, { code: "FailedPrecondition", reason: "OWNER_INACTIVE" }],
    ] as const) {
      for (const callers of [owner, ops])
        expect(await refusal(transfer(callers, orgId, from, to))).toMatchObject(told);
    }
    const { members } = await owner.orgs.listOrgMembers({ orgId, filter: "role = owner" });
    expect(members).toMatchObject([{ userId: ownerId, etag: '"1"' }]);
  });

  test("PERMISSION_DENIED for a role of the org that may delete it, and for a narrowed token", async () => {
    const { orgId, ownerId, memberId, owner } = await harness.current.tenant();
    const permissions = ["org.get", "org.delete", "members.get", "teams.get"];
    await owner.access.createRole({ role: { orgId, name: "undertaker", permissions } });
    const undertaker = await harness.current.user();
    await owner.orgs.addOrgMember({ orgId, userId: undertaker, role: "undertaker" });
    for (const callers of [
      await harness.current.as(undertaker),
      await harness.current.as(ownerId, { scope: permissions.join(" ") }),
    ])
      expect(await refusal(transfer(callers, orgId, ownerId, memberId))).toMatchObject({
        code: "PermissionDenied",
        reason: "ROLE_NOT_GRANTABLE",
        metadata: { role: "owner" },
      });
  });
});

describe("Transfers at the same time", () => {
  const reasonsOf = async (done: readonly PromiseSettledResult<unknown>[]): Promise<string[]> =>
    Promise.all(
      done
        .filter((result) => result.status === "rejected")
        .map(async ({ reason }) => (await refusal(Promise.reject(reason))).reason),
    );

  test("by one owner to two members: the first has it, the second comes too late", async () => {
    const { orgId, ownerId, adminId, memberId, owner } = await harness.current.tenant();
    const done = await overlap(
      harness.current,
      () => transfer(owner, orgId, ownerId, memberId),
      () => transfer(owner, orgId, ownerId, adminId),
    );
    expect(await reasonsOf(done)).toEqual(["PERMISSION_MISSING"]);
    expect(await activeOwners(harness.current, orgId)).toBe(1);
  });

  test("and deletes of the one who comes: they are the owner and stay, or are gone before", async () => {
    const { ops } = harness.current;
    for (const order of [0, 1]) {
      const { orgId, ownerId, memberId, owner } = await harness.current.tenant();
      const calls = [
        () => transfer(owner, orgId, ownerId, memberId),
        () => ops.users.deleteUser({ userId: memberId }),
      ] as const;
      const done =
        order === 0
          ? await overlap(harness.current, calls[0], calls[1])
          : await overlap(harness.current, calls[1], calls[0]);
      const expected = order === 0 ? ["LAST_OWNER"] : ["OWNER_INACTIVE"];
      expect(await reasonsOf(done)).toEqual(expected);
      expect(await activeOwners(harness.current, orgId)).toBe(1);
    }
  });

  test("in a crowd with demotions, removals and deletes leave an owner, and nobody is told to retry", async () => {
    const { ops } = harness.current;
    for (let round = 0; round < 5; round++) {
      const one = await ownedOrg(harness.current, 3);
      const other = await ownedOrg(harness.current, 3, one.ownerIds);
      const heirs = [await harness.current.user(), await harness.current.user()];
      const calls = [one.orgId, other.orgId].map(async (orgId) => {
        for (const userId of heirs) await ops.orgs.addOrgMember({ orgId, userId });
      });
      await Promise.all(calls);
      const [a = "", b = "", c = ""] = one.ownerIds;
      const [x = "", y = ""] = heirs;
      const done = await Promise.allSettled([
        ...[one.orgId, other.orgId].flatMap((orgId) => [
          transfer(ops, orgId, a, x),
          transfer(ops, orgId, b, y),
          transfer(ops, orgId, c, a),
          transfer(ops, orgId, a, b),
          ops.orgs.updateOrgMember({ member: { orgId, userId: b, role: "guest" } }),
          ops.orgs.removeOrgMember({ orgId, userId: c }),
        ]),
        ...[a, x, y].map((userId) => ops.users.deleteUser({ userId })),
      ]);
      const outcomes = new Set(await reasonsOf(done));
      for (const fair of [
        "LAST_OWNER",
        "ORG_MEMBER_NOT_OWNER",
        "ORG_MEMBER_NOT_FOUND",
        "OWNER_INACTIVE",
      ])
        outcomes.delete(fair);
      expect([...outcomes]).toEqual([]);
      for (const orgId of [one.orgId, other.orgId])
        expect(await activeOwners(harness.current, orgId)).toBeGreaterThan(0);
    }
  });
});
