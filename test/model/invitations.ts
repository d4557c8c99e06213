/** Calls that make invitations, and calls by which they are answered. */
import { randomUUID } from "node:crypto";
import type { CallOptions } from "@connectrpc/connect";
import fc from "fast-check";
import type { Callers } from "../harness.ts";
import { admit, isInTheWay } from "./members.ts";
import { aimedCalls, among, callWith, person, role } from "./operation.ts";
import { type Real, refusalIn } from "./real.ts";
import {
  type Answer,
  type Call,
  demandGrantable,
  demandHeld,
  demandRoom,
  enter,
  enterToGrant,
  type Held,
  type Invitation,
  isActive,
  isLasting,
  type Org,
  orgOf,
  platform,
  Refused,
  refuse,
  roleFault,
  stateOf,
  userOf,
  type World,
} from "./world.ts";

interface NewInvitation {
  readonly invitee: number;
  readonly role: string;
}

const newInvitation = { invitee: person, role };

/** An invitation as answers have it. */
export const invitationAnswer = (key: string, invitation: Invitation): Answer => {
  const { invitee, role, inviter } = invitation;
  return { key, invitee, role, inviter, state: stateOf(invitation) };
};

/**
 * Makes room for a pending invitation to an address: one whose time has passed gives way. One that is `again` pending
 * and was not until now takes room like a new one.
 */
const makeRoom = (world: World, org: Org, invitee: number, again = ""): void => {
  const { invitations } = org;
  const others = [...invitations].filter(
    ([key, other]) => key !== again && other.invitee === invitee && other.state === "PENDING",
  );
  if (others.some(([, other]) => !other.over)) refuse("INVITATION_EXISTS");
  const former = invitations.get(again);
  if (!former || stateOf(former) !== "PENDING") demandRoom(world, org, "pendingInvitations");
  for (const [key, other] of others) invitations.set(key, { ...other, state: "EXPIRED" });
};

const invite = (
  world: World,
  org: Org,
  held: Held,
  inviter: number,
  key: string,
  init: NewInvitation,
): Answer => {
  demandGrantable(org, init.role, held);
  makeRoom(world, org, init.invitee);
  const { invitee, role } = init;
  const made: Invitation = { invitee, role, inviter, state: "PENDING", over: false, resends: 0 };
  org.invitations.set(key, made);
  return invitationAnswer(key, made);
};

export const createInvitation = aimedCalls("CreateInvitation", {
  input: callWith(newInvitation),
  aim: (input, _world, key) => ({ ...input, key }),
  predict: (world, call) => {
    const { org, held } = enterToGrant(world, call, "members.invite");
    return invite(world, org, held, call.by, call.key, call);
  },
  send: async (real, { orgs }, { org, invitee, role, key }, options) => {
    const init = { orgId: real.orgIds[org] ?? "", email: real.emails[invitee] ?? "", role };
    const { invitation, token } = await orgs.createInvitation({ invitation: init }, options);
    real.keep(key, invitation?.id ?? "", token);
    return real.invitation(invitation);
  },
});

export const batchCreateInvitations = aimedCalls("BatchCreateInvitations", {
  input: callWith({
    invitations: fc.array(fc.record(newInvitation), { minLength: 1, maxLength: 3 }),
  }),
  aim: (input, _world, key) => ({ ...input, key }),
  predict: (world, call) => {
    const entered = enter(world, call, "members.invite");
    const { org, held } = entered;
    const before = org.invitations.size;
    const answers = call.invitations.map((invitation, place) => {
      try {
        return invite(world, org, held, call.by, `${call.key}.${place}`, invitation);
      } catch (error) {
        if (error instanceof Refused) return error.answer;
        throw error;
      }
    });
    if (org.invitations.size > before) demandHeld(call, entered);
    return answers;
  },
  send: async (real, { orgs }, { org, invitations, key }, options) => {
    const request = {
      orgId: real.orgIds[org] ?? "",
      invitations: invitations.map(({ invitee, role }) => ({
        email: real.emails[invitee] ?? "",
        role,
      })),
    };
    const { results } = await orgs.batchCreateInvitations(request, options);
    return results.map(({ result, token }, place) => {
      if (result.case !== "invitation") return refusalIn(result.value);
      real.keep(`${key}.${place}`, result.value.id, token);
      return real.invitation(result.value);
    });
  },
});

/** Draws one of the invitations that there are. */
const pick = fc.nat(20);

interface Picking extends Call {
  readonly pick: number;
}

/** The invitation that was drawn, by its key; without any, one that is not there. */
const picked = (world: World, { org, pick }: Picking): string => {
  return among([...orgOf(world, org).invitations.keys()].sort(), pick, "");
};

const aimAtInvitation = (input: Picking, world: World) => ({ ...input, key: picked(world, input) });

const invitationOf = ({ invitations }: Org, key: string): Invitation => {
  const invitation = invitations.get(key);
  if (!invitation) throw new Refused("INVITATION_NOT_FOUND");
  return invitation;
};

/** The same while nothing has become of it; that its time has passed does not matter. */
const openInvitation = (org: Org, key: string): Invitation => {
  const invitation = invitationOf(org, key);
  const { state } = invitation;
  if (state !== "PENDING" && state !== "EXPIRED") refuse(`INVITATION_${state}`);
  return invitation;
};

const named = (real: Real, { org, key }: Call & { readonly key: string }) => ({
  orgId: real.orgIds[org] ?? "",
  invitationId: real.invitations.get(key)?.id ?? randomUUID(),
});

