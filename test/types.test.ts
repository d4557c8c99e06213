import { randomUUID } from "node:crypto";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatInstant, parseInstant, parserOf } from "../src/database/types.ts";
import { CreateUserRequestSchema, UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { refusal, useHarness } from "./harness.ts";
import { RawClient } from "./raw-client.ts";

const harness = useHarness();

type Init = MessageInitShape<typeof CreateUserRequestSchema>;

/** Makes a user, who must read back as they were answered. */
const made = async (user: Init["user"], profile: Init["profile"] = {}) => {
  const { users } = harness.current.ops;
  const request = {
    user: { email: `${randomUUID()}@example.com`, name: "Some One", ...user },
    profile,
  };
  const { user: answered } = await users.createUser(request);
  const { user: read } = await users.getUser({ userId: answered?.id ?? "", view: View.FULL });
  expect(read).toEqual(answered);
  if (!read?.profile) throw new Error("a user without a profile");
  return { ...read, profile: read.profile };
};
const refused = (user: Init["user"], profile: Init["profile"] = {}) => refusal(made(user, profile));

/** Sends one statement to PostgreSQL and takes its answer as text. */
const asText = async (text: string, values: readonly unknown[]): Promise<string> =>
  (await harness.current.admin.query<[string]>({ text, values: [...values], rowMode: "array" }))
    .rows[0]?.[0] ?? "";

describe("a time", () => {
  const seconds = fc.bigInt(0n, 253_402_300_799n);
  const micros = fc.integer({ min: 0, max: 999_999 });

  test("survives PostgreSQL to the microsecond, whatever the session's time zone", async () => {
    const zones = ["UTC", "Asia/Kathmandu", "America/St_Johns", "Africa/Monrovia"];
    await fc.assert(
      fc.asyncProperty(seconds, micros, fc.constantFrom(...zones), async (second, micro, zone) => {
        const instant = { seconds: second, nanos: micro * 1000 };
        await harness.current.admin.query(`set timezone = '${zone}'`);
        const text = await asText("select ($1::timestamptz)::text", [formatInstant(instant)]);
        expect(parseInstant(text)).toEqual(instant);
      }),
      // Liberia was 44 minutes and 30 seconds behind when time began.
      { numRuns: 100, examples: [[1n, 1, "Africa/Monrovia"]] },
    );
    await harness.current.admin.query("reset timezone");
  });

  test.each(["infinity", "-infinity", "0044-03-15 00:00:00+00 BC", "2026-01-01", ""])(
    "is not %j",
    (text) => {
      expect(() => parseInstant(text)).toThrow("not a timestamp");
    },
  );

  test("is answered to the microsecond at which it was stored", async () => {
    const { id, createTime } = await made({});
    const stored = await asText("select create_time::text from roster.users where id = $1", [id]);
    expect(createTime).toMatchObject(parseInstant(stored));
    expect((createTime?.nanos ?? 0) % 1000).toBe(0);
  });

  test("is kept to the microsecond, and cut below it", async () => {
    const { orgId, owner } = await harness.current.tenant();
    for (const [sent, kept] of [
      [123_456_000, 123_456_000],
      [123_456_789, 123_456_000],
      [999_999_999, 999_999_000],
    ] as const) {
      const userId = await harness.current.user();
      const expireTime = { seconds: 253_402_300_798n, nanos: sent };
      const { member } = await owner.orgs.addOrgMember({ orgId, userId, expireTime });
      expect(member?.expireTime).toMatchObject({ ...expireTime, nanos: kept });
      const read = await owner.orgs.getOrgMember({ orgId, userId });
      expect(read.member).toEqual(member);
    }
  });
});

describe("a number", () => {
  test("of 64 bits is exact", async () => {
    expect(parserOf(20)("9223372036854775807")).toBe(9_223_372_036_854_775_807n);
    const { id } = await made({});
    const { admin, ops } = harness.current;
    await admin.query("begin; set local session_replication_role = replica");
    await admin.query("update roster.users set version = 9007199254740993 where id = $1", [id]);
    await admin.query("commit");
    const { user } = await ops.users.getUser({ userId: id });
    expect(user?.etag).toBe('"9007199254740993"');
    const stale = await refusal(
      ops.users.updateUser({ user: { id, name: "X", etag: '"9007199254740992"' } }),
    );
    expect(stale).toMatchObject({ reason: "ETAG_STALE", metadata: { etag: '"9007199254740993"' } });
    const updated = await ops.users.updateUser({ user: { id, name: "X", etag: user?.etag ?? "" } });
    expect(updated.user?.etag).toBe('"9007199254740994"');
  });

  test("in settings is a double, and finite", async () => {
    const settings = { big: 9_007_199_254_740_992, small: 5e-324, tenth: 0.1, none: 0 };
    expect((await made({}, { settings })).profile.settings).toEqual(settings);
    const endless = await refused({}, { settings: { n: Number.POSITIVE_INFINITY } });
    expect(endless).toMatchObject({ code: "InvalidArgument", fields: ["profile.settings"] });
  });
});

describe("a key that JavaScript takes for its own", () => {
  const names = '{"__proto__": "a", "constructor": "b", "prototype": "c", "toString": "d"}';

  test("is a setting like any other, at any depth, and merges", async () => {
    const settings = JSON.parse(`{"__proto__": ${names}, "in": ${names}, "constructor": {"a": 1}}`);
    const { id, profile } = await made({}, { settings });
    expect(JSON.stringify(profile.settings?.in)).toHaveLength(
      JSON.stringify(JSON.parse(names)).length,
    );
    expect(profile.settings).toEqual(settings);
    expect(Object.keys(profile.settings ?? {})).toContain("__proto__");
    const patch = JSON.parse('{"__proto__": {"__proto__": null, "more": true}}');
    const { profile: merged } = await harness.current.ops.users.updateProfile({
      profile: { userId: id, settings: patch },
    });
    const expected = JSON.parse(
      '{"constructor": "b", "prototype": "c", "toString": "d", "more": true}',
    );
    const kept = Object.getOwnPropertyDescriptor(merged?.settings ?? {}, "__proto__")?.value;
    expect(kept).toEqual(expected);
    expect(({} as Record<string, unknown>).more).toBeUndefined();
  });

  test("is a label like any other, and can be removed", async () => {
    const { users } = harness.current.ops;
    const { id, labels } = await made({ labels: JSON.parse(names) });
    expect(Object.entries(labels).sort()).toEqual(Object.entries(JSON.parse(names)).sort());
    const removal = JSON.parse('{"__proto__": "", "constructor": ""}');
    const { user } = await users.updateUser({ user: { id, labels: removal } });
    expect(Object.entries(user?.labels ?? {}).sort()).toEqual([
      ["prototype", "c"],
      ["toString", "d"],
    ]);
  });
});

describe("text", () => {
  const nul = "\u0000";

  test.each<[string, Init["user"], Init["profile"]]>([
    ["user.name", { name: nul }, {}],
    ["user.email", { email: `${nul}@example.com` }, {}],
    ["user.external_id", { externalId: nul }, {}],
    ["profile.bio", {}, { bio: `a${nul}` }],
    ["profile.settings", {}, { settings: { a: [{ b: nul }] } }],
    ["profile.settings", {}, { settings: { [nul]: "a" } }],
    ["profile.settings", {}, { settings: { a: `\\${nul}` } }],
  ])("INVALID_ARGUMENT for a NUL in %s: %j", async (field, user, profile) => {
    expect(await refused(user, profile)).toMatchObject({
      code: "InvalidArgument",
      fields: [field],
    });
  });

  test("INVALID_ARGUMENT for a NUL in a label", async () => {
    for (const labels of [{ [nul]: "a" }, { a: nul }]) {
      const { code, fields } = await refused({ labels });
      expect([code, fields[0]]).toEqual([
        "InvalidArgument",
        expect.stringMatching(/^user\.labels/),
      ]);
    }
  });

  test("may speak of NUL without having one", async () => {
    const settings = { "\\u0000": "\\u0000", path: "C:\\u0000\\\\u0000" };
    expect((await made({}, { settings })).profile.settings).toEqual(settings);
  });

  test("never fails inside for half a surrogate pair", async () => {
    const raw = new RawClient(harness.current.server.port);
    const bytes = (init: Init): Buffer => {
      const message = Buffer.from(
        toBinary(CreateUserRequestSchema, create(CreateUserRequestSchema, init)),
      );
      // U+D800 as a careless encoder writes it, in place of three letters.
      const at = message.indexOf("???");
      return message.fill(Buffer.from([0xed, 0xa0, 0x80]), at, at + 3);
    };
    const user = () => ({ email: `${randomUUID()}@example.com`, name: "Some One" });
    for (const request of [
      { user: { ...user(), name: "a???" } },
      { user: { ...user(), labels: { a: "???" } } },
      { user: user(), profile: { bio: "???" } },
      { user: user(), profile: { settings: { a: "???" } } },
      { user: user(), profile: { settings: { "???": "a" } } },
    ]) {
      const { token } = harness.current.ops;
      const { code, response } = await raw.call(UserService.method.createUser, bytes(request), {
        token,
      });
      expect(code).toMatch(/^(OK|INVALID_ARGUMENT)$/);
      expect(JSON.stringify(response?.user?.profile?.settings ?? "")).not.toMatch(/ud800/);
    }
    raw.close();
    const { name } = await made({ name: "a\ud800" });
    expect(name).toBe("a\ufffd");
  });

  test("holds emoji, whole and counted one by one", async () => {
    const name = "👩‍👩‍👧‍👦 𝕽𝖔𝖘𝖙𝖊𝖗 🇨🇭";
    expect((await made({ name })).name).toBe(name);
    const long = "😀".repeat(200);
    expect((await made({ name: long })).name).toBe(long);
    expect(await refused({ name: `${long}😀` })).toMatchObject({ fields: ["user.name"] });
  });
});

describe("an e-mail", () => {
  const at = (): string => `${randomUUID()}.example.com`;

  test.each([
    ["in one case and the other", "ANDRE", "andre"],
    ["composed and decomposed", "Andr\u00e9", "andre\u0301"],
    ["with a capital ß", "straße", "STRA\u1e9eE"],
    ["in Greek", "ΝΙΚΟΣ.Α", "νικοσ.α"],
    ["in Cyrillic", "ЮРИЙ", "юрий"],
    ["with a Turkish İ", "İzmir", "\u0130zmir"],
    ["with a decomposed İ", "İzmir", "I\u0307zmir"],
  ])("ALREADY_EXISTS when it is the same %s", async (_, one, other) => {
    const domain = at();
    const { email } = await made({ email: `${one}@${domain}` });
    expect(email).toBe(`${one}@${domain}`);
    expect(await refused({ email: `${other}@${domain}` })).toMatchObject({ reason: "EMAIL_TAKEN" });
    expect(await refused({ email: `${other}@${domain.toUpperCase()}` })).toMatchObject({
      reason: "EMAIL_TAKEN",
    });
  });

  test("is kept composed, and the database itself knows it by both spellings", async () => {
    const domain = at();
    const { email } = await made({ email: `andre\u0301@${domain}` });
    expect(email).toBe(`andr\u00e9@${domain}`);
    const { admin } = harness.current;
    await admin.query("begin; set local session_replication_role = replica");
    const again = admin.query(
      "insert into roster.users (id, email, name) values (gen_random_uuid(), $1, 'Again')",
      [`Andre\u0301@${domain}`],
    );
    await expect(again).rejects.toMatchObject({ constraint: "users_email_key_key" });
    await admin.query("rollback");
  });

  test.each([
    ["ß and ss", "straße", "strasse"],
    ["ı and i", "ırmak", "irmak"],
    ["an accent or none", "andré", "andre"],
    ["a Cyrillic а and a Latin a", "\u0430da", "ada"],
  ])("is another one with %s", async (_, one, other) => {
    const domain = at();
    await made({ email: `${one}@${domain}` });
    expect((await made({ email: `${other}@${domain}` })).email).toBe(`${other}@${domain}`);
  });
});
