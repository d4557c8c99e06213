/** One request for each RPC of TeamService. */
import { randomUUID } from "node:crypto";
import { TeamRole } from "../../src/gen/roster/v1/team_member_pb.ts";
import { makeTeam } from "../made-team.ts";
import type { Samples } from "./world.ts";

const { MAINTAINER, MEMBER } = TeamRole;

export const teamSamples: Samples = {
  "TeamService.CreateTeam": {
    by: "owner",
    request: ({ orgId, teamId: parentTeamId }) => ({
      team: { orgId, parentTeamId, name: randomUUID() },
    }),
    ignored: ["team.id"],
  },
  "TeamService.GetTeam": { by: "member", request: ({ orgId, teamId }) => ({ orgId, teamId }) },
  "TeamService.BatchGetTeams": {
    by: "member",
    request: ({ orgId, teamId }) => ({ orgId, teamIds: [teamId] }),
  },
  "TeamService.ListTeams": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "TeamService.UpdateTeam": {
    by: "owner",
    request: ({ orgId, teamId: id }) => ({ team: { orgId, id, type: `t${Date.now()}` } }),
    ignored: ["team.parent_team_id"],
  },
  "TeamService.MoveTeam": {
    by: "owner",
    request: async ({ orgId, teamId: parentTeamId, owner }) => {
      const { id: teamId } = await makeTeam(owner, { orgId, name: randomUUID() });
      return { orgId, teamId, parentTeamId };
    },
  },
  "TeamService.DeleteTeam": {
    by: "owner",
    request: async ({ orgId, teamId: parentTeamId, owner }) => {
      const { id } = await makeTeam(owner, { orgId, parentTeamId, name: randomUUID() });
      return { orgId, teamId: id };
    },
  },
  "TeamService.UndeleteTeam": {
    by: "owner",
    request: async ({ orgId, teamId: parentTeamId, owner }) => {
      const { id: teamId } = await makeTeam(owner, { orgId, parentTeamId, name: randomUUID() });
      await owner.teams.deleteTeam({ orgId, teamId });
      return { orgId, teamId };
    },
  },
  "TeamService.AddTeamMember": {
    by: "owner",
    request: async ({ orgId, teamId, person }) => ({
      orgId,
      teamId,
      userId: await person("guest"),
    }),
  },
  "TeamService.SetTeamMembers": {
    by: "owner",
    request: async ({ orgId, teamId, owner, person }) => {
      const { members } = await owner.teams.listTeamMembers({ orgId, teamId, pageSize: 900 });
      const stay = members.map(({ userId, role }) => ({ userId, role }));
      return { orgId, teamId, members: [...stay, { userId: await person("guest"), role: MEMBER }] };
    },
    fault: ["members", [{ userId: "me" }]],
  },
  "TeamService.GetTeamMember": {
    by: "member",
    request: ({ orgId, teamId, mateId: userId }) => ({ orgId, teamId, userId }),
  },
  "TeamService.ListTeamMembers": {
    by: "member",
    request: ({ orgId, teamId }) => ({ orgId, teamId }),
  },
  "TeamService.ListUserTeams": {
    by: "member",
    request: ({ orgId, mateId: userId }) => ({ orgId, userId }),
  },
  "TeamService.UpdateTeamMember": {
    by: "owner",
    request: async ({ orgId, teamId, person }) => ({
      member: { orgId, teamId, userId: await person("guest", MEMBER), role: MAINTAINER },
    }),
  },
  "TeamService.RemoveTeamMember": {
    by: "owner",
    request: async ({ orgId, teamId, person }) => ({
      orgId,
      teamId,
      userId: await person("guest", MEMBER),
    }),
  },
};
