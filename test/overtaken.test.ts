import { Code } from "@connectrpc/connect";
import { describe, expect, test } from "vitest";
import { type Tenant, useHarness } from "./harness.ts";
import { cutIn } from "./overlap.ts";

const harness = useHarness();

const add = "insert into roster.org_members (org_id, user_id) values ($1, $2)";
const undelete = `update roster.users set delete_time = null, purge_time = null where id = $2 and $1 <> ''`;

const remove = (table: string) =>
  `update roster.${table} set delete_time = now(), purge_time = now() + interval '1 day'`;
const removeUser = `${remove("users")} where id = $2 and $1 <> ''`;
const removeOrg = `${remove("orgs")} where id = $1 and $2 <> ''`;

/** Changes of somebody who is absent, and what brings them. An etag may be sent with all. */
const changes = {
  UpdateOrgMember: [
    add,
    ({ owner, orgId }: Tenant, userId: string, etag: string) =>
      owner.orgs.updateOrgMember({ member: { orgId, userId, role: "guest", etag } }),
  ],
  RemoveOrgMember: [
    add,
    ({ owner, orgId }: Tenant, userId: string, etag: string) =>
      owner.orgs.removeOrgMember({ orgId, userId, etag }),
  ],
  UpdateUser: [
    undelete,
    (_tenant: Tenant, id: string, etag: string) =>
      harness.current.ops.users.updateUser({ user: { id, name: "New Name", etag } }),
  ],
  ReactivateUser: [
    undelete,
    (_tenant: Tenant, userId: string, etag: string) =>
      harness.current.ops.users.reactivateUser({ userId, etag }),
  ],
  UndeleteUser: [
    removeUser,
    (_tenant: Tenant, userId: string) => harness.current.ops.users.undeleteUser({ userId }),
  ],
  UndeleteOrg: [removeOrg, ({ orgId }: Tenant) => harness.current.ops.orgs.undeleteOrg({ orgId })],
} as const;
const kinds = Object.keys(changes) as (keyof typeof changes)[];

describe("A change of what is absent, and comes before the change can say so", () => {
  /** Lets somebody come while a change of them is under way. */
  const meet = async (kind: keyof typeof changes, etag: string) => {
    const tenant = await harness.current.tenant();
    const [bring, change] = changes[kind];
    const userId = await harness.current.user();
    if (bring === undelete) await harness.current.ops.users.deleteUser({ userId });
    const call = () => change(tenant, userId, etag);
    return cutIn(harness.current, call, bring, [tenant.orgId, userId]);
  };

  test.each(kinds)("is made after all: %s", async (kind) => {
    expect(await meet(kind, "")).toMatchObject({ status: "fulfilled" });
  });

  test("ABORTED when it was sent with an etag that is not the current one", async () => {
    const outcome = await meet("UpdateOrgMember", '"7"');
    expect(outcome).toMatchObject({ status: "rejected", reason: { code: Code.Aborted } });
  });
});
