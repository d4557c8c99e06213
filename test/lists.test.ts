import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { type Callers, refusal, slug, useHarness } from "./harness.ts";

const harness = useHarness();

const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };

/** Walks a list to its end. */
const all = async <Item>(
  page: (pageToken: string) => Promise<{ items: Item[]; nextPageToken: string }>,
): Promise<Item[]> => {
  const items: Item[] = [];
  let token = "";
  do {
    const { items: more, nextPageToken } = await page(token);
    items.push(...more);
    token = nextPageToken;
  } while (token !== "");
  return items;
};

const everyUser = (
  { users }: Callers,
  request: { orgId?: string; showDeleted?: boolean; view?: View },
) =>
  all(async (pageToken) => {
    const { users: items, nextPageToken } = await users.listUsers({
      ...request,
      pageToken,
      pageSize: 1000,
    });
    return { items, nextPageToken };
  });

const everyOrg = ({ orgs }: Callers, showDeleted = false) =>
  all(async (pageToken) => {
    const { orgs: items, nextPageToken } = await orgs.listOrgs({
      showDeleted,
      pageToken,
      pageSize: 1000,
    });
    return { items, nextPageToken };
  });

const idsOf = (items: readonly { id: string }[]): string[] => items.map(({ id }) => id).sort();

describe("UserService.ListUsers", () => {
  test("lists the members of an org as users, and all users outside one", async () => {
    const { orgId, ownerId, adminId, memberId, guestId, outsiderId, member } =
      await harness.current.tenant();
    const members = [ownerId, adminId, memberId, guestId].sort();
    const inOrg = await everyUser(member, { orgId });
    expect(idsOf(inOrg)).toEqual(members);
    expect(inOrg.find(({ id }) => id === adminId)).toEqual(
      (await member.users.getUser({ orgId, userId: adminId })).user,
    );
    const service = await harness.current.as("service:crm", { scope: "users.get" });
    for (const caller of [harness.current.ops, service]) {
      expect(idsOf(await everyUser(caller, {}))).toEqual(
        expect.arrayContaining([...members, outsiderId]),
      );
    }
  });

  test("brings profiles in VIEW_FULL, the org's own where there is one, never with settings", async () => {
    const { orgId, memberId, ownerId, owner } = await harness.current.tenant();
    const { ops } = harness.current;
    await ops.users.updateProfile({
      profile: { userId: memberId, bio: "all", settings: { a: 1 } },
    });
    await ops.users.updateProfile({
      profile: { userId: memberId, orgId, bio: "here", settings: { a: 1 } },
    });
    await ops.users.updateProfile({
      profile: { userId: ownerId, bio: "owner", settings: { a: 1 } },
    });
    for (const [caller, request, bio] of [
      [owner, { orgId }, "here"],
      [ops, {}, "all"],
    ] as const) {
      const listed = await everyUser(caller, { ...request, view: View.FULL });
      const profile = (id: string) => listed.find((user) => user.id === id)?.profile;
      expect(profile(memberId)).toMatchObject({ userId: memberId, bio });
      expect(profile(ownerId)).toMatchObject({ userId: ownerId, orgId: "", bio: "owner" });
      for (const user of listed) expect(user.profile?.settings).toBeUndefined();
    }
    for (const user of await everyUser(owner, { orgId })) expect(user.profile).toBeUndefined();
  });

  test("hides external_id and labels of others from users, and shows them to services", async () => {
    const { orgId, adminId, memberId, member } = await harness.current.tenant();
    const labels = { plan: "pro" };
    for (const id of [adminId, memberId]) {
      await harness.current.ops.users.updateUser({ user: { id, labels, externalId: `x${id}` } });
    }
    const service = await harness.current.as("service:crm", { org: orgId, scope: "members.get" });
    const seenBy = async (caller: Callers, userId: string) =>
      (await everyUser(caller, { orgId })).find(({ id }) => id === userId);
    expect(await seenBy(member, adminId)).toMatchObject({ labels: {}, externalId: "" });
    expect(await seenBy(member, memberId)).toMatchObject({ labels, externalId: `x${memberId}` });
    expect(await seenBy(service, adminId)).toMatchObject({ labels, externalId: `x${adminId}` });
  });

  test("shows deleted users to platform that asks for them, to nobody else", async () => {
    const { orgId, memberId, owner } = await harness.current.tenant();
    const { ops } = harness.current;
    const { user } = await ops.users.deleteUser({ userId: memberId });
    const service = await harness.current.as("service:crm", { scope: "users.get members.get" });
    for (const request of [{ orgId }, {}]) {
      const shown = await everyUser(ops, { ...request, showDeleted: true });
      expect(shown.find(({ id }) => id === memberId)).toEqual(user);
      expect(idsOf(await everyUser(ops, request))).not.toContain(memberId);
      const asked = await everyUser(service, { ...request, showDeleted: true });
      expect(idsOf(asked)).not.toContain(memberId);
    }
    expect(idsOf(await everyUser(owner, { orgId, showDeleted: true }))).not.toContain(memberId);
  });

  test("PERMISSION_DENIED for guests in the org, and for users outside one", async () => {
    const { orgId, owner, guest, outsider } = await harness.current.tenant();
    expect(await refusal(guest.users.listUsers({ orgId }))).toMatchObject(denied);
    expect(await refusal(owner.users.listUsers({}))).toMatchObject(denied);
    const refused = await refusal(outsider.users.listUsers({ orgId }));
    expect(refused).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
    const narrow = await harness.current.as("service:crm", { scope: "members.get" });
    expect(await refusal(narrow.users.listUsers({}))).toMatchObject(denied);
  });
});

