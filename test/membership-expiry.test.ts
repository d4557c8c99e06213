import { randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import pg from "pg";
import { describe, expect, onTestFinished, test } from "vitest";
import { ChangeKind } from "../src/gen/roster/v1/audit_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { removeExpiredMembers } from "../src/jobs/expired-members.ts";
import { log, newest } from "./audit-log.ts";
import { type Callers, refusal, type Tenant, useHarness } from "./harness.ts";
import { tenantWithTeam } from "./made-team.ts";
import { overlap } from "./overlap.ts";
import { told } from "./samples.ts";
import { enter, useConnections, within } from "./sessions.ts";

const harness = useHarness();

const connect = useConnections();
const expireTime = timestampFromMs(1_000);

/** Ends a membership by its time. */
const expire = ({ orgId, owner }: Tenant, userId: string) =>
  owner.orgs.updateOrgMember({ member: { orgId, userId, expireTime } });

/** An org with a team, and someone in both, with a profile there, whose time has come. */
const world = async () => {
  const tenant = await tenantWithTeam(harness.current);
  const { orgId, owner, team, memberId: userId } = tenant;
  await owner.teams.addTeamMember({ orgId, teamId: team.id, userId });
  await owner.users.updateProfile({ profile: { orgId, userId, bio: "Here" } });
  await expire(tenant, userId);
  return { ...tenant, teamId: team.id, userId };
};

/** The changes of an entry, as text. */
const changesOf = async (callers: Callers, orgId: string): Promise<string[]> =>
  (await newest(callers, orgId)).changes
    .map(({ resourceType, kind }) => `${Object.keys(ChangeKind)[kind]} ${resourceType}`)
    .sort();

describe("A membership whose time has come", () => {
  test("is not there for any RPC of the org, like one that never was", async () => {
    const { orgId, teamId, userId, owner } = await world();
    const calls: ((callers: Callers, userId: string) => Promise<unknown>)[] = [
      ({ orgs }, id) => orgs.getOrgMember({ orgId, userId: id }),
      ({ orgs }, id) => orgs.updateOrgMember({ member: { orgId, userId: id, role: "guest" } }),
      ({ orgs }, id) => orgs.removeOrgMember({ orgId, userId: id }),
      ({ orgs }, id) =>
        orgs.transferOrgOwnership({ orgId, fromUserId: randomUUID(), toUserId: id }),
      ({ users }, id) => users.getUser({ orgId, userId: id }),
      ({ users }, id) => users.getUser({ orgId, userId: id, view: View.FULL }),
      ({ users }, id) => users.getProfile({ orgId, userId: id }),
      ({ users }, id) => users.updateProfile({ profile: { orgId, userId: id, bio: "X" } }),
      ({ teams }, id) => teams.addTeamMember({ orgId, teamId, userId: id }),
      ({ teams }, id) => teams.getTeamMember({ orgId, teamId, userId: id }),
      ({ teams }, id) => teams.updateTeamMember({ member: { orgId, teamId, userId: id } }),
      ({ teams }, id) => teams.removeTeamMember({ orgId, teamId, userId: id }),
      ({ teams }, id) => teams.listUserTeams({ orgId, userId: id }),
    ];
    for (const callers of [owner, harness.current.ops]) {
      for (const [index, call] of calls.entries()) {
        const random = randomUUID();
        const gone = await refusal(call(callers, userId));
        expect(gone.code, `call ${index}`).toBe("NotFound");
        expect(told(gone, userId)).toBe(told(await refusal(call(callers, random)), random));
      }
      const { missingIds } = await callers.users.batchGetUsers({ orgId, userIds: [userId] });
      expect(missingIds).toEqual([userId]);
    }
    const { user } = await harness.current.ops.users.getUser({ userId });
    const byEmail = { case: "email", value: user?.email ?? "" } as const;
    expect(await refusal(owner.users.lookupUser({ orgId, key: byEmail }))).toMatchObject({
      code: "NotFound",
    });
  });

  test("hides its user and their profiles from every query of the org", async () => {
    const { orgId, ownerId, userId } = await world();
    const app = await connect(harness.current.urls.app);
    for (const [table, key] of [
      ["users", "id"],
      ["profiles", "user_id"],
    ]) {
      const query = `select ${key} as id from roster.${table} where ${key} in ('${userId}', '${ownerId}')`;
      const { rows } = await within(app, enter(orgId, ownerId), query);
      expect(rows, table).toEqual([{ id: ownerId }]);
    }
  });

  test("is in no list, and cuts no page short", async () => {
    const tenant = await tenantWithTeam(harness.current);
    const { orgId, ownerId, owner, team } = tenant;
    const ids: string[] = [];
    for (let i = 0; i < 7; i++) {
      const userId = await harness.current.user();
      await owner.orgs.addOrgMember({ orgId, userId, role: "guest" });
      await owner.teams.addTeamMember({ orgId, teamId: team.id, userId });
      ids.push(userId);
    }
    const lasting = [ids[0], ids[6]] as string[];
    for (const userId of ids.slice(1, 6)) await expire(tenant, userId);
    type Ask = { pageSize: number; pageToken: string };
    type Answer = { ids: string[]; nextPageToken: string };
    const teamId = team.id;
    const lists: ((ask: Ask) => Promise<Answer>)[] = [
      ...[View.BASIC, View.FULL].flatMap((view) => [
        ...[
          { filter: "role = guest" },
          { filter: "role = guest", orderBy: "join_time" },
          { filter: "role = guest", orderBy: "user.email" },
        ].map((choice) => async (ask: Ask) => {
          const answer = await owner.orgs.listOrgMembers({ orgId, view, ...choice, ...ask });
          return { ...answer, ids: answer.members.map(({ userId }) => userId) };
        }),
        async (ask: Ask) => {
          const answer = await owner.teams.listTeamMembers({ orgId, teamId, view, ...ask });
          return { ...answer, ids: answer.members.map(({ userId }) => userId) };
        },
        async (ask: Ask) => {
          const answer = await owner.orgs.listOrgMembers({ orgId, view, ...ask });
          return { ...answer, ids: answer.members.map(({ userId }) => userId) };
        },
        ...["", 'name = "Some One"'].map((filter) => async (ask: Ask) => {
          const answer = await owner.users.listUsers({ orgId, view, filter, ...ask });
          return { ...answer, ids: answer.users.map(({ id }) => id) };
        }),
      ]),
    ];
    const others = [ownerId, tenant.adminId, tenant.memberId, tenant.guestId];
    for (const [index, list] of lists.entries()) {
      for (const pageSize of [1, 2, 50]) {
        const seen: string[] = [];
        let pageToken = "";
        do {
          const answer = await list({ pageSize, pageToken });
          seen.push(...answer.ids);
          pageToken = answer.nextPageToken;
        } while (pageToken !== "");
        const guests = seen.filter((id) => !others.includes(id));
        expect(guests.sort(), `list ${index}, ${pageSize} a page`).toEqual([...lasting].sort());
      }
    }
  });

  test("lets go of its role, whose delete takes it along", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, guestId, memberId } = tenant;
    await owner.access.createRole({ role: { orgId, name: "crew" } });
    for (const userId of [guestId, memberId]) {
      await owner.orgs.updateOrgMember({ member: { orgId, userId, role: "crew" } });
    }
    await expire(tenant, guestId);
    const take = () => owner.access.deleteRole({ orgId, name: "crew" });
    expect(await refusal(take())).toMatchObject({ reason: "ROLE_IN_USE" });
    await expire(tenant, memberId);
    await take();
    expect(await changesOf(owner, orgId)).toEqual([
      "DELETED org_member",
      "DELETED org_member",
      "DELETED role",
    ]);
  });

  test("stands in nobody's way: not of an org's delete, and its denied tries are not the org's", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, member, adminId, memberId, guestId } = tenant;
    for (const userId of [adminId, memberId, guestId]) await expire(tenant, userId);
    const before = await log(owner, orgId);
    expect(await refusal(member.teams.createTeam({ team: { orgId, name: "X" } }))).toMatchObject({
      reason: "ORG_NOT_ALLOWED",
    });
    expect(await log(owner, orgId)).toEqual(before);
    expect((await owner.orgs.deleteOrg({ orgId })).org?.deleteTime).toBeDefined();
  });
});

