/** Calls that change who belongs to an org. */
import fc from "fast-check";
import { OrgMemberState } from "../../src/gen/roster/v1/org_member_pb.ts";
import { calls, callWith, end, person, role } from "./operation.ts";
import { endOf, refusalIn } from "./real.ts";
import {
  Anew,
  type Answer,
  demandGrantable,
  demandHeld,
  demandRoom,
  dismiss,
  type End,
  enter,
  enterToGrant,
  type Held,
  isActive,
  isLasting,
  isOwner,
  keepsOwner,
  type Member,
  memberOf,
  type Org,
  Refused,
  refuse,
  userOf,
  type World,
} from "./world.ts";

interface NewMember {
  readonly user: number;
  readonly role: string;
  readonly end: End;
}

const newMember = { user: person, role, end: end as fc.Arbitrary<End> };

/**
 * Whether someone was made a member since the call came in, though for a time that is over: who makes them one as well
 * had looked before, and finds them in the way.
 */
export const isInTheWay = ({ orgs, before }: World, org: Org, user: number): boolean => {
  const member = org.members.get(user);
  const then = before?.orgs[orgs.indexOf(org)] ?? org;
  return member?.end === "over" && then.joins.get(user) !== org.joins.get(user);
};

/**
 * Makes someone a member, unless they are one. One whose membership is over begins anew.
 *
 * @param again the same call has added them already, which even a membership that is over does not undo
 */
export const admit = (
  world: World,
  org: Org,
  { user, role, end }: NewMember,
  again = false,
): Answer => {
  if (!isActive(userOf(world, user))) refuse("USER_NOT_FOUND");
  if (role === "owner" && end !== "never") refuse("FIELD_INVALID");
  const former = org.members.get(user);
  if (former && (again || isLasting(former) || isInTheWay(world, org, user)))
    refuse("ORG_MEMBER_EXISTS");
  demandRoom(world, org, "members", end === "over" ? 0 : 1);
  dismiss(org, user);
  org.members.set(user, { role, suspended: false, end });
  org.joins.set(user, (org.joins.get(user) ?? 0) + 1);
  return { user, role, suspended: false, end };
};

const add = (world: World, org: Org, held: Held, init: NewMember, again = false): Answer => {
  demandGrantable(org, init.role, held);
  return admit(world, org, init, again);
};

/** Refuses a change after which an org would be without an owner. */
const demandOwner = (world: World, place: number, org: Org, user: number): void => {
  if (!keepsOwner(world, org, user)) throw new Refused("LAST_OWNER", [place]);
};

export const addOrgMember = calls("AddOrgMember", {
  input: callWith(newMember),
  predict: (world, call) => {
    const { org, held } = enterToGrant(world, call, "members.add");
    return add(world, org, held, call);
  },
  send: async (real, { orgs }, { org, user, role, end }, options) => {
    const request = { orgId: real.orgIds[org] ?? "", userId: real.userIds[user] ?? "", role };
    return real.member((await orgs.addOrgMember({ ...request, ...endOf(end) }, options)).member);
  },
});

export const batchAddOrgMembers = calls("BatchAddOrgMembers", {
  input: callWith({
    members: fc.array(fc.record(newMember), { minLength: 1, maxLength: 3 }),
  }),
  predict: (world, call) => {
    const entered = enter(world, call, "members.add");
    const { org, held } = entered;
    const added = new Set<number>();
    const answers = call.members.map((member) => {
      try {
        const answer = add(world, org, held, member, added.has(member.user));
        added.add(member.user);
        return answer;
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        if (error.message === "ORG_MEMBER_EXISTS" && isInTheWay(world, org, member.user))
          throw new Anew();
        return error.answer;
      }
    });
    if (added.size > 0) demandHeld(call, entered);
    return answers;
  },
  send: async (real, { orgs }, { org, members }, options) => {
    const request = {
      orgId: real.orgIds[org] ?? "",
      members: members.map(({ user, role, end }) => ({
        userId: real.userIds[user] ?? "",
        role,
        ...endOf(end),
      })),
    };
    const { results } = await orgs.batchAddOrgMembers(request, options);
    return results.map(({ result }) =>
      result.case === "member" ? real.member(result.value) : refusalIn(result.value),
    );
  },
});

type Change = Partial<Member>;
const change: fc.Arbitrary<Change> = fc.oneof(
  fc.record({ role }),
  fc.record({ suspended: fc.boolean() }),
  fc.record({ end: end as fc.Arbitrary<End> }),
  fc.record({ role, suspended: fc.boolean(), end: end as fc.Arbitrary<End> }),
);
const fieldOf = { role: "role", suspended: "state", end: "expire_time" };

