/** What orgs, members, roles, invitations and users should be like: the rules of the service, in memory. */
import { deepest, isLive, permitted, roleIn, type Sight, type Team } from "./trees.ts";

/** People are told by their number. Platform has none. */
export const platform = -1;

/** Which permissions the built-in roles have. */
const ofAdmin = [
  ...["org.get", "org.update", "members.get", "members.add", "members.update", "members.remove"],
  ...["members.invite", "teams.get", "teams.create", "teams.update", "teams.delete"],
  ...["roles.manage", "access.check", "audit.read", "changes.read"],
];
export const builtIn: Readonly<Record<string, readonly string[]>> = {
  owner: [...ofAdmin, "org.delete"],
  admin: ofAdmin,
  member: ["org.get", "members.get", "teams.get"],
  guest: ["org.get"],
};

export interface User {
  suspended: boolean;
  deleted: boolean;
}

/** When a membership ends; one that is over counts as none. */
export type End = "never" | "later" | "over";

export interface Member {
  readonly role: string;
  readonly suspended: boolean;
  readonly end: End;
}

export type InvitationState = "PENDING" | "EXPIRED" | "ACCEPTED" | "DECLINED" | "REVOKED";

export interface Invitation {
  /** Whose address it is to. */
  readonly invitee: number;
  readonly role: string;
  readonly inviter: number;
  readonly state: InvitationState;
  /** Its time has passed, which nobody has written down while it is PENDING. */
  readonly over: boolean;
  /** How often it was sent again. */
  readonly resends: number;
}

/** How many of each an org may have, or has. */
export interface Limits {
  readonly members: number;
  readonly pendingInvitations: number;
  readonly roles: number;
  readonly teams: number;
  /** How many teams lie on the longest way down. */
  readonly teamDepth: number;
}

export const defaultLimits: Limits = {
  members: 100_000,
  pendingInvitations: 1_000,
  roles: 100,
  teams: 10_000,
  teamDepth: 16,
};

export interface Org {
  suspended: boolean;
  deleted: boolean;
  limits: Limits;
  readonly members: Map<number, Member>;
  /** How often who was admitted. */
  readonly joins: Map<number, number>;
  readonly roles: Map<string, readonly string[]>;
  readonly invitations: Map<string, Invitation>;
  readonly teams: Map<string, Team>;
}

export interface World {
  readonly users: readonly User[];
  readonly orgs: readonly Org[];
  /** What there was when a call came in that was overtaken by others since: it was let in by that. */
  readonly before?: World;
}

/** What a call comes to: what it answers, or why it is refused. Of a last owner also in which orgs. */
export type Answer = object;

/** The refusal of a call. What it had changed of the world by then is nobody's. */
export class Refused extends Error {
  readonly answer: Answer;

  constructor(reason: string, orgs?: readonly number[]) {
    super(reason);
    this.answer = orgs ? { refused: reason, orgs } : { refused: reason };
  }
}

export const refuse = (reason: string): never => {
  throw new Refused(reason);
};

/** A call starts over, and comes in by what there is now. */
export class Anew extends Error {}

/** Who calls, and in which org. */
export interface Call {
  readonly by: number;
  readonly org: number;
}

/** What a caller holds in an org: everything, or these permissions. */
export type Held = "*" | readonly string[];

export const userOf = ({ users }: World, user: number): User =>
  users[user] ?? refuse(`there is no user ${user}`);
export const orgOf = ({ orgs }: World, org: number): Org =>
  orgs[org] ?? refuse(`there is no org ${org}`);

export const isActive = ({ suspended, deleted }: User): boolean => !suspended && !deleted;
export const isLasting = ({ end }: Member): boolean => end !== "over";

/** What a role permits; undefined: the org has no such role. */
export const permissionsOf = ({ roles }: Org, role: string): readonly string[] | undefined =>
  builtIn[role] ?? roles.get(role);

export const holds = (held: Held, permissions: readonly string[]): boolean =>
  held === "*" || permissions.every((permission) => held.includes(permission));

/** What a call needs beside a permission, or has in place of it. */
interface Entrance {
  /** It is about the caller. */
  readonly self?: boolean;
  /** The org may be deleted, for platform. */
  readonly deleted?: boolean;
  /** A role in this team may permit it. */
  readonly team?: string;
}

/** Whether a permission that a role in the org lacks comes from one in a team. To list teams takes none. */
const isPermittedInTeam = (
  { teams }: Org,
  { by }: Call,
  orgRole: string,
  permission: string,
  team: string | undefined,
): boolean => {
  if (!team) return permission === "teams.get";
  if (permission === "teams.create" && orgRole === "guest") return false;
  const role = roleIn(teams, team, by);
  return role !== undefined && permitted[role].includes(permission);
};

/** What a caller holds in an org who has a permission there, or calls about themselves. */
const letIn = (
  world: World,
  call: Call,
  permission: string,
  { self = false, deleted = false, team }: Entrance,
): Held => {
  const { by, org: place } = call;
  const org = orgOf(world, place);
  if (by === platform) {
    if (org.deleted && !deleted) refuse("ORG_NOT_FOUND");
    return "*";
  }
  if (!isActive(userOf(world, by))) refuse("CALLER_INACTIVE");
  const member = org.members.get(by);
  if (org.deleted || !member || member.suspended || !isLasting(member))
    throw new Refused("ORG_NOT_ALLOWED");
  if (org.suspended) refuse("ORG_SUSPENDED");
  const permissions = permissionsOf(org, member.role) ?? [];
  const isPermitted = self || permissions.includes(permission);
  if (!isPermitted && !isPermittedInTeam(org, call, member.role, permission, team))
    refuse("PERMISSION_MISSING");
  return member.role === "owner" ? "*" : permissions;
};

