import { randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Code } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { QuotaFailureSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import type { BatchAddOrgMembersResponse } from "../src/gen/roster/v1/org_service_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { refusal, useHarness } from "./harness.ts";
import { expire } from "./made-invitation.ts";
import { makeTeam } from "./made-team.ts";
import { address } from "./made-user.ts";
import { cutIn, overlap } from "./overlap.ts";
import { ownedOrg } from "./owned-org.ts";
import { asAdmin } from "./sessions.ts";

const harness = useHarness();

const defaults = {
  members: 100_000,
  teams: 10_000,
  pendingInvitations: 1_000,
  roles: 100,
  teamDepth: 16,
  auditRetentionDays: 0,
};
type Limits = Partial<typeof defaults> & { readonly etag?: string };

/** An org with one owner and these limits. */
const limited = async (limits: Limits = {}): Promise<string> => {
  const { orgId } = await ownedOrg(harness.current, 1);
  await set(orgId, limits);
  return orgId;
};

const set = async (orgId: string, limits: Limits, ...paths: string[]) => {
  const mask = paths.length > 0 ? { updateMask: { paths } } : {};
  return (await harness.current.ops.orgs.updateOrgLimits({ limits: { orgId, ...limits }, ...mask }))
    .limits;
};

const get = async (orgId: string) =>
  (await harness.current.ops.orgs.getOrgLimits({ orgId })).limits;

const add = (orgId: string, userId: string, more: object = {}) =>
  harness.current.ops.orgs.addOrgMember({ orgId, userId, ...more });

const users = (count: number): Promise<string[]> =>
  Promise.all(Array.from({ length: count }, () => harness.current.user()));

/** Members and teams that GetOrg counts. */
const counts = async (orgId: string) => {
  const { org } = await harness.current.ops.orgs.getOrg({ orgId, view: View.FULL });
  return [org?.memberCount, org?.teamCount];
};

/** Lets calls race: how many came through, and the reasons of the others, each once. */
const race = async (calls: readonly Promise<unknown>[]) => {
  const done = await Promise.allSettled(calls);
  const refused = done.flatMap((one) => (one.status === "rejected" ? [one.reason] : []));
  const reasons = await Promise.all(refused.map((reason) => refusal(Promise.reject(reason))));
  return {
    succeeded: done.length - refused.length,
    reasons: [...new Set(reasons.map(({ reason }) => reason))],
  };
};

/** What a batch made of each. */
const casesOf = (outcome: PromiseSettledResult<unknown> | undefined) =>
  outcome?.status === "fulfilled"
    ? (outcome.value as BatchAddOrgMembersResponse).results.map(({ result }) => result.case)
    : outcome?.reason;

const reached = (orgId: string, limit: string, value: number) => ({
  code: "ResourceExhausted",
  reason: "ORG_LIMIT_REACHED",
  metadata: { org_id: orgId, limit, value: `${value}` },
});

describe("OrgService.GetOrgLimits", () => {
  test("gives the defaults of an org for which nothing was set", async () => {
    const { orgId } = await ownedOrg(harness.current, 1);
    const limits = await get(orgId);
    expect(limits).toMatchObject({ orgId, ...defaults, etag: '"0"' });
    expect(limits?.updateTime).toBeUndefined();
  });
});

describe("OrgService.UpdateOrgLimits", () => {
  test("changes the populated limits, or those of the mask, of which 0 gives back the default", async () => {
    const orgId = await limited();
    const first = await set(orgId, { members: 5, teamDepth: 3 });
    expect(first).toMatchObject({ ...defaults, members: 5, teamDepth: 3 });
    const second = await set(orgId, { roles: 7, teams: 9 }, "roles", "members");
    expect(second).toMatchObject({ ...defaults, roles: 7, teamDepth: 3 });
    expect(second?.etag).not.toBe(first?.etag);
    expect(second?.updateTime).toBeDefined();
    expect(await get(orgId)).toEqual(second);
    const every = { pendingInvitations: 1, teams: 2, auditRetentionDays: 90, teamDepth: 1 };
    expect(await set(orgId, { ...every, members: 4 }, "*")).toMatchObject({
      ...defaults,
      ...every,
      members: 4,
    });
    expect(await set(orgId, {}, "*")).toMatchObject(defaults);
  });

  test("changes nothing else of the org: not its etag, nor another's limits", async () => {
    const [orgId, otherId] = [await limited(), await limited()];
    const { orgs } = harness.current.ops;
    const before = (await orgs.getOrg({ orgId })).org;
    await set(orgId, { members: 2 });
    await add(orgId, await harness.current.user());
    expect((await orgs.getOrg({ orgId })).org).toEqual(before);
    expect(await get(otherId)).toMatchObject(defaults);
  });

  test("stands in the org's log", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await set(orgId, { members: 50 });
    await set(orgId, { members: 60 });
    const { auditEntries } = await owner.audit.listAuditEntries({ orgId, pageSize: 1 });
    expect(auditEntries[0]).toMatchObject({
      method: "roster.v1.OrgService/UpdateOrgLimits",
      changes: [
        {
          resourceType: "org_limits",
          resourceId: orgId,
          before: { members: 50 },
          after: { members: 60 },
          changedFields: ["members"],
        },
      ],
    });
  });

  test("ABORTED with the current etag when the one sent is stale, from the first on", async () => {
    const { orgId } = await ownedOrg(harness.current, 1);
    const none = (await get(orgId))?.etag ?? "";
    expect(await refusal(set(orgId, { members: 2, etag: '"1"' }))).toMatchObject({
      code: "Aborted",
      reason: "ETAG_STALE",
      metadata: { etag: none },
    });
    const racing = [1, 2].map((members) => set(orgId, { members, etag: none }));
    expect(await race(racing)).toEqual({ succeeded: 1, reasons: ["ETAG_STALE"] });
    const { etag = "", members } = (await get(orgId)) ?? {};
    const stale = await refusal(set(orgId, { members: 3, etag: none }));
    expect(stale).toMatchObject({ reason: "ETAG_STALE", metadata: { etag } });
    expect(await get(orgId)).toMatchObject({ members });
    expect(await set(orgId, { members: 3, etag })).toMatchObject({ members: 3 });
  });

  test("INVALID_ARGUMENT for what is no limit", async () => {
    const orgId = await limited();
    for (const [field, limits] of [
      ["limits.members", { members: -1 }],
      ["limits.team_depth", { teamDepth: 17 }],
      ["limits.audit_retention_days", { auditRetentionDays: 36_501 }],
    ] as const) {
      const refused = await refusal(set(orgId, limits));
      expect(refused).toMatchObject({ code: "InvalidArgument", fields: [field] });
    }
  });

  test("PERMISSION_DENIED for the org's own people", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };
    expect(await refusal(owner.orgs.getOrgLimits({ orgId }))).toMatchObject(denied);
    const limits = { orgId, members: 1_000_000 };
    expect(await refusal(owner.orgs.updateOrgLimits({ limits }))).toMatchObject(denied);
  });
});

