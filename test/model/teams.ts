/** Calls that change teams and who is in them. */
import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { TeamRole } from "../../src/gen/roster/v1/team_member_pb.ts";
import { TeamVisibility } from "../../src/gen/roster/v1/team_pb.ts";
import { aimedCalls, among, callWith, person } from "./operation.ts";
import { type Real, refusalIn } from "./real.ts";
import {
  childrenOf,
  depthOf,
  isLive,
  liveDownFrom,
  type TeamRole as Role,
  roleIn,
  sees,
  type Team,
  upFrom,
} from "./trees.ts";
import {
  Anew,
  type Answer,
  type Call,
  demandRoom,
  enterTeams,
  type Held,
  holds,
  isLasting,
  type Org,
  orgOf,
  platform,
  Refused,
  refuse,
  sightOf,
  userOf,
  type World,
} from "./world.ts";

/** Few, so that they clash. */
const name = fc.constantFrom("Ant", "ant", "Bee", "Elk");
const pick = fc.nat(20);
const isTop = fc.constantFrom(false, false, true);
const teamRole = fc.constantFrom<Role>("MEMBER", "MAINTAINER");

/** A team as answers have it. */
export const teamAnswer = (key: string, { parent, name, secret, deleted }: Team): Answer => ({
  key,
  parent,
  name,
  secret,
  deleted: deleted !== "",
});

/** One of the teams of an org that are as wanted; without any, one of all. */
const picked = (
  world: World,
  org: number,
  pick: number,
  isWanted: (team: Team, key: string) => boolean,
): string => {
  const teams = [...orgOf(world, org).teams].sort(([one], [other]) => (one < other ? -1 : 1));
  const wanted = teams.filter(([key, team]) => isWanted(team, key));
  const keys = (wanted.length > 0 ? wanted : teams).map(([key]) => key);
  return among(keys, pick, "none");
};

/** Mostly a live one. */
export const pickedToUse = (world: World, org: number, pick: number): string =>
  picked(world, org, pick, (team) => pick % 7 === 6 || isLive(team));

/** Mostly by those who are somebody in the first teams. */
const by = fc.constantFrom(platform, 0, 3, 4, 1, 3, 4, 2, platform, 5, 1);
const teamCall = <More extends object>(more: { [Name in keyof More]: fc.Arbitrary<More[Name]> }) =>
  callWith({ ...more, by }) as fc.Arbitrary<Call & More>;

interface Picking extends Call {
  readonly pick: number;
}

const aimAtTeam = <Input extends Picking>(input: Input, world: World) => ({
  ...input,
  team: pickedToUse(world, input.org, input.pick),
});

export const named = (real: Real, { org, team }: Call & { readonly team: string }) => ({
  orgId: real.orgIds[org] ?? "",
  teamId: teamId(real, team),
});

/** The id of a team, also of one that there is not; nothing for none. */
export const teamId = (real: Real, key: string): string =>
  key && (real.teamIds.get(key) ?? randomUUID());

/** The live team that a caller sees. */
export const liveTeam = ({ teams }: Org, key: string, { by }: Call, held: Held): Team => {
  const team = teams.get(key);
  if (!team || !isLive(team) || !sees(teams, key, by, sightOf(held)))
    throw new Refused("TEAM_NOT_FOUND");
  return team;
};

/** Who has no permission of their own is still a maintainer, or starts over. */
const demandMaintainer = (
  { teams }: Org,
  key: string,
  { by }: Call,
  held: Held,
  permission: string,
): void => {
  if (by === platform || holds(held, [permission])) return;
  if (roleIn(teams, key, by) !== "MAINTAINER") throw new Anew();
};

/** Refuses a name that a live team beside it has. */
const demandName = ({ teams }: Org, key: string): void => {
  const { parent, name } = teams.get(key) as Team;
  const isTaken = childrenOf(teams, parent).some((other) => {
    const sibling = teams.get(other) as Team;
    return other !== key && isLive(sibling) && sibling.name.toLowerCase() === name.toLowerCase();
  });
  if (isTaken) refuse("TEAM_NAME_TAKEN");
};

