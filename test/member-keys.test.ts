import { describe, expect, test } from "vitest";
import { migrate, readMigrations } from "../src/database/migrate.ts";
import { asAdmin, bootstrapped } from "./databases.ts";
import { slug, useHarness } from "./harness.ts";
import { enter, useConnections, within } from "./sessions.ts";

const harness = useHarness();
const connect = useConnections();

/** Members whose keys are missing or not those of their user. */
const wrong = async (): Promise<number> => {
  const { rows } = await harness.current.admin.query(`
    select count(*)::int as count
    from roster.org_members m join roster.users u on u.id = m.user_id
    left join roster.org_member_keys k on k.org_id = m.org_id and k.user_id = m.user_id
    where (k.name_key, k.email_key) is distinct from (u.name_key, u.email_key)`);
  return rows[0].count;
};

describe("The keys of an org's members", () => {
  test("are those of their users, also when both change at once", async () => {
    const { ops } = harness.current;
    const { orgId } = await harness.current.tenant();
    for (let round = 0; round < 15; round++) {
      const userId = await harness.current.user(`Before ${round}`);
      const email = `after-${round}@example.com`;
      await Promise.all([
        ops.orgs.addOrgMember({ orgId, userId }),
        ops.users.updateUser({ user: { id: userId, name: `After ${round}`, email } }),
        ops.orgs.createOrg({ org: { name: "Org", slug: slug() }, ownerUserId: userId }),
        ops.users.updateUser({ user: { id: userId, labels: { round: `${round}` } } }),
      ]);
    }
    expect(await wrong()).toBe(0);
    const { users } = await ops.users.listUsers({ orgId, filter: 'name = "after*"' });
    expect(users).toHaveLength(15);
  });

  test("wait for a change of the user that has not ended", async () => {
    const { ops, admin } = harness.current;
    const { orgId } = await harness.current.tenant();
    const userId = await harness.current.user("Early");
    await admin.query("begin; set local session_replication_role = replica");
    await admin.query("update roster.users set name = 'Late' where id = $1", [userId]);
    const adding = ops.orgs.addOrgMember({ orgId, userId });
    await new Promise((resolve) => setTimeout(resolve, 200));
    await admin.query("commit");
    await adding;
    expect(await wrong()).toBe(0);
  });

  test("go with the membership, and leave no trace in the log", async () => {
    const { admin } = harness.current;
    const { orgId, memberId, owner } = await harness.current.tenant();
    await owner.orgs.removeOrgMember({ orgId, userId: memberId });
    const { rows } = await admin.query(
      "select user_id from roster.org_member_keys where org_id = $1 and user_id = $2",
      [orgId, memberId],
    );
    expect(rows).toEqual([]);
    const { auditEntries } = await owner.audit.listAuditEntries({ orgId, pageSize: 1 });
    expect(auditEntries[0]?.changes.map(({ resourceType }) => resourceType)).toEqual([
      "org_member",
    ]);
  });

  test("are written by nobody who enters the org", async () => {
    const { orgId, ownerId } = await harness.current.tenant();
    const app = await connect(harness.current.urls.app);
    for (const statement of [
      "update roster.org_member_keys set name_key = 'x'",
      "delete from roster.org_member_keys",
      `insert into roster.org_member_keys values ('${orgId}', '${ownerId}', 'x', 'x')`,
    ])
      expect(await within(app, enter(orgId, ownerId), statement)).toMatchObject({ code: "42501" });
  });

  test("are made for the members of a database from before there were any", async () => {
    const urls = await bootstrapped();
    const migrations = readMigrations();
    await migrate(
      urls.migrator,
      migrations.filter(({ version }) => version < 10),
    );
    await asAdmin(
      urls.admin,
      `begin; set local session_replication_role = replica;
      insert into roster.users (id, email, name)
        select md5(n::text)::uuid, n || '@EXAMPLE.com', 'É ' || n from generate_series(1, 3) n;
      insert into roster.orgs (id, name, slug) values (md5('o')::uuid, 'É', 'o');
      insert into roster.org_members (org_id, user_id) select md5('o')::uuid, id from roster.users;
      commit`,
    );
    await migrate(urls.migrator, migrations);
    const keys = "select name_key, email_key from roster.org_member_keys order by 1";
    expect(await asAdmin(urls.admin, keys)).toEqual(
      [1, 2, 3].map((n) => ({ name_key: `é ${n}`, email_key: `${n}@example.com` })),
    );
  });
});