describe("OrgService.ListOrgs", () => {
  test("lists live orgs, and deleted ones to platform that asks for them", async () => {
    const { ops } = harness.current;
    const ownerUserId = await harness.current.user();
    const made = [];
    for (const name of ["live", "deleted"]) {
      const { org } = await ops.orgs.createOrg({ org: { name, slug: slug() }, ownerUserId });
      made.push(org?.id ?? "");
    }
    const [live = "", deleted = ""] = made;
    const { org } = await ops.orgs.deleteOrg({ orgId: deleted });
    const service = await harness.current.as("service:crm", { scope: "orgs.get" });
    for (const [caller, ask] of [
      [ops, false],
      [service, false],
      [service, true],
    ] as const) {
      const ids = idsOf(await everyOrg(caller, ask));
      expect(ids).toContain(live);
      expect(ids).not.toContain(deleted);
    }
    const shown = await everyOrg(ops, true);
    expect(shown.find(({ id }) => id === deleted)).toEqual(org);
  });

  test("PERMISSION_DENIED for users, and for services that are pinned or lack orgs.get", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const pinned = await harness.current.as("service:crm", { org: orgId, scope: "orgs.get" });
    const narrow = await harness.current.as("service:crm", { scope: "org.get" });
    for (const { orgs } of [owner, pinned, narrow]) {
      expect(await refusal(orgs.listOrgs({}))).toMatchObject(denied);
    }
  });
});

describe("UserService.ListUserOrgs", () => {
  test("shows a token that is pinned to one org that org alone", async () => {
    const [one, other] = [await harness.current.tenant(), await harness.current.tenant()];
    const userId = one.memberId;
    await other.owner.orgs.addOrgMember({ orgId: other.orgId, userId });
    const pinned = await harness.current.as(userId, { org: other.orgId });
    const seen = (await pinned.users.listUserOrgs({ userId })).userOrgs.map(({ org }) => org?.id);
    expect(seen).toEqual([other.orgId]);
    expect((await one.member.users.listUserOrgs({ userId })).userOrgs).toHaveLength(2);
  });

  test("lists the orgs of a user, each with the membership", async () => {
    const { orgId, adminId, admin, owner } = await harness.current.tenant();
    const other = await harness.current.tenant();
    await other.owner.orgs.addOrgMember({ orgId: other.orgId, userId: adminId, role: "guest" });
    const { org } = await owner.orgs.getOrg({ orgId });
    const { member } = await owner.orgs.getOrgMember({ orgId, userId: adminId });
    const service = await harness.current.as("service:crm", { scope: "users.get" });
    for (const { users } of [admin, harness.current.ops, service]) {
      const { userOrgs } = await users.listUserOrgs({ userId: adminId });
      expect(userOrgs).toHaveLength(2);
      expect(userOrgs.find(({ org: found }) => found?.id === orgId)).toMatchObject({ org, member });
      const guest = userOrgs.find(({ org: found }) => found?.id === other.orgId);
      expect(guest?.member).toMatchObject({ userId: adminId, role: "guest" });
    }
  });

  test("is empty for a user of no org, and NOT_FOUND for one who never was or is deleted", async () => {
    const { users } = harness.current.ops;
    const userId = await harness.current.user();
    expect(await users.listUserOrgs({ userId })).toMatchObject({ userOrgs: [], nextPageToken: "" });
    await users.deleteUser({ userId });
    for (const id of [userId, randomUUID()]) {
      expect(await refusal(users.listUserOrgs({ userId: id }))).toMatchObject({
        code: "NotFound",
        reason: "USER_NOT_FOUND",
      });
    }
  });

  test("PERMISSION_DENIED about others, and for services that are pinned", async () => {
    const { orgId, memberId, owner } = await harness.current.tenant();
    const pinned = await harness.current.as("service:crm", { org: orgId, scope: "users.get" });
    for (const { users } of [owner, pinned]) {
      expect(await refusal(users.listUserOrgs({ userId: memberId }))).toMatchObject(denied);
    }
  });
});