export const createTeam = aimedCalls("CreateTeam", {
  input: teamCall({ pick, isTop, name, secret: fc.boolean() }),
  aim: (input, world, key) => ({
    ...input,
    key,
    parent: input.isTop ? "" : pickedToUse(world, input.org, input.pick),
  }),
  predict: (world, call) => {
    const { key, parent, name, secret } = call;
    const { org, held } = enterTeams(world, call, "teams.create", { team: parent });
    if (org.deleted) throw new Anew();
    if (parent) liveTeam(org, parent, call, held);
    const made: Team = { parent, name, secret, deleted: "", members: new Map() };
    org.teams.set(key, made);
    if (depthOf(org.teams, key) > org.limits.teamDepth) refuse("TEAM_TOO_DEEP");
    demandMaintainer(org, key, call, held, "teams.create");
    if (!sees(org.teams, key, call.by, sightOf(held))) refuse("PERMISSION_MISSING");
    demandName(org, key);
    demandRoom(world, org, "teams", 0);
    return teamAnswer(key, made);
  },
  send: async (real, { teams }, { org, key, parent, name, secret }, options) => {
    const team = {
      orgId: real.orgIds[org] ?? "",
      parentTeamId: teamId(real, parent),
      name,
      visibility: secret ? TeamVisibility.SECRET : TeamVisibility.VISIBLE,
    };
    const answer = await teams.createTeam({ team }, options);
    real.teamIds.set(key, answer.team?.id ?? "");
    return real.team(answer.team);
  },
});

type Change = Partial<Pick<Team, "name" | "secret">>;
const change: fc.Arbitrary<Change> = fc.oneof(
  fc.record({ name }),
  fc.record({ secret: fc.boolean() }),
  fc.record({ name, secret: fc.boolean() }),
);
const fieldOf = { name: "name", secret: "visibility" };

export const updateTeam = aimedCalls("UpdateTeam", {
  input: teamCall({ pick, change }),
  aim: (input, world) => aimAtTeam(input, world),
  predict: (world, call) => {
    const { org, held } = enterTeams(world, call, "teams.update", call);
    if (call.change.secret !== undefined && org.deleted) throw new Anew();
    const team = { ...liveTeam(org, call.team, call, held), ...call.change };
    org.teams.set(call.team, team);
    demandMaintainer(org, call.team, call, held, "teams.update");
    demandName(org, call.team);
    return teamAnswer(call.team, team);
  },
  send: async (real, { teams }, { org, team: key, change }, options) => {
    const { orgId, teamId } = named(real, { by: platform, org, team: key });
    const { name = "", secret } = change;
    const visibility = secret ? TeamVisibility.SECRET : TeamVisibility.VISIBLE;
    const paths = Object.keys(change).map((field) => fieldOf[field as keyof Change]);
    const request = { team: { orgId, id: teamId, name, visibility }, updateMask: { paths } };
    return real.team((await teams.updateTeam(request, options)).team);
  },
});

export const moveTeam = aimedCalls("MoveTeam", {
  input: teamCall({ pick, isTop, under: pick }),
  aim: (input, world) => ({
    ...aimAtTeam(input, world),
    parent: input.isTop ? "" : pickedToUse(world, input.org, input.under),
  }),
  predict: (world, call) => {
    const { team: key, parent } = call;
    const { org, held } = enterTeams(world, call, "teams.delete", call);
    if (org.deleted) throw new Anew();
    const former = liveTeam(org, key, call, held);
    if (parent === former.parent) return teamAnswer(key, former);
    if (parent) {
      liveTeam(org, parent, call, held);
      if (upFrom(org.teams, parent).includes(former)) refuse("TEAM_CYCLE");
    }
    const depth = depthOf(org.teams, key);
    const moved: Team = { ...former, parent };
    org.teams.set(key, moved);
    const lowest = Math.max(...liveDownFrom(org.teams, key).map((one) => depthOf(org.teams, one)));
    if (depthOf(org.teams, key) > depth && lowest > org.limits.teamDepth) refuse("TEAM_TOO_DEEP");
    demandName(org, key);
    return teamAnswer(key, moved);
  },
  send: async (real, { teams }, call, options) => {
    const parentTeamId = teamId(real, call.parent);
    return real.team((await teams.moveTeam({ ...named(real, call), parentTeamId }, options)).team);
  },
});

