import { randomUUID } from "node:crypto";
import type { JsonObject, MessageInitShape } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import type { ProfileSchema } from "../src/gen/roster/v1/profile_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";

const harness = useHarness();

/** UpdateProfile; a mask makes the difference between absent and cleared. */
const update = async (
  { users }: Callers,
  profile: MessageInitShape<typeof ProfileSchema>,
  ...paths: string[]
) => {
  const mask = paths.length > 0 ? { updateMask: { paths } } : {};
  return (await users.updateProfile({ profile, ...mask })).profile;
};

/** Settings that nest as many levels, the outermost object included. */
const nested = (levels: number): JsonObject => (levels === 1 ? {} : { a: nested(levels - 1) });

describe("UserService.GetProfile", () => {
  test("gives the default profile outside any org, and in one its own, however the org is selected", async () => {
    const { orgId, memberId: userId, member, admin } = await harness.current.tenant();
    await update(member, { userId, bio: "everywhere" });
    await update(member, { userId, orgId, bio: "here" });
    const everywhere = await member.users.getProfile({ userId });
    expect(everywhere.profile).toMatchObject({ userId, orgId: "", bio: "everywhere" });
    const pinned = await harness.current.as(userId, { org: orgId });
    const narrowed = await harness.current.as(userId, {}, { "roster-org-id": orgId });
    const crm = await harness.current.as("service:crm", { scope: "members.get", org: orgId });
    for (const here of [
      await admin.users.getProfile({ userId, orgId }),
      await pinned.users.getProfile({ userId }),
      await narrowed.users.getProfile({ userId }),
      await crm.users.getProfile({ userId }),
    ])
      expect(here.profile).toMatchObject({ userId, orgId, bio: "here" });
  });

  test("gives the default profile in an org that has none of its own, as every answer with users does", async () => {
    const { orgId, memberId: userId, adminId, member, admin } = await harness.current.tenant();
    await update(member, { userId, bio: "everywhere", settings: { a: 1 } });
    await update(admin, { userId: adminId, orgId, bio: "here" });
    const { teams, orgs, users } = admin;
    const { team } = await teams.createTeam({ team: { orgId, name: "Crew" } });
    const teamId = team?.id ?? "";
    for (const id of [userId, adminId]) await teams.addTeamMember({ orgId, teamId, userId: id });
    const view = View.FULL;
    for (const [id, profile] of [
      [userId, { userId, orgId: "", bio: "everywhere" }],
      [adminId, { userId: adminId, orgId, bio: "here" }],
    ] as const) {
      const { user } = await users.getUser({ orgId, userId: id, view });
      const key = { case: "email", value: user?.email ?? "" } as const;
      const lists = await Promise.all([
        users.batchGetUsers({ orgId, userIds: [id], view }),
        users.listUsers({ orgId, view }),
        users.listUsers({ orgId, view, filter: 'name = "*"' }),
      ]);
      const members = await Promise.all([
        orgs.listOrgMembers({ orgId, view }),
        orgs.listOrgMembers({ orgId, view, filter: 'user.name = "*"' }),
        teams.listTeamMembers({ orgId, teamId, view }),
      ]);
      const seen = [
        (await users.getProfile({ orgId, userId: id })).profile,
        user?.profile,
        (await users.lookupUser({ orgId, key, view })).user?.profile,
        ...lists.map((list) => list.users.find((one) => one.id === id)?.profile),
        ...members.map((list) => list.members.find((one) => one.userId === id)?.user?.profile),
      ];
      expect(seen).toHaveLength(9);
      for (const one of seen) expect(one).toMatchObject(profile);
    }
    const { profile } = await users.getProfile({ orgId, userId });
    expect(profile?.settings).toEqual({ a: 1 });
  });

  test("NOT_FOUND for who is not in the org, like for a user who never was", async () => {
    const { orgId, outsiderId, owner } = await harness.current.tenant();
    const random = randomUUID();
    const foreign = await refusal(owner.users.getProfile({ orgId, userId: outsiderId }));
    const absent = await refusal(owner.users.getProfile({ orgId, userId: random }));
    expect(foreign).toMatchObject({ code: "NotFound", reason: "USER_NOT_FOUND" });
    expect(absent.message).toBe(foreign.message.replace(outsiderId, random));
  });

  test("PERMISSION_DENIED for others outside an org, and for guests about others", async () => {
    const { orgId, ownerId, guestId, guest, member } = await harness.current.tenant();
    for (const call of [
      () => member.users.getProfile({ userId: ownerId }),
      () => guest.users.getProfile({ orgId, userId: ownerId }),
    ]) {
      expect(await refusal(call())).toMatchObject({
        code: "PermissionDenied",
        reason: "PERMISSION_MISSING",
      });
    }
    expect((await guest.users.getProfile({ userId: guestId })).profile?.userId).toBe(guestId);
  });

  test("shows one org nothing of the profile in another", async () => {
    const one = await harness.current.tenant();
    const other = await harness.current.tenant();
    const userId = one.memberId;
    await other.owner.orgs.addOrgMember({ orgId: other.orgId, userId });
    await update(one.member, { userId, orgId: one.orgId, bio: "for the first org" });
    const { profile } = await other.owner.users.getProfile({ orgId: other.orgId, userId });
    expect(profile).toMatchObject({ orgId: "", bio: "" });
    const full = { orgId: other.orgId, userId, view: View.FULL };
    expect((await other.owner.users.getUser(full)).user?.profile).toMatchObject({
      orgId: "",
      bio: "",
    });
  });
});

