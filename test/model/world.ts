/** What orgs, members, roles, invitations and users should be like: the rules of the service, in memory. */

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

export interface Org {
  suspended: boolean;
  deleted: boolean;
  readonly members: Map<number, Member>;
  readonly roles: Map<string, readonly string[]>;
  readonly invitations: Map<string, Invitation>;
}

export interface World {
  readonly users: readonly User[];
  readonly orgs: readonly Org[];
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

/** Opens an org to a caller with a permission, or about themselves. */
export const enter = (
  world: World,
  { by, org: place }: Call,
  permission: string,
  { self = false, deleted = false } = {},
): { readonly org: Org; readonly held: Held } => {
  const org = orgOf(world, place);
  if (by === platform) {
    if (org.deleted && !deleted) refuse("ORG_NOT_FOUND");
    return { org, held: "*" };
  }
  if (!isActive(userOf(world, by))) refuse("CALLER_INACTIVE");
  const member = org.members.get(by);
  if (org.deleted || !member || member.suspended || !isLasting(member))
    throw new Refused("ORG_NOT_ALLOWED");
  if (org.suspended) refuse("ORG_SUSPENDED");
  const permissions = permissionsOf(org, member.role) ?? [];
  if (!self && !permissions.includes(permission)) refuse("PERMISSION_MISSING");
  return { org, held: member.role === "owner" ? "*" : permissions };
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

/** What an invitation is by now. */
export const stateOf = ({ state, over }: Invitation): InvitationState =>
  state === "PENDING" && over ? "EXPIRED" : state;
