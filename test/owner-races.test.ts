import { Code } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { type Callers, refusal, slug, useHarness } from "./harness.ts";
import { overlap } from "./overlap.ts";
import { activeOwners, ownedOrg } from "./owned-org.ts";
import { enterDirectory, useConnections, within } from "./sessions.ts";

const harness = useHarness();
const connect = useConnections();

const owned = (count: number, ids?: readonly string[]) => ownedOrg(harness.current, count, ids);

/** Every way by which an org may lose an owner. */
const losses = {
  demote: ({ orgs }: Callers, orgId: string, userId: string) =>
    orgs.updateOrgMember({ member: { orgId, userId, role: "member" } }),
  suspend: ({ orgs }: Callers, orgId: string, userId: string) =>
    orgs.updateOrgMember({ member: { orgId, userId, state: OrgMemberState.SUSPENDED } }),
  remove: ({ orgs }: Callers, orgId: string, userId: string) =>
    orgs.removeOrgMember({ orgId, userId }),
  delete: (_caller: Callers, _orgId: string, userId: string) =>
    harness.current.ops.users.deleteUser({ userId }),
};
const ways = Object.keys(losses) as (keyof typeof losses)[];

/** Lets calls race and returns the reasons of those that were refused. */
const race = async (calls: readonly Promise<unknown>[]): Promise<string[]> => {
  const done = await Promise.allSettled(calls);
  const refused = done.filter((result) => result.status === "rejected");
  return Promise.all(
    refused.map(async ({ reason }) => (await refusal(Promise.reject(reason))).reason),
  );
};

/** What who lost a race may be told: they would take the last owner, or are none themselves any more. */
const fair = ["LAST_OWNER", "PERMISSION_MISSING", "ORG_NOT_ALLOWED", "CALLER_INACTIVE"];
const rounds = 8;

describe("Two owners at the same instant", () => {
  const pairs = ways.flatMap((one, i) => ways.slice(i).map((other) => [one, other] as const));

  test.each(pairs)("leave exactly one when they %s and %s each other", async (one, other) => {
    for (let round = 0; round < rounds; round++) {
      const { orgId, ownerIds } = await owned(2);
      const [a = "", b = ""] = ownerIds;
      const [first, second] = [await harness.current.as(a), await harness.current.as(b)];
      const reasons = await race([losses[one](first, orgId, b), losses[other](second, orgId, a)]);
      expect(reasons).toHaveLength(1);
      expect(fair).toContain(reasons[0]);
      expect(await activeOwners(harness.current, orgId)).toBe(1);
    }
  });

  test("leave exactly one when both go by themselves", async () => {
    for (let round = 0; round < rounds; round++) {
      const { orgId, ownerIds } = await owned(2);
      const callers = await Promise.all(ownerIds.map((id) => harness.current.as(id)));
      const way = round % 2 === 0 ? losses.remove : losses.demote;
      const reasons = await race(callers.map((caller, i) => way(caller, orgId, ownerIds[i] ?? "")));
      expect(reasons).toEqual(["LAST_OWNER"]);
      expect(await activeOwners(harness.current, orgId)).toBe(1);
    }
  });

  test("wait for one another before they change, instead of deadlocking", async () => {
    const { ownerIds } = await owned(2);
    const holding = ownerIds.map((id) => `select roster.lock_owned_orgs('${id}')`);
    const [first = "", second = ""] = holding;
    const { directory } = harness.current.urls;
    const [one, other] = [await connect(directory), await connect(directory)];
    await one.query(`begin; ${enterDirectory(null, true)}; ${first}`);
    const impatient = `${enterDirectory(null, true)}; set local lock_timeout = '100ms'`;
    expect((await within(other, impatient, second)).code).toBe("55P03");
    await one.query("rollback");
    expect((await within(other, impatient, second)).code).toBeUndefined();
  });

  test("leave exactly one when they are suspended by statements of their own", async () => {
    const { orgId, ownerIds } = await owned(2);
    const suspending = ownerIds.map((id) => async () => {
      const directory = await connect(harness.current.urls.directory);
      const text = "update roster.users set state = 'SUSPENDED' where id = $1";
      const { error } = await within(directory, enterDirectory(null, true), text, [id]);
      return error?.message;
    });
    const [first, second] = suspending as [() => Promise<unknown>, () => Promise<unknown>];
    expect(await overlap(harness.current, first, second)).toMatchObject([
      { value: undefined },
      { value: "LAST_OWNER" },
    ]);
    expect(await activeOwners(harness.current, orgId)).toBe(1);
  });
});

describe("A user who is deleted while an org is made for them", () => {
  test("either owns it and stays, or goes and there is no org", async () => {
    const { ops } = harness.current;
    for (let round = 0; round < rounds; round++) {
      const userId = await harness.current.user();
      const org = { name: "Org", slug: slug() };
      const reasons = await race([
        ops.orgs.createOrg({ org, ownerUserId: userId }),
        ops.users.deleteUser({ userId }),
      ]);
      expect(reasons).toHaveLength(1);
      expect(["LAST_OWNER", "USER_NOT_FOUND"]).toContain(reasons[0]);
    }
  });
});

describe("The last owner of a suspended org who goes while it is reactivated", () => {
  test.each(["demote", "suspend", "remove"] as const)("by %s leaves it suspended", async (way) => {
    const { ops } = harness.current;
    for (let round = 0; round < 5; round++) {
      const { orgId, ownerIds } = await owned(1);
      await ops.orgs.suspendOrg({ orgId });
      const [gone, opened] = await overlap(
        harness.current,
        () => losses[way](ops, orgId, ownerIds[0] ?? ""),
        () => ops.orgs.reactivateOrg({ orgId }),
      );
      expect(gone?.status).toBe("fulfilled");
      expect(opened).toMatchObject({
        status: "rejected",
        reason: { code: Code.FailedPrecondition },
      });
    }
  });
});
