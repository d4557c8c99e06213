/** One request for each RPC of OrgService. */
import { randomUUID } from "node:crypto";
import { type Harness, slug } from "../harness.ts";
import { address, makeUser } from "../made-user.ts";
import type { Samples, World } from "./world.ts";

const slugOf = async ({ ops }: Harness, orgId: string): Promise<string> =>
  (await ops.orgs.getOrg({ orgId })).org?.slug ?? "";

/** An org of nobody else, which may be closed. */
const newOrg = async (harness: Harness): Promise<string> => {
  const ownerUserId = await harness.user();
  const { org } = await harness.ops.orgs.createOrg({
    org: { name: "New", slug: slug() },
    ownerUserId,
  });
  return org?.id ?? "";
};

const deletedOrg = async (harness: Harness): Promise<string> => {
  const orgId = await newOrg(harness);
  await harness.ops.orgs.deleteOrg({ orgId });
  return orgId;
};

/** A new invitation, with the token that answers it. */
const newInvitation = async ({ owner, orgId }: World, email = address()) => {
  const { invitation, token } = await owner.orgs.createInvitation({ invitation: { orgId, email } });
  return { orgId, invitationId: invitation?.id ?? "", token };
};

/** An answer for the user who was invited. */
const newAnswer = async (world: World) => {
  const { id: userId, email } = await makeUser(world.harness);
  return { ...(await newInvitation(world, email)), userId };
};

export const orgSamples: Samples = {
  "OrgService.CreateOrg": {
    by: "platform",
    request: ({ memberId }) => ({ org: { name: "New", slug: slug() }, ownerUserId: memberId }),
    ignored: ["org.id"],
  },
  "OrgService.GetOrg": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "OrgService.BatchGetOrgs": { by: "service", request: ({ orgId }) => ({ orgIds: [orgId] }) },
  "OrgService.LookupOrg": {
    by: "service",
    request: async ({ harness, orgId }) => ({
      key: { case: "slug", value: await slugOf(harness, orgId) },
    }),
  },
  "OrgService.ListOrgs": { by: "service", request: () => ({}) },
  "OrgService.UpdateOrg": {
    by: "owner",
    request: ({ orgId: id }) => ({ org: { id, labels: { now: randomUUID() } } }),
  },
  "OrgService.DeleteOrg": { by: "owner", request: ({ orgId }) => ({ orgId, force: true }) },
  "OrgService.UndeleteOrg": {
    by: "platform",
    request: async ({ harness }) => ({ orgId: await deletedOrg(harness) }),
  },
  "OrgService.PurgeOrg": {
    by: "platform",
    request: async ({ harness }) => ({ orgId: await deletedOrg(harness) }),
    fault: ["org_id", "not-an-id"],
  },
  "OrgService.SuspendOrg": {
    by: "platform",
    request: async ({ harness }) => ({ orgId: await newOrg(harness) }),
  },
  "OrgService.ReactivateOrg": {
    by: "platform",
    request: async ({ harness }) => {
      const orgId = await newOrg(harness);
      await harness.ops.orgs.suspendOrg({ orgId });
      return { orgId };
    },
  },
  "OrgService.GetOrgLimits": { by: "platform", request: ({ orgId }) => ({ orgId }) },
  "OrgService.UpdateOrgLimits": {
    by: "platform",
    request: ({ orgId }) => ({ limits: { orgId, auditRetentionDays: 90 } }),
  },
  "OrgService.AddOrgMember": {
    by: "owner",
    request: async ({ orgId, harness }) => ({ orgId, userId: await harness.user() }),
  },
  "OrgService.BatchAddOrgMembers": {
    by: "owner",
    request: async ({ orgId, harness }) => ({
      orgId,
      members: [{ userId: await harness.user() }, { userId: await harness.user(), role: "guest" }],
    }),
    fault: ["members", []],
  },
  "OrgService.GetOrgMember": {
    by: "member",
    request: ({ orgId, mateId: userId }) => ({ orgId, userId }),
  },
  "OrgService.ListOrgMembers": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "OrgService.UpdateOrgMember": {
    by: "owner",
    request: async ({ orgId, person }) => ({
      member: { orgId, userId: await person("member"), role: "guest" },
    }),
  },
  "OrgService.RemoveOrgMember": {
    by: "owner",
    request: async ({ orgId, person }) => ({ orgId, userId: await person("member") }),
  },
  "OrgService.CreateInvitation": {
    by: "owner",
    request: ({ orgId }) => ({ invitation: { orgId, email: address() } }),
    ignored: ["invitation.id", "invitation.inviter_id"],
  },
  "OrgService.BatchCreateInvitations": {
    by: "owner",
    request: ({ orgId }) => ({ orgId, invitations: [{ email: address() }, { email: address() }] }),
    fault: ["invitations", []],
  },
  "OrgService.GetInvitation": {
    by: "owner",
    request: ({ orgId, invitationId }) => ({ orgId, invitationId }),
  },
  "OrgService.ListInvitations": { by: "owner", request: ({ orgId }) => ({ orgId }) },
  "OrgService.ResendInvitation": {
    by: "owner",
    request: async (world) => {
      const { orgId, invitationId } = await newInvitation(world);
      return { orgId, invitationId };
    },
  },
  "OrgService.AcceptInvitation": { by: "service", request: newAnswer, fault: ["token", ""] },
  "OrgService.DeclineInvitation": { by: "service", request: newAnswer, fault: ["token", ""] },
  "OrgService.RevokeInvitation": {
    by: "owner",
    request: async (world) => {
      const { orgId, invitationId } = await newInvitation(world);
      return { orgId, invitationId };
    },
  },
  "OrgService.TransferOrgOwnership": {
    by: "owner",
    request: async ({ orgId, person }) => ({
      orgId,
      fromUserId: await person("owner"),
      toUserId: await person("member"),
    }),
    fault: ["former_role", "nothing"],
  },
};
