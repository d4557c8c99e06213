import { randomUUID } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { type OrgSchema, OrgState } from "../src/gen/roster/v1/org_pb.ts";
import { byHand } from "./console.ts";
import { refusal, slug, useHarness } from "./harness.ts";

const harness = useHarness();

type OrgInit = MessageInitShape<typeof OrgSchema>;

/** A new org of a new owner, with what the test wants of it. */
const made = async (org: OrgInit = {}) => {
  const init = { name: "Org", slug: slug(), ...org } as OrgInit;
  const ownerUserId = await harness.current.user();
  const response = await harness.current.ops.orgs.createOrg({ org: init, ownerUserId });
  return response.org ?? expect.fail("no org came back");
};

/** UpdateOrg as the operator; a mask makes the difference between absent and cleared. */
const update = async (org: OrgInit, ...paths: string[]) => {
  const mask = paths.length > 0 ? { updateMask: { paths } } : {};
  return (await harness.current.ops.orgs.updateOrg({ org, ...mask })).org;
};

const labelsUpTo = (count: number, prefix = "k"): Record<string, string> =>
  Object.fromEntries(Array.from({ length: count }, (_, i) => [`${prefix}${i}`, "v"]));

describe("OrgService.CreateOrg", () => {
  test("makes an active org with its first owner, which GetOrg reads back", async () => {
    const { ops } = harness.current;
    const ownerUserId = await harness.current.user();
    const init = {
      name: "Ada & Söhne",
      slug: slug(),
      externalId: randomUUID(),
      labels: { a: "b" },
    };
    const { org, owner } = await ops.orgs.createOrg({ org: init, ownerUserId });
    expect(org).toMatchObject({ ...init, state: OrgState.ACTIVE, etag: '"1"' });
    const orgId = org?.id ?? "";
    expect(owner).toMatchObject({ orgId, userId: ownerUserId, role: "owner", etag: '"1"' });
    expect((await ops.orgs.getOrg({ orgId })).org).toEqual(org);
    const member = await ops.orgs.getOrgMember({ orgId, userId: ownerUserId });
    expect(member.member).toEqual(owner);
  });

  test("INVALID_ARGUMENT names the field that breaks a rule", async () => {
    const ownerUserId = await harness.current.user();
    const { createOrg } = harness.current.ops.orgs;
    const good = { name: "Org", slug: slug() };
    for (const [field, org, owner] of [
      ["org", undefined, ownerUserId],
      ["owner_user_id", good, ""],
      ["owner_user_id", good, "nobody"],
      ["org.name", { slug: slug() }, ownerUserId],
      ["org.name", { ...good, name: "n".repeat(201) }, ownerUserId],
      ["org.name", { ...good, name: "two\nlines" }, ownerUserId],
      ["org.slug", { name: "Org" }, ownerUserId],
      ...["Upper", "1st", "-a", "a-", "a_b", "a.b", "ä", "a".repeat(64), "a b"].map(
        (bad) => ["org.slug", { ...good, slug: bad }, ownerUserId] as const,
      ),
      ["org.external_id", { ...good, externalId: "x".repeat(256) }, ownerUserId],
      ["org.labels", { ...good, labels: labelsUpTo(65) }, ownerUserId],
    ] as const) {
      const request = { ...(org ? { org } : {}), ownerUserId: owner };
      const refused = await refusal(createOrg(request));
      expect(refused, field).toMatchObject({ code: "InvalidArgument", fields: [field] });
      expect(["FIELD_INVALID", "FIELD_REQUIRED"]).toContain(refused.reason);
    }
  });

  test("takes slugs of one letter and of 63 characters, and INVALID_ARGUMENT for reserved ones", async () => {
    const long = slug().padEnd(62, "-").concat("9");
    expect((await made({ slug: long })).slug).toBe(long);
    expect((await made({ slug: "q" })).slug).toBe("q");
    for (const reserved of ["admin", "api", "www", "roster"]) {
      const refused = await refusal(made({ slug: reserved }));
      expect(refused).toMatchObject({ code: "InvalidArgument", reason: "SLUG_RESERVED" });
      expect(refused.fields).toEqual(["org.slug"]);
    }
  });

  test("ALREADY_EXISTS when the slug or external_id is taken, without naming the holder", async () => {
    const held = await made({ externalId: randomUUID() });
    const bySlug = await refusal(made({ slug: held.slug }));
    expect(bySlug).toMatchObject({
      code: "AlreadyExists",
      reason: "SLUG_TAKEN",
      metadata: { field: "org.slug" },
    });
    const byId = await refusal(made({ externalId: held.externalId }));
    expect(byId).toMatchObject({
      code: "AlreadyExists",
      reason: "ORG_EXTERNAL_ID_TAKEN",
      metadata: { field: "org.external_id" },
    });
    for (const { error } of [bySlug, byId])
      expect(JSON.stringify(error.details)).not.toContain(held.id);
  });

  test("of many calls with one slug at once a single one succeeds", async () => {
    const wanted = slug();
    const calls = Array.from({ length: 6 }, () => made({ slug: wanted }));
    const done = await Promise.allSettled(calls);
    expect(done.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  });

  test("NOT_FOUND for an owner who never was or is deleted, and no org is left behind", async () => {
    const { ops } = harness.current;
    const deleted = await harness.current.user();
    await ops.users.deleteUser({ userId: deleted });
    const org = { name: "Org", slug: slug() };
    for (const ownerUserId of [randomUUID(), deleted]) {
      expect(await refusal(ops.orgs.createOrg({ org, ownerUserId }))).toMatchObject({
        code: "NotFound",
        reason: "USER_NOT_FOUND",
      });
    }
    expect((await made({ slug: org.slug })).slug).toBe(org.slug);
  });

  test("FAILED_PRECONDITION for an owner who is suspended", async () => {
    const ownerUserId = await harness.current.user();
    await byHand(
      harness.current.admin,
      "update roster.users set state = 'SUSPENDED' where id = $1",
      [ownerUserId],
    );
    const call = harness.current.ops.orgs.createOrg({
      org: { name: "Org", slug: slug() },
      ownerUserId,
    });
    expect((await refusal(call)).code).toBe("FailedPrecondition");
  });

  test("PERMISSION_DENIED for users, and for services that are pinned or lack orgs.create", async () => {
    const { orgId, ownerId, owner } = await harness.current.tenant();
    const pinned = await harness.current.as("service:crm", { org: orgId, scope: "orgs.create" });
    const narrow = await harness.current.as("service:crm", { scope: "orgs.get" });
    const request = () => ({ org: { name: "Org", slug: slug() }, ownerUserId: ownerId });
    for (const { orgs } of [owner, pinned, narrow]) {
      expect(await refusal(orgs.createOrg(request()))).toMatchObject({
        code: "PermissionDenied",
        reason: "PERMISSION_MISSING",
      });
    }
    const service = await harness.current.as("service:crm", { scope: "orgs.create" });
    expect((await service.orgs.createOrg(request())).owner?.userId).toBe(ownerId);
  });
});

describe("OrgService.GetOrg", () => {
  test("is open to every member, the org named by body, header or claim", async () => {
    const { orgId, memberId, owner, admin, member, guest } = await harness.current.tenant();
    const { org } = await owner.orgs.getOrg({ orgId });
    for (const { orgs } of [admin, member, guest])
      expect((await orgs.getOrg({ orgId })).org).toEqual(org);
    const pinned = await harness.current.as(memberId, { org: orgId });
    const narrowed = await harness.current.as(memberId, {}, { "roster-org-id": orgId });
    for (const { orgs } of [pinned, narrowed]) expect((await orgs.getOrg({})).org).toEqual(org);
    expect(await refusal(member.orgs.getOrg({}))).toMatchObject({
      code: "InvalidArgument",
      reason: "ORG_REQUIRED",
    });
  });

  test("PERMISSION_DENIED for an org of others, a deleted and an absent one, byte for byte alike", async () => {
    const { orgId, owner, outsider } = await harness.current.tenant();
    const { org: gone } = await harness.current.ops.orgs.deleteOrg({
      orgId: (await harness.current.tenant()).orgId,
      force: true,
    });
    const bytes = [];
    for (const id of [orgId, gone?.id ?? "", randomUUID()]) {
      const { code, reason, error } = await refusal(outsider.orgs.getOrg({ orgId: id }));
      expect({ code, reason }).toEqual({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
      bytes.push(JSON.stringify([error.rawMessage, error.details]));
    }
    expect(new Set(bytes).size).toBe(1);
    expect((await owner.orgs.getOrg({ orgId })).org?.id).toBe(orgId);
  });

  test("NOT_FOUND for an absent org to platform and unpinned services", async () => {
    const service = await harness.current.as("service:crm", { scope: "org.get" });
    for (const { orgs } of [harness.current.ops, service]) {
      expect(await refusal(orgs.getOrg({ orgId: randomUUID() }))).toMatchObject({
        code: "NotFound",
        reason: "ORG_NOT_FOUND",
      });
    }
  });
});

describe("OrgService.UpdateOrg", () => {
  test("changes the populated fields, or the masked ones and clears those that are not set", async () => {
    const org = await made({ externalId: randomUUID(), labels: { a: "1" } });
    const { id, externalId, createTime } = org;
    const changed = await update({ id, name: "New" });
    expect(changed).toMatchObject({
      name: "New",
      slug: org.slug,
      externalId,
      createTime,
      etag: '"2"',
    });
    expect(changed?.labels).toEqual({ a: "1" });
    const masked = await update({ id, name: "Newer", slug: slug() }, "name", "external_id");
    expect(masked).toMatchObject({
      name: "Newer",
      slug: org.slug,
      externalId: "",
      labels: { a: "1" },
    });
    const everything = await update({ id, name: "All", slug: org.slug }, "*");
    expect(everything).toMatchObject({ name: "All", externalId: "", labels: {} });
  });

  test("keeps every label when many merge different ones at once", async () => {
    const { owner, orgId: id } = await harness.current.tenant();
    const names = Array.from({ length: 12 }, (_, i) => `k${i}`);
    await Promise.all(
      names.map((name) => owner.orgs.updateOrg({ org: { id, labels: { [name]: "1" } } })),
    );
    const { org } = await owner.orgs.getOrg({ orgId: id });
    expect(Object.keys(org?.labels ?? {}).sort()).toEqual(names.sort());
  });

  test("merges labels, and INVALID_ARGUMENT when that would leave more than 64", async () => {
    const { id } = await made({ labels: labelsUpTo(60) });
    const refused = await refusal(update({ id, labels: labelsUpTo(5, "n") }));
    expect(refused).toMatchObject({ code: "InvalidArgument", reason: "VALUE_TOO_LARGE" });
    expect(refused.fields).toEqual(["org.labels"]);
    const merged = await update({ id, labels: { k0: "", k1: "new", ...labelsUpTo(5, "n") } });
    const { k0: _removed, ...kept } = labelsUpTo(60);
    expect(merged?.labels).toEqual({ ...kept, k1: "new", ...labelsUpTo(5, "n") });
    expect((await update({ id }, "labels"))?.labels).toEqual({});
  });

  test("keeps a former slug from others, can go back to it, and frees all with the delete", async () => {
    const first = slug();
    const second = slug();
    const { id } = await made({ slug: first });
    expect((await update({ id, slug: second }))?.slug).toBe(second);
    for (const taken of [first, second]) {
      expect(await refusal(made({ slug: taken }))).toMatchObject({ reason: "SLUG_TAKEN" });
      const other = await made();
      const rename = await refusal(update({ id: other.id, slug: taken }));
      expect(rename).toMatchObject({ code: "AlreadyExists", reason: "SLUG_TAKEN" });
    }
    expect((await update({ id, slug: first }))?.slug).toBe(first);
    expect((await update({ id, slug: first }))?.slug).toBe(first);
    await harness.current.ops.orgs.deleteOrg({ orgId: id });
    for (const freed of [first, second]) expect((await made({ slug: freed })).slug).toBe(freed);
  });

  test("ALREADY_EXISTS when the external_id is another's", async () => {
    const taken = await made({ externalId: randomUUID() });
    const { id } = await made();
    expect(await refusal(update({ id, externalId: taken.externalId }))).toMatchObject({
      code: "AlreadyExists",
      reason: "ORG_EXTERNAL_ID_TAKEN",
    });
  });

  test("INVALID_ARGUMENT for a mask path that cannot be updated, or a field that must stay", async () => {
    const { id } = await made();
    for (const path of ["state", "id", "create_time", "labels.a", "nope"]) {
      const refused = await refusal(update({ id, name: "A" }, "name", path));
      expect(refused).toMatchObject({ code: "InvalidArgument", reason: "UPDATE_MASK_INVALID" });
      expect(refused.metadata.path).toBe(path);
    }
    for (const [path, reason, org] of [
      ["name", "FIELD_REQUIRED", {}],
      ["slug", "FIELD_REQUIRED", {}],
      ["slug", "SLUG_RESERVED", { slug: "admin" }],
      ["slug", "FIELD_INVALID", { slug: "No" }],
    ] as const) {
      const refused = await refusal(update({ id, ...org }, path));
      expect(refused).toMatchObject({ code: "InvalidArgument", reason, fields: [`org.${path}`] });
    }
  });

  test("ABORTED with the current etag when the one sent is stale; malformed ones are INVALID_ARGUMENT", async () => {
    const { id, etag } = await made();
    await update({ id, name: "Two", etag });
    expect(await refusal(update({ id, name: "Three", etag }))).toMatchObject({
      code: "Aborted",
      reason: "ETAG_STALE",
      metadata: { etag: '"2"' },
    });
    const malformed = await refusal(update({ id, name: "Three", etag: "two" }));
    expect(malformed).toMatchObject({ reason: "ETAG_MALFORMED", fields: ["org.etag"] });
  });

  test("is for admins and owners, PERMISSION_DENIED to members and guests", async () => {
    const { orgId, owner, admin, member, guest } = await harness.current.tenant();
    for (const [index, { orgs }] of [owner, admin].entries()) {
      const { org } = await orgs.updateOrg({ org: { id: orgId, name: `By ${index}` } });
      expect(org?.name).toBe(`By ${index}`);
    }
    for (const { orgs } of [member, guest]) {
      expect(await refusal(orgs.updateOrg({ org: { id: orgId, name: "No" } }))).toMatchObject({
        code: "PermissionDenied",
        reason: "PERMISSION_MISSING",
        metadata: { permission: "org.update" },
      });
    }
  });
});
