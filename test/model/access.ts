/** Calls that ask what somebody may do, and why. */
import fc from "fast-check";
import { AccessReason } from "../../src/gen/roster/v1/access_check_pb.ts";
import type { CheckAccessResponse } from "../../src/gen/roster/v1/access_service_pb.ts";
import { aimedCalls, callWith, type Draw, person } from "./operation.ts";
import { namesOf, type Real, refusalIn, roleNames } from "./real.ts";
import { isThere, pickedToUse, teamId } from "./teams.ts";
import { isLive, permitted, roleIn, rolesOver, sees, wayUp } from "./trees.ts";
import {
  type Answer,
  enter,
  type Held,
  type Org,
  orgOf,
  permissionsOf,
  platform,
  Refused,
  refuse,
  sightOf,
  userOf,
  type World,
} from "./world.ts";

/** What somebody may do in an org or, where one is named, on a team. */
interface Question {
  readonly user: number;
  readonly permission: string;
  readonly team: string;
}

/** What permits something, where nothing else is in the way: the role in the org, one in a team, or none. */
const groundFor = (org: Org, { user, permission, team }: Question): string => {
  const { role = "" } = org.members.get(user) ?? {};
  if (permissionsOf(org, role)?.includes(permission)) return "ORG_ROLE";
  const teamRole = team && roleIn(org.teams, team, user);
  const isPermitted = teamRole && permitted[teamRole].includes(permission);
  const isBarred = permission === "teams.create" && role === "guest";
  return isPermitted && !isBarred ? "TEAM_ROLE" : "PERMISSION_MISSING";
};

/** What keeps somebody from everything, whatever they hold. */
const hindranceOf = (world: World, org: Org, { user, team }: Question): string | undefined => {
  if (!isThere(world, org, user)) return "NOT_A_MEMBER";
  const { role = "", suspended = false } = org.members.get(user) ?? {};
  if (userOf(world, user).suspended) return "USER_SUSPENDED";
  if (suspended) return "MEMBERSHIP_SUSPENDED";
  if (org.suspended) return "ORG_SUSPENDED";
  const sight = sightOf(role === "owner" ? "*" : (permissionsOf(org, role) ?? []));
  return team && !sees(org.teams, team, user, sight) ? "TEAM_NOT_VISIBLE" : undefined;
};

/** Refuses a team that is none to who asks. */
const demandAsked = (org: Org, by: number, held: Held, key: string): void => {
  const team = org.teams.get(key);
  if (key !== "" && !(team && isLive(team) && sees(org.teams, key, by, sightOf(held))))
    refuse("TEAM_NOT_FOUND");
};

const answerTo = (world: World, org: Org, question: Question): Answer => {
  const { user, team } = question;
  const reason = hindranceOf(world, org, question) ?? groundFor(org, question);
  const isMember = isThere(world, org, user);
  const role = isMember ? (org.members.get(user)?.role ?? "") : "";
  const teamRole = isMember && team ? roleIn(org.teams, team, user) : undefined;
  const [holder = ""] = rolesOver(org.teams, team, user).filter(
    (key) => org.teams.get(key)?.members.get(user) === teamRole,
  );
  const via = reason === "TEAM_ROLE" ? wayUp(org.teams, team, holder).reverse() : [];
  const allowed = reason === "ORG_ROLE" || reason === "TEAM_ROLE";
  return { allowed, reason, role, teamRole: teamRole ?? "UNSPECIFIED", via };
};

const reasonNames = namesOf(AccessReason);

const toAnswer = (real: Real, answer: CheckAccessResponse): Answer => ({
  allowed: answer.allowed,
  reason: reasonNames.get(answer.reason),
  role: answer.role,
  teamRole: roleNames.get(answer.teamRole),
  via: answer.viaTeamIds.map((id) => real.teamKey(id)),
});

const permission = fc.constantFrom("teams.get", "teams.create", "teams.update", "org.get");
/** One of the teams; -1: none. */
const pick = fc.integer({ min: -1, max: 10 });

const aimAtTeam = <Input extends { readonly org: number; readonly pick: number }>(
  input: Input,
  world: World,
) => ({ ...input, team: input.pick < 0 ? "" : pickedToUse(world, input.org, input.pick) });

