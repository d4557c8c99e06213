import { randomUUID } from "node:crypto";
import { toBinary } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { OrgState } from "../src/gen/roster/v1/org_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { BatchGetTeamsResponseSchema } from "../src/gen/roster/v1/team_service_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { byHand } from "./console.ts";
import { type Callers, flushesOfRead, refusal, useHarness } from "./harness.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";

const harness = useHarness();

const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };
const idsOf = (items: readonly { id: string }[]): string[] => items.map(({ id }) => id);
describe("UserService.BatchGetUsers", () => {
  test("answers in the order of the request, a repeated id as often, and names the missing ones", async () => {
    const { orgId, ownerId, adminId, outsiderId, member } = await harness.current.tenant();
    const random = randomUUID();
    const userIds = [adminId, random, ownerId.toUpperCase(), outsiderId, adminId, random];
    const answer = await member.users.batchGetUsers({ orgId, userIds });
    expect(idsOf(answer.users)).toEqual([adminId, ownerId, adminId]);
    expect(answer.missingIds).toEqual([random, outsiderId, random]);
    const { user } = await member.users.getUser({ orgId, userId: adminId });
    expect(answer.users[0]).toEqual(user);
  });

  test("answers a thousand ids in one round trip, and none with nothing", async () => {
    const { orgId, ownerId, member } = await harness.current.tenant();
    const userIds = Array.from({ length: 999 }, () => randomUUID());
    const ask = () => member.users.batchGetUsers({ orgId, userIds: [...userIds, ownerId] });
    expect((await ask()).missingIds).toEqual(userIds);
    expect(await harness.current.flushesOf(ask)).toBe(flushesOfRead);
    expect(await member.users.batchGetUsers({ orgId })).toMatchObject({
      users: [],
      missingIds: [],
    });
  });

  test("brings profiles in VIEW_FULL, the org's own where there is one, never with settings", async () => {
    const { orgId, memberId, ownerId, owner } = await harness.current.tenant();
    const { ops } = harness.current;
    const userIds = [ownerId, memberId];
    const settings = { a: 1 };
    await ops.users.updateProfile({ profile: { userId: memberId, bio: "all", settings } });
    await ops.users.updateProfile({ profile: { userId: memberId, orgId, bio: "here", settings } });
    const ask = { userIds, view: View.FULL };
    for (const [callers, request, bio] of [
      [owner, { ...ask, orgId }, "here"],
      [ops, ask, "all"],
    ] as const) {
      const { users } = await callers.users.batchGetUsers(request);
      expect(users.map(({ profile }) => profile)).toMatchObject([
        { userId: ownerId, orgId: "" },
        { userId: memberId, bio },
      ]);
      for (const { profile } of users) expect(profile?.settings).toBeUndefined();
    }
    for (const { profile } of (await owner.users.batchGetUsers({ orgId, userIds })).users)
      expect(profile).toBeUndefined();
  });

  test("hides external_id and labels of others from users, and shows them to services", async () => {
    const { orgId, adminId, memberId, member } = await harness.current.tenant();
    const userIds = [adminId, memberId];
    for (const id of userIds) {
      const user = { id, labels: { plan: "pro" }, externalId: `x${id}` };
      await harness.current.ops.users.updateUser({ user });
    }
    const service = await harness.current.as("service:crm", { org: orgId, scope: "members.get" });
    const shown = async ({ users }: Callers) =>
      (await users.batchGetUsers({ orgId, userIds })).users.map(({ externalId }) => externalId);
    expect(await shown(member)).toEqual(["", `x${memberId}`]);
    expect(await shown(service)).toEqual([`x${adminId}`, `x${memberId}`]);
  });

  test("gives deleted users to platform, in the org and outside, to nobody else", async () => {
    const { orgId, memberId, owner } = await harness.current.tenant();
    const { user } = await harness.current.ops.users.deleteUser({ userId: memberId });
    const service = await harness.current.as("service:crm", { scope: "users.get members.get" });
    const userIds = [memberId];
    for (const request of [{ userIds, orgId }, { userIds }]) {
      expect((await harness.current.ops.users.batchGetUsers(request)).users).toEqual([user]);
      expect((await service.users.batchGetUsers(request)).missingIds).toEqual(userIds);
    }
    expect((await owner.users.batchGetUsers({ orgId, userIds })).missingIds).toEqual(userIds);
  });

  test("PERMISSION_DENIED for guests, also about themselves alone, and for users outside an org", async () => {
    const { orgId, guestId, guest, owner, ownerId } = await harness.current.tenant();
    for (const call of [
      () => guest.users.batchGetUsers({ orgId, userIds: [guestId] }),
      () => owner.users.batchGetUsers({ userIds: [ownerId] }),
    ])
      expect(await refusal(call())).toMatchObject(denied);
  });
});

