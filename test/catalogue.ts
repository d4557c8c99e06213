/** Rules of the database's catalogue: each holds, and each finds the faults that would break it. */
import type pg from "pg";
import { describe, expect, test } from "vitest";
import { useHarness } from "./harness.ts";

/** Reads the catalogue and names what breaks a rule. */
export type Find = (client: pg.Client) => Promise<readonly string[]>;

/** Finds the column `finding` of a query's rows. */
export const query =
  (text: string): Find =>
  async (client) =>
    (await client.query<{ finding: string }>(text)).rows.map(({ finding }) => finding);

/** Finds what is there and not expected, and what is expected and not there. */
export const exactly =
  (expected: readonly string[], find: Find): Find =>
  async (client) => {
    const found = await find(client);
    return [
      ...found.filter((name) => !expected.includes(name)),
      ...expected.filter((name) => !found.includes(name)),
    ];
  };

/** Holds a rule, and tries it on faults, each of which must give its finding and leave no trace. */
export type Lint = (rule: string, faults: Readonly<Record<string, string>>, find: Find) => void;

/** Makes the lints of one test file. */
export const useLints = (): Lint => {
  const harness = useHarness();
  return (rule, faults, find) => {
    describe(rule, () => {
      test("is so", async () => {
        expect(await find(harness.current.admin)).toEqual([]);
      });

      test.each(Object.entries(faults))("finds: %s", async (fault, finding) => {
        const { admin } = harness.current;
        await admin.query("begin");
        try {
          await admin.query(fault);
          expect(await find(admin)).toContain(finding);
        } finally {
          await admin.query("rollback");
        }
        expect(await find(admin)).toEqual([]);
      });
    });
  };
};

/** Tables and partitions of the schema. */
export const tables = `(
  select oid, relname::text as name, relispartition as partition, relowner as owner, relacl as acl,
    relrowsecurity and relforcerowsecurity as walled
  from pg_class where relnamespace = 'roster'::regnamespace and relkind in ('r', 'p')) t`;

/** Columns of any table. */
export const columns = `(
  select attrelid as table_oid, attname::text as name, attnum as number, attacl as acl
  from pg_attribute where attnum > 0 and not attisdropped) a`;

/** Whether table `t` belongs to orgs. */
export const ofOrg = `exists (select from ${columns} where a.table_oid = t.oid and a.name = 'org_id')`;