describe("A membership whose time comes while a change of it waits", () => {
  const expireTime = timestampFromMs(Date.now() + 3_600_000);
  const changes = {
    UpdateOrgMember: ({ orgId, owner, memberId: userId }: Tenant) =>
      owner.orgs.updateOrgMember({ member: { orgId, userId, expireTime } }),
    RemoveOrgMember: ({ orgId, owner, memberId: userId }: Tenant) =>
      owner.orgs.removeOrgMember({ orgId, userId }),
    TransferOrgOwnership: ({ orgId, owner, ownerId: fromUserId, memberId: toUserId }: Tenant) =>
      owner.orgs.transferOrgOwnership({ orgId, fromUserId, toUserId }),
  };

  test.each(Object.entries(changes))("stays expired: %s", async (_rpc, change) => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, memberId: userId } = tenant;
    const [expired, changed] = await overlap(
      harness.current,
      () => expire(tenant, userId),
      () => change(tenant),
    );
    expect(expired?.status).toBe("fulfilled");
    const told = changed?.status === "rejected" ? Promise.reject(changed.reason) : changed?.value;
    expect((await refusal(Promise.resolve(told))).reason).toBe("ORG_MEMBER_NOT_FOUND");
    expect((await refusal(owner.orgs.getOrgMember({ orgId, userId }))).code).toBe("NotFound");
  });
});

