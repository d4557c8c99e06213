import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";
import { makeHolder, makeRole } from "./made-role.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";
import { told } from "./samples.ts";

const harness = useHarness();

const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };
const notFound = { code: "NotFound", reason: "TEAM_NOT_FOUND" };
const { MEMBER, MAINTAINER } = TeamRole;

/** An org with the team Crew, Den below it, the secret team Moles below that, and Fans beside them. */
const world = async () => {
  const tenant = await tenantWithTeam(harness.current);
  const { orgId, owner, team: crew } = tenant;
  const den = await makeTeam(owner, { orgId, name: "Den", parentTeamId: crew.id });
  const visibility = TeamVisibility.SECRET;
  const moles = await makeTeam(owner, { orgId, name: "Moles", parentTeamId: den.id, visibility });
  const fans = await makeTeam(owner, { orgId, name: "Fans" });
  /** A new member of the org with a role in a team. */
  const joined = async (teamId: string, role: TeamRole, orgRole = "member") => {
    const userId = await harness.current.user();
    await harness.current.ops.orgs.addOrgMember({ orgId, userId, role: orgRole });
    await owner.teams.addTeamMember({ orgId, teamId, userId, role });
    return { userId, ...(await harness.current.as(userId)) };
  };
  const service = (scope: string) => harness.current.as("service:crm", { org: orgId, scope });
  return { ...tenant, crew, den, moles, fans, joined, service };
};

const namesSeen = async ({ teams }: Callers, orgId: string): Promise<string[]> =>
  (await teams.listTeams({ orgId })).teams.map(({ name }) => name);