describe("UserService.UpdateProfile", () => {
  test("takes settings up to 64 KiB of compact JSON, however many commas they have", async () => {
    const userId = await harness.current.user();
    const settings = { ones: Array.from({ length: 30_000 }, () => 1) };
    const { users } = harness.current.ops;
    const { profile } = await users.updateProfile({ profile: { userId, settings } });
    expect(profile?.settings).toEqual(settings);
  });

  test("changes the populated fields without a mask and counts the version", async () => {
    const userId = await harness.current.user();
    const self = await harness.current.as(userId);
    const avatar = "https://example.com/a.png";
    await update(self, { userId, avatar });
    const changed = await update(self, { userId, bio: "line\n\tline" });
    expect(changed).toMatchObject({ userId, orgId: "", avatar, bio: "line\n\tline", etag: '"3"' });
    expect((await self.users.getProfile({ userId })).profile).toEqual(changed);
  });

  test("changes just the masked fields, and clears those that are not set", async () => {
    const userId = await harness.current.user();
    const { ops } = harness.current;
    const avatar = "https://example.com/a.png";
    await update(ops, { userId, avatar, bio: "b", settings: { a: 1 } });
    const masked = await update(ops, { userId, avatar: `${avatar}?2`, settings: { a: 2 } }, "bio");
    expect(masked).toMatchObject({ avatar, bio: "", settings: { a: 1 } });
    expect(await update(ops, { userId }, "settings")).toMatchObject({ avatar, settings: {} });
    await update(ops, { userId, settings: { a: 1 } });
    const everything = await update(ops, { userId, bio: "all" }, "*");
    expect(everything).toMatchObject({ avatar: "", bio: "all", settings: {} });
  });

  test("merges settings as RFC 7396 has it", async () => {
    const userId = await harness.current.user();
    const { ops } = harness.current;
    const before = {
      title: "Goodbye!",
      author: { given: "John", family: "Doe" },
      tags: ["a", "b"],
      n: 1,
    };
    const patch = {
      title: "Hello!",
      author: { family: null },
      tags: ["a"],
      phone: { home: "+01", none: null },
      n: { deep: { null: null } },
    };
    const after = {
      title: "Hello!",
      author: { given: "John" },
      tags: ["a"],
      phone: { home: "+01" },
      n: { deep: {} },
    };
    await update(ops, { userId, settings: before });
    expect((await update(ops, { userId, settings: patch }))?.settings).toEqual(after);
    expect((await update(ops, { userId, settings: {} }, "settings"))?.settings).toEqual(after);
    const gone = await update(
      ops,
      { userId, settings: { title: null, author: null, absent: null } },
      "settings",
    );
    expect(gone?.settings).toEqual({ tags: ["a"], phone: { home: "+01" }, n: { deep: {} } });
  });

  test("keeps every key when many merge different ones at once", async () => {
    const { users } = harness.current.ops;
    const userId = await harness.current.user();
    const keys = Array.from({ length: 12 }, (_, i) => `k${i}`);
    await Promise.all(
      keys.map((key) => users.updateProfile({ profile: { userId, settings: { [key]: true } } })),
    );
    const { profile } = await users.getProfile({ userId });
    expect(Object.keys(profile?.settings ?? {}).sort()).toEqual(keys.sort());
  });

  test("INVALID_ARGUMENT for settings beyond 64 KiB, sent or merged, or beyond 20 levels", async () => {
    const userId = await harness.current.user();
    const { ops } = harness.current;
    const kib = (count: number): string => "x".repeat(count * 1024);
    expect(await update(ops, { userId, settings: { a: kib(40), deep: nested(19) } })).toBeDefined();
    const settings = (await ops.users.getProfile({ userId })).profile?.settings;
    for (const patch of [{ b: kib(65) }, { b: kib(30) }, { deep: nested(20) }, nested(21)]) {
      const refused = await refusal(update(ops, { userId, settings: patch }));
      expect(refused).toMatchObject({ code: "InvalidArgument", reason: "VALUE_TOO_LARGE" });
      expect(refused.fields).toEqual(["profile.settings"]);
    }
    expect((await ops.users.getProfile({ userId })).profile?.settings).toEqual(settings);
    expect((await update(ops, { userId, settings: { a: null, b: kib(60) } }))?.settings?.b).toBe(
      kib(60),
    );
    const email = `${randomUUID()}@example.com`;
    const created = ops.users.createUser({
      user: { email, name: "A" },
      profile: { settings: nested(21) },
    });
    expect(await refusal(created)).toMatchObject({
      reason: "VALUE_TOO_LARGE",
      fields: ["profile.settings"],
    });
  });

  test("INVALID_ARGUMENT names the field, or the mask path, that breaks a rule", async () => {
    const userId = await harness.current.user();
    const { ops } = harness.current;
    for (const [field, profile] of [
      ["profile.avatar", { avatar: "ftp://example.com" }],
      ["profile.avatar", { avatar: "https://" }],
      ["profile.avatar", { avatar: `https://example.com/${"a".repeat(2048)}` }],
      ["profile.bio", { bio: "b".repeat(2001) }],
      ["profile.bio", { bio: "bell\u0007" }],
      ["profile.settings", { settings: { a: "nul\u0000" } }],
      ["profile.org_id", { orgId: "not-a-uuid" }],
    ] as const) {
      const refused = await refusal(update(ops, { userId, ...profile }));
      expect(refused, field).toMatchObject({ code: "InvalidArgument", reason: "FIELD_INVALID" });
      expect(refused.fields).toEqual([field]);
    }
    for (const path of ["id", "user_id", "org_id", "etag", "settings.a", "nope"]) {
      const refused = await refusal(update(ops, { userId, bio: "b" }, "bio", path));
      expect(refused).toMatchObject({ code: "InvalidArgument", reason: "UPDATE_MASK_INVALID" });
      expect(refused.metadata.path).toBe(path);
    }
    expect(await refusal(update(ops, { bio: "b" }))).toMatchObject({ fields: ["profile.user_id"] });
  });

  test("ABORTED with the current etag when the one sent is stale; malformed ones are INVALID_ARGUMENT", async () => {
    const { orgId, memberId: userId, admin } = await harness.current.tenant();
    for (const [caller, place] of [
      [harness.current.ops, { userId }],
      [admin, { userId, orgId }],
    ] as const) {
      const first = await update(caller, { ...place, bio: "one" });
      const { etag } = first ?? expect.fail();
      const second = await update(caller, { ...place, bio: "two", etag });
      expect(await refusal(update(caller, { ...place, bio: "three", etag }))).toMatchObject({
        code: "Aborted",
        reason: "ETAG_STALE",
        metadata: { etag: second?.etag },
      });
      const malformed = await refusal(update(caller, { ...place, etag: "1" }));
      expect(malformed).toMatchObject({ reason: "ETAG_MALFORMED", fields: ["profile.etag"] });
    }
  });

  test("NOT_FOUND for a user who never was", async () => {
    const refused = await refusal(update(harness.current.ops, { userId: randomUUID(), bio: "b" }));
    expect(refused).toMatchObject({ code: "NotFound", reason: "USER_NOT_FOUND" });
  });

  test("PERMISSION_DENIED for others outside an org", async () => {
    const { ownerId, member } = await harness.current.tenant();
    expect(await refusal(update(member, { userId: ownerId, bio: "b" }))).toMatchObject({
      code: "PermissionDenied",
      reason: "PERMISSION_MISSING",
    });
    const service = await harness.current.as("service:crm", { scope: "users.update" });
    expect((await update(service, { userId: ownerId, bio: "b" }))?.bio).toBe("b");
  });
});