describe("A limit", () => {
  test("RESOURCE_EXHAUSTED with QuotaFailure for one member more, and room again when one goes", async () => {
    const orgId = await limited({ members: 2 });
    const [one = "", two = ""] = await users(2);
    await add(orgId, one);
    const refused = await refusal(add(orgId, two));
    expect(refused).toMatchObject(reached(orgId, "members", 2));
    const [quota] = refused.error.findDetails(QuotaFailureSchema);
    expect(quota?.violations).toMatchObject([{ subject: `org:${orgId}` }]);
    expect(quota?.violations[0]?.description).toMatch(/members at most 2/);
    const rehearsed = await refusal(add(orgId, two, { validateOnly: true }));
    expect(rehearsed).toMatchObject(reached(orgId, "members", 2));
    expect(await counts(orgId)).toEqual([2, 0]);
    await harness.current.ops.orgs.removeOrgMember({ orgId, userId: one });
    await add(orgId, two);
    await harness.current.ops.users.deleteUser({ userId: two });
    await add(orgId, one);
  });

  test("is one org's alone", async () => {
    const [orgId, otherId] = [await limited({ members: 1 }), await limited()];
    const userId = await harness.current.user();
    expect(await refusal(add(orgId, userId))).toMatchObject(reached(orgId, "members", 1));
    await add(otherId, userId);
  });

  test("below what is there takes nothing away and lets nothing more in", async () => {
    const orgId = await limited();
    const { orgs } = harness.current.ops;
    const [one = "", two = "", three = ""] = await users(3);
    await add(orgId, one);
    await add(orgId, two);
    await set(orgId, { members: 1 });
    expect(await counts(orgId)).toEqual([3, 0]);
    await orgs.updateOrgMember({ member: { orgId, userId: two, role: "admin" } });
    await orgs.removeOrgMember({ orgId, userId: one });
    expect(await refusal(add(orgId, three))).toMatchObject(reached(orgId, "members", 1));
    // Who was deleted is not counted, so their going is no addition either.
    await harness.current.ops.users.deleteUser({ userId: two });
    await orgs.deleteOrg({ orgId, force: true });
    await orgs.purgeOrg({ orgId });
  });

  test("counts no expired member, and one who is added again needs room", async () => {
    const orgId = await limited({ members: 2 });
    const { orgs } = harness.current.ops;
    const [one = "", two = ""] = await users(2);
    const expireTime = timestampFromMs(Date.now() - 60_000);
    await add(orgId, one, { expireTime });
    await add(orgId, two);
    expect(await counts(orgId)).toEqual([2, 0]);
    expect(await refusal(add(orgId, one))).toMatchObject(reached(orgId, "members", 2));
    await orgs.removeOrgMember({ orgId, userId: two });
    await add(orgId, one);
    expect(await counts(orgId)).toEqual([2, 0]);
    expect(await refusal(add(orgId, two))).toMatchObject(reached(orgId, "members", 2));
  });

  test("RESOURCE_EXHAUSTED for one pending invitation more; expired ones leave room, and need it again", async () => {
    const orgId = await limited({ pendingInvitations: 1 });
    const { orgs } = harness.current.ops;
    const invite = async (email = address()) => {
      const { invitation } = await orgs.createInvitation({ invitation: { orgId, email } });
      return invitation?.id ?? "";
    };
    const first = await invite();
    expect(await refusal(invite())).toMatchObject(reached(orgId, "pending_invitations", 1));
    await orgs.revokeInvitation({ orgId, invitationId: first });
    const second = await invite();
    await expire(harness.current, second);
    const third = await invite();
    const again = orgs.resendInvitation({ orgId, invitationId: second });
    expect(await refusal(again)).toMatchObject(reached(orgId, "pending_invitations", 1));
    await orgs.revokeInvitation({ orgId, invitationId: third });
    await orgs.resendInvitation({ orgId, invitationId: second });
    expect(await refusal(invite())).toMatchObject(reached(orgId, "pending_invitations", 1));
    // Nor does one come back for nothing in the place of another to the same address.
    await orgs.revokeInvitation({ orgId, invitationId: second });
    const email = address();
    const former = await invite(email);
    await expire(harness.current, former);
    await expire(harness.current, await invite(email));
    await invite();
    const instead = orgs.resendInvitation({ orgId, invitationId: former });
    expect(await refusal(instead)).toMatchObject(reached(orgId, "pending_invitations", 1));
  });

  test("lets in as many of a batch as there is room for, and tells each other why", async () => {
    const orgId = await limited({ members: 3, pendingInvitations: 2 });
    const { orgs } = harness.current.ops;
    const ids = await users(4);
    const many = await orgs.batchAddOrgMembers({
      orgId,
      members: ids.map((userId) => ({ userId })),
    });
    const cases = many.results.map(({ result }) => result.case);
    expect(cases).toEqual(["member", "member", "error", "error"]);
    const invitations = [1, 2, 3].map(() => ({ email: `${randomUUID()}@example.com` }));
    const asked = await orgs.batchCreateInvitations({ orgId, invitations });
    expect(asked.results.map(({ result }) => result.case)).toEqual([
      "invitation",
      "invitation",
      "error",
    ]);
    for (const [answers, limit] of [
      [many, "members"],
      [asked, "pending invitations"],
    ] as const) {
      const last = answers.results.at(-1)?.result.value;
      expect(last).toMatchObject({ code: Code.ResourceExhausted });
      expect(
        JSON.stringify(last, (_, value) => (typeof value === "bigint" ? "" : value)),
      ).toContain(limit.replace(" ", "_"));
    }
  });

  test("counts nobody of a batch whose membership is over from the first", async () => {
    const orgId = await limited({ members: 2 });
    const [one = "", two = "", three = ""] = await users(3);
    const over = { expireTime: timestampFromMs(1_000) };
    const { results } = await harness.current.ops.orgs.batchAddOrgMembers({
      orgId,
      members: [{ userId: one }, { userId: two, ...over }, { userId: three }],
    });
    expect(results.map(({ result }) => result.case)).toEqual(["member", "member", "error"]);
    expect(await counts(orgId)).toEqual([2, 0]);
  });

  test("lets in who comes back with an undelete of their user", async () => {
    const orgId = await limited({ members: 2 });
    const [one = "", two = ""] = await users(2);
    await add(orgId, one);
    await harness.current.ops.users.deleteUser({ userId: one });
    await add(orgId, two);
    await harness.current.ops.users.undeleteUser({ userId: one });
    expect(await counts(orgId)).toEqual([3, 0]);
  });

  test("RESOURCE_EXHAUSTED for one team more, made or brought back, and for sub-teams", async () => {
    const orgId = await limited({ teams: 2 });
    const { ops } = harness.current;
    const { id: top } = await makeTeam(ops, { orgId, name: "Top" });
    await makeTeam(ops, { orgId, name: "In", parentTeamId: top });
    const refused = reached(orgId, "teams", 2);
    for (const parentTeamId of ["", top])
      expect(await refusal(makeTeam(ops, { orgId, name: "More", parentTeamId }))).toMatchObject(
        refused,
      );
    await ops.teams.deleteTeam({ orgId, teamId: top, force: true });
    expect(await counts(orgId)).toEqual([1, 0]);
    const { id: next } = await makeTeam(ops, { orgId, name: "Next" });
    expect(await refusal(ops.teams.undeleteTeam({ orgId, teamId: top }))).toMatchObject(refused);
    await ops.teams.deleteTeam({ orgId, teamId: next });
    await ops.teams.undeleteTeam({ orgId, teamId: top });
    expect(await counts(orgId)).toEqual([1, 2]);
  });

  test("refuses one role of the org's own more", async () => {
    const orgId = await limited({ roles: 1 });
    const make = (name: string) =>
      asAdmin(harness.current, "insert into roster.roles (org_id, name) values ($1, $2)", [
        orgId,
        name,
      ]);
    await make("singer");
    await expect(make("dancer")).rejects.toMatchObject({ message: "ORG_LIMIT_REACHED" });
    await asAdmin(harness.current, "delete from roster.roles where org_id = $1", [orgId]);
    await make("dancer");
  });

  test("FAILED_PRECONDITION for a team deeper than the org's teams may nest", async () => {
    const orgId = await limited({ teamDepth: 2 });
    const { ops } = harness.current;
    const { id: top } = await makeTeam(ops, { orgId, name: "Top" });
    const { id: inner } = await makeTeam(ops, { orgId, name: "In", parentTeamId: top });
    const deep = makeTeam(ops, { orgId, name: "Deep", parentTeamId: inner });
    expect(await refusal(deep)).toMatchObject({
      code: "FailedPrecondition",
      reason: "TEAM_TOO_DEEP",
      metadata: { depth: "2" },
    });
    await set(orgId, { teamDepth: 3 });
    await makeTeam(ops, { orgId, name: "Deep", parentTeamId: inner });
  });
});