describe("A secret team", () => {
  test("is not shown to an admin's token that was narrowed to reading", async () => {
    const { orgId, adminId } = await world();
    const narrowed = await harness.current.as(adminId, { scope: "teams.get" });
    expect(await namesSeen(narrowed, orgId)).toEqual(["Crew", "Den", "Fans"]);
    expect(await namesSeen(await harness.current.as(adminId), orgId)).toContain("Moles");
  });

  test("does not exist for others, members of a team above it among them, byte for byte", async () => {
    const { orgId, crew, moles, fans, member, memberId, joined } = await world();
    const insider = await joined(moles.id, MEMBER);
    const rival = await joined(fans.id, MAINTAINER);
    const above = await joined(crew.id, MEMBER);
    for (const { teams, userId } of [{ ...member, userId: memberId }, rival, above]) {
      const calls: ((teamId: string) => Promise<unknown>)[] = [
        (teamId) => teams.getTeam({ orgId, teamId }),
        (teamId) => teams.listTeamMembers({ orgId, teamId }),
        (teamId) => teams.getTeamMember({ orgId, teamId, userId: insider.userId }),
        (teamId) => teams.removeTeamMember({ orgId, teamId, userId }),
        (id) => teams.updateTeam({ team: { orgId, id, name: "Seen" } }),
        (teamId) => teams.addTeamMember({ orgId, teamId, userId }),
        (teamId) => teams.updateTeamMember({ member: { orgId, teamId, userId } }),
        (teamId) => teams.removeTeamMember({ orgId, teamId, userId: insider.userId }),
        (teamId) => teams.deleteTeam({ orgId, teamId }),
        (parentTeamId) => teams.createTeam({ team: { orgId, parentTeamId, name: "Seen" } }),
      ];
      for (const [index, call] of calls.entries()) {
        const random = randomUUID();
        const hidden = await refusal(call(moles.id));
        expect(hidden, `call ${index}`).toMatchObject(index < 4 ? notFound : denied);
        expect(told(hidden, moles.id)).toBe(told(await refusal(call(random)), random));
      }
      expect(await namesSeen({ ...member, teams }, orgId)).toEqual(["Crew", "Den", "Fans"]);
    }
    expect(crew.visibility).toBe(TeamVisibility.VISIBLE);
  });

  test("is seen by its members, maintainers above, admins, owners, services and platform", async () => {
    const { orgId, crew, moles, owner, admin, joined, service } = await world();
    const insider = await joined(moles.id, MEMBER);
    const callers = [
      insider,
      await joined(crew.id, MAINTAINER),
      admin,
      owner,
      await service("teams.get"),
      harness.current.ops,
    ];
    for (const caller of callers) {
      const { teams } = caller;
      expect((await teams.getTeam({ orgId, teamId: moles.id })).team?.name).toBe("Moles");
      expect(await namesSeen(caller, orgId)).toEqual(["Crew", "Den", "Moles", "Fans"]);
      const { members } = await teams.listTeamMembers({ orgId, teamId: moles.id });
      expect(members.map(({ userId }) => userId)).toEqual([insider.userId]);
      const ask = { orgId, teamId: moles.id, userId: insider.userId };
      expect((await teams.getTeamMember(ask)).member?.role).toBe(MEMBER);
    }
  });

  test("is no parent for who does not see it", async () => {
    const { orgId, owner, moles } = await world();
    await makeRole(owner, orgId, "builder", "org.get", "teams.get", "teams.create");
    const builder = await makeHolder(harness.current, orgId, "builder");
    const below = (parentTeamId: string) =>
      refusal(makeTeam(builder, { orgId, parentTeamId, name: "Below" }));
    const random = randomUUID();
    const hidden = await below(moles.id);
    expect(hidden).toMatchObject(notFound);
    expect(told(hidden, moles.id)).toBe(told(await below(random), random));
  });

  test("is not made by who would not see it", async () => {
    const { orgId, owner, crew, moles, service } = await world();
    const { SECRET: visibility } = TeamVisibility;
    const lacks = (permission: string) => ({ ...denied, metadata: { permission } });
    await makeRole(owner, orgId, "builder", "org.get", "teams.get", "teams.create");
    const builder = await makeHolder(harness.current, orgId, "builder");
    const nest = { orgId, name: "Nest", visibility };
    expect(await refusal(makeTeam(builder, nest))).toMatchObject(lacks("teams.update"));
    await makeRole(owner, orgId, "blind", "org.get", "teams.create");
    const blind = await makeHolder(harness.current, orgId, "blind");
    const open = { orgId, name: "Nest" };
    expect(await refusal(makeTeam(blind, open))).toMatchObject(lacks("teams.get"));
    // In a team that they belong to, or maintain, they see what they make.
    const { userId } = builder;
    await owner.teams.addTeamMember({ orgId, teamId: moles.id, userId });
    expect((await makeTeam(builder, { ...open, parentTeamId: moles.id })).name).toBe("Nest");
    const role = MAINTAINER;
    await owner.teams.addTeamMember({ orgId, teamId: crew.id, userId: blind.userId, role });
    expect((await makeTeam(blind, { ...nest, parentTeamId: crew.id })).name).toBe("Nest");
    expect((await makeTeam(await service("teams.create"), nest)).name).toBe("Nest");
  });

  test("is gone from sight with the role, and with a change of visibility", async () => {
    const { orgId, moles, fans, owner, member, joined } = await world();
    const insider = await joined(moles.id, MEMBER);
    await insider.teams.removeTeamMember({ orgId, teamId: moles.id, userId: insider.userId });
    expect(await refusal(insider.teams.getTeam({ orgId, teamId: moles.id }))).toMatchObject(
      notFound,
    );
    const hide = { orgId, id: fans.id, visibility: TeamVisibility.SECRET };
    await owner.teams.updateTeam({ team: hide });
    expect(await namesSeen(member, orgId)).toEqual(["Crew", "Den"]);
  });
});

