/** Calls that look at teams, and at orgs, which count them. */
import fc from "fast-check";
import { View } from "../../src/gen/roster/v1/view_pb.ts";
import { aimedCalls, calls, callWith, type Draw, person } from "./operation.ts";
import { stateOfOrg } from "./real.ts";
import { isThere, liveTeam, named, pickedToUse, teamAnswer } from "./teams.ts";
import { isLive, sees } from "./trees.ts";
import {
  type Answer,
  countsOf,
  enter,
  permissionsOf,
  platform,
  refuse,
  sightOf,
  type World,
} from "./world.ts";

/** Of things that answers have in the order of their ids, the order does not matter. */
export const unordered = (answers: readonly Answer[]): string[] =>
  answers.map((answer) => JSON.stringify(answer)).sort();

const pick = fc.nat(20);

const listTeams = aimedCalls("ListTeams", {
  input: callWith({ deleted: fc.boolean() }),
  aim: (input) => input,
  predict: (world, call) => {
    const { org, held } = enter(world, call, "teams.get");
    const sight = sightOf(held);
    const isShown = (key: string): boolean => sees(org.teams, key, call.by, sight);
    const shown = [...org.teams].filter(
      ([key, team]) => (isLive(team) || (call.deleted && sight === "deleted")) && isShown(key),
    );
    return unordered(shown.map(([key, team]) => teamAnswer(key, team)));
  },
  send: async (real, { teams }, { org, deleted: showDeleted }, options) => {
    const request = { orgId: real.orgIds[org] ?? "", showDeleted };
    const answer = await teams.listTeams(request, options);
    return unordered(answer.teams.map((team) => real.team(team)));
  },
});

const listTeamMembers = aimedCalls("ListTeamMembers", {
  input: callWith({ team: pick }),
  aim: (input, world) => ({ ...input, team: pickedToUse(world, input.org, input.team) }),
  predict: (world, call) => {
    const { team } = call;
    const { org, held } = enter(world, call, "teams.get", { team });
    const members = [...liveTeam(org, team, call, held).members];
    const shown = members.filter(([user]) => isThere(world, org, user));
    return unordered(shown.map(([user, role]) => ({ team, user, role })));
  },
  send: async (real, { teams }, call, options) => {
    const { members } = await teams.listTeamMembers(named(real, call), options);
    return unordered(members.map((member) => real.teamMember(member)));
  },
});

const listUserTeams = aimedCalls("ListUserTeams", {
  input: callWith({ user: person }),
  aim: (input) => input,
  predict: (world, call) => {
    const { by, user } = call;
    const { org, held } = enter(world, call, "teams.get", { self: by === user });
    const sight = sightOf(held);
    const isMember = isThere(world, org, user);
    const shown = [...org.teams].flatMap(([key, team]) => {
      const role = team.members.get(user);
      if (!isMember || !role || !isLive(team) || !sees(org.teams, key, by, sight)) return [];
      return [{ ...teamAnswer(key, team), user, role }];
    });
    const isHidden = sight === "own" && by !== user;
    if (shown.length === 0 && (!isMember || isHidden)) refuse("ORG_MEMBER_NOT_FOUND");
    return unordered(shown);
  },
  send: async (real, { teams }, { org, user }, options) => {
    const request = { orgId: real.orgIds[org] ?? "", userId: real.userIds[user] ?? "" };
    const { userTeams } = await teams.listUserTeams(request, options);
    return unordered(
      userTeams.map(({ team, member }) => {
        const { user, role } = real.teamMember(member);
        return { ...real.team(team), user, role };
      }),
    );
  },
});

/** How many members and teams an org has. */
const getOrg = calls("GetOrg", {
  input: callWith({}),
  predict: (world, call) => {
    const { org, held } = enter(world, call, "org.get", { deleted: true });
    const { suspended, deleted, teams } = org;
    const sight = sightOf(held);
    // A team that is no secret counts, also to guests who do not see it.
    const countSight = sight === "own" ? "visible" : sight;
    const counted = [...teams].filter(
      ([key, team]) => isLive(team) && sees(teams, key, call.by, countSight),
    );
    return { suspended, deleted, members: countsOf(world, org).members, teams: counted.length };
  },
  send: async (real, { orgs }, { org: place }, options) => {
    const request = { orgId: real.orgIds[place] ?? "", view: View.FULL };
    const { org } = await orgs.getOrg(request, options);
    return { ...stateOfOrg(org), members: org?.memberCount, teams: org?.teamCount };
  },
});

export const lookingAtTeams = [getOrg, listTeams, listTeamMembers, listUserTeams];

/** The teams of a world and who is in them, to platform and to those of an org who are not shown all. */
export const teamViewsOf = (world: World): Draw[] =>
  world.orgs.flatMap((org, place) => {
    const places = [...org.teams.keys()];
    const members = [...org.members.keys()];
    const some = members.filter((user) => {
      const { role = "" } = org.members.get(user) ?? {};
      return !permissionsOf(org, role)?.includes("teams.update");
    });
    return [platform, ...some].flatMap((by, turn) => [
      listTeams.with({ by, org: place, deleted: true }),
      listTeamMembers.with({ by, org: place, team: turn + places.length }),
      ...members
        .filter((_, other) => by === platform || other === (turn + places.length) % members.length)
        .map((user) => listUserTeams.with({ by, org: place, user })),
      getOrg.with({ by, org: place }),
    ]);
  });
