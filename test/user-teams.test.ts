import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { type Callers, flushesOfRead, refusal, useHarness } from "./harness.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";
import { told } from "./samples.ts";

const harness = useHarness();

const notFound = { code: "NotFound", reason: "ORG_MEMBER_NOT_FOUND" };

/** An org with the teams Crew and, secret, Moles; its member is in both, its admin in none. */
const world = async () => {
  const tenant = await tenantWithTeam(harness.current);
  const { orgId, owner, team: crew, memberId: userId } = tenant;
  const visibility = TeamVisibility.SECRET;
  const moles = await makeTeam(owner, { orgId, name: "Moles", visibility });
  const role = TeamRole.MAINTAINER;
  await owner.teams.addTeamMember({ orgId, teamId: crew.id, userId, role });
  await owner.teams.addTeamMember({ orgId, teamId: moles.id, userId });
  /** A new member of the org. */
  const joined = async (orgRole: string, teamId?: string) => {
    const id = await harness.current.user();
    await owner.orgs.addOrgMember({ orgId, userId: id, role: orgRole });
    if (teamId) await owner.teams.addTeamMember({ orgId, teamId, userId: id });
    return { ...(await harness.current.as(id)), userId: id };
  };
  const namesOf = async ({ teams }: Callers, id = userId) =>
    (await teams.listUserTeams({ orgId, userId: id })).userTeams.map(({ team }) => team?.name);
  return { ...tenant, crew, moles, joined, namesOf };
};

describe("TeamService.ListUserTeams", () => {
  test("lists the teams of a user, each with the membership, in one round trip", async () => {
    const { orgId, crew, memberId: userId, owner } = await world();
    const ask = () => owner.teams.listUserTeams({ orgId, userId });
    expect(await harness.current.flushesOf(ask)).toBe(flushesOfRead);
    const { userTeams, nextPageToken } = await ask();
    expect(userTeams).toHaveLength(2);
    expect(nextPageToken).toBe("");
    const { member } = await owner.teams.getTeamMember({ orgId, teamId: crew.id, userId });
    expect(userTeams[0]).toMatchObject({ team: crew, member, viaTeamIds: [] });
    expect(member?.role).toBe(TeamRole.MAINTAINER);
  });

  test("shows secret teams to who may see them: oneself, fellows, admins, services, platform", async () => {
    const { orgId, moles, member, admin, joined, namesOf } = await world();
    const service = await harness.current.as("service:crm", { org: orgId, scope: "teams.get" });
    const fellow = await joined("member", moles.id);
    for (const callers of [member, fellow, admin, service, harness.current.ops])
      expect(await namesOf(callers)).toEqual(["Crew", "Moles"]);
    expect(await namesOf(await joined("member"))).toEqual(["Crew"]);
  });

  test("shows guests the teams that they share, and all of their own", async () => {
    const { moles, crew, guest, guestId, joined, namesOf } = await world();
    const fellow = await joined("guest", moles.id);
    expect(await namesOf(fellow)).toEqual(["Moles"]);
    expect(await namesOf(fellow, fellow.userId)).toEqual(["Moles"]);
    expect(await namesOf(await joined("guest", crew.id))).toEqual(["Crew"]);
    expect(await namesOf(guest, guestId)).toEqual([]);
  });

  test("NOT_FOUND to a guest for who is in none of their teams, be they in the org or not", async () => {
    const { orgId, ownerId, memberId, outsiderId, guest } = await world();
    const random = randomUUID();
    const ask = (userId: string) => refusal(guest.teams.listUserTeams({ orgId, userId }));
    const absent = await ask(random);
    expect(absent).toMatchObject(notFound);
    for (const id of [ownerId, memberId, outsiderId])
      expect(told(await ask(id), id)).toBe(told(absent, random));
  });

  test("is empty for who is in no team, and NOT_FOUND for who left the org or was deleted", async () => {
    const { orgId, adminId, memberId, outsiderId, owner, namesOf } = await world();
    expect(await namesOf(owner, adminId)).toEqual([]);
    await owner.orgs.removeOrgMember({ orgId, userId: adminId });
    await harness.current.ops.users.deleteUser({ userId: memberId });
    for (const callers of [owner, harness.current.ops])
      for (const userId of [adminId, memberId, outsiderId, randomUUID()])
        expect(await refusal(callers.teams.listUserTeams({ orgId, userId }))).toMatchObject(
          notFound,
        );
  });

  test("leaves deleted teams out, also for those who may see them", async () => {
    const { orgId, crew, owner, namesOf } = await world();
    await owner.teams.deleteTeam({ orgId, teamId: crew.id });
    for (const callers of [owner, harness.current.ops])
      expect(await namesOf(callers)).toEqual(["Moles"]);
  });

  test("cuts pages of what the caller sees, so that neither page nor token betrays a hidden team", async () => {
    const { orgId, memberId: userId, owner, joined, moles } = await world();
    const visibility = TeamVisibility.SECRET;
    for (const n of [1, 2, 3]) {
      const init = n === 2 ? { orgId, name: "Den" } : { orgId, name: `Hidden ${n}`, visibility };
      const { id: teamId } = await makeTeam(owner, init);
      await owner.teams.addTeamMember({ orgId, teamId, userId });
    }
    const walk = async ({ teams }: Callers) => {
      const pages: (string | undefined)[][] = [];
      let pageToken = "";
      do {
        const page = await teams.listUserTeams({ orgId, userId, pageSize: 1, pageToken });
        pages.push(page.userTeams.map(({ team }) => team?.name));
        pageToken = page.nextPageToken;
        expect(Buffer.from(pageToken, "base64url").toString("latin1")).not.toContain(moles.id);
      } while (pageToken !== "");
      return pages;
    };
    expect(await walk(await joined("member"))).toEqual([["Crew"], ["Den"]]);
    expect(await walk(await joined("guest", moles.id)).then((pages) => pages.length)).toBe(1);
  });
});