describe("A batch that finds less room than there was when it began", () => {
  test("makes as many members or invitations as there is room for by then", async () => {
    const orgId = await limited({ members: 3, pendingInvitations: 2 });
    const { orgs } = harness.current.ops;
    const [one = "", two = "", three = ""] = await users(3);
    const members = [{ userId: one }, { userId: two }];
    const added = await cutIn(
      harness.current,
      () => orgs.batchAddOrgMembers({ orgId, members }),
      "insert into roster.org_members (org_id, user_id) values ($1, $2)",
      [orgId, three],
    );
    expect(casesOf(added)).toEqual(["member", "error"]);
    const invitations = [{ email: address() }, { email: address() }];
    const invited = await cutIn(
      harness.current,
      () => orgs.batchCreateInvitations({ orgId, invitations }),
      `insert into roster.invitations (org_id, id, email, expire_time)
        values ($1, gen_random_uuid(), $2, now() + interval '1 day')`,
      [orgId, address()],
    );
    expect(casesOf(invited)).toEqual(["invitation", "error"]);
  });
});

describe("A batch that finds someone added meanwhile who takes no room", () => {
  test("fills the room that it kept for them", async () => {
    const [one = "", two = ""] = await users(2);
    const orgId = await limited({ members: 2 });
    const members = [{ userId: one }, { userId: two }];
    const [, added] = await overlap(
      harness.current,
      () => add(orgId, one, { expireTime: timestampFromMs(1_000) }),
      () => harness.current.ops.orgs.batchAddOrgMembers({ orgId, members }),
    );
    expect(casesOf(added)).toEqual(["member", "error"]);
  });
});