interface Entered {
  readonly org: Org;
  readonly held: Held;
}

/** Opens an org to a caller with a permission, or about themselves. A deleted org may come to be so after that. */
export const enter = (
  world: World,
  call: Call,
  permission: string,
  options: Entrance = {},
): Entered => {
  const held = letIn(world.before ?? world, call, permission, options);
  const org = orgOf(world, call.org);
  if (org.deleted && !options.deleted) refuse("ORG_NOT_FOUND");
  return { org, held };
};

/** Opens an org to who changes its teams. Those of an org that is deleted meanwhile change as if before that. */
export const enterTeams = (
  world: World,
  call: Call,
  permission: string,
  options: Entrance = {},
): Entered => {
  const held = letIn(world.before ?? world, call, permission, options);
  return { org: orgOf(world, call.org), held };
};

/** Whoever changes rights still holds then what they held as they came in, or starts over. */
export const demandHeld = ({ by }: Call, { org, held }: Entered): void => {
  if (org.deleted) throw new Anew();
  if (by === platform) return;
  const member = org.members.get(by);
  if (!member || member.suspended || !isLasting(member)) throw new Anew();
  if (member.role === "owner") return;
  if (held === "*" || !holds(permissionsOf(org, member.role) ?? [], held)) throw new Anew();
};

/** Opens an org to who changes rights. */
export const enterToGrant = (
  world: World,
  call: Call,
  permission: string,
  self = false,
): Entered => {
  const held = letIn(world.before ?? world, call, permission, { self });
  const entered = { org: orgOf(world, call.org), held };
  demandHeld(call, entered);
  return entered;
};

/** Opens what is outside of orgs, to platform or about the caller. */
export const enterOutside = (world: World, by: number, self = false): void => {
  if (by === platform) return;
  if (!isActive(userOf(world, by))) refuse("CALLER_INACTIVE");
  if (!self) refuse("PERMISSION_MISSING");
};

/** Why a caller may not hand out a role or take it away; undefined: they may. */
export const roleFault = (org: Org, role: string, held: Held): string | undefined => {
  const permissions = permissionsOf(org, role);
  if (!permissions) return "ROLE_UNKNOWN";
  const grantable = held === "*" || (role !== "owner" && holds(held, permissions));
  return grantable ? undefined : "ROLE_NOT_GRANTABLE";
};

export const demandGrantable = (org: Org, role: string, held: Held): void => {
  const fault = roleFault(org, role, held);
  if (fault) refuse(fault);
};

/** Of which teams somebody knows by what they hold in the org. */
export const sightOf = (held: Held): Sight => {
  if (holds(held, ["teams.delete"])) return "deleted";
  if (holds(held, ["teams.update"])) return "all";
  return holds(held, ["teams.get"]) ? "visible" : "own";
};

/** Ends a membership, and with it those of teams. */
export const dismiss = ({ members, teams }: Org, user: number): void => {
  members.delete(user);
  for (const [key, team] of teams) {
    const others = new Map(team.members);
    if (others.delete(user)) teams.set(key, { ...team, members: others });
  }
};

/** Whether a member is an owner who counts, as long as their user is active. */
export const isOwner = ({ role, suspended }: Member): boolean => role === "owner" && !suspended;

/** Whether an org, unless it is closed, has an active owner beside one. */
export const keepsOwner = (world: World, org: Org, without?: number): boolean =>
  org.suspended ||
  org.deleted ||
  [...org.members].some(
    ([user, member]) => user !== without && isOwner(member) && isActive(userOf(world, user)),
  );

/** The membership of a live user as the org sees it. */
export const memberOf = (world: World, { members }: Org, user: number): Member => {
  const member = members.get(user);
  if (!member || !isLasting(member) || userOf(world, user).deleted)
    throw new Refused("ORG_MEMBER_NOT_FOUND");
  return member;
};

/** How many of each an org has. What is over by itself counts no more. */
export const countsOf = (
  { users }: World,
  { members, invitations, roles, teams }: Org,
): Limits => ({
  members: [...members].filter(([user, member]) => isLasting(member) && !users[user]?.deleted)
    .length,
  pendingInvitations: [...invitations.values()].filter((one) => stateOf(one) === "PENDING").length,
  roles: roles.size,
  teams: [...teams.values()].filter(isLive).length,
  teamDepth: deepest(teams),
});

/** Refuses to add so many to an org that it has more than it may. */
export const demandRoom = (world: World, org: Org, kind: keyof Limits, added = 1): void => {
  if (countsOf(world, org)[kind] + added > org.limits[kind]) refuse("ORG_LIMIT_REACHED");
};

/** What an invitation is by now. */
export const stateOf = ({ state, over }: Invitation): InvitationState =>
  state === "PENDING" && over ? "EXPIRED" : state;