describe("A guest", () => {
  test("sees just the teams where they have a role, in it or above it", async () => {
    const { orgId, crew, den, moles, fans, guest, joined } = await world();
    expect(await namesSeen(guest, orgId)).toEqual([]);
    const { teams, ...rest } = await joined(crew.id, MEMBER, "guest");
    expect(await namesSeen({ teams, ...rest }, orgId)).toEqual(["Crew", "Den"]);
    for (const teamId of [crew.id, den.id]) {
      expect((await teams.getTeam({ orgId, teamId })).team?.id).toBe(teamId);
      await teams.listTeamMembers({ orgId, teamId });
    }
    const random = randomUUID();
    const absent = await refusal(teams.getTeam({ orgId, teamId: random }));
    expect(absent).toMatchObject(denied);
    for (const { id: teamId } of [fans, moles]) {
      const other = await refusal(teams.getTeam({ orgId, teamId }));
      expect(told(other, teamId)).toBe(told(absent, random));
    }
    for (const call of [
      () => teams.listTeamMembers({ orgId, teamId: fans.id }),
      () => teams.getTeamMember({ orgId, teamId: fans.id, userId: rest.userId }),
      () => guest.teams.getTeam({ orgId, teamId: crew.id }),
    ]) {
      expect(await refusal(call())).toMatchObject(denied);
    }
  });

  test("who is a maintainer changes the team and its members, and makes no teams", async () => {
    const { orgId, crew, joined, memberId } = await world();
    const { teams } = await joined(crew.id, MAINTAINER, "guest");
    const { team } = await teams.updateTeam({ team: { orgId, id: crew.id, name: "Guests" } });
    expect(team?.name).toBe("Guests");
    await teams.addTeamMember({ orgId, teamId: crew.id, userId: memberId });
    for (const parentTeamId of ["", crew.id]) {
      const call = teams.createTeam({ team: { orgId, parentTeamId, name: "Below" } });
      expect(await refusal(call)).toMatchObject(denied);
    }
    expect(await refusal(teams.deleteTeam({ orgId, teamId: crew.id }))).toMatchObject(denied);
  });
});

describe("A maintainer", () => {
  test("changes their team and those below, their members, and makes teams there", async () => {
    const { orgId, crew, moles, joined, memberId: userId } = await world();
    const caller = await joined(crew.id, MAINTAINER);
    for (const teamId of [crew.id, moles.id]) {
      const ask = { orgId, teamId, userId };
      const renamed = { orgId, id: teamId, description: "Ours" };
      expect((await caller.teams.updateTeam({ team: renamed })).team?.description).toBe("Ours");
      expect((await caller.teams.addTeamMember(ask)).member?.role).toBe(MEMBER);
      const raised = { member: { ...ask, role: MAINTAINER } };
      expect((await caller.teams.updateTeamMember(raised)).member?.role).toBe(MAINTAINER);
      await caller.teams.removeTeamMember(ask);
      await makeTeam(caller, { orgId, parentTeamId: teamId, name: "Below" });
    }
  });

  test("PERMISSION_DENIED above and beside their team, for deleting it, and without the scope", async () => {
    const { orgId, crew, moles, fans, joined, memberId: userId } = await world();
    const { teams, userId: self } = await joined(moles.id, MAINTAINER);
    const narrow = await harness.current.as(self, { scope: "teams.get" });
    const calls: (() => Promise<unknown>)[] = [crew, fans].flatMap(({ id: teamId }) => [
      () => teams.updateTeam({ team: { orgId, id: teamId, name: "Mine" } }),
      () => teams.addTeamMember({ orgId, teamId, userId }),
      () => teams.updateTeamMember({ member: { orgId, teamId, userId } }),
      () => teams.removeTeamMember({ orgId, teamId, userId }),
      () => teams.createTeam({ team: { orgId, parentTeamId: teamId, name: "Mine" } }),
    ]);
    calls.push(
      () => teams.createTeam({ team: { orgId, name: "Mine" } }),
      () => teams.deleteTeam({ orgId, teamId: moles.id }),
      () => narrow.teams.updateTeam({ team: { orgId, id: moles.id, name: "Mine" } }),
      () => narrow.teams.removeTeamMember({ orgId, teamId: moles.id, userId: self }),
    );
    for (const call of calls) expect(await refusal(call())).toMatchObject(denied);
  });

  test("is one no longer as soon as their role or their membership of the org is", async () => {
    const { orgId, crew, owner, joined } = await world();
    const one = await joined(crew.id, MAINTAINER);
    const update = (name: string) => one.teams.updateTeam({ team: { orgId, id: crew.id, name } });
    await update("Before");
    const demoted = { orgId, teamId: crew.id, userId: one.userId, role: MEMBER };
    await owner.teams.updateTeamMember({ member: demoted });
    expect(await refusal(update("After"))).toMatchObject(denied);
    await owner.teams.updateTeamMember({ member: { ...demoted, role: MAINTAINER } });
    await owner.orgs.removeOrgMember({ orgId, userId: one.userId });
    expect(await refusal(update("After"))).toMatchObject({ reason: "ORG_NOT_ALLOWED" });
  });
});
