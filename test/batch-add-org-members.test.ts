import { randomUUID } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import type {
  BatchAddOrgMembersResult,
  NewOrgMemberSchema,
} from "../src/gen/roster/v1/org_service_pb.ts";
import { newest } from "./audit-log.ts";
import { type Callers, pipelined, refusal, useHarness } from "./harness.ts";
import { makeRole } from "./made-role.ts";
import { overlap } from "./overlap.ts";

const harness = useHarness();

type Init = MessageInitShape<typeof NewOrgMemberSchema>;

const expireTime = { seconds: 4_000_000_000n, nanos: 0 };

const add = async ({ orgs }: Callers, orgId: string, members: Init[]) =>
  (await orgs.batchAddOrgMembers({ orgId, members })).results;

/** What became of an item: "added", or why it was not and which field says so. */
const outcomeOf = ({ result }: BatchAddOrgMembersResult): string => {
  if (result.case === "member") return "added";
  const [detail] = result.value?.details ?? [];
  const info = detail && anyUnpack(detail, ErrorInfoSchema);
  return `${info?.reason} ${info?.metadata.field}`;
};

/** New users, made at once. */
const users = async (count: number): Promise<string[]> => {
  const { results } = await harness.current.ops.users.batchCreateUsers({
    users: Array.from({ length: count }, () => ({
      user: { email: `${randomUUID()}@example.com`, name: "Some One" },
    })),
  });
  return results.map(({ result }) => (result.case === "user" ? result.value.id : ""));
};

/** An org with a role that admins cannot give, a user who is suspended and one who is deleted. */
const world = async () => {
  const tenant = await harness.current.tenant();
  const { ops } = harness.current;
  const { orgId } = tenant;
  await ops.access.createRole({ role: { orgId, name: "undertaker", permissions: ["org.delete"] } });
  await ops.access.createRole({ role: { orgId, name: "crew", permissions: ["org.get"] } });
  const [suspended = "", deleted = "", ...free] = await users(8);
  await ops.users.suspendUser({ userId: suspended });
  await ops.users.deleteUser({ userId: deleted });
  return { ...tenant, suspended, deleted, free };
};

