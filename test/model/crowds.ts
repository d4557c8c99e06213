/** Calls at the same instant that all want what room an org has left. */
import fc from "fast-check";
import { acceptInvitation, batchCreateInvitations, createInvitation } from "./invitations.ts";
import { addOrgMember, batchAddOrgMembers, removeOrgMember } from "./members.ts";
import { end } from "./operation.ts";
import { type End, platform } from "./world.ts";

/** The org that has limits from the first, by its owner or platform. */
const there = { by: fc.constantFrom(platform, 4), org: fc.constant(1) };
const role = fc.constant("member");
/** Who is not there at first, and mostly not later. */
const newcomer = fc.constantFrom(2, 3, 2, 3, 5);
const newMember = fc.record({ user: newcomer, role, end: end as fc.Arbitrary<End> });
const newInvitation = fc.record({ invitee: fc.nat(5), role });
const many = { minLength: 1, maxLength: 3 };

const comers = fc.oneof(
  fc.tuple(fc.record(there), newMember).map((parts) => addOrgMember.with(Object.assign(...parts))),
  fc
    .record({ ...there, members: fc.array(newMember, many) })
    .map((input) => batchAddOrgMembers.with(input)),
  fc
    .record({ by: newcomer, org: there.org, pick: fc.nat(20) })
    .map((input) => acceptInvitation.with({ ...input, invitee: true, token: "last" })),
  fc
    .record({ ...there, user: fc.constantFrom(0, 1, 2, 3) })
    .map((input) => removeOrgMember.with(input)),
);
const inviters = fc.oneof(
  fc
    .tuple(fc.record(there), newInvitation)
    .map((parts) => createInvitation.with(Object.assign(...parts))),
  fc
    .record({ ...there, invitations: fc.array(newInvitation, many) })
    .map((input) => batchCreateInvitations.with(input)),
);

export const crowds = fc.oneof(
  fc.array(comers, { minLength: 2, maxLength: 3 }),
  fc.array(inviters, { minLength: 2, maxLength: 3 }),
);
