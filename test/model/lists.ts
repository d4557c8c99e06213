/** Calls that look: who the caller is, and what there is. */

import { accessCalls, accessViewsOf } from "./access.ts";
import { invitationAnswer } from "./invitations.ts";
import { calls, callWith, type Draw, person } from "./operation.ts";
import { builtInRoles, sorted, stateOfOrg } from "./real.ts";
import { lookingAtTeams, teamViewsOf, unordered } from "./team-lists.ts";
import {
  enter,
  enterOutside,
  isLasting,
  permissionsOf,
  platform,
  refuse,
  userOf,
  type World,
} from "./world.ts";

const getCaller = calls("GetCaller", {
  input: callWith({}),
  predict: (world, call) => {
    const { org } = enter(world, call, "", { self: true });
    if (call.by === platform) return { role: "", permissions: ["roster.platform"] };
    const role = org.members.get(call.by)?.role ?? "";
    return { role, permissions: sorted(permissionsOf(org, role) ?? []) };
  },
  send: async (real, { users }, { org }, options) => {
    const { role, permissions } = await users.getCaller({ orgId: real.orgIds[org] ?? "" }, options);
    return { role, permissions: sorted(permissions) };
  },
});

const listOrgMembers = calls("ListOrgMembers", {
  input: callWith({}),
  predict: (world, call) => {
    const { org } = enter(world, call, "members.get");
    const shown = [...org.members].filter(
      ([user, member]) => isLasting(member) && !userOf(world, user).deleted,
    );
    return unordered(
      shown.map(([user, { role, suspended, end }]) => ({ user, role, suspended, end })),
    );
  },
  send: async (real, { orgs }, { org }, options) => {
    const { members } = await orgs.listOrgMembers({ orgId: real.orgIds[org] ?? "" }, options);
    return unordered(members.map((member) => real.member(member)));
  },
});

const listRoles = calls("ListRoles", {
  input: callWith({}),
  predict: (world, call) => {
    const { org } = enter(world, call, "org.get");
    return [...builtInRoles, ...sorted([...org.roles.keys()])].map((name) => ({
      name,
      permissions: sorted(permissionsOf(org, name) ?? []),
    }));
  },
  send: async (real, { access }, { org }, options) => {
    const { roles } = await access.listRoles({ orgId: real.orgIds[org] ?? "" }, options);
    return roles.map(({ name, permissions }) => ({ name, permissions }));
  },
});

const listInvitations = calls("ListInvitations", {
  input: callWith({}),
  predict: (world, call) => {
    const { org } = enter(world, call, "members.invite");
    return unordered(
      [...org.invitations].map(([key, invitation]) => invitationAnswer(key, invitation)),
    );
  },
  send: async (real, { orgs }, { org }, options) => {
    const { invitations } = await orgs.listInvitations({ orgId: real.orgIds[org] ?? "" }, options);
    return unordered(invitations.map((invitation) => real.invitation(invitation)));
  },
});

const listUserOrgs = calls("ListUserOrgs", {
  input: callWith({ user: person }),
  predict: (world, { by, user }) => {
    enterOutside(world, by, by === user);
    if (userOf(world, user).deleted) refuse("USER_NOT_FOUND");
    return world.orgs.flatMap(({ suspended, deleted, members }, org) => {
      const member = members.get(user);
      if (!member || member.suspended || !isLasting(member) || deleted) return [];
      return [{ org, suspended, deleted, member: { user, ...member } }];
    });
  },
  send: async (real, { users }, { user }, options) => {
    const { userOrgs } = await users.listUserOrgs({ userId: real.userIds[user] ?? "" }, options);
    const answers = userOrgs.map(({ org, member }) => ({
      org: real.orgIds.indexOf(org?.id ?? ""),
      ...stateOfOrg(org),
      member: real.member(member),
    }));
    return answers.sort((one, other) => one.org - other.org);
  },
});

export const lookingCalls = [
  getCaller,
  listOrgMembers,
  listRoles,
  listInvitations,
  listUserOrgs,
  ...lookingAtTeams,
  ...accessCalls,
];

/** All that platform is shown of a world, and what others are of its teams. */
export const viewsOf = (world: World): Draw[] => [
  ...world.orgs.flatMap((_, org) =>
    [listOrgMembers, listRoles, listInvitations].map((look) => look.with({ by: platform, org })),
  ),
  ...world.users.map((_, user) => listUserOrgs.with({ by: platform, org: 0, user })),
  ...teamViewsOf(world),
  ...accessViewsOf(world),
];
