/** Calls that suspend, delete and bring back users and orgs. */
import fc from "fast-check";
import { aimedCalls, among, calls, callWith, person } from "./operation.ts";
import { stateOfOrg, stateOfUser } from "./real.ts";
import { isLive } from "./trees.ts";
import {
  type Call,
  enter,
  enterOutside,
  isActive,
  isLasting,
  isOwner,
  keepsOwner,
  type Org,
  orgOf,
  platform,
  Refused,
  refuse,
  type User,
  userOf,
  type World,
} from "./world.ts";

/** Nearly all of these calls are for platform. */
const by = fc.constantFrom(platform, platform, platform, platform, 0, 1, 5);

const aboutUser = fc.record({ by, org: fc.constant(0), user: person });
type AboutUser = typeof aboutUser extends fc.Arbitrary<infer Input> ? Input : never;

/** Aims at one of the users, or of the orgs, that are not as they should be. */
const aimAtUser =
  (isDue: (user: User) => boolean) =>
  (input: AboutUser, { users }: World): AboutUser => {
    const due = [...users.keys()].filter((place) => isDue(userOf({ users, orgs: [] }, place)));
    return { ...input, user: among(due, input.user, input.user) };
  };
const aimAtOrg =
  (isDue: (org: Org) => boolean) =>
  <Input extends Call>(input: Input, { orgs }: World): Input => {
    const due = [...orgs.keys()].filter((place) => isDue(orgOf({ users: [], orgs }, place)));
    return { ...input, org: among(due, input.org, input.org) };
  };

/** The live user whom a call is about. */
const liveUser = (world: World, { by, user: place }: AboutUser): User => {
  enterOutside(world, by);
  const user = userOf(world, place);
  if (user.deleted) refuse("USER_NOT_FOUND");
  return user;
};

/** Refuses to take away the user who is the last owner of an org, and names all of those. */
const demandOtherOwners = (world: World, user: number): void => {
  if (!isActive(userOf(world, user))) return;
  const ownerless = world.orgs.flatMap((org, place) => {
    const member = org.members.get(user);
    return member && isOwner(member) && !keepsOwner(world, org, user) ? [place] : [];
  });
  if (ownerless.length > 0) throw new Refused("LAST_OWNER", ownerless);
};

const suspendUser = calls("SuspendUser", {
  input: aboutUser,
  predict: (world, call) => {
    const user = liveUser(world, call);
    demandOtherOwners(world, call.user);
    user.suspended = true;
    return { ...user };
  },
  send: async (real, { users }, { user }, options) =>
    stateOfUser((await users.suspendUser({ userId: real.userIds[user] ?? "" }, options)).user),
});

const reactivateUser = aimedCalls("ReactivateUser", {
  input: aboutUser,
  aim: aimAtUser(({ suspended }) => suspended),
  predict: (world, call) => {
    const user = liveUser(world, call);
    user.suspended = false;
    return { ...user };
  },
  send: async (real, { users }, { user }, options) =>
    stateOfUser((await users.reactivateUser({ userId: real.userIds[user] ?? "" }, options)).user),
});

const deleteUser = calls("DeleteUser", {
  input: aboutUser,
  predict: (world, call) => {
    const user = liveUser(world, call);
    demandOtherOwners(world, call.user);
    user.deleted = true;
    return { ...user };
  },
  send: async (real, { users }, { user }, options) =>
    stateOfUser((await users.deleteUser({ userId: real.userIds[user] ?? "" }, options)).user),
});

const undeleteUser = aimedCalls("UndeleteUser", {
  input: aboutUser,
  aim: aimAtUser(({ deleted }) => deleted),
  predict: (world, call) => {
    enterOutside(world, call.by);
    const user = userOf(world, call.user);
    if (!user.deleted) refuse("NOT_DELETED");
    user.deleted = false;
    return { ...user };
  },
  send: async (real, { users }, { user }, options) =>
    stateOfUser((await users.undeleteUser({ userId: real.userIds[user] ?? "" }, options)).user),
});

const aboutOrg = fc.record({ by, org: fc.constantFrom(0, 0, 1) });

const suspendOrg = calls("SuspendOrg", {
  input: aboutOrg,
  predict: (world, call) => {
    const { org } = enter(world, call, "roster.platform");
    org.suspended = true;
    return { suspended: true, deleted: false };
  },
  send: async (real, { orgs }, { org }, options) =>
    stateOfOrg((await orgs.suspendOrg({ orgId: real.orgIds[org] ?? "" }, options)).org),
});

const reactivateOrg = aimedCalls("ReactivateOrg", {
  input: aboutOrg,
  aim: aimAtOrg(({ suspended }) => suspended),
  predict: (world, call) => {
    const { org } = enter(world, call, "roster.platform");
    org.suspended = false;
    if (!keepsOwner(world, org)) throw new Refused("LAST_OWNER", [call.org]);
    return { suspended: false, deleted: false };
  },
  send: async (real, { orgs }, { org }, options) =>
    stateOfOrg((await orgs.reactivateOrg({ orgId: real.orgIds[org] ?? "" }, options)).org),
});

const deleteOrg = calls("DeleteOrg", {
  input: callWith({ by: fc.constantFrom(platform, 0, 4, 1), force: fc.boolean() }),
  predict: (world, call) => {
    const { org } = enter(world, call, "org.delete");
    const hasOthers = [...org.members].some(
      ([user, member]) =>
        member.role !== "owner" && isLasting(member) && !userOf(world, user).deleted,
    );
    const hasTeams = [...org.teams.values()].some(isLive);
    if ((hasOthers || hasTeams) && !call.force) refuse("ORG_HAS_CHILDREN");
    org.deleted = true;
    return { suspended: org.suspended, deleted: true };
  },
  send: async (real, { orgs }, { org, force }, options) =>
    stateOfOrg((await orgs.deleteOrg({ orgId: real.orgIds[org] ?? "", force }, options)).org),
});

const undeleteOrg = aimedCalls("UndeleteOrg", {
  input: callWith({ by: fc.constantFrom(platform, platform, platform, 0) }),
  aim: aimAtOrg(({ deleted }) => deleted),
  predict: (world, call) => {
    const { org } = enter(world, call, "roster.platform", { deleted: true });
    if (!org.deleted) refuse("NOT_DELETED");
    org.deleted = false;
    if (!keepsOwner(world, org)) throw new Refused("LAST_OWNER", [call.org]);
    return { suspended: org.suspended, deleted: false };
  },
  send: async (real, { orgs }, { org }, options) =>
    stateOfOrg((await orgs.undeleteOrg({ orgId: real.orgIds[org] ?? "" }, options)).org),
});

export const lifeCalls = [
  suspendUser,
  reactivateUser,
  deleteUser,
  undeleteUser,
  undeleteUser,
  suspendOrg,
  reactivateOrg,
  deleteOrg,
  undeleteOrg,
  undeleteOrg,
];
