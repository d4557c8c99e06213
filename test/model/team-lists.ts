/** Calls that look at teams, and at orgs, which count them. */
import fc from "fast-check";
import { View } from "../../src/gen/roster/v1/view_pb.ts";
import { aimedCalls, calls, callWith, type Draw, person } from "./operation.ts";
import { stateOfOrg } from "./real.ts";
import { isThere, liveTeam, named, pickedToUse, teamAnswer } from "./teams.ts";
import { isLive, nearest, sees } from "./trees.ts";
import {
  type Answer,
  countsOf,
  enter,
  type Org,
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

const effective = fc.boolean();

/** What someone is in a team, or by one below it that a caller sees, and by which teams. */
const grantedIn = (
  { teams }: Org,
  team: string,
  user: number,
  isEffective: boolean,
  isSeen: (key: string) => boolean,
) => {
  const via = isEffective ? nearest(teams, team, user, isSeen) : [team];
  const [own = ""] = via ?? [];
  const role = teams.get(own)?.members.get(user);
  return role && { team: own, user, role, via: isEffective ? via : [] };
};

const listTeamMembers = aimedCalls("ListTeamMembers", {
  input: callWith({ pick, effective }),
  aim: (input, world) => ({ ...input, team: pickedToUse(world, input.org, input.pick) }),
  predict: (world, call) => {
    const { by, team } = call;
    const { org, held } = enter(world, call, "teams.get", { team });
    liveTeam(org, team, call, held);
    const isSeen = (key: string): boolean => sees(org.teams, key, by, sightOf(held));
    const members = [...org.members.keys()].flatMap((user) => {
      if (!isThere(world, org, user)) return [];
      return grantedIn(org, team, user, call.effective, isSeen) ?? [];
    });
    return unordered(members);
  },
  send: async (real, { teams }, call, options) => {
    const request = { ...named(real, call), effective: call.effective };
    const { members } = await teams.listTeamMembers(request, options);
    return unordered(members.map((member) => real.granted(member, member.viaTeamIds)));
  },
});

const getTeamMember = aimedCalls("GetTeamMember", {
  input: callWith({ pick, user: person, effective }),
  aim: (input, world) => ({ ...input, team: pickedToUse(world, input.org, input.pick) }),
  predict: (world, call) => {
    const { by, team, user } = call;
    const { org, held } = enter(world, call, "teams.get", { team });
    liveTeam(org, team, call, held);
    const isSeen = (key: string): boolean => sees(org.teams, key, by, sightOf(held));
    const granted = isThere(world, org, user) && grantedIn(org, team, user, call.effective, isSeen);
    return granted || refuse("TEAM_MEMBER_NOT_FOUND");
  },
  send: async (real, { teams }, call, options) => {
    const { user, effective } = call;
    const request = { ...named(real, call), userId: real.userIds[user] ?? "", effective };
    const { member } = await teams.getTeamMember(request, options);
    return real.granted(member, member?.viaTeamIds);
  },
});

const listUserTeams = calls("ListUserTeams", {
  input: callWith({ user: person, effective }),
  predict: (world, call) => {
    const { by, user } = call;
    const { org, held } = enter(world, call, "teams.get", { self: by === user });
    const { teams } = org;
    const sight = sightOf(held);
    const isSeen = (key: string): boolean => sees(teams, key, by, sight);
    const isMember = isThere(world, org, user);
    const shown = [...teams].flatMap(([key, team]) => {
      if (!isMember || !isLive(team) || !isSeen(key)) return [];
      const granted = grantedIn(org, key, user, call.effective, isSeen);
      return granted ? [{ ...teamAnswer(key, team), granted }] : [];
    });
    const isHidden = sight === "own" && by !== user;
    if (shown.length === 0 && (!isMember || isHidden)) refuse("ORG_MEMBER_NOT_FOUND");
    return unordered(shown);
  },
  send: async (real, { teams }, { org, user, effective }, options) => {
    const userId = real.userIds[user] ?? "";
    const request = { orgId: real.orgIds[org] ?? "", userId, effective };
    const { userTeams } = await teams.listUserTeams(request, options);
    return unordered(
      userTeams.map(({ team, member, viaTeamIds }) => {
        return { ...real.team(team), granted: real.granted(member, viaTeamIds) };
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

export const lookingAtTeams = [getOrg, listTeams, listTeamMembers, listUserTeams, getTeamMember];

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
      listTeamMembers.with({ by, org: place, pick: turn + places.length, effective: true }),
      ...members
        .filter((_, other) => by === platform || other === (turn + places.length) % members.length)
        .map((user) => listUserTeams.with({ by, org: place, user, effective: by !== platform })),
      getOrg.with({ by, org: place }),
    ]);
  });
