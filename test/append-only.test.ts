import { describe, expect, test } from "vitest";
import { makePartitions } from "../src/jobs/partitions.ts";
import { log } from "./audit-log.ts";
import { useHarness } from "./harness.ts";
import { asAdmin } from "./sessions.ts";

const harness = useHarness();

/** Runs work as one of the roles of the database. */
const asRole = async (role: string, statement: string): Promise<unknown> => {
  const { admin } = harness.current;
  await admin.query("begin");
  try {
    if (role !== "superuser") await admin.query(`set local role ${role}`);
    return await admin.query(statement).then(
      ({ rowCount }) => rowCount,
      ({ code, message }) => `${code} ${message}`,
    );
  } finally {
    await admin.query("rollback");
  }
};

const month = (table: string, monthsAgo = 0): string => {
  const now = new Date();
  const first = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - monthsAgo, 1));
  return `${table}_${first.toISOString().slice(0, 7).replace("-", "_")}`;
};

describe("The audit log is only ever added to", () => {
  const statements = (table: string, column: string) => [
    `update roster.${table} set ${column} = ${column}`,
    `delete from roster.${table}`,
    `truncate roster.${table}`,
  ];
  const tables = [
    ["audit_entries", "method"],
    ["audit_changes", "method"],
    ["audit_seals", "number"],
    [month("audit_entries"), "method"],
    [month("audit_changes"), "method"],
  ] as const;

  test("also for the owner of its tables and for superusers, by triggers", async () => {
    await harness.current.tenant();
    await harness.current.admin.query("select roster.seal_audit(1000)");
    for (const role of ["roster_owner", "superuser"]) {
      for (const [table, column] of tables) {
        for (const statement of statements(table, column))
          expect(await asRole(role, statement), statement).toBe(
            "42501 the audit log is only ever added to",
          );
      }
    }
  });

  test("for every other role by grants, and for those with a grant by policies", async () => {
    await harness.current.tenant();
    for (const role of ["roster_app", "roster_directory", "roster_worker", "roster_migrator"]) {
      for (const [table, column] of tables) {
        if (role === "roster_migrator") continue;
        for (const statement of statements(table, column))
          expect(await asRole(role, statement), `${role}: ${statement}`).toContain(
            "42501 permission denied",
          );
      }
    }
    // Retention has removed nothing, and nobody was erased.
    expect(await asRole("roster_gate", "delete from roster.audit_entries")).toBe(0);
    expect(await asRole("roster_gate", "delete from roster.audit_changes")).toBe(0);
    expect(await asRole("roster_audit", "update roster.audit_changes set before = '{}'")).toContain(
      "42501",
    );
    expect(await asRole("roster_audit", "delete from roster.audit_changes")).toContain("42501");
  });

  test("but for an erasure, which may only blank", async () => {
    await harness.current.tenant();
    const asAudit = async (set: string) =>
      asRole("roster_audit", `update roster.audit_changes set ${set} where person is not null`);
    expect(await asAudit("salt = null, before = null, after = null")).toBeGreaterThan(0);
    // Without the policy that says so too.
    const { admin } = harness.current;
    await admin.query(
      "alter policy audit_changes_forget on roster.audit_changes with check (true)",
    );
    for (const set of ["salt = null", "salt = null, before = null, after = '{}'"])
      expect(await asAudit(set)).toBe("42501 the audit log is only ever added to");
    await admin.query(`alter policy audit_changes_forget on roster.audit_changes
      with check (before is null and after is null and salt is null)`);
  });
});

describe("A month without a partition", () => {
  test("fails no write; the job makes it, moves its rows, and leaves the rest alone", async () => {
    const { admin, ops, urls } = harness.current;
    const { orgId, owner } = await harness.current.tenant();
    const before = await log(owner, orgId);
    for (const table of ["audit_entries", "audit_changes"]) {
      await admin.query(`
        create table kept_${table} as select * from roster.${table};
        drop table roster.${month(table)}`);
    }
    await ops.orgs.updateOrg({ org: { id: orgId, name: "Lost in time" } });
    const [entry] = await log(owner, orgId);
    expect(entry).toMatchObject({ method: "roster.v1.OrgService/UpdateOrg", changeCount: 1 });
    for (const table of ["audit_entries", "audit_changes"])
      await asAdmin(harness.current, `insert into roster.${table} select * from kept_${table}`);

    expect(await makePartitions(urls.worker)).toBe(2);
    expect(await makePartitions(urls.worker)).toBe(0);
    const counts = await admin.query(`
      select (select count(*)::int from roster.audit_changes_default) as spilt,
        (select count(*)::int from roster.${month("audit_changes")}) as moved,
        (select count(*)::int from kept_audit_changes) as kept`);
    const [{ spilt, moved, kept }] = counts.rows;
    expect({ spilt, moved }).toEqual({ spilt: 0, moved: kept + 1 });
    expect(await log(owner, orgId)).toEqual([entry, ...before]);
    // The new tables are kept like the others.
    for (const table of [month("audit_changes"), "audit_changes_default"])
      expect(await asRole("roster_owner", `truncate roster.${table}`)).toContain("42501");
    await ops.orgs.updateOrg({ org: { id: orgId, name: "Found again" } });
    expect(await log(owner, orgId)).toHaveLength(before.length + 2);
  });

  test("is made ahead of time for a year, and for older rows that landed outside", async () => {
    const { admin, urls } = harness.current;
    await asAdmin(
      harness.current,
      `insert into roster.audit_entries (id, subject, kind, method, correlation_id, create_time)
       values (gen_random_uuid(), 's', 'USER', 'm', 'c', '1999-12-31 23:59:59.999999Z')`,
    );
    await admin.query(`drop table roster.${month("audit_changes", -12)}`);
    expect(await makePartitions(urls.worker)).toBe(2);
    const { rows } = await admin.query("select method from roster.audit_entries_1999_12");
    expect(rows).toEqual([{ method: "m" }]);
  });

  test("is left for the next round while somebody is at the log for long", async () => {
    const { admin, urls } = harness.current;
    await admin.query(`drop table roster.${month("audit_changes", -12)}`);
    await admin.query("begin; lock table roster.audit_changes in share update exclusive mode");
    const started = performance.now();
    const refused = makePartitions(urls.worker, { limitMs: 20_000 });
    await expect(refused).rejects.toMatchObject({ code: "55P03" });
    expect(performance.now() - started).toBeLessThan(10_000);
    await admin.query("rollback");
    expect(await makePartitions(urls.worker)).toBe(1);
  });
});