const deleteTeam = aimedCalls("DeleteTeam", {
  input: teamCall({ pick, force: fc.boolean() }),
  aim: (input, world, key) => ({ ...aimAtTeam(input, world), key }),
  predict: (world, call) => {
    const { org, held } = enterTeams(world, call, "teams.delete", call);
    liveTeam(org, call.team, call, held);
    const gone = liveDownFrom(org.teams, call.team);
    if (gone.length > 1 && !call.force) refuse("TEAM_HAS_CHILDREN");
    for (const one of gone)
      org.teams.set(one, { ...(org.teams.get(one) as Team), deleted: call.key });
    return teamAnswer(call.team, org.teams.get(call.team) as Team);
  },
  send: async (real, { teams }, call, options) =>
    real.team((await teams.deleteTeam({ ...named(real, call), force: call.force }, options)).team),
});

/** Brings a team back with those below it that the same delete took. */
const bringBack = ({ teams }: Org, key: string, { deleted }: Team): string[] => {
  teams.set(key, { ...(teams.get(key) as Team), deleted: "" });
  const along = childrenOf(teams, key).filter((child) => teams.get(child)?.deleted === deleted);
  return [
    key,
    ...along.flatMap((child) => bringBack({ teams } as Org, child, { deleted } as Team)),
  ];
};

const undeleteTeam = aimedCalls("UndeleteTeam", {
  input: teamCall({ pick }),
  aim: (input, world) => ({
    ...input,
    team: picked(world, input.org, input.pick, (team) => !isLive(team)),
  }),
  predict: (world, call) => {
    const { org } = enterTeams(world, call, "teams.delete", call);
    const { teams, limits } = org;
    const former = teams.get(call.team);
    if (!former) throw new Refused("TEAM_NOT_FOUND");
    if (isLive(former)) refuse("NOT_DELETED");
    const above = teams.get(former.parent);
    if (above && !isLive(above)) refuse("TEAM_PARENT_DELETED");
    if (org.deleted) throw new Anew();
    const back = bringBack(org, call.team, former);
    if (depthOf(teams, call.team) > limits.teamDepth) refuse("TEAM_TOO_DEEP");
    demandName(org, call.team);
    if (back.some((one) => depthOf(teams, one) > limits.teamDepth)) refuse("TEAM_TOO_DEEP");
    demandRoom(world, org, "teams", 0);
    return teamAnswer(call.team, teams.get(call.team) as Team);
  },
  send: async (real, { teams }, call, options) =>
    real.team((await teams.undeleteTeam(named(real, call), options)).team),
});

/** Changes who is in a team. */
const setMembers = (
  { teams }: Org,
  key: string,
  change: (members: Map<number, Role>) => void,
): void => {
  const team = teams.get(key) as Team;
  const members = new Map(team.members);
  change(members);
  teams.set(key, { ...team, members });
};

/** Whether someone is there for an org: a member, though perhaps suspended. */
export const isThere = (world: World, { members }: Org, user: number): boolean => {
  const member = members.get(user);
  return member !== undefined && isLasting(member) && !userOf(world, user).deleted;
};

export const addTeamMember = aimedCalls("AddTeamMember", {
  input: teamCall({ pick, user: person, role: teamRole }),
  aim: (input, world) => aimAtTeam(input, world),
  predict: (world, call) => {
    const { team, user, role } = call;
    const { org, held } = enterTeams(world, call, "teams.update", call);
    const { members } = liveTeam(org, team, call, held);
    if (!isThere(world, org, user)) refuse("ORG_MEMBER_NOT_FOUND");
    demandMaintainer(org, team, call, held, "teams.update");
    if (members.has(user)) refuse("TEAM_MEMBER_EXISTS");
    setMembers(org, team, (members) => members.set(user, role));
    return { team, user, role };
  },
  send: async (real, { teams }, call, options) => {
    const { user, role } = call;
    const request = { userId: real.userIds[user] ?? "", role: TeamRole[role] };
    const answer = await teams.addTeamMember({ ...named(real, call), ...request }, options);
    return real.teamMember(answer.member);
  },
});

/** Mostly about someone who is in the team. */
const memberPick = { pick, user: person, isMember: fc.constantFrom(true, true, true, false) };

const aimAtMember = <Input extends Picking & { user: number; isMember: boolean }>(
  input: Input,
  world: World,
) => {
  const { org, pick, user, isMember } = input;
  const hasMembers = ({ deleted, members }: Team) => deleted === "" && members.size > 0;
  const team = picked(world, org, pick, (one) => pick % 7 === 6 || hasMembers(one));
  const members = [...(orgOf(world, org).teams.get(team)?.members.keys() ?? [])].sort();
  return { ...input, team, user: isMember ? among(members, user, user) : user };
};