describe("TeamService.BatchGetTeams", () => {
  test("shows what GetTeam shows: secret teams to who is in them, guests theirs, deleted ones by right", async () => {
    const tenant = await tenantWithTeam(harness.current);
    const { orgId, team: crew, owner, member, guest, guestId, memberId } = tenant;
    const visibility = TeamVisibility.SECRET;
    const moles = await makeTeam(owner, { orgId, name: "Moles", visibility });
    const gone = await makeTeam(owner, { orgId, name: "Gone" });
    await owner.teams.deleteTeam({ orgId, teamId: gone.id });
    const foreign = (await tenantWithTeam(harness.current)).team;
    const teamIds = idsOf([gone, moles, foreign, crew]);
    const seen = async ({ teams }: Callers) => {
      const answer = await teams.batchGetTeams({ orgId, teamIds });
      expect(answer.missingIds).toEqual(teamIds.filter((id) => !idsOf(answer.teams).includes(id)));
      return answer.teams.map(({ name }) => name);
    };
    expect(await seen(owner)).toEqual(["Gone", "Moles", "Crew"]);
    expect(await seen(harness.current.ops)).toEqual(["Gone", "Moles", "Crew"]);
    expect(await seen(member)).toEqual(["Crew"]);
    expect(await seen(guest)).toEqual([]);
    for (const userId of [memberId, guestId])
      await owner.teams.addTeamMember({ orgId, teamId: moles.id, userId });
    expect(await seen(member)).toEqual(["Moles", "Crew"]);
    expect(await seen(guest)).toEqual(["Moles"]);
    const narrowed = await harness.current.as(tenant.adminId, { scope: "teams.get" });
    expect(await seen(narrowed)).toEqual(["Crew"]);
    expect((await owner.teams.batchGetTeams({ orgId, teamIds: [crew.id] })).teams).toEqual([crew]);
  });

  test("costs one round trip", async () => {
    const { orgId, team, member } = await tenantWithTeam(harness.current);
    const teamIds = [team.id, randomUUID()];
    const ask = () => member.teams.batchGetTeams({ orgId, teamIds });
    expect(await harness.current.flushesOf(ask)).toBe(flushesOfRead);
  });

  test("INVALID_ARGUMENT for an answer above 4 MiB, by one team, says to ask for fewer", async () => {
    const { orgId, team, owner, member } = await tenantWithTeam(harness.current);
    const labels = Object.fromEntries(
      Array.from({ length: 12 }, (_, i) => [`${i}`.padEnd(63, "k"), "v".repeat(255)]),
    );
    const heavy = { orgId, id: team.id, labels, description: "d".repeat(2_000) };
    await owner.teams.updateTeam({ team: heavy });
    const ask = (count: number) =>
      member.teams.batchGetTeams({ orgId, teamIds: Array<string>(count).fill(team.id) });
    const each = toBinary(BatchGetTeamsResponseSchema, await ask(1)).length;
    const most = Math.floor((4 * 1024 * 1024) / each);
    expect((await ask(most)).teams).toHaveLength(most);
    const refused = await refusal(ask(most + 1));
    expect(refused).toMatchObject({
      code: "InvalidArgument",
      reason: "ANSWER_TOO_LARGE",
      fields: ["team_ids"],
      metadata: { field: "team_ids", limit: "4 MiB" },
      message: "team_ids: the answer would exceed 4 MiB; ask for fewer at once",
    });
  });
});

