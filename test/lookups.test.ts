import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { type Callers, flushesOfRead, refusal, slug, useHarness } from "./harness.ts";
import { address, makeUser } from "./made-user.ts";
import { told } from "./samples.ts";

const harness = useHarness();

const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };

const byEmail = ({ users }: Callers, value: string, orgId = "") =>
  users.lookupUser({ orgId, key: { case: "email", value } });
const byExternalId = ({ users }: Callers, value: string, orgId = "") =>
  users.lookupUser({ orgId, key: { case: "externalId", value } });
const bySlug = ({ orgs }: Callers, value: string) =>
  orgs.lookupOrg({ key: { case: "slug", value } });
const byOrgExternalId = ({ orgs }: Callers, value: string) =>
  orgs.lookupOrg({ key: { case: "externalId", value } });

describe("UserService.LookupUser", () => {
  /** A tenant whose member has an email and an external id that the test knows. */
  const world = async () => {
    const tenant = await harness.current.tenant();
    const email = `${randomUUID()}.Zo\u00eb@Example.com`;
    const externalId = `X\u00eb${randomUUID()}`;
    const { user } = await harness.current.ops.users.updateUser({
      user: { id: tenant.memberId, email, externalId, labels: { plan: "pro" } },
    });
    return { ...tenant, user, email, externalId };
  };

  test("finds a member by email, in any case and spelling, in one round trip", async () => {
    const { orgId, email, memberId, admin } = await world();
    for (const value of [email, email.toUpperCase(), email.toLowerCase(), email.normalize("NFD")]) {
      const { user } = await byEmail(admin, value, orgId);
      expect(user).toMatchObject({ id: memberId, email, externalId: "", labels: {} });
    }
    expect(await harness.current.flushesOf(() => byEmail(admin, email, orgId))).toBe(flushesOfRead);
  });

  test("finds anyone outside an org, for platform and services with users.get", async () => {
    const { email, externalId, user } = await world();
    const service = await harness.current.as("service:crm", { scope: "users.get" });
    for (const callers of [harness.current.ops, service]) {
      expect((await byEmail(callers, email)).user).toEqual(user);
      expect((await byExternalId(callers, externalId)).user).toEqual(user);
      expect((await byExternalId(callers, externalId.normalize("NFD"))).user).toEqual(user);
    }
  });

  test("brings the profile with its settings in VIEW_FULL, as GetUser does", async () => {
    const { orgId, email, memberId: userId, admin } = await world();
    const profile = { userId, orgId, bio: "here", settings: { a: 1 } };
    await harness.current.ops.users.updateProfile({ profile });
    const key = { case: "email", value: email } as const;
    const { user } = await admin.users.lookupUser({ orgId, key, view: View.FULL });
    expect(user?.profile).toMatchObject({ bio: "here", settings: { a: 1 } });
    expect(user).toEqual((await admin.users.getUser({ orgId, userId, view: View.FULL })).user);
  });

  test("finds nobody but themselves by external_id for a user: no way to try out whose it is", async () => {
    const { orgId, externalId, memberId, member, admin, owner } = await world();
    expect((await byExternalId(member, externalId, orgId)).user).toMatchObject({
      id: memberId,
      externalId,
    });
    for (const callers of [admin, owner]) {
      const hidden = await refusal(byExternalId(callers, externalId, orgId));
      expect(hidden).toMatchObject({ code: "NotFound", reason: "USER_NOT_FOUND" });
      const random = randomUUID();
      const absent = await refusal(byExternalId(callers, random, orgId));
      expect(told(hidden, externalId)).toBe(told(absent, random));
    }
    const service = await harness.current.as("service:crm", { org: orgId, scope: "members.get" });
    expect((await byExternalId(service, externalId)).user?.id).toBe(memberId);
  });

  test("NOT_FOUND for who is not in the org or deleted, like for who never was, byte for byte", async () => {
    const { orgId, owner, externalId, email, memberId } = await world();
    const outsider = await makeUser(harness.current, { externalId: randomUUID() });
    const service = await harness.current.as("service:crm", { org: orgId, scope: "members.get" });
    const none = address();
    const absent = await refusal(byEmail(owner, none, orgId));
    expect(absent).toMatchObject({
      code: "NotFound",
      reason: "USER_NOT_FOUND",
      message: "there is no user with this email",
      metadata: { field: "email" },
    });
    for (const callers of [owner, service, harness.current.ops]) {
      const foreign = await refusal(byEmail(callers, outsider.email, orgId));
      expect(told(foreign, outsider.email)).toBe(told(absent, none));
    }
    const foreign = await refusal(byExternalId(service, outsider.externalId));
    expect(foreign.message).toBe("there is no user with this external_id");
    await harness.current.ops.users.deleteUser({ userId: memberId });
    for (const org of [orgId, ""]) {
      const gone = await refusal(byEmail(harness.current.ops, email, org));
      expect(told(gone, email)).toBe(told(absent, none));
      expect((await refusal(byExternalId(harness.current.ops, externalId, org))).code).toBe(
        "NotFound",
      );
    }
  });

  test("finds the live user who took over a deleted one's email", async () => {
    const { email, memberId } = await world();
    await harness.current.ops.users.deleteUser({ userId: memberId });
    const { id } = await makeUser(harness.current, { email: email.toLowerCase() });
    expect((await byEmail(harness.current.ops, email)).user?.id).toBe(id);
  });

  test("INVALID_ARGUMENT without a key, and for one that nobody can have", async () => {
    const { ops } = harness.current;
    expect(await refusal(ops.users.lookupUser({}))).toMatchObject({
      code: "InvalidArgument",
      reason: "FIELD_REQUIRED",
      fields: ["email or external_id"],
      message: "email or external_id: must be set",
    });
    for (const value of ["", "plain", "a@b c", `${"a".repeat(250)}@b.de`]) {
      const refused = await refusal(byEmail(ops, value));
      expect(refused).toMatchObject({ code: "InvalidArgument", fields: ["email"] });
    }
    for (const value of ["", "x".repeat(256), "two\nlines", "\u0000"]) {
      const refused = await refusal(byExternalId(ops, value));
      expect(refused).toMatchObject({ code: "InvalidArgument", fields: ["external_id"] });
    }
  });

  test("PERMISSION_DENIED for guests, also about themselves, and for users outside an org", async () => {
    const { orgId, email, guest, member } = await world();
    expect(await refusal(byEmail(guest, email, orgId))).toMatchObject(denied);
    expect(await refusal(byEmail(member, email))).toMatchObject(denied);
  });
});

