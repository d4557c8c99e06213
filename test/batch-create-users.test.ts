import { randomUUID } from "node:crypto";
import { create as createMessage, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import pg from "pg";
import { beforeAll, describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import { ChangeKind } from "../src/gen/roster/v1/audit_pb.ts";
import {
  BatchCreateUsersRequestSchema,
  type BatchCreateUsersResult,
  type NewUserSchema,
} from "../src/gen/roster/v1/user_service_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { newest } from "./audit-log.ts";
import { type Callers, type Harness, pipelined, refusal, useHarness } from "./harness.ts";
import { address, makeUser, type UserInit } from "./made-user.ts";

const harness = useHarness();
/** One whose database looks for deadlocks only after every caller has given up. */
const patient = useHarness();

beforeAll(async () => {
  const { admin } = patient.current;
  const { rows } = await admin.query("select current_database() as name");
  await admin.query(
    `alter role roster_directory in database ${rows[0].name} set deadlock_timeout = '5min'`,
  );
});

type Init = MessageInitShape<typeof NewUserSchema>;

const person = (user: UserInit = {}, profile: Init["profile"] = {}): Init => ({
  user: { email: address(), name: "Some One", ...user } as Init["user"] & object,
  profile: profile as object,
});
const people = (count: number): Init[] => Array.from({ length: count }, () => person());

const create = async (users: Init[], { users: client }: Callers = harness.current.ops) =>
  (await client.batchCreateUsers({ users })).results;

/** What became of an item: "made", or why it was not and which field says so. */
const outcomeOf = ({ result }: BatchCreateUsersResult): string => {
  if (result.case === "user") return "made";
  const [detail] = result.value?.details ?? [];
  const info = detail && anyUnpack(detail, ErrorInfoSchema);
  return `${info?.reason} ${info?.metadata.field}`;
};
const outcomes = async (users: Init[]): Promise<string[]> => (await create(users)).map(outcomeOf);

/** How many live users have one of these emails, each of which may be there once. */
const count = async ({ admin }: Harness, users: readonly Init[]): Promise<number> => {
  const emails = users.map(({ user }) => user?.email?.toLowerCase());
  const { rows } = await admin.query(
    "select count(*)::int from roster.users where email_key = any ($1) and delete_time is null",
    [emails],
  );
  return rows[0].count;
};

describe("UserService.BatchCreateUsers", () => {
  test("makes each user with their profile, in the order of the request", async () => {
    const asked = [
      person({ name: "Zo\u00eb", externalId: randomUUID(), labels: { a: '{},"\\' } }),
      person({ name: "Ada" }, { bio: "Line\nline", settings: { a: [1, null, '\\"{}'] } }),
      person({ email: `A${address()}` }, { avatar: "https://example.com/a.png" }),
    ];
    const results = await create(asked);
    expect(results).toHaveLength(3);
    for (const [place, { result }] of results.entries()) {
      const { user, profile } = asked[place] ?? {};
      if (result.case !== "user") throw new Error(`${place} was not made`);
      const settings = {};
      expect(result.value).toMatchObject({ ...user, profile: { settings, ...profile } });
      const { users } = harness.current.ops;
      const read = await users.getUser({ userId: result.value.id, view: View.FULL });
      expect(read.user).toEqual(result.value);
    }
  });

  test("answers ALREADY_EXISTS for those who are taken, as CreateUser does, and makes the others", async () => {
    const externalId = randomUUID();
    const taken = await makeUser(harness.current, { externalId });
    const results = await create([
      person(),
      person({ email: taken.email.toUpperCase() }),
      person({ externalId }),
      person({ email: taken.email, externalId }),
      person(),
    ]);
    expect(results.map(outcomeOf)).toEqual([
      "made",
      "EMAIL_TAKEN users[1].user.email",
      "USER_EXTERNAL_ID_TAKEN users[2].user.external_id",
      "EMAIL_TAKEN users[3].user.email",
      "made",
    ]);
    for (const [place, user] of [
      [1, { email: taken.email }],
      [2, { email: address(), externalId }],
    ] as const) {
      const alone = await refusal(makeUser(harness.current, user));
      const status = { code: Code.AlreadyExists, message: alone.message };
      expect(results[place]?.result.value).toMatchObject(status);
    }
  });

  test("makes the first of those who are alike within the request", async () => {
    const [email, externalId] = [`${randomUUID()}.Zo\u00eb@example.com`, randomUUID()];
    expect(
      await outcomes([
        person({ email: email.toUpperCase(), externalId }),
        person({ email: email.normalize("NFD") }),
        person({ externalId, email: `a${email}` }),
        person({ email: `A${email}` }),
      ]),
    ).toEqual([
      "made",
      "EMAIL_TAKEN users[1].user.email",
      "USER_EXTERNAL_ID_TAKEN users[2].user.external_id",
      "made",
    ]);
  });

  test("leaves to a later one what an earlier one asked for and was not made", async () => {
    const { email } = await makeUser(harness.current);
    const externalId = randomUUID();
    const asked = [person({ email, externalId }), person({ externalId }), person({ externalId })];
    expect(await outcomes(asked)).toEqual([
      "EMAIL_TAKEN users[0].user.email",
      "made",
      "USER_EXTERNAL_ID_TAKEN users[2].user.external_id",
    ]);
  });

  test("takes the email of a deleted user", async () => {
    const { email, id } = await makeUser(harness.current);
    await harness.current.ops.users.deleteUser({ userId: id });
    expect(await outcomes([person({ email })])).toEqual(["made"]);
  });

  test("makes a thousand in three round trips, with one audit entry of all their rows", async () => {
    const asked = people(1_000);
    const flushes = await harness.current.flushesOf(async () => {
      expect((await create(asked)).map(outcomeOf)).toEqual(Array(1_000).fill("made"));
    });
    if (pipelined) expect(flushes).toBe(3);
    expect(await count(harness.current, asked)).toBe(1_000);
    const entry = await newest(harness.current.ops);
    expect(entry).toMatchObject({
      method: "roster.v1.UserService/BatchCreateUsers",
      orgId: "",
      changeCount: 2_000,
    });
    const { rows } = await harness.current.admin.query(
      `select resource_type, kind, count(distinct resource_id)::int from roster.audit_changes
        where entry_id = $1 group by 1, 2 order by 1`,
      [entry.id],
    );
    expect(rows).toEqual([
      { resource_type: "profile", kind: "CREATED", count: 1_000 },
      { resource_type: "user", kind: "CREATED", count: 1_000 },
    ]);
    expect(entry.changes[0]?.kind).toBe(ChangeKind.CREATED);
    // The same again makes none, which is no failure of the call and stands in the log, without a change.
    const again = await create(asked);
    expect(again.map(outcomeOf)).toEqual(
      asked.map((_, place) => `EMAIL_TAKEN users[${place}].user.email`),
    );
    const next = await newest(harness.current.ops);
    expect(next).toMatchObject({ method: entry.method, changes: [], changeCount: 0 });
    expect(next.id).not.toBe(entry.id);
  }, 30_000);

  test("looks for a thousand as fast as ever after many calls with few", async () => {
    const { ops } = patient.current;
    const time = async (call: () => Promise<unknown>): Promise<number> => {
      const start = performance.now();
      await call();
      return performance.now() - start;
    };
    for (let i = 0; i < 20; i++) await create(people(1), ops);
    const asked = people(1_000);
    const makingMs = await time(() => create(asked, ops));
    // Nothing is left to do but to look; a plan made for few users would read all of them a thousand times.
    expect(await time(() => create(asked, ops))).toBeLessThan(3 * makingMs);
  }, 30_000);

  test("answers as large a request as a message may be", async () => {
    const settings = { a: "x".repeat(65_000) };
    const asked = Array.from({ length: 15 }, () => person({}, { settings }));
    const size = toBinary(
      BatchCreateUsersRequestSchema,
      createMessage(BatchCreateUsersRequestSchema, { users: asked }),
    ).length;
    expect(size).toBeGreaterThan(0.9 * 1024 * 1024);
    expect(await outcomes(asked)).toEqual(Array(15).fill("made"));
  });

  test("INVALID_ARGUMENT names the field of the user that breaks a rule, and none is made", async () => {
    const deep = JSON.parse(`${'{"a":'.repeat(21)}1${"}".repeat(21)}`);
    const faults: [string, Init][] = [
      ["users[1].user", {}],
      ["users[1].user.email", { user: { name: "A" } }],
      ["users[1].user.name", { user: { email: address() } }],
      ["users[1].user.email", person({ email: "plain" })],
      ["users[1].user.name", person({ name: "two\nlines" })],
      ["users[1].user.external_id", person({ externalId: "x".repeat(256) })],
      ['users[1].user.labels["k"]', person({ labels: { k: "v".repeat(256) } })],
      ["users[1].profile.avatar", person({}, { avatar: "http://a.de" })],
      ["users[1].profile.settings", person({}, { settings: deep })],
      ["users[1].profile.settings", person({}, { settings: { a: "x".repeat(65_536) } })],
      ["users.profile.settings", person({}, { settings: { a: Array(9_000).fill(1e300) } })],
    ];
    for (const [field, bad] of faults) {
      const asked = [person(), bad, person()];
      const refused = await refusal(create(asked));
      expect(refused, field).toMatchObject({ code: "InvalidArgument", fields: [field] });
      expect(await count(harness.current, [asked[0] as Init, asked[2] as Init])).toBe(0);
    }
    for (const asked of [[], people(1_001)])
      expect(await refusal(create(asked))).toMatchObject({
        code: "InvalidArgument",
        fields: ["users"],
      });
  });

  test("PERMISSION_DENIED for users, and for services that are pinned or lack users.create", async () => {
    const { orgId, owner } = await harness.current.tenant();
    for (const callers of [
      owner,
      await harness.current.as("service:crm", { org: orgId, scope: "users.create" }),
      await harness.current.as("service:crm", { scope: "users.get" }),
    ])
      expect(await refusal(create(people(1), callers))).toMatchObject({
        code: "PermissionDenied",
        metadata: { permission: "users.create" },
      });
    const service = await harness.current.as("service:crm", { scope: "users.create" });
    expect((await create(people(1), service)).map(outcomeOf)).toEqual(["made"]);
  });
});

describe("Batches at the same time", () => {
  /** Holds emails, until all calls wait for what it or another one holds; then gives them back, or keeps them. */
  const meet = async (
    { admin, urls }: Harness,
    emails: readonly string[],
    calls: readonly (() => Promise<BatchCreateUsersResult[]>)[],
    end: "rollback" | "commit" = "rollback",
  ): Promise<string[][]> => {
    const holder = new pg.Client({ connectionString: urls.admin });
    await holder.connect();
    try {
      await holder.query("begin");
      await holder.query("set local session_replication_role = replica");
      for (const email of emails)
        await holder.query(
          "insert into roster.users (id, email, name) values (gen_random_uuid(), $1, 'X')",
          [email],
        );
      const running = Promise.all(calls.map((call) => call()));
      const waiting = async () =>
        (
          await admin.query(
            `select from pg_stat_activity
              where datname = current_database() and wait_event_type = 'Lock'`,
          )
        ).rowCount;
      await expect.poll(waiting, { interval: 5 }).toBe(calls.length);
      await holder.query(end);
      return (await running).map((results) => results.map(outcomeOf));
    } finally {
      await holder.end();
    }
  };

  test("make each email once, whatever their orders, and wait instead of deadlocking", async () => {
    const id = randomUUID();
    const [a, m, z] = ["a", "m", "z"].map((letter) => `${letter}${id}@example.com`) as [
      string,
      string,
      string,
    ];
    const asked = [a, m, z].map((email) => person({ email }));
    const { ops } = patient.current;
    const [one = [], two = []] = await meet(
      patient.current,
      [m],
      [() => create(asked, ops), () => create([...asked].reverse(), ops)],
    );
    const won = ["made", "made", "made"];
    const lost = [0, 1, 2].map((place) => `EMAIL_TAKEN users[${place}].user.email`);
    expect([one, two]).toEqual(one[0] === "made" ? [won, lost] : [lost, won]);
    expect(await count(patient.current, asked)).toBe(3);
  }, 20_000);

  test("let go of what was asked for by one who lost their email meanwhile", async () => {
    const { user } = person({ externalId: randomUUID() });
    const externalId = user?.externalId ?? "";
    const asked = [{ user: user ?? {} }, person({ externalId }), person({ externalId })];
    const emails = [user?.email ?? ""];
    const [done] = await meet(harness.current, emails, [() => create(asked)], "commit");
    expect(done).toEqual([
      "EMAIL_TAKEN users[0].user.email",
      "made",
      "USER_EXTERNAL_ID_TAKEN users[2].user.external_id",
    ]);
  });

  test("that cross by their external ids are told of no deadlock", async () => {
    const id = randomUUID();
    const [x, y] = [`x${id}`, `y${id}`];
    const at = (letter: string, externalId = "") =>
      person({ email: `${letter}${id}@example.com`, externalId });
    const [first, second] = [
      [at("a", x), at("m"), at("p", y)],
      [at("b", y), at("n"), at("q", x)],
    ];
    const done = await meet(
      harness.current,
      [`m${id}@example.com`, `n${id}@example.com`],
      [() => create(first ?? []), () => create(second ?? [])],
    );
    const taken = (place: number) => `USER_EXTERNAL_ID_TAKEN users[${place}].user.external_id`;
    const won = ["made", "made", "made"];
    const lost = [taken(0), "made", taken(2)];
    expect(done).toEqual(done[0]?.[0] === "made" ? [won, lost] : [lost, won]);
  }, 20_000);

  test("and CreateUser make each email once, in any order", async () => {
    const asked = people(100);
    const reversed = [...asked].reverse();
    const alone = asked.slice(0, 10).map(({ user }) =>
      harness.current.ops.users.createUser({ user: user ?? {} }).then(
        () => ["made"],
        async (error) => [(await refusal(Promise.reject(error))).reason],
      ),
    );
    const done = await Promise.all([
      ...[asked, reversed, asked, reversed].map((users) => outcomes(users)),
      ...alone,
    ]);
    expect(done.flat().filter((outcome) => outcome === "made")).toHaveLength(100);
    expect(done.flat().filter((outcome) => !/^(made|EMAIL_TAKEN)/.test(outcome))).toEqual([]);
    expect(await count(harness.current, asked)).toBe(100);
  });
});
