import { randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { byHand } from "./console.ts";
import { type Callers, flushesOfRead, refusal, useHarness } from "./harness.ts";

const harness = useHarness();

const later = () => timestampFromMs(Date.now() + 3_600_000);

const roles = ["guest", "member", "admin", "owner"] as const;
const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };

const add = async ({ orgs }: Callers, orgId: string, role = "") => {
  const userId = await harness.current.user();
  const { member } = await orgs.addOrgMember({ orgId, userId, role });
  return member ?? expect.fail("no member came back");
};

describe("OrgService.AddOrgMember", () => {
  test("makes a member, with the default role or a given one, that GetOrgMember reads back", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const plain = await add(owner, orgId);
    expect(plain).toMatchObject({
      orgId,
      role: "member",
      state: OrgMemberState.ACTIVE,
      etag: '"1"',
    });
    expect(plain.expireTime).toBeUndefined();
    const read = await owner.orgs.getOrgMember({ orgId, userId: plain.userId });
    expect(read.member).toEqual(plain);
    for (const role of roles) expect((await add(owner, orgId, role)).role).toBe(role);
    const userId = await harness.current.user();
    const expireTime = { ...later(), nanos: 123_456_000 };
    const { member } = await owner.orgs.addOrgMember({ orgId, userId, role: "guest", expireTime });
    expect(member?.expireTime).toEqual(expireTime);
  });

  test("ALREADY_EXISTS the second time, whatever the role", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { userId } = await add(owner, orgId);
    for (const role of ["member", "guest"]) {
      const refused = await refusal(owner.orgs.addOrgMember({ orgId, userId, role }));
      expect(refused).toMatchObject({ code: "AlreadyExists", reason: "ORG_MEMBER_EXISTS" });
    }
    const twice = await harness.current.user();
    const calls = Array.from({ length: 5 }, () =>
      owner.orgs.addOrgMember({ orgId, userId: twice }),
    );
    const done = await Promise.allSettled(calls);
    expect(done.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  });

  test("NOT_FOUND for a user who never was, is deleted or suspended, all alike", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const [deleted, suspended] = [await harness.current.user(), await harness.current.user()];
    await harness.current.ops.users.deleteUser({ userId: deleted });
    const suspend = "update roster.users set state = 'SUSPENDED' where id = $1";
    await byHand(harness.current.admin, suspend, [suspended]);
    for (const { orgs } of [owner, harness.current.ops]) {
      const messages = [];
      for (const userId of [randomUUID(), deleted, suspended]) {
        const refused = await refusal(orgs.addOrgMember({ orgId, userId }));
        expect(refused).toMatchObject({ code: "NotFound", reason: "USER_NOT_FOUND" });
        messages.push(refused.message.replace(userId, "ID"));
      }
      expect(new Set(messages).size).toBe(1);
    }
  });

  test("INVALID_ARGUMENT for a role that the org does not have, also when another org has it", async () => {
    const one = await harness.current.tenant();
    const other = await harness.current.tenant();
    await other.owner.access.createRole({ role: { orgId: other.orgId, name: "crew" } });
    for (const { orgs } of [one.owner, one.admin]) {
      const userId = await harness.current.user();
      const call = orgs.addOrgMember({ orgId: one.orgId, userId, role: "crew" });
      const refused = await refusal(call);
      expect(refused).toMatchObject({ code: "InvalidArgument", reason: "ROLE_UNKNOWN" });
      expect(refused.fields).toEqual(["role"]);
    }
  });

  test("INVALID_ARGUMENT names the field that breaks a rule", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const userId = await harness.current.user();
    for (const [field, request] of [
      ["user_id", { orgId }],
      ["user_id", { orgId, userId: "nobody" }],
      ["role", { orgId, userId, role: "Not A Role" }],
      ["expire_time", { orgId, userId, expireTime: { seconds: -1n } }],
      ["expire_time", { orgId, userId, expireTime: { seconds: 0n, nanos: 1_000_000_000 } }],
      ["expire_time", { orgId, userId, role: "owner", expireTime: later() }],
    ] as const) {
      const refused = await refusal(owner.orgs.addOrgMember(request));
      expect(refused, field).toMatchObject({ code: "InvalidArgument", fields: [field] });
    }
  });

  test("PERMISSION_DENIED for members, guests and services without members.add", async () => {
    const { orgId, member, guest } = await harness.current.tenant();
    const service = await harness.current.as("service:crm", { scope: "members.get" });
    for (const caller of [member, guest, service]) {
      expect(await refusal(add(caller, orgId, "guest"))).toMatchObject(denied);
    }
  });
});

describe("OrgService.GetOrgMember", () => {
  test("is open to members, and to guests about themselves alone", async () => {
    const { orgId, memberId, guestId, member, guest } = await harness.current.tenant();
    const { member: seen } = await member.orgs.getOrgMember({ orgId, userId: guestId });
    expect(seen).toMatchObject({ userId: guestId, role: "guest" });
    expect((await guest.orgs.getOrgMember({ orgId, userId: guestId })).member).toEqual(seen);
    expect(await refusal(guest.orgs.getOrgMember({ orgId, userId: memberId }))).toMatchObject(
      denied,
    );
  });

  test("NOT_FOUND for a user of another org, like for one who never was", async () => {
    const { orgId, outsiderId, owner } = await harness.current.tenant();
    const random = randomUUID();
    const foreign = await refusal(owner.orgs.getOrgMember({ orgId, userId: outsiderId }));
    const absent = await refusal(owner.orgs.getOrgMember({ orgId, userId: random }));
    expect(foreign).toMatchObject({ code: "NotFound", reason: "ORG_MEMBER_NOT_FOUND" });
    expect(absent.message).toBe(foreign.message.replace(outsiderId, random));
  });
});

describe("OrgService.ListOrgMembers", () => {
  test("brings users with their profiles in one round trip, hiding what others may not see", async () => {
    const { orgId, ownerId, adminId, memberId, guestId, member } = await harness.current.tenant();
    const { ops } = harness.current;
    const profile = { userId: memberId, orgId, bio: "here", settings: { secret: 1 } };
    await ops.users.updateProfile({ profile });
    await ops.users.updateProfile({ profile: { userId: adminId, bio: "all", settings: { x: 1 } } });
    for (const id of [adminId, memberId])
      await ops.users.updateUser({ user: { id, labels: { a: "1" } } });
    const before = harness.current.server.roundTrips();
    const { members } = await member.orgs.listOrgMembers({ orgId, view: View.FULL });
    expect(harness.current.server.roundTrips() - before).toBe(flushesOfRead);
    expect(members.map(({ userId }) => userId).sort()).toEqual(
      [ownerId, adminId, memberId, guestId].sort(),
    );
    const user = (id: string) => members.find(({ userId }) => userId === id)?.user;
    expect(user(memberId)).toMatchObject({ labels: { a: "1" }, profile: { orgId, bio: "here" } });
    expect(user(adminId)).toMatchObject({
      name: "Admin",
      labels: {},
      profile: { orgId: "", bio: "all" },
    });
    for (const { user: listed } of members) expect(listed?.profile?.settings).toBeUndefined();
    const basic = await member.orgs.listOrgMembers({ orgId });
    for (const { user: listed } of basic.members) expect(listed).toBeUndefined();
  });

  test("PERMISSION_DENIED for guests and outsiders", async () => {
    const { orgId, guest, outsider } = await harness.current.tenant();
    expect(await refusal(guest.orgs.listOrgMembers({ orgId }))).toMatchObject(denied);
    const refused = await refusal(outsider.orgs.listOrgMembers({ orgId }));
    expect(refused).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
  });
});
