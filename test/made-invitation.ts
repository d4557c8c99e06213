import type { MessageInitShape } from "@bufbuild/protobuf";
import { expect } from "vitest";
import type { InvitationSchema } from "../src/gen/roster/v1/invitation_pb.ts";
import { byHand } from "./console.ts";
import type { Callers, Harness, Tenant } from "./harness.ts";
import { address, makeUser } from "./made-user.ts";

/** What a test may say of an invitation. */
export type InvitationInit = MessageInitShape<typeof InvitationSchema>;

/** An invitation that these callers make, to a new address unless the test wants another. */
export const invite = async ({ orgs }: Callers, orgId: string, init: InvitationInit = {}) => {
  const request = { invitation: { email: address(), ...init, orgId } as InvitationInit };
  const { invitation, token } = await orgs.createInvitation(request);
  if (!invitation) return expect.fail("no invitation came back");
  return { invitation, token, answer: { orgId, invitationId: invitation.id, token } };
};

/** A new user who was invited by these callers. */
export const inviteUser = async (
  harness: Harness,
  callers: Callers,
  orgId: string,
  init: InvitationInit = {},
) => {
  const { id: userId, email } = await makeUser(harness);
  const invited = await invite(callers, orgId, { email, ...init } as InvitationInit);
  return { ...invited, userId, email, user: await harness.as(userId) };
};

/** Lets the time of an invitation be over, which no call and no trigger would. */
export const expire = async ({ admin }: Harness, invitationId: string): Promise<void> => {
  await admin.query(
    `begin;
    set local session_replication_role = replica;
    update roster.invitations set expire_time = now() - interval '1 second' where id = '${invitationId}';
    commit`,
  );
};

/** A role of the org's own, for which there is no RPC yet. */
export const customRole = (
  { admin }: Harness,
  orgId: string,
  name: string,
  ...permissions: string[]
): Promise<void> =>
  byHand(admin, "insert into roster.roles (org_id, name, permissions) values ($1, $2, $3)", [
    orgId,
    name,
    permissions,
  ]);

/** Invitations that were accepted, declined and revoked, with the reasons that say so. */
export const resolvedInvitations = async (harness: Harness, { orgId, owner }: Tenant) => {
  const accepted = await inviteUser(harness, owner, orgId);
  await accepted.user.orgs.acceptInvitation(accepted.answer);
  const declined = await inviteUser(harness, owner, orgId);
  await declined.user.orgs.declineInvitation(declined.answer);
  const revoked = await invite(owner, orgId);
  await owner.orgs.revokeInvitation({ orgId, invitationId: revoked.invitation.id });
  return [
    [accepted.invitation.id, "INVITATION_ACCEPTED"],
    [declined.invitation.id, "INVITATION_DECLINED"],
    [revoked.invitation.id, "INVITATION_REVOKED"],
  ] as const;
};