describe("A batch that waits while a member goes", () => {
  test("fills the room that they leave", async () => {
    const [userId = "", next = ""] = await users(2);
    const orgId = await limited({ members: 2 });
    await add(orgId, userId);
    const { orgs } = harness.current.ops;
    const [, added] = await overlap(
      harness.current,
      () => orgs.removeOrgMember({ orgId, userId }),
      () => orgs.batchAddOrgMembers({ orgId, members: [{ userId: next }] }),
    );
    expect(casesOf(added)).toEqual(["member"]);
  });
});

describe("Of many additions at once", () => {
  test("just as many succeed as there is room for, and nobody is told to retry", async () => {
    const { ops } = harness.current;
    const people = await users(20);
    for (let round = 0; round < 20; round++) {
      const orgId = await limited({ members: 6, teams: 5 });
      const adding =
        round % 2 === 0
          ? people.map((userId) => add(orgId, userId))
          : people.map((name) => makeTeam(ops, { orgId, name }));
      expect(await race(adding)).toEqual({ succeeded: 5, reasons: ["ORG_LIMIT_REACHED"] });
      expect(await counts(orgId)).toEqual(round % 2 === 0 ? [6, 0] : [1, 5]);
    }
  });

  test("never more succeed than there is room for while others go", async () => {
    const { ops } = harness.current;
    for (let round = 0; round < 5; round++) {
      const orgId = await limited({ members: 6 });
      const [there, coming] = [await users(5), await users(10)];
      for (const userId of there) await add(orgId, userId);
      const going = there.map((userId, i) =>
        i % 2 === 0
          ? ops.orgs.removeOrgMember({ orgId, userId })
          : ops.users.deleteUser({ userId }),
      );
      const adding = race(coming.map((userId) => add(orgId, userId)));
      expect(await race(going)).toEqual({ succeeded: 5, reasons: [] });
      const { succeeded, reasons } = await adding;
      expect(reasons).toEqual(["ORG_LIMIT_REACHED"]);
      expect(succeeded).toBeLessThanOrEqual(5);
      expect(await counts(orgId)).toEqual([1 + succeeded, 0]);
    }
  });
});