/** What someone is in a live team that a caller sees. */
const memberIn = (world: World, org: Org, call: Call & TeamMember, held: Held): Role => {
  const role = liveTeam(org, call.team, call, held).members.get(call.user);
  if (!role || !isThere(world, org, call.user)) throw new Refused("TEAM_MEMBER_NOT_FOUND");
  return role;
};
interface TeamMember {
  readonly team: string;
  readonly user: number;
}

export const updateTeamMember = aimedCalls("UpdateTeamMember", {
  input: teamCall({ ...memberPick, role: teamRole }),
  aim: (input, world) => aimAtMember(input, world),
  predict: (world, call) => {
    const { team, user, role } = call;
    const { org, held } = enterTeams(world, call, "teams.update", call);
    memberIn(world, org, call, held);
    demandMaintainer(org, team, call, held, "teams.update");
    setMembers(org, team, (members) => members.set(user, role));
    return { team, user, role };
  },
  send: async (real, { teams }, call, options) => {
    const { user, role } = call;
    const userId = real.userIds[user] ?? "";
    const member = { ...named(real, call), userId, role: TeamRole[role] };
    return real.teamMember((await teams.updateTeamMember({ member }, options)).member);
  },
});

export const removeTeamMember = aimedCalls("RemoveTeamMember", {
  input: teamCall({ ...memberPick, leaves: fc.boolean() }),
  aim: (input, world) => {
    const aimed = aimAtMember(input, world);
    return input.leaves ? { ...aimed, by: aimed.user } : aimed;
  },
  predict: (world, call) => {
    const { by, team, user } = call;
    const self = by === user;
    const { org, held } = enterTeams(world, call, "teams.update", { team, self });
    const role = memberIn(world, org, call, held);
    if (!self) demandMaintainer(org, team, call, held, "teams.update");
    setMembers(org, team, (members) => members.delete(user));
    return { team, user, role };
  },
  send: async (real, { teams }, call, options) => {
    const request = { ...named(real, call), userId: real.userIds[call.user] ?? "" };
    return real.teamMember((await teams.removeTeamMember(request, options)).member);
  },
});

export const setTeamMembers = aimedCalls("SetTeamMembers", {
  input: teamCall({
    pick,
    wanted: fc.array(fc.record({ user: person, role: teamRole }), { maxLength: 4 }),
  }),
  aim: (input, world) => aimAtTeam(input, world),
  predict: (world, call) => {
    const { by, team, wanted } = call;
    const { org, held } = enterTeams(world, call, "teams.update", call);
    const former = liveTeam(org, team, call, held);
    const roles = new Map(wanted.toReversed().map(({ user, role }) => [user, role]));
    const present = [...roles].filter(([user]) => isThere(world, org, user));
    const removed = [...former.members.keys()].filter(
      (user) => !roles.has(user) && isThere(world, org, user),
    );
    if (present.length > 0 || removed.some((user) => user !== by))
      demandMaintainer(org, team, call, held, "teams.update");
    setMembers(org, team, (members) => {
      for (const user of removed) members.delete(user);
      for (const [user, role] of present) members.set(user, role);
    });
    const results = wanted.map(({ user, role }) => {
      if (roles.get(user) !== role) return { refused: "FIELD_INVALID" };
      if (!isThere(world, org, user)) return { refused: "ORG_MEMBER_NOT_FOUND" };
      return { team, user, role };
    });
    return { results, removed: removed.sort() };
  },
  send: async (real, { teams }, call, options) => {
    const members = call.wanted.map(({ user, role }) => ({
      userId: real.userIds[user] ?? "",
      role: TeamRole[role],
    }));
    const request = { ...named(real, call), members };
    const { results, removedUserIds } = await teams.setTeamMembers(request, options);
    return {
      results: results.map(({ result }) =>
        result.case === "member" ? real.teamMember(result.value) : refusalIn(result.value),
      ),
      removed: removedUserIds.map((id) => real.user(id)).sort(),
    };
  },
});

export const teamCalls = [
  createTeam,
  createTeam,
  updateTeam,
  moveTeam,
  moveTeam,
  deleteTeam,
  undeleteTeam,
  addTeamMember,
  addTeamMember,
  updateTeamMember,
  removeTeamMember,
  setTeamMembers,
  setTeamMembers,
];
