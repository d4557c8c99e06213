import { describe, expect, test } from "vitest";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { refusal, useHarness } from "./harness.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";
import { overlap } from "./overlap.ts";

const harness = useHarness();

const { MEMBER, MAINTAINER } = TeamRole;

/** The team Crew with Den below it and a maintainer, and Fans beside it. */
const world = async () => {
  const tenant = await tenantWithTeam(harness.current);
  const { orgId, owner, team: crew } = tenant;
  const den = await makeTeam(owner, { orgId, name: "Den", parentTeamId: crew.id });
  const fans = await makeTeam(owner, { orgId, name: "Fans" });
  const userId = await harness.current.user();
  await harness.current.ops.orgs.addOrgMember({ orgId, userId });
  const lead = { orgId, teamId: crew.id, userId };
  await owner.teams.addTeamMember({ ...lead, role: MAINTAINER });
  const { teams } = await harness.current.as(userId);
  return { ...tenant, crew, den, fans, lead, teams };
};

/** Why the second of two overlapping calls was refused; undefined when it was not. */
const secondOf = async (
  first: () => Promise<unknown>,
  second: () => Promise<unknown>,
): Promise<string | undefined> => {
  const [one, two] = await overlap(harness.current, first, second);
  expect(one?.status).toBe("fulfilled");
  if (two?.status !== "rejected") return undefined;
  return (await refusal(Promise.reject(two.reason))).reason;
};

describe("A maintainer who is one no longer when their change comes to be written", () => {
  test("does not take the role back", async () => {
    const { owner, lead, teams } = await world();
    const demoted = () => owner.teams.updateTeamMember({ member: { ...lead, role: MEMBER } });
    const back = () => teams.updateTeamMember({ member: { ...lead, role: MAINTAINER } });
    expect(await secondOf(demoted, back)).toBe("PERMISSION_MISSING");
    expect((await owner.teams.getTeamMember(lead)).member?.role).toBe(MEMBER);
  });

  test("sets no list, also where it would change nothing", async () => {
    const { orgId, owner, den, lead, teams } = await world();
    const gone = () => owner.teams.removeTeamMember(lead);
    const none = () => teams.setTeamMembers({ orgId, teamId: den.id, members: [] });
    expect(await secondOf(gone, none)).toBe("PERMISSION_MISSING");
  });

  test("changes no team that was moved away from theirs, and makes none under it", async () => {
    for (const change of ["update", "create"]) {
      const { orgId, owner, den, fans, teams } = await world();
      const moved = () => owner.teams.moveTeam({ orgId, teamId: den.id, parentTeamId: fans.id });
      const calls: Record<string, () => Promise<unknown>> = {
        update: () => teams.updateTeam({ team: { orgId, id: den.id, description: "Ours" } }),
        create: () => teams.createTeam({ team: { orgId, parentTeamId: den.id, name: "Below" } }),
      };
      expect(await secondOf(moved, calls[change] ?? expect.fail(change)), change).toBe(
        "PERMISSION_MISSING",
      );
    }
  });

  test("adds nobody whom the list that ends the role leaves out", async () => {
    const { orgId, owner, ownerId, memberId, lead, teams } = await world();
    const { teamId } = lead;
    const set = () => owner.teams.setTeamMembers({ orgId, teamId, members: [{ userId: ownerId }] });
    const add = () => teams.addTeamMember({ orgId, teamId, userId: memberId });
    expect(await secondOf(set, add)).toBe("PERMISSION_MISSING");
    await owner.teams.addTeamMember({ ...lead, role: MAINTAINER });
    expect(await secondOf(add, set)).toBeUndefined();
    const { members } = await owner.teams.listTeamMembers({ orgId, teamId });
    expect(members.map(({ userId }) => userId)).toEqual([ownerId]);
  });

  test("does not remove, nor is removed by, the other one who does so at the same moment", async () => {
    const { orgId, owner, memberId, member, lead, teams } = await world();
    const other = { ...lead, userId: memberId };
    await owner.teams.addTeamMember({ ...other, role: MAINTAINER });
    const calls = [
      () => teams.removeTeamMember(other),
      () => member.teams.removeTeamMember(lead),
    ] as const;
    const ends = await overlap(harness.current, ...calls);
    expect(ends.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    const { members } = await owner.teams.listTeamMembers(lead);
    expect(members.length, orgId).toBe(1);
  });

  test("still leaves", async () => {
    const { owner, lead, teams } = await world();
    const demoted = () => owner.teams.updateTeamMember({ member: { ...lead, role: MEMBER } });
    expect(await secondOf(demoted, () => teams.removeTeamMember(lead))).toBeUndefined();
  });
});

test("A team of an org that is deleted meanwhile is not moved or hidden any more", async () => {
  for (const change of [{ parentTeamId: "" }, { visibility: TeamVisibility.SECRET }]) {
    const { orgId, owner, den } = await world();
    const deleted = () => harness.current.ops.orgs.deleteOrg({ orgId, force: true });
    const late = () =>
      "visibility" in change
        ? owner.teams.updateTeam({ team: { orgId, id: den.id, ...change } })
        : owner.teams.moveTeam({ orgId, teamId: den.id, ...change });
    expect(await secondOf(deleted, late)).toBe("ORG_NOT_ALLOWED");
  }
});