describe("OrgService.BatchAddOrgMembers", () => {
  test("adds each user with their role and time, in the order of the request", async () => {
    const { orgId, owner, free } = await world();
    const [a = "", b = "", c = "", d = ""] = free;
    const results = await add(owner, orgId, [
      { userId: c, role: "owner" },
      { userId: a.toUpperCase() },
      { userId: d, role: "crew", expireTime },
      { userId: b, role: "undertaker" },
    ]);
    expect(results.map(({ result }) => result.value)).toMatchObject([
      { orgId, userId: c, role: "owner" },
      { orgId, userId: a, role: "member" },
      { orgId, userId: d, role: "crew", expireTime },
      { orgId, userId: b, role: "undertaker" },
    ]);
    for (const { result } of results) {
      if (result.case !== "member") throw new Error("was not added");
      const { userId } = result.value;
      expect((await owner.orgs.getOrgMember({ orgId, userId })).member).toEqual(result.value);
    }
  });

  test("answers for each what AddOrgMember would, and adds the others", async () => {
    const { orgId, owner, admin, memberId, suspended, deleted, free } = await world();
    const [a = "", b = "", c = ""] = free;
    const elsewhere = await harness.current.tenant();
    await makeRole(elsewhere.owner, elsewhere.orgId, "singer", "org.get");
    const faults: [string, Init][] = [
      ["USER_NOT_FOUND user_id", { userId: randomUUID() }],
      ["USER_NOT_FOUND user_id", { userId: suspended }],
      ["USER_NOT_FOUND user_id", { userId: deleted, role: "crew" }],
      ["ORG_MEMBER_EXISTS user_id", { userId: memberId }],
      ["ROLE_UNKNOWN role", { userId: a, role: "singer" }],
      ["ROLE_UNKNOWN role", { userId: randomUUID(), role: "nothing" }],
      ["USER_NOT_FOUND user_id", { userId: suspended, role: "owner", expireTime }],
      ["FIELD_INVALID expire_time", { userId: memberId, role: "owner", expireTime }],
    ];
    const ofAdmin: [string, Init][] = [
      ["ROLE_NOT_GRANTABLE role", { userId: b, role: "owner" }],
      ["ROLE_NOT_GRANTABLE role", { userId: randomUUID(), role: "undertaker" }],
    ];
    for (const [callers, list, fine] of [
      [owner, faults, b],
      [admin, [...faults.slice(0, 6), ...ofAdmin], c],
    ] as const) {
      const asked = [...list.map(([, member]) => member), { userId: fine }];
      const results = await add(callers, orgId, asked);
      expect(results.map(outcomeOf)).toEqual([
        ...list.map(([fault], place) => fault.replace(" ", ` members[${place}].`)),
        "added",
      ]);
      for (const [place, [, member]] of list.entries()) {
        const alone = await refusal(callers.orgs.addOrgMember({ orgId, ...member } as object));
        const { result } = results[place] ?? {};
        const message = alone.message.replace(/^(role|expire_time):/, `members[${place}].$1:`);
        const code = Code[alone.code as keyof typeof Code];
        expect(result?.value).toMatchObject({ code, message });
      }
    }
  });

  test("adds the first of those who are named twice, if it can be", async () => {
    const { orgId, owner, free } = await world();
    const [a = "", b = ""] = free;
    const results = await add(owner, orgId, [
      { userId: a, role: "guest" },
      { userId: a.toUpperCase(), role: "admin" },
      { userId: b, role: "nothing" },
      { userId: b },
      { userId: b },
    ]);
    expect(results.map(outcomeOf)).toEqual([
      "added",
      "ORG_MEMBER_EXISTS members[1].user_id",
      "ROLE_UNKNOWN members[2].role",
      "added",
      "ORG_MEMBER_EXISTS members[4].user_id",
    ]);
    const { member } = await owner.orgs.getOrgMember({ orgId, userId: a });
    expect(member?.role).toBe("guest");
  });

  test("adds a thousand in three round trips, with one audit entry of all their rows", async () => {
    const { orgId, owner, admin } = await harness.current.tenant();
    const ids = await users(1_000);
    const asked = ids.map((userId) => ({ userId }));
    const flushes = await harness.current.flushesOf(async () => {
      const results = await add(admin, orgId, asked);
      expect(results.map(outcomeOf)).toEqual(Array(1_000).fill("added"));
    });
    if (pipelined) expect(flushes).toBe(3);
    expect(await newest(owner, orgId)).toMatchObject({
      method: "roster.v1.OrgService/BatchAddOrgMembers",
      changeCount: 1_000,
    });
    const again = await add(admin, orgId, asked);
    expect(new Set(again.map(({ result }) => result.case))).toEqual(new Set(["error"]));
    expect(await newest(owner, orgId)).toMatchObject({ changeCount: 0 });
  });

  test("INVALID_ARGUMENT names the field that breaks a rule, and nobody is added", async () => {
    const { orgId, owner, free } = await world();
    const [a = "", b = ""] = free;
    const faults: [string, Init][] = [
      ["members[1].user_id", {}],
      ["members[1].user_id", { userId: "nobody" }],
      ["members[1].role", { userId: b, role: "Not A Role" }],
      ["members[1].expire_time", { userId: b, expireTime: { seconds: -1n, nanos: 0 } }],
      ["members[1].expire_time", { userId: b, expireTime: { seconds: 0n, nanos: 1_000_000_000 } }],
    ];
    for (const [field, member] of faults) {
      const refused = await refusal(add(owner, orgId, [{ userId: a }, member]));
      expect(refused, field).toMatchObject({ code: "InvalidArgument", fields: [field] });
    }
    for (const members of [[], Array.from({ length: 1_001 }, () => ({ userId: a }))])
      expect(await refusal(add(owner, orgId, members))).toMatchObject({
        code: "InvalidArgument",
        fields: ["members"],
      });
    expect(await refusal(owner.orgs.getOrgMember({ orgId, userId: a }))).toMatchObject({
      code: "NotFound",
    });
  });
});

