import { type Harness, slug } from "./harness.ts";

/** An org and who owns it. */
export interface Owned {
  readonly orgId: string;
  readonly ownerIds: readonly string[];
}

/** An org with so many owners and nobody else; `ids` are the first of them. */
export const ownedOrg = async (
  harness: Harness,
  count: number,
  ids: readonly string[] = [],
): Promise<Owned> => {
  const { ops } = harness;
  const ownerIds = [...ids];
  while (ownerIds.length < count) ownerIds.push(await harness.user());
  const [first = "", ...others] = ownerIds;
  const { org } = await ops.orgs.createOrg({
    org: { name: "Org", slug: slug() },
    ownerUserId: first,
  });
  const orgId = org?.id ?? "";
  for (const userId of others) await ops.orgs.addOrgMember({ orgId, userId, role: "owner" });
  return { orgId, ownerIds };
};

/** How many owners of an org count: live and active users with an active membership. */
export const activeOwners = async ({ admin }: Harness, orgId: string): Promise<number> => {
  const { rows } = await admin.query(
    `select count(*)::int as count from roster.org_members m join roster.users u on u.id = m.user_id
      where m.org_id = $1 and m.role = 'owner' and m.state = 'ACTIVE' and u.state = 'ACTIVE'
        and u.delete_time is null`,
    [orgId],
  );
  return rows[0].count;
};
