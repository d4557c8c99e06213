/** Calls that suspend, delete and bring back users and orgs. */
import fc from "fast-check";
import { calls, callWith, person } from "./operation.ts";
import { stateOfOrg, stateOfUser } from "./real.ts";
import {
  enter,
  enterOutside,
  isActive,
  isLasting,
  isOwner,
  keepsOwner,
  Refused,
  refuse,
  type User,
  userOf,
  type World,
} from "./world.ts";

const aboutUser = callWith({ user: person });
type AboutUser = typeof aboutUser extends fc.Arbitrary<infer Input> ? Input : never;

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

const reactivateUser = calls("ReactivateUser", {
  input: aboutUser,
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

const undeleteUser = calls("UndeleteUser", {
  input: aboutUser,
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

const aboutOrg = callWith({});

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

const reactivateOrg = calls("ReactivateOrg", {
  input: aboutOrg,
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
  input: callWith({ force: fc.boolean() }),
  predict: (world, call) => {
    const { org } = enter(world, call, "org.delete");
    const hasOthers = [...org.members].some(
      ([user, member]) =>
        member.role !== "owner" && isLasting(member) && !userOf(world, user).deleted,
    );
    if (hasOthers && !call.force) refuse("ORG_HAS_CHILDREN");
    org.deleted = true;
    return { suspended: org.suspended, deleted: true };
  },
  send: async (real, { orgs }, { org, force }, options) =>
    stateOfOrg((await orgs.deleteOrg({ orgId: real.orgIds[org] ?? "", force }, options)).org),
});

const undeleteOrg = calls("UndeleteOrg", {
  input: aboutOrg,
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
  suspendOrg,
  reactivateOrg,
  deleteOrg,
  undeleteOrg,
];
