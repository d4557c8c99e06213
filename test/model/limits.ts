/** The call that sets how much an org may have. */
import fc from "fast-check";
import { aimedCalls, callWith } from "./operation.ts";
import { countsOf, defaultLimits, enter, type Limits, orgOf, platform } from "./world.ts";

const fieldOf = {
  members: "members",
  pendingInvitations: "pending_invitations",
  roles: "roles",
  teams: "teams",
  teamDepth: "team_depth",
} as const;

/** Sets a limit near what there is, so that it is met, or gives back the default. */
export const updateOrgLimits = aimedCalls("UpdateOrgLimits", {
  input: callWith({
    by: fc.constantFrom(platform, platform, platform, platform, 0),
    kind: fc.constantFrom<keyof Limits>(
      "members",
      "members",
      "pendingInvitations",
      "roles",
      "teams",
      "teamDepth",
    ),
    room: fc.constantFrom(0, 0, 1, 1, 2, -1, null),
  }),
  aim: (input, world) => {
    const { org, kind, room } = input;
    const held = countsOf(world, orgOf(world, org))[kind];
    return { ...input, limit: room === null ? 0 : Math.max(1, held + room) };
  },
  predict: (world, call) => {
    const { org } = enter(world, call, "roster.platform");
    org.limits = { ...org.limits, [call.kind]: call.limit || defaultLimits[call.kind] };
    return org.limits;
  },
  send: async (real, { orgs }, { org, kind, limit }, options) => {
    const limits = { orgId: real.orgIds[org] ?? "", [kind]: limit };
    const request = { limits, updateMask: { paths: [fieldOf[kind]] } };
    const { members, pendingInvitations, roles, teams, teamDepth } =
      (await orgs.updateOrgLimits(request, options)).limits ?? {};
    return { members, pendingInvitations, roles, teams, teamDepth };
  },
});