describe("UserService.UpdateProfile for an org", () => {
  test("makes the profile with its first update, of the masked fields alone", async () => {
    const { orgId, guestId: userId, guest } = await harness.current.tenant();
    const avatar = "https://example.com/a.png";
    const fresh = { userId, orgId, avatar, bio: "b", settings: { a: { b: null, c: 1 } } };
    const made = await update(guest, fresh, "bio", "settings");
    expect(made).toMatchObject({ userId, orgId, avatar: "", bio: "b", etag: '"1"' });
    expect(made?.settings).toEqual({ a: { c: 1 } });
    const second = await update(guest, { userId, orgId, settings: { a: { d: 2 } } });
    expect(second).toMatchObject({ id: made?.id, bio: "b", settings: { a: { c: 1, d: 2 } } });
    expect((await guest.users.getProfile({ userId })).profile).toMatchObject({
      bio: "",
      settings: {},
    });
  });

  test("NOT_FOUND when an etag was sent and there is no profile yet", async () => {
    const { orgId, memberId, member } = await harness.current.tenant();
    const call = update(member, { userId: memberId, orgId, bio: "b", etag: '"1"' });
    expect(await refusal(call)).toMatchObject({ code: "NotFound", reason: "PROFILE_NOT_FOUND" });
  });

  test("NOT_FOUND for who is not in the org, like for a user who never was", async () => {
    const { orgId, outsiderId, admin } = await harness.current.tenant();
    const random = randomUUID();
    const foreign = await refusal(update(admin, { userId: outsiderId, orgId, bio: "b" }));
    const absent = await refusal(update(admin, { userId: random, orgId, bio: "b" }));
    expect(foreign).toMatchObject({ code: "NotFound", reason: "USER_NOT_FOUND" });
    expect(absent.message).toBe(foreign.message.replace(outsiderId, random));
  });

  test("is for members.update and for the members themselves, PERMISSION_DENIED to others", async () => {
    const { orgId, memberId, guestId, admin, member, guest, outsider } =
      await harness.current.tenant();
    expect((await update(admin, { userId: memberId, orgId, bio: "a" }))?.bio).toBe("a");
    expect((await update(guest, { userId: guestId, orgId, bio: "g" }))?.bio).toBe("g");
    const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };
    expect(await refusal(update(member, { userId: guestId, orgId, bio: "x" }))).toMatchObject(
      denied,
    );
    expect(await refusal(update(outsider, { userId: guestId, orgId, bio: "x" }))).toMatchObject({
      code: "PermissionDenied",
      reason: "ORG_NOT_ALLOWED",
    });
  });

  test("PERMISSION_DENIED when others change a default profile inside an org, right etag or none", async () => {
    const { orgId, memberId, adminId, ownerId } = await harness.current.tenant();
    const platform = await harness.current.as("service:ops", {
      scope: "roster.platform",
      org: orgId,
    });
    const before = await harness.current.ops.users.getProfile({ userId: memberId });
    for (const caller of [
      await harness.current.as(adminId, { org: orgId }),
      await harness.current.as(ownerId, {}, { "roster-org-id": orgId }),
      platform,
    ]) {
      for (const etag of ["", before.profile?.etag ?? ""]) {
        expect(await refusal(update(caller, { userId: memberId, bio: "x", etag }))).toMatchObject({
          code: "PermissionDenied",
          reason: "PERMISSION_MISSING",
        });
      }
    }
    expect(await harness.current.ops.users.getProfile({ userId: memberId })).toEqual(before);
    const self = await harness.current.as(memberId, { org: orgId });
    expect((await update(self, { userId: memberId, bio: "mine" }))?.orgId).toBe("");
  });

  test("ends with the membership and does not come back with a new one", async () => {
    const { orgId, memberId: userId, member, owner } = await harness.current.tenant();
    await update(member, { userId, orgId, bio: "b" });
    await owner.orgs.removeOrgMember({ orgId, userId });
    await owner.orgs.addOrgMember({ orgId, userId });
    const { profile } = await owner.users.getProfile({ orgId, userId });
    expect(profile).toMatchObject({ orgId: "", bio: "" });
    expect((await member.users.getProfile({ userId })).profile).toEqual(profile);
  });
});