describe("OrgService.LookupOrg", () => {
  const world = async () => {
    const tenant = await harness.current.tenant();
    const { orgId: id, owner } = tenant;
    const externalId = `X\u00eb${randomUUID()}`;
    const { org } = await owner.orgs.updateOrg({ org: { id, externalId } });
    return { ...tenant, org, slug: org?.slug ?? "", externalId };
  };

  test("finds an org by its slug and its external_id, in one round trip", async () => {
    const { org, slug, externalId, guest } = await world();
    const service = await harness.current.as("service:crm", { scope: "orgs.get" });
    for (const callers of [guest, service, harness.current.ops]) {
      expect(await bySlug(callers, slug)).toMatchObject({ org, renamed: false });
      expect(await byOrgExternalId(callers, externalId)).toMatchObject({ org, renamed: false });
      expect(await harness.current.flushesOf(() => bySlug(callers, slug))).toBe(flushesOfRead);
      expect(await harness.current.flushesOf(() => byOrgExternalId(callers, externalId))).toBe(
        flushesOfRead,
      );
    }
  });

  test("finds a renamed org by each of its former slugs, and says so", async () => {
    const { orgId: id, owner, member, slug: first } = await world();
    const [second, third] = [slug(), slug()];
    await owner.orgs.updateOrg({ org: { id, slug: second } });
    const { org } = await owner.orgs.updateOrg({ org: { id, slug: third } });
    for (const [value, renamed] of [
      [first, true],
      [second, true],
      [third, false],
    ] as const)
      expect(await bySlug(member, value)).toMatchObject({ org, renamed });
    await owner.orgs.updateOrg({ org: { id, slug: first } });
    expect((await bySlug(member, first)).renamed).toBe(false);
    expect((await bySlug(member, third)).renamed).toBe(true);
  });

  test("NOT_FOUND for an org of others or deleted, like for none at all, byte for byte", async () => {
    const { orgId, slug: taken, externalId, outsider, owner } = await world();
    const mine = await harness.current.tenant();
    const pinned = await harness.current.as(mine.ownerId, { org: mine.orgId });
    await harness.current.ops.orgs.addOrgMember({ orgId, userId: mine.ownerId });
    const alike = async (callers: Callers) => {
      for (const [look, value, field] of [
        [bySlug, taken, "slug"],
        [byOrgExternalId, externalId, "external_id"],
      ] as const) {
        const hidden = await refusal(look(callers, value));
        const random = slug();
        const absent = await refusal(look(callers, random));
        expect(hidden).toMatchObject({
          code: "NotFound",
          reason: "ORG_NOT_FOUND",
          message: `there is no org with this ${field}`,
          metadata: { field },
        });
        expect(told(hidden, value)).toBe(told(absent, random));
      }
    };
    await alike(outsider);
    // Its owner is a member of the other org, too; the token is not for that one.
    await alike(pinned);
    await bySlug(mine.owner, taken);
    await harness.current.ops.orgs.deleteOrg({ orgId, force: true });
    for (const callers of [owner, mine.owner, harness.current.ops]) await alike(callers);
  });

  test("follows a slug to the org that took it over from a deleted one", async () => {
    const { orgId, slug: value } = await world();
    const { ops } = harness.current;
    await ops.orgs.deleteOrg({ orgId, force: true });
    const ownerUserId = await harness.current.user();
    const { org } = await ops.orgs.createOrg({ org: { name: "Next", slug: value }, ownerUserId });
    expect(await bySlug(ops, value)).toMatchObject({ org, renamed: false });
  });

  test("INVALID_ARGUMENT without a key, and for one that no org can have", async () => {
    const { ops } = harness.current;
    expect(await refusal(ops.orgs.lookupOrg({}))).toMatchObject({
      reason: "FIELD_REQUIRED",
      fields: ["slug or external_id"],
    });
    for (const value of ["", "Upper", "1st", "a b", "a".repeat(64)])
      expect(await refusal(bySlug(ops, value))).toMatchObject({
        code: "InvalidArgument",
        fields: ["slug"],
      });
    for (const value of ["", "x".repeat(256)])
      expect(await refusal(byOrgExternalId(ops, value))).toMatchObject({
        code: "InvalidArgument",
        fields: ["external_id"],
      });
  });

  test("PERMISSION_DENIED for services that are pinned or lack orgs.get", async () => {
    const { orgId, slug: value } = await world();
    for (const callers of [
      await harness.current.as("service:crm", { org: orgId, scope: "orgs.get" }),
      await harness.current.as("service:crm", { scope: "org.get" }),
    ])
      expect(await refusal(bySlug(callers, value))).toMatchObject(denied);
  });
});