const checkAccess = aimedCalls("CheckAccess", {
  input: callWith({ user: person, permission, pick }),
  aim: (input, world) => aimAtTeam(input, world),
  predict: (world, call) => {
    const { by, user, team } = call;
    const { org, held } = enter(world, call, "access.check", { self: by === user });
    demandAsked(org, by, held, team);
    return answerTo(world, org, call);
  },
  send: async (real, { access }, call, options) => {
    const { org, user, permission, team } = call;
    const request = { orgId: real.orgIds[org] ?? "", userId: real.userIds[user] ?? "", permission };
    const asked = { ...request, teamId: teamId(real, team) };
    return toAnswer(real, await access.checkAccess(asked, options));
  },
});

/** Asks about everyone on every team at once. */
const batchCheckAccess = aimedCalls("BatchCheckAccess", {
  input: callWith({ permissions: fc.array(permission, { minLength: 1, maxLength: 2 }) }),
  aim: (input, world) => {
    const teams = ["", ...orgOf(world, input.org).teams.keys()];
    const questions = [...world.users.keys()].flatMap((user) =>
      teams.flatMap((team) => input.permissions.map((permission) => ({ user, team, permission }))),
    );
    return { ...input, questions };
  },
  predict: (world, call) => {
    const { org, held } = enter(world, call, "access.check");
    return call.questions.map((question) => {
      try {
        demandAsked(org, call.by, held, question.team);
        return { ...question, ...answerTo(world, org, question) };
      } catch (error) {
        if (error instanceof Refused) return { ...question, ...error.answer };
        throw error;
      }
    });
  },
  send: async (real, { access }, { org, questions }, options) => {
    const checks = questions.map(({ user, permission, team }) => ({
      userId: real.userIds[user] ?? "",
      permission,
      teamId: teamId(real, team),
    }));
    const request = { orgId: real.orgIds[org] ?? "", checks };
    const { results } = await access.batchCheckAccess(request, options);
    return results.map(({ result }, place) => ({
      ...questions[place],
      ...(result.case === "answer" ? toAnswer(real, result.value) : refusalIn(result.value)),
    }));
  },
});

const listEffectivePermissions = aimedCalls("ListEffectivePermissions", {
  input: callWith({ user: person, pick }),
  aim: (input, world) => aimAtTeam(input, world),
  predict: (world, call) => {
    const { by, user, team } = call;
    const { org, held } = enter(world, call, "access.check", { self: by === user });
    demandAsked(org, by, held, team);
    if (!isThere(world, org, user)) refuse("ORG_MEMBER_NOT_FOUND");
    if (hindranceOf(world, org, { user, team, permission: "" })) return [];
    const { role = "" } = org.members.get(user) ?? {};
    const byOrg = (permissionsOf(org, role) ?? []).map((permission) => ({ permission, role }));
    const byTeams = rolesOver(org.teams, team, user).flatMap((holder) => {
      const teamRole = org.teams.get(holder)?.members.get(user) ?? "MEMBER";
      const via = wayUp(org.teams, team, holder).reverse();
      return permitted[teamRole].map((permission) => ({ permission, role: "", teamRole, via }));
    });
    // The sort leaves the nearest first.
    return [...byOrg, ...byTeams]
      .filter(({ permission }) => !/MISSING/.test(groundFor(org, { user, team, permission })))
      .map((way) => ({ teamRole: "UNSPECIFIED", via: [], ...way }))
      .sort(
        (one, other) =>
          (one.permission < other.permission ? -1 : 0) || +(one.permission > other.permission),
      );
  },
  send: async (real, { access }, { org, user, team }, options) => {
    const request = {
      orgId: real.orgIds[org] ?? "",
      userId: real.userIds[user] ?? "",
      pageSize: 1_000,
    };
    const asked = { ...request, teamId: teamId(real, team) };
    const { permissions } = await access.listEffectivePermissions(asked, options);
    return permissions.map(({ permission, role, teamRole, viaTeamIds }) => ({
      permission,
      role,
      teamRole: roleNames.get(teamRole),
      via: viaTeamIds.map((id) => real.teamKey(id)),
    }));
  },
});

export const accessCalls = [checkAccess, batchCheckAccess, listEffectivePermissions];

/** What people may do in a world: a question about each on each team, and some again, alone. */
export const accessViewsOf = ({ users, orgs }: World): Draw[] =>
  orgs.flatMap(({ teams }, org) => {
    const ask = { by: platform, org };
    const [user, pick] = [teams.size % users.length, teams.size - 2];
    return [
      batchCheckAccess.with({ ...ask, permissions: ["teams.get", "teams.create"] }),
      checkAccess.with({ ...ask, user, permission: "teams.update", pick }),
      listEffectivePermissions.with({ ...ask, user, pick }),
    ];
  });
