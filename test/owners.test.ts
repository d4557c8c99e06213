import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { byHand } from "./console.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";
import { activeOwners, ownedOrg } from "./owned-org.ts";

const harness = useHarness();

const { SUSPENDED } = OrgMemberState;

const owned = (count: number, ids?: readonly string[]) => ownedOrg(harness.current, count, ids);

const suspendUser = (id: string): Promise<void> =>
  byHand(harness.current.admin, "update roster.users set state = 'SUSPENDED' where id = $1", [id]);

/** Every way by which an org may lose an owner. */
const losses = {
  demote: ({ orgs }: Callers, orgId: string, userId: string) =>
    orgs.updateOrgMember({ member: { orgId, userId, role: "member" } }),
  clear: ({ orgs }: Callers, orgId: string, userId: string) =>
    orgs.updateOrgMember({ member: { orgId, userId }, updateMask: { paths: ["role"] } }),
  suspend: ({ orgs }: Callers, orgId: string, userId: string) =>
    orgs.updateOrgMember({ member: { orgId, userId, state: SUSPENDED } }),
  remove: ({ orgs }: Callers, orgId: string, userId: string) =>
    orgs.removeOrgMember({ orgId, userId }),
  delete: (_caller: Callers, _orgId: string, userId: string) =>
    harness.current.ops.users.deleteUser({ userId }),
};
const ways = Object.keys(losses) as (keyof typeof losses)[];

const lastOwner = (...orgIds: string[]) => ({
  code: "FailedPrecondition",
  reason: "LAST_OWNER",
  metadata: { org_ids: orgIds.join(",") },
});

describe("The last owner of an org", () => {
  test.each(ways)("FAILED_PRECONDITION to %s them, by themselves or by platform", async (way) => {
    const { orgId, ownerIds } = await owned(1);
    const [ownerId = ""] = ownerIds;
    for (const caller of [await harness.current.as(ownerId), harness.current.ops]) {
      expect(await refusal(losses[way](caller, orgId, ownerId))).toMatchObject(lastOwner(orgId));
    }
    const { member } = await harness.current.ops.orgs.getOrgMember({ orgId, userId: ownerId });
    expect(member).toMatchObject({ role: "owner", state: OrgMemberState.ACTIVE, etag: '"1"' });
  });

  test.each(ways)("may be lost by %s once there is another", async (way) => {
    const { orgId, ownerIds } = await owned(2);
    const [first = "", second = ""] = ownerIds;
    const self = await harness.current.as(first);
    await losses[way](self, orgId, first);
    expect(await activeOwners(harness.current, orgId)).toBe(1);
    const left = await refusal(losses[way](await harness.current.as(second), orgId, second));
    expect(left).toMatchObject(lastOwner(orgId));
  });

  test("is the one who is active: others who are suspended, as member or as user, do not count", async () => {
    const { orgId, ownerIds } = await owned(3);
    const [first = "", second = "", third = ""] = ownerIds;
    const { ops } = harness.current;
    await ops.orgs.updateOrgMember({ member: { orgId, userId: second, state: SUSPENDED } });
    await suspendUser(third);
    for (const way of ways) {
      expect(await refusal(losses[way](ops, orgId, first)), way).toMatchObject(lastOwner(orgId));
    }
    // Those two may go: they were no support.
    await losses.remove(ops, orgId, second);
    await losses.delete(ops, orgId, third);
    expect(await activeOwners(harness.current, orgId)).toBe(1);
  });

  test("of several orgs at once cannot be deleted, and the refusal names just those", async () => {
    const { ops } = harness.current;
    const userId = await harness.current.user();
    const alone = [(await owned(1, [userId])).orgId, (await owned(1, [userId])).orgId];
    await owned(2, [userId]);
    const refused = await refusal(ops.users.deleteUser({ userId }));
    expect(refused).toMatchObject(lastOwner(...alone.sort()));
    for (const orgId of alone) {
      await ops.orgs.addOrgMember({ orgId, userId: await harness.current.user(), role: "owner" });
    }
    expect((await ops.users.deleteUser({ userId })).user?.deleteTime).toBeDefined();
  });

  test("cannot be removed by hand either, while an org is theirs alone", async () => {
    const userId = await harness.current.user();
    await owned(1, [userId]);
    const { admin } = harness.current;
    const removed = byHand(admin, "delete from roster.users where id = $1", [userId]);
    await expect(removed).rejects.toThrow("LAST_OWNER");
  });

  test("may be deleted when the org is deleted or suspended, and still then the org is not theirs", async () => {
    const { ops, admin } = harness.current;
    const userId = await harness.current.user();
    const [deleted, suspended] = [await owned(1, [userId]), await owned(1, [userId])];
    await ops.orgs.deleteOrg({ orgId: deleted.orgId });
    await byHand(admin, "update roster.orgs set state = 'SUSPENDED' where id = $1", [
      suspended.orgId,
    ]);
    expect((await ops.users.deleteUser({ userId })).user?.deleteTime).toBeDefined();
    const reactivated = byHand(admin, "update roster.orgs set state = 'ACTIVE' where id = $1", [
      suspended.orgId,
    ]);
    await expect(reactivated).rejects.toThrow("LAST_OWNER");
  });
});

describe("An owner", () => {
  test("INVALID_ARGUMENT with an expire_time, whether made so or promoted with one", async () => {
    const { orgId } = await owned(1);
    const { ops } = harness.current;
    const userId = await harness.current.user();
    const expireTime = timestampFromMs(Date.now() + 3_600_000);
    await ops.orgs.addOrgMember({ orgId, userId, expireTime });
    const member = { orgId, userId, role: "owner" };
    const refused = await refusal(ops.orgs.updateOrgMember({ member }));
    expect(refused).toMatchObject({ code: "InvalidArgument", reason: "FIELD_INVALID" });
    expect(refused.fields).toEqual(["member.expire_time"]);
    const paths = ["role", "expire_time"];
    const promoted = await ops.orgs.updateOrgMember({ member, updateMask: { paths } });
    expect(promoted.member).toMatchObject({ role: "owner" });
    const limited = { member: { orgId, userId, expireTime } };
    expect(await refusal(ops.orgs.updateOrgMember(limited))).toMatchObject({
      reason: "FIELD_INVALID",
    });
  });

  test("FAILED_PRECONDITION to be made of a suspended user", async () => {
    const { orgId } = await owned(1);
    const { ops } = harness.current;
    const userId = await harness.current.user();
    await ops.orgs.addOrgMember({ orgId, userId });
    await suspendUser(userId);
    const refused = await refusal(
      ops.orgs.updateOrgMember({ member: { orgId, userId, role: "owner" } }),
    );
    expect(refused).toMatchObject({ code: "FailedPrecondition", reason: "OWNER_INACTIVE" });
  });
});
