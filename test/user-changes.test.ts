import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { refusal, useHarness } from "./harness.ts";
import { address, makeUser, type UserInit } from "./made-user.ts";

const harness = useHarness();

const made = (user: UserInit = {}) => makeUser(harness.current, user);

/** UpdateUser as the operator; a mask makes the difference between absent and cleared. */
const update = async (user: UserInit, ...paths: string[]) => {
  const mask = paths.length > 0 ? { updateMask: { paths } } : {};
  return (await harness.current.ops.users.updateUser({ user, ...mask })).user;
};

const labelsUpTo = (count: number, prefix = "k"): Record<string, string> =>
  Object.fromEntries(Array.from({ length: count }, (_, i) => [`${prefix}${i}`, "v"]));

describe("UserService.UpdateUser", () => {
  test("takes a mask without paths for none: the populated fields change", async () => {
    const { id } = await made({ name: "Old" });
    const user = { id, name: "New" };
    const answer = await harness.current.ops.users.updateUser({ user, updateMask: { paths: [] } });
    expect(answer.user?.name).toBe("New");
  });

  test("changes the populated fields without a mask and counts the version", async () => {
    const user = await made({ externalId: randomUUID(), labels: { a: "1" } });
    const email = address();
    const changed = await update({ id: user.id, email });
    const { name, externalId, labels, createTime } = user;
    expect(changed).toMatchObject({ email, name, externalId, labels, createTime, etag: '"2"' });
    expect(changed?.updateTime).not.toEqual(user.updateTime);
  });

  test("changes just the masked fields, and clears those that are not set", async () => {
    const { id, email } = await made({ externalId: randomUUID(), labels: { a: "1" } });
    const masked = await update({ id, name: "New", email: address() }, "name", "external_id");
    expect(masked).toMatchObject({ name: "New", email, externalId: "", labels: { a: "1" } });
    await update({ id, externalId: randomUUID() });
    const everything = await update({ id, name: "All", email }, "*");
    expect(everything).toMatchObject({ name: "All", email, externalId: "", labels: {} });
  });

  test("merges labels: an empty value removes its label, an empty map in the mask all of them", async () => {
    const { id } = await made({ labels: { keep: "1", change: "1", drop: "1" } });
    const labels = { change: "2", drop: "", add: "3" };
    const after = { keep: "1", change: "2", add: "3" };
    expect((await update({ id, labels }))?.labels).toEqual(after);
    expect((await update({ id, labels }, "labels"))?.labels).toEqual(after);
    expect((await update({ id }, "labels"))?.labels).toEqual({});
  });

  test("INVALID_ARGUMENT when merging would leave more than 64 labels, and nothing changes", async () => {
    const { id } = await made({ labels: labelsUpTo(60) });
    const refused = await refusal(update({ id, labels: labelsUpTo(5, "n") }));
    expect(refused).toMatchObject({ code: "InvalidArgument", reason: "VALUE_TOO_LARGE" });
    expect(refused.fields).toEqual(["user.labels"]);
    const { user } = await harness.current.ops.users.getUser({ userId: id });
    expect(user).toMatchObject({ labels: labelsUpTo(60), etag: '"1"' });
    const full = await update({ id, labels: { k0: "", ...labelsUpTo(5, "n") } });
    expect(Object.keys(full?.labels ?? {})).toHaveLength(64);
  });

  test("INVALID_ARGUMENT for a mask path that is unknown, output only or nested, naming it", async () => {
    const { id } = await made();
    const paths = ["nickname", "state", "etag", "profile", "profile.bio", "labels.a", "externalId"];
    for (const path of [...paths, "id", "create_time", ""]) {
      expect(await refusal(update({ id, name: "A" }, "name", path))).toMatchObject({
        code: "InvalidArgument",
        reason: "UPDATE_MASK_INVALID",
        metadata: { path },
        fields: ["update_mask"],
      });
    }
  });

  test("INVALID_ARGUMENT when a required field would be cleared, or no user is named", async () => {
    const { id } = await made();
    for (const [field, call] of [
      ["user.name", () => update({ id }, "name")],
      ["user.email", () => update({ id }, "email")],
      ["user.email", () => update({ id, name: "All" }, "*")],
      ["user.id", () => update({ name: "Nobody" })],
    ] as const) {
      const refused = await refusal(call());
      expect(refused).toMatchObject({ code: "InvalidArgument", reason: "FIELD_REQUIRED" });
      expect(refused.fields).toEqual([field]);
    }
  });

  test("ALREADY_EXISTS when the email or external_id is another's; one's own is no conflict", async () => {
    const taken = await made({ externalId: randomUUID() });
    const { id, email } = await made();
    expect(await refusal(update({ id, email: taken.email.toUpperCase() }))).toMatchObject({
      code: "AlreadyExists",
      reason: "EMAIL_TAKEN",
      metadata: { field: "user.email" },
    });
    expect(await refusal(update({ id, externalId: taken.externalId }))).toMatchObject({
      code: "AlreadyExists",
      reason: "USER_EXTERNAL_ID_TAKEN",
      metadata: { field: "user.external_id" },
    });
    expect((await update({ id, email: email.toUpperCase() }))?.email).toBe(email.toUpperCase());
  });

  test("ABORTED with the current etag when the one sent is stale; malformed ones are INVALID_ARGUMENT", async () => {
    const { id, etag } = await made();
    expect((await update({ id, name: "Two", etag }))?.etag).toBe('"2"');
    expect(await refusal(update({ id, name: "Three", etag }))).toMatchObject({
      code: "Aborted",
      reason: "ETAG_STALE",
      metadata: { etag: '"2"' },
    });
    for (const bad of ["2", 'W/"2"', '"two"', '""', '"-1"']) {
      const refused = await refusal(update({ id, name: "Three", etag: bad }));
      expect(refused).toMatchObject({ code: "InvalidArgument", reason: "ETAG_MALFORMED" });
      expect(refused.fields).toEqual(["user.etag"]);
    }
  });

  test("of many updates with one etag at once a single one succeeds", async () => {
    const { id, etag } = await made();
    const calls = Array.from({ length: 6 }, (_, i) => update({ id, name: `Name ${i}`, etag }));
    const done = await Promise.allSettled(calls);
    expect(done.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  });

  test("NOT_FOUND for a user who never was, with and without an etag", async () => {
    for (const etag of ["", '"1"']) {
      const refused = await refusal(update({ id: randomUUID(), name: "A", etag }));
      expect(refused).toMatchObject({ code: "NotFound", reason: "USER_NOT_FOUND" });
    }
  });

  test("lets users change their own name and nothing else", async () => {
    const { id, email, etag } = await made();
    const { users } = await harness.current.as(id);
    expect((await users.updateUser({ user: { id, name: "Self", etag } })).user?.name).toBe("Self");
    const masked = {
      user: { id, name: "Masked", email: address() },
      updateMask: { paths: ["name"] },
    };
    expect((await users.updateUser(masked)).user).toMatchObject({ name: "Masked", email });

    const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };
    for (const change of [{ email: address() }, { externalId: "x" }, { labels: { a: "b" } }]) {
      const call = users.updateUser({ user: { id, name: "No", ...change } });
      expect(await refusal(call)).toMatchObject(denied);
    }
    for (const path of ["email", "external_id", "labels", "*"]) {
      const call = users.updateUser({
        user: { id, name: "No" },
        updateMask: { paths: ["name", path] },
      });
      expect(await refusal(call), path).toMatchObject(denied);
    }
    expect((await users.getUser({ userId: id })).user).toMatchObject({ name: "Masked", email });
  });

  test("PERMISSION_DENIED for another user, for services that are pinned or lack users.update", async () => {
    const { orgId, memberId, owner } = await harness.current.tenant();
    const pinned = await harness.current.as("service:crm", { org: orgId, scope: "users.update" });
    const narrow = await harness.current.as("service:crm", { scope: "users.get" });
    for (const { users } of [owner, pinned, narrow]) {
      expect(await refusal(users.updateUser({ user: { id: memberId, name: "X" } }))).toMatchObject({
        code: "PermissionDenied",
        reason: "PERMISSION_MISSING",
      });
    }
    const service = await harness.current.as("service:crm", { scope: "users.update" });
    const { user } = await service.users.updateUser({ user: { id: memberId, labels: { a: "b" } } });
    expect(user?.labels).toEqual({ a: "b" });
  });
});
