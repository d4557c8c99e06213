import { randomUUID } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { ActorKind } from "../src/gen/roster/v1/audit_pb.ts";
import { UserState } from "../src/gen/roster/v1/user_pb.ts";
import type { CreateUserRequestSchema } from "../src/gen/roster/v1/user_service_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { flushesOfRead, refusal, useHarness } from "./harness.ts";
import { address, makeUser, type UserInit } from "./made-user.ts";

const harness = useHarness();

const made = (user: UserInit = {}) => makeUser(harness.current, user);

const labelsUpTo = (count: number, prefix = "k"): Record<string, string> =>
  Object.fromEntries(Array.from({ length: count }, (_, i) => [`${prefix}${i}`, "v"]));

describe("UserService.CreateUser", () => {
  test("makes an active user with a default profile, which GetUser reads back", async () => {
    const email = address();
    const { user } = await harness.current.ops.users.createUser({
      user: { email, name: "Ada", externalId: email, labels: { plan: "pro" } },
      profile: {
        avatar: "https://example.com/a.png",
        bio: "Line\nline",
        settings: { a: [1, null] },
      },
    });
    expect(user).toMatchObject({
      email,
      name: "Ada",
      state: UserState.ACTIVE,
      externalId: email,
      labels: { plan: "pro" },
      etag: '"1"',
      profile: { orgId: "", bio: "Line\nline", settings: { a: [1, null] }, etag: '"1"' },
    });
    expect(user?.id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    expect(user?.profile?.userId).toBe(user?.id);
    expect(user?.createTime).toEqual(user?.updateTime);
    const userId = user?.id ?? "";
    const full = await harness.current.ops.users.getUser({ userId, view: View.FULL });
    expect(full.user).toEqual(user);
  });

  test("takes every field at its limit", async () => {
    const email = `${"a".repeat(190)}@${`${"b".repeat(20)}.`.repeat(3)}`.slice(0, 253);
    const labels = Object.fromEntries(
      Array.from({ length: 64 }, (_, i) => [`${i}`.padEnd(63, "k"), "v".repeat(255)]),
    );
    const init = {
      email,
      name: "n".repeat(200),
      externalId: randomUUID().padEnd(255, "x"),
      labels,
    };
    expect(await made({ ...init, email: `${email}c`.padEnd(254, "c") })).toMatchObject({
      ...init,
      email: `${email}c`.padEnd(254, "c"),
    });
  });

  test("ALREADY_EXISTS when a live user has the email in other case or spelling, given back as it came", async () => {
    const id = randomUUID();
    const email = `${id}.Zo\u00eb@Example.COM`;
    expect((await made({ email })).email).toBe(email);
    for (const other of [
      email,
      email.toLowerCase(),
      email.toUpperCase(),
      `${id}.zoe\u0308@example.com`,
    ]) {
      const refused = await refusal(made({ email: other }));
      expect(refused).toMatchObject({ code: "AlreadyExists", reason: "EMAIL_TAKEN" });
      expect(refused.metadata.field).toBe("user.email");
    }
  });

  test("ALREADY_EXISTS when a live user has the external_id, in just this spelling", async () => {
    const externalId = `Ext-${randomUUID()}`;
    await made({ externalId });
    await made({ externalId: externalId.toLowerCase() });
    expect(await refusal(made({ externalId }))).toMatchObject({
      code: "AlreadyExists",
      reason: "USER_EXTERNAL_ID_TAKEN",
      metadata: { field: "user.external_id" },
    });
  });

  test("of many calls with one email at once a single one succeeds", async () => {
    const id = randomUUID();
    const calls = await Promise.allSettled(
      Array.from({ length: 8 }, (_, i) =>
        made({ email: i % 2 ? `${id}@example.com` : `${id}@EXAMPLE.com` }),
      ),
    );
    expect(calls.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  });

  test("PERMISSION_DENIED for users, and for services that are pinned or lack users.create", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const service = (org?: string, scope = "users.create") =>
      harness.current.as("service:crm", { ...(org ? { org } : {}), scope });
    for (const { users } of [owner, await service(orgId), await service(undefined, "users.get")]) {
      const call = users.createUser({ user: { email: address(), name: "X" } });
      expect(await refusal(call)).toMatchObject({
        code: "PermissionDenied",
        reason: "PERMISSION_MISSING",
        metadata: { permission: "users.create" },
      });
    }
    const { users } = await service();
    expect((await users.createUser({ user: { email: address(), name: "X" } })).user?.name).toBe(
      "X",
    );
  });

  test("INVALID_ARGUMENT names the field that breaks a rule", async () => {
    const faults: [string, MessageInitShape<typeof CreateUserRequestSchema>][] = [
      ["user", {}],
      ["user.email", { user: { name: "A" } }],
      ["user.name", { user: { email: address() } }],
      ...["plain", "a@b@c.de", "a b@c.de", "A <a@b.de>", "@b.de", "a@", "a@b.de ", "a@b..de"].map(
        (email): [string, object] => ["user.email", { user: { email, name: "A" } }],
      ),
      ["user.email", { user: { email: `${"a".repeat(250)}@b.de`, name: "A" } }],
      ["user.name", { user: { email: address(), name: "n".repeat(201) } }],
      ["user.name", { user: { email: address(), name: "two\nlines" } }],
      ["user.external_id", { user: { email: address(), name: "A", externalId: "x".repeat(256) } }],
      ["user.labels", { user: { email: address(), name: "A", labels: labelsUpTo(65) } }],
      ['user.labels[""]', { user: { email: address(), name: "A", labels: { "": "v" } } }],
      [
        'user.labels["k"]',
        { user: { email: address(), name: "A", labels: { k: "v".repeat(256) } } },
      ],
      [
        "profile.avatar",
        { user: { email: address(), name: "A" }, profile: { avatar: "http://a.de" } },
      ],
      [
        "profile.bio",
        { user: { email: address(), name: "A" }, profile: { bio: "b".repeat(2001) } },
      ],
      ["profile.bio", { user: { email: address(), name: "A" }, profile: { bio: "bell\u0007" } }],
    ];
    for (const [field, request] of faults) {
      const refused = await refusal(harness.current.ops.users.createUser(request));
      expect(refused, field).toMatchObject({ code: "InvalidArgument", fields: [field] });
      expect(["FIELD_INVALID", "FIELD_REQUIRED"]).toContain(refused.reason);
    }
  });
});

describe("UserService.GetUser", () => {
  test("shows a fellow member, but neither their external_id nor their labels", async () => {
    const { orgId, memberId, adminId, member } = await harness.current.tenant();
    const secrets = { externalId: randomUUID(), labels: { plan: "pro" } };
    for (const id of [adminId, memberId]) {
      await harness.current.ops.users.updateUser({
        user: { id, ...secrets, externalId: secrets.externalId + id },
      });
    }
    const { user: other } = await member.users.getUser({ orgId, userId: adminId });
    expect(other).toMatchObject({ name: "Admin", externalId: "", labels: {} });
    const self = { externalId: secrets.externalId + memberId, labels: { plan: "pro" } };
    expect((await member.users.getUser({ orgId, userId: memberId })).user).toMatchObject(self);
    expect((await member.users.getUser({ userId: memberId })).user).toMatchObject(self);
    const service = await harness.current.as("service:crm", { org: orgId, scope: "members.get" });
    const seen = await service.users.getUser({ userId: adminId });
    expect(seen.user).toMatchObject({ labels: { plan: "pro" } });
  });

  test("brings the user with their profile in one round trip", async () => {
    const { orgId, ownerId, memberId, member } = await harness.current.tenant();
    const ask = () => member.users.getUser({ orgId, userId: ownerId, view: View.FULL });
    const before = harness.current.server.roundTrips();
    const { user } = await ask();
    expect(harness.current.server.roundTrips() - before).toBe(flushesOfRead);
    expect(user?.profile).toMatchObject({ userId: ownerId, orgId: "" });
    const basic = await member.users.getUser({ orgId, userId: memberId });
    expect(basic.user?.profile).toBeUndefined();
  });

  test("NOT_FOUND for who is not a member of the org, like for a user who never was", async () => {
    const { orgId, outsiderId, owner } = await harness.current.tenant();
    const random = randomUUID();
    const foreign = await refusal(owner.users.getUser({ orgId, userId: outsiderId }));
    const absent = await refusal(owner.users.getUser({ orgId, userId: random }));
    expect(foreign).toMatchObject({ code: "NotFound", reason: "USER_NOT_FOUND" });
    expect(absent.message).toBe(foreign.message.replace(outsiderId, random));
  });

  test("PERMISSION_DENIED for others outside an org, for guests, and for services without users.get", async () => {
    const { orgId, ownerId, guestId, guest, member } = await harness.current.tenant();
    const service = await harness.current.as("service:crm", { scope: "users.get" });
    const narrow = await harness.current.as("service:crm", { scope: "users.create" });
    for (const call of [
      () => member.users.getUser({ userId: ownerId }),
      () => guest.users.getUser({ orgId, userId: ownerId }),
      () => narrow.users.getUser({ userId: ownerId }),
    ]) {
      expect(await refusal(call())).toMatchObject({
        code: "PermissionDenied",
        reason: "PERMISSION_MISSING",
      });
    }
    const self = await guest.users.getUser({ orgId, userId: guestId });
    expect(self.user?.name).toBe("Guest");
    expect((await service.users.getUser({ userId: ownerId })).user?.name).toBe("Owner");
  });
});

describe("UserService.GetCaller", () => {
  test("tells users their role and permissions in the org, and nothing of that outside one", async () => {
    const { orgId, memberId, member } = await harness.current.tenant();
    const permissions = ["org.get", "members.get", "teams.get"];
    const inOrg = await member.users.getCaller({ orgId });
    expect(inOrg).toMatchObject({
      subject: memberId,
      kind: ActorKind.USER,
      orgId,
      role: "member",
      permissions,
    });
    const outside = await member.users.getCaller({});
    expect(outside).toMatchObject({ subject: memberId, orgId: "", role: "", permissions: [] });
    const narrowed = await harness.current.as(memberId, {
      org: orgId,
      scope: "teams.get org.delete",
    });
    expect((await narrowed.users.getCaller({})).permissions).toEqual(["teams.get"]);
  });

  test("tells services and platform their scopes, and who acts for the caller", async () => {
    const { orgId, ownerId } = await harness.current.tenant();
    const service = await harness.current.as("service:crm", { scope: "users.get members.get" });
    for (const [request, org] of [
      [{}, ""],
      [{ orgId }, orgId],
    ] as const) {
      expect(await service.users.getCaller(request)).toMatchObject({
        subject: "service:crm",
        kind: ActorKind.SERVICE,
        orgId: org,
        role: "",
        permissions: ["users.get", "members.get"],
      });
      expect(await harness.current.ops.users.getCaller(request)).toMatchObject({
        subject: "service:ops",
        orgId: org,
        permissions: ["roster.platform"],
      });
    }
    const act = { sub: "service:web", act: { sub: "service:edge" } };
    const behalf = await harness.current.as(ownerId, { claims: { act } });
    const { onBehalfOf } = await behalf.users.getCaller({});
    expect(onBehalfOf).toEqual(["service:web", "service:edge"]);
  });

  test("PERMISSION_DENIED for an org that is not the caller's to select", async () => {
    const { orgId, outsider } = await harness.current.tenant();
    const refused = await refusal(outsider.users.getCaller({ orgId }));
    expect(refused).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
  });
});