describe("OrgService.BatchGetOrgs", () => {
  const ask = async ({ orgs }: Callers, orgIds: string[]) =>
    idsOf((await orgs.batchGetOrgs({ orgIds })).orgs);

  test("gives users the orgs of which they are a member now, in one round trip", async () => {
    const { ops } = harness.current;
    const one = await harness.current.tenant();
    const others = await Promise.all(Array.from({ length: 5 }, () => harness.current.tenant()));
    const [kept, left, paused, expired, foreign] = others.map(({ orgId }) => orgId) as string[];
    const userId = one.guestId;
    for (const orgId of [kept, left, paused, expired] as string[])
      await ops.orgs.addOrgMember({ orgId, userId });
    await ops.orgs.removeOrgMember({ orgId: left as string, userId });
    const state = OrgMemberState.SUSPENDED;
    await ops.orgs.updateOrgMember({ member: { orgId: paused as string, userId, state } });
    const expireTime = { seconds: 1n, nanos: 0 };
    await ops.orgs.updateOrgMember({ member: { orgId: expired as string, userId, expireTime } });
    const orgIds = [foreign, left, one.orgId, paused, expired, kept, one.orgId] as string[];
    const answer = await one.guest.orgs.batchGetOrgs({ orgIds });
    expect(idsOf(answer.orgs)).toEqual([one.orgId, kept, one.orgId]);
    expect(answer.missingIds).toEqual([foreign, left, paused, expired]);
    expect(answer.orgs[0]).toEqual((await one.owner.orgs.getOrg({ orgId: one.orgId })).org);
    expect(await harness.current.flushesOf(() => ask(one.guest, orgIds))).toBe(flushesOfRead);
    expect(
      await ask(await harness.current.as("service:crm", { scope: "orgs.get" }), orgIds),
    ).toEqual(orgIds);
  });

  test("gives a credential that is pinned to an org that one alone, whatever the metadata says", async () => {
    const [one, other] = [await harness.current.tenant(), await harness.current.tenant()];
    const userId = one.memberId;
    await other.owner.orgs.addOrgMember({ orgId: other.orgId, userId });
    const orgIds = [one.orgId, other.orgId];
    const pinned = await harness.current.as(userId, { org: other.orgId });
    expect(await ask(pinned, orgIds)).toEqual([other.orgId]);
    expect(await ask(one.member, orgIds)).toEqual(orgIds);
    const moved = { "roster-org-id": one.orgId };
    const header = await harness.current.as(userId, { org: other.orgId }, moved);
    expect(await refusal(ask(header, orgIds))).toMatchObject({ reason: "ORG_NOT_ALLOWED" });
  });

  test("shows a suspended org as ListUserOrgs does, a deleted one to platform alone", async () => {
    const { orgId, owner, ownerId } = await harness.current.tenant();
    await byHand(
      harness.current.admin,
      "update roster.orgs set state = 'SUSPENDED' where id = $1",
      [orgId],
    );
    const { userOrgs } = await owner.users.listUserOrgs({ userId: ownerId });
    const { orgs } = await owner.orgs.batchGetOrgs({ orgIds: [orgId] });
    expect(orgs).toEqual(userOrgs.map(({ org }) => org));
    expect(orgs).toMatchObject([{ state: OrgState.SUSPENDED }]);
    const { org } = await harness.current.ops.orgs.deleteOrg({ orgId, force: true });
    const service = await harness.current.as("service:crm", { scope: "orgs.get" });
    expect((await harness.current.ops.orgs.batchGetOrgs({ orgIds: [orgId] })).orgs).toEqual([org]);
    for (const callers of [owner, service])
      expect(await callers.orgs.batchGetOrgs({ orgIds: [orgId] })).toMatchObject({
        orgs: [],
        missingIds: [orgId],
      });
  });

  test("PERMISSION_DENIED for services that are pinned or lack orgs.get, and tokens narrowed below it", async () => {
    const { orgId, memberId } = await harness.current.tenant();
    for (const callers of [
      await harness.current.as("service:crm", { org: orgId, scope: "orgs.get" }),
      await harness.current.as("service:crm", { scope: "org.get" }),
      await harness.current.as(memberId, { scope: "org.get" }),
    ])
      expect(await refusal(ask(callers, [orgId]))).toMatchObject(denied);
    const narrowed = await harness.current.as(memberId, { scope: "orgs.get" });
    expect(await ask(narrowed, [orgId])).toEqual([orgId]);
  });

  test("PERMISSION_DENIED for a user who is unknown or deleted", async () => {
    const { orgId, memberId, member } = await harness.current.tenant();
    await harness.current.ops.users.deleteUser({ userId: memberId });
    for (const callers of [member, await harness.current.as(randomUUID())])
      expect(await refusal(ask(callers, [orgId]))).toMatchObject({ reason: "CALLER_INACTIVE" });
  });
});