describe("Batches at the same time", () => {
  const settled = async (call: () => Promise<BatchAddOrgMembersResult[]>) =>
    (await call()).map(outcomeOf);

  test("add each user once, whatever their orders, and wait instead of deadlocking", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const asked = (await users(200)).map((userId) => ({ userId }));
    const reversed = [...asked].reverse();
    const singles = asked.slice(0, 10).map(({ userId }) =>
      owner.orgs.addOrgMember({ orgId, userId }).then(
        () => ["added"],
        async (error) => [(await refusal(Promise.reject(error))).reason],
      ),
    );
    const done = await Promise.all([
      ...[asked, reversed, asked, reversed].map((some) => settled(() => add(owner, orgId, some))),
      ...singles,
    ]);
    expect(done.flat().filter((outcome) => outcome === "added")).toHaveLength(200);
    expect(done.flat().filter((outcome) => !/^(added|ORG_MEMBER_EXISTS)/.test(outcome))).toEqual(
      [],
    );
  });

  test("heed what changed before them: a role that grew, a user who is gone, an admin who is none", async () => {
    const { orgId, adminId, owner, admin, free } = await world();
    const [a = "", b = "", c = ""] = free;
    const { ops } = harness.current;
    /** What becomes of a batch that waits for another change; then those who were added go again. */
    const behind = async (first: () => Promise<unknown>): Promise<string[]> => {
      const members = [{ userId: a, role: "crew" }, { userId: b }, { userId: c }];
      const second = () => add(admin, orgId, members);
      const [one, two] = await overlap(harness.current, first, second);
      expect(one?.status).toBe("fulfilled");
      if (two?.status !== "fulfilled") return [(await refusal(Promise.reject(two?.reason))).reason];
      for (const userId of [a, b, c])
        await owner.orgs.removeOrgMember({ orgId, userId, allowMissing: true });
      return (two.value as BatchAddOrgMembersResult[]).map(outcomeOf);
    };
    const role = { orgId, name: "crew", permissions: ["org.delete"] };
    expect(await behind(() => ops.access.updateRole({ role }))).toEqual([
      "ROLE_NOT_GRANTABLE members[0].role",
      "added",
      "added",
    ]);
    expect(await behind(() => ops.users.deleteUser({ userId: c }))).toEqual([
      "ROLE_NOT_GRANTABLE members[0].role",
      "added",
      "USER_NOT_FOUND members[2].user_id",
    ]);
    const demoted = { orgId, userId: adminId, role: "guest" };
    expect(await behind(() => owner.orgs.updateOrgMember({ member: demoted }))).toEqual([
      "PERMISSION_MISSING",
    ]);
  });

  test("takes the place of a membership that was made meanwhile and is over", async () => {
    const { orgId, admin, ownerId } = await harness.current.tenant();
    const [userId = ""] = await users(1);
    const over = { seconds: 1n, nanos: 0 };
    const [one, two] = await overlap(
      harness.current,
      () => add(harness.current.ops, orgId, [{ userId, expireTime: over }]),
      () => add(admin, orgId, [{ userId }, { userId: ownerId }]),
    );
    expect(one?.status).toBe("fulfilled");
    if (two?.status !== "fulfilled") throw two?.reason;
    expect((two.value as BatchAddOrgMembersResult[]).map(outcomeOf)).toEqual([
      "added",
      "ORG_MEMBER_EXISTS members[1].user_id",
    ]);
  });
});
