import { expect } from "vitest";
import type { Role } from "../src/gen/roster/v1/role_pb.ts";
import type { Callers, Harness } from "./harness.ts";

/** A role that these callers make. */
export const makeRole = async (
  { access }: Callers,
  orgId: string,
  name: string,
  ...permissions: string[]
): Promise<Role> => {
  const { role } = await access.createRole({ role: { orgId, name, permissions } });
  return role ?? expect.fail("no role came back");
};

/** A new member who has a role. */
export const makeHolder = async (
  harness: Harness,
  orgId: string,
  role: string,
): Promise<Callers & { readonly userId: string }> => {
  const userId = await harness.user();
  await harness.ops.orgs.addOrgMember({ orgId, userId, role });
  return { userId, ...(await harness.as(userId)) };
};