describe("Who is added again after their time had come", () => {
  test("begins anew, and the log tells what went and what came", async () => {
    const { orgId, teamId, userId, owner, member } = await world();
    const { member: again } = await owner.orgs.addOrgMember({ orgId, userId, role: "guest" });
    expect(again).toMatchObject({ role: "guest", etag: '"1"' });
    expect(again?.expireTime).toBeUndefined();
    expect(await changesOf(owner, orgId)).toEqual([
      "CREATED org_member",
      "DELETED org_member",
      "DELETED team_member",
      "PURGED profile",
    ]);
    expect((await owner.orgs.getOrgMember({ orgId, userId })).member).toEqual(again);
    expect((await owner.teams.listTeamMembers({ orgId, teamId })).members).toEqual([]);
    expect((await owner.users.getProfile({ orgId, userId })).profile?.orgId).toBe("");
    expect((await member.users.getCaller({ orgId })).role).toBe("guest");
    const found = await owner.users.listUsers({ orgId, filter: 'name = "Member"' });
    expect(found.users.map(({ id }) => id)).toEqual([userId]);
  });

  test("may come back by an admin who could not have taken their role away, and in a batch", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, admin, memberId, guestId } = tenant;
    await owner.access.createRole({
      role: { orgId, name: "undertaker", permissions: ["org.delete"] },
    });
    await owner.orgs.updateOrgMember({ member: { orgId, userId: memberId, role: "undertaker" } });
    for (const userId of [memberId, guestId]) await expire(tenant, userId);
    await admin.orgs.addOrgMember({ orgId, userId: memberId });
    const { results } = await admin.orgs.batchAddOrgMembers({
      orgId,
      members: [{ userId: guestId, role: "member" }, { userId: guestId }, { userId: memberId }],
    });
    expect(results.map(({ result }) => result.case)).toEqual(["member", "error", "error"]);
  });

  test("is added once by many at the same instant", async () => {
    const { orgId, userId, owner } = await world();
    const calls = Array.from({ length: 6 }, () => owner.orgs.addOrgMember({ orgId, userId }));
    const done = await Promise.allSettled(calls);
    expect(done.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    for (const result of done)
      if (result.status === "rejected")
        expect((await refusal(Promise.reject(result.reason))).reason).toBe("ORG_MEMBER_EXISTS");
  });
});

describe("The removal of expired memberships", () => {
  const remove = () => removeExpiredMembers(harness.current.urls.worker);

  test("takes those whose time has come, with all that hangs on them, and the log tells", async () => {
    await remove();
    const [one, other] = [await world(), await world()];
    const { orgId, guestId, owner } = one;
    const later = timestampFromMs(Date.now() + 3_600_000);
    await owner.orgs.updateOrgMember({ member: { orgId, userId: guestId, expireTime: later } });
    expect(await remove()).toBe(2);
    for (const { orgId, userId, ...tenant } of [one, other]) {
      expect(await newest(tenant.owner, orgId)).toMatchObject({
        actor: { subject: "roster" },
        method: "remove_expired_members",
        orgId: "",
        changeCount: 3,
      });
      expect(await changesOf(tenant.owner, orgId)).toEqual([
        "DELETED org_member",
        "DELETED team_member",
        "PURGED profile",
      ]);
      const { rows } = await harness.current.admin.query(
        "select from roster.org_members where org_id = $1 and user_id = $2",
        [orgId, userId],
      );
      expect(rows).toEqual([]);
    }
    await owner.orgs.getOrgMember({ orgId, userId: guestId });
    const before = await log(harness.current.ops);
    expect(await remove()).toBe(0);
    // The former look at the log is in it now.
    expect((await log(harness.current.ops, "", 21)).slice(1)).toEqual(before);
  });

  test("passes over a membership that someone holds, and comes back to it", async () => {
    await remove();
    const [held, free] = [await world(), await world()];
    const client = new pg.Client({ connectionString: harness.current.urls.admin });
    await client.connect();
    onTestFinished(() => client.end());
    await client.query("begin");
    const hold = "select from roster.org_members where org_id = $1 and user_id = $2 for update";
    await client.query(hold, [held.orgId, held.userId]);
    expect(await remove()).toBe(1);
    expect(await changesOf(free.owner, free.orgId)).toContain("DELETED org_member");
    await client.query("rollback");
    const both = await Promise.all([remove(), remove()]);
    expect(both.sort()).toEqual([0, 1]);
  });
});

describe("OrgService.RemoveOrgMember", () => {
  test("takes team memberships along, and the log tells each", async () => {
    const tenant = await tenantWithTeam(harness.current);
    const { orgId, owner, team, guestId: userId } = tenant;
    await owner.teams.addTeamMember({ orgId, teamId: team.id, userId });
    await owner.orgs.removeOrgMember({ orgId, userId });
    const { changes } = await newest(owner, orgId);
    expect(changes.map(({ kind, resourceId }) => [resourceId, kind])).toEqual(
      expect.arrayContaining([
        [userId, ChangeKind.DELETED],
        [`${team.id}/${userId}`, ChangeKind.DELETED],
      ]),
    );
    expect(changes).toHaveLength(2);
  });
});
