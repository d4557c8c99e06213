/** One request for each RPC of AccessService. */
import { randomUUID } from "node:crypto";
import type { Samples, World } from "./world.ts";

const roleName = (): string => `r${randomUUID().slice(0, 8)}`;

/** A new role that nobody has. */
const newRole = async ({ harness, orgId }: World): Promise<string> => {
  const role = { orgId, name: roleName(), permissions: ["org.get"] };
  await harness.ops.access.createRole({ role });
  return role.name;
};

export const accessSamples: Samples = {
  "AccessService.CheckAccess": {
    by: "owner",
    unknown: ["user_id"],
    request: ({ orgId, mateId, teamId }) => ({
      orgId,
      userId: mateId,
      permission: "teams.get",
      teamId,
    }),
  },
  "AccessService.BatchCheckAccess": {
    by: "owner",
    request: ({ orgId, mateId, teamId }) => ({
      orgId,
      checks: [
        { userId: mateId, permission: "teams.get", teamId },
        { userId: mateId, permission: "org.delete" },
      ],
    }),
  },
  "AccessService.ListEffectivePermissions": {
    by: "owner",
    request: ({ orgId, mateId, teamId }) => ({ orgId, userId: mateId, teamId }),
  },
  "AccessService.CreateRole": {
    by: "owner",
    request: ({ orgId }) => ({
      role: { orgId, name: roleName(), permissions: ["org.get", "members.get"] },
    }),
  },
  "AccessService.GetRole": { by: "member", request: ({ orgId }) => ({ orgId, name: "crew" }) },
  "AccessService.ListRoles": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "AccessService.UpdateRole": {
    by: "owner",
    request: async (world) => ({
      role: { orgId: world.orgId, name: await newRole(world), title: randomUUID() },
    }),
  },
  "AccessService.DeleteRole": {
    by: "owner",
    request: async (world) => ({ orgId: world.orgId, name: await newRole(world) }),
  },
};