const resendInvitation = aimedCalls("ResendInvitation", {
  input: callWith({ pick }),
  aim: aimAtInvitation,
  predict: (world, call) => {
    const { org, held } = enterToGrant(world, call, "members.invite");
    const former = openInvitation(org, call.key);
    demandGrantable(org, former.role, held);
    makeRoom(world, org, former.invitee, call.key);
    const resends = former.resends + 1;
    const sent: Invitation = { ...former, state: "PENDING", over: false, resends };
    org.invitations.set(call.key, sent);
    return [invitationAnswer(call.key, sent), resends];
  },
  send: async (real, { orgs }, call, options) => {
    const { invitation, token } = await orgs.resendInvitation(named(real, call), options);
    real.keep(call.key, invitation?.id ?? "", token);
    return [real.invitation(invitation), Number.parseInt(token, 10)];
  },
});

const revokeInvitation = aimedCalls("RevokeInvitation", {
  input: callWith({ pick }),
  aim: aimAtInvitation,
  predict: (world, call) => {
    const { org, held } = enterToGrant(world, call, "members.invite");
    const former = openInvitation(org, call.key);
    if (roleFault(org, former.role, held) === "ROLE_NOT_GRANTABLE") refuse("ROLE_NOT_GRANTABLE");
    const revoked: Invitation = { ...former, state: "REVOKED" };
    org.invitations.set(call.key, revoked);
    return invitationAnswer(call.key, revoked);
  },
  send: async (real, { orgs }, call, options) =>
    real.invitation((await orgs.revokeInvitation(named(real, call), options)).invitation),
});

/** Who answers: mostly those who were invited, with the token that was sent last. */
const answering = callWith({
  pick,
  invitee: fc.constantFrom(true, true, true, false),
  token: fc.constantFrom("last", "last", "last", "first", "false"),
});

const aimAtAnswer = (
  input: Call & { pick: number; invitee: boolean; token: string },
  world: World,
) => {
  const key = picked(world, input);
  const invitation = orgOf(world, input.org).invitations.get(key);
  const { invitee = input.by, resends = 0 } = invitation ?? {};
  return {
    ...input,
    key,
    by: input.invitee ? invitee : input.by,
    sent: { last: resends, first: 0, false: -1 }[input.token] ?? -1,
  };
};
type Answering = ReturnType<typeof aimAtAnswer>;

const answerable = (world: World, { by, org: place, key, sent }: Answering) => {
  const org = orgOf(world, place);
  if (by === platform) refuse("PERMISSION_MISSING");
  if (!isActive(userOf(world.before ?? world, by))) refuse("CALLER_INACTIVE");
  const invitation = invitationOf(org, key);
  if (org.deleted || invitation.resends !== sent || invitation.invitee !== by)
    refuse("INVITATION_NOT_FOUND");
  if (org.suspended) refuse("ORG_SUSPENDED");
  if (!isActive(userOf(world, by))) refuse("CALLER_INACTIVE");
  return { org, invitation };
};

const answerWith = (real: Real, call: Answering) => ({
  ...named(real, call),
  token: real.invitations.get(call.key)?.tokens.get(call.sent) ?? "0.false",
});

export const acceptInvitation = aimedCalls("AcceptInvitation", {
  input: answering,
  aim: aimAtAnswer,
  predict: (world, call) => {
    const { org, invitation } = answerable(world, call);
    const state = invitation.inviter === call.by ? "REVOKED" : stateOf(invitation);
    if (state !== "PENDING" && state !== "ACCEPTED") refuse(`INVITATION_${state}`);
    const former = org.members.get(call.by);
    const isMember = former && isLasting(former);
    if (!isMember && (state === "ACCEPTED" || isInTheWay(world, org, call.by)))
      refuse("INVITATION_ACCEPTED");
    if (!isMember) admit(world, org, { user: call.by, role: invitation.role, end: "never" });
    const accepted: Invitation = { ...invitation, state: "ACCEPTED" };
    org.invitations.set(call.key, accepted);
    return [invitationAnswer(call.key, accepted), { user: call.by, ...org.members.get(call.by) }];
  },
  send: async (real, { orgs }: Callers, call, options: CallOptions) => {
    const answer = await orgs.acceptInvitation(answerWith(real, call), options);
    return [real.invitation(answer.invitation), real.member(answer.member)];
  },
});

const declineInvitation = aimedCalls("DeclineInvitation", {
  input: answering,
  aim: aimAtAnswer,
  predict: (world, call) => {
    const { org, invitation } = answerable(world, call);
    const state = stateOf(invitation);
    if (state !== "PENDING" && state !== "DECLINED") refuse(`INVITATION_${state}`);
    const declined: Invitation = { ...invitation, state: "DECLINED" };
    org.invitations.set(call.key, declined);
    return invitationAnswer(call.key, declined);
  },
  send: async (real, { orgs }, call, options) =>
    real.invitation((await orgs.declineInvitation(answerWith(real, call), options)).invitation),
});

/** Not a call: the time of an invitation passes. */
export const timePasses = aimedCalls("Get on with the time of an invitation", {
  input: callWith({ pick }),
  aim: aimAtInvitation,
  predict: (world, { org: place, key }) => {
    const { invitations } = orgOf(world, place);
    const invitation = invitations.get(key);
    if (invitation) invitations.set(key, { ...invitation, over: true });
    return {};
  },
  send: async (real, _clients, { key }) => {
    await real.expire(key);
    return {};
  },
});

export const invitationCalls = [
  createInvitation,
  createInvitation,
  batchCreateInvitations,
  resendInvitation,
  revokeInvitation,
  acceptInvitation,
  acceptInvitation,
  declineInvitation,
];