export const updateOrgMember = calls("UpdateOrgMember", {
  input: callWith({ user: person, change }),
  predict: (world, call) => {
    const { org, held } = enterToGrant(world, call, "members.update");
    const former = memberOf(world, org, call.user);
    const member = { ...former, ...call.change };
    demandGrantable(org, former.role, held);
    demandGrantable(org, member.role, held);
    // Nobody makes their own membership last longer, unless they hold all.
    if (held !== "*" && call.by === call.user && former.end === "later" && member.end === "never")
      refuse("ROLE_NOT_GRANTABLE");
    if (isOwner(member) && !isOwner(former) && !isActive(userOf(world, call.user)))
      refuse("OWNER_INACTIVE");
    if (isOwner(former) && !isOwner(member)) demandOwner(world, call.org, org, call.user);
    if (member.role === "owner" && member.end !== "never") refuse("FIELD_INVALID");
    org.members.set(call.user, member);
    return { user: call.user, ...member };
  },
  send: async (real, { orgs }, { org, user, change }, options) => {
    const { role, suspended, end } = change;
    const member = {
      orgId: real.orgIds[org] ?? "",
      userId: real.userIds[user] ?? "",
      role: role ?? "",
      state: suspended ? OrgMemberState.SUSPENDED : OrgMemberState.ACTIVE,
      ...endOf(end ?? "never"),
    };
    const paths = Object.keys(change).map((name) => fieldOf[name as keyof Member]);
    const answer = await orgs.updateOrgMember({ member, updateMask: { paths } }, options);
    return real.member(answer.member);
  },
});

export const removeOrgMember = calls("RemoveOrgMember", {
  input: callWith({ user: person }),
  predict: (world, call) => {
    const self = call.by === call.user;
    const { org, held } = enterToGrant(world, call, "members.remove", self);
    const member = memberOf(world, org, call.user);
    if (!self) demandGrantable(org, member.role, held);
    if (isOwner(member)) demandOwner(world, call.org, org, call.user);
    dismiss(org, call.user);
    return { user: call.user, ...member };
  },
  send: async (real, { orgs }, { org, user }, options) => {
    const request = { orgId: real.orgIds[org] ?? "", userId: real.userIds[user] ?? "" };
    return real.member((await orgs.removeOrgMember(request, options)).member);
  },
});

const transferOrgOwnership = calls("TransferOrgOwnership", {
  input: callWith({ from: fc.constantFrom(0, 0, 4, 1, 2, 3), to: person, role }),
  predict: (world, call) => {
    const { org, held } = enterToGrant(world, call, "org.delete");
    if (call.from === call.to) refuse("FIELD_INVALID");
    const heir = memberOf(world, org, call.to);
    if (heir.suspended) refuse("ORG_MEMBER_NOT_FOUND");
    demandGrantable(org, heir.role, held);
    demandGrantable(org, "owner", held);
    if (!isOwner(heir) && !isActive(userOf(world, call.to))) refuse("OWNER_INACTIVE");
    const to: Member = { role: "owner", suspended: false, end: "never" };
    org.members.set(call.to, to);
    const former = memberOf(world, org, call.from);
    if (!isOwner(former)) refuse("ORG_MEMBER_NOT_OWNER");
    demandGrantable(org, call.role, held);
    const from = { ...former, role: call.role };
    if (!isOwner(from)) demandOwner(world, call.org, org, call.from);
    org.members.set(call.from, from);
    return [
      { user: call.from, ...from },
      { user: call.to, ...to },
    ];
  },
  send: async (real, { orgs }, call, options) => {
    const request = {
      orgId: real.orgIds[call.org] ?? "",
      fromUserId: real.userIds[call.from] ?? "",
      toUserId: real.userIds[call.to] ?? "",
      formerRole: call.role,
    };
    const { from, to } = await orgs.transferOrgOwnership(request, options);
    return [real.member(from), real.member(to)];
  },
});

export const memberCalls = [
  addOrgMember,
  batchAddOrgMembers,
  updateOrgMember,
  updateOrgMember,
  updateOrgMember,
  removeOrgMember,
  removeOrgMember,
  transferOrgOwnership,
];

const lowering = fc.constantFrom<Change>({ role: "guest" }, { suspended: true }, { end: "over" });

/** Two people each of whom takes the other's rights away, at the same instant: only one can come first. */
export const duels = fc
  .tuple(
    fc.constantFrom([1, 2], [1, 2], [1, 3], [0, 1]),
    fc.array(fc.option(lowering), { minLength: 2, maxLength: 2 }),
  )
  .map(([[one = 0, other = 0], changes]) =>
    changes.map((change, place) => {
      const [by, user] = place === 0 ? [one, other] : [other, one];
      return change === null
        ? removeOrgMember.with({ by, org: 0, user })
        : updateOrgMember.with({ by, org: 0, user, change });
    }),
  );
