import type { EventEmitter } from "node:events";
import type pg from "pg";
import { beforeAll, describe, expect, test } from "vitest";
import { type Harness, useHarness } from "./harness.ts";
import { sealAll } from "./sealed.ts";
import { enter, type Outcome, type Settled, settle, useConnections, within } from "./sessions.ts";

const granted = useHarness();
const open = useHarness();

interface Table {
  readonly name: string;
  readonly columns: readonly string[];
  readonly key: readonly string[];
}

/** Every table, and this month's partitions, with the columns that can be written. */
const tablesOf = async ({ admin }: Harness): Promise<readonly Table[]> =>
  (
    await admin.query<Table>(`
      select c.relname as name,
        array(select attname::text from pg_attribute a
          where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped and a.attgenerated = '') as columns,
        array(select attname::text from pg_index x join pg_attribute a
            on a.attrelid = c.oid and a.attnum = any (x.indkey)
          where x.indrelid = c.oid and x.indisprimary) as key
      from pg_class c
      where c.relnamespace = 'roster'::regnamespace and c.relkind in ('r', 'p')
        and (not c.relispartition or c.relname ~ to_char(now() at time zone 'UTC', 'YYYY_MM'))
      order by 1`)
  ).rows;

const connect = useConnections();

describe.each([
  ["as it is granted", granted, false],
  ["if roster_app were granted every table", open, true],
])("another org, %s", (_, harness, everything) => {
  let tables: readonly Table[];
  let app: pg.Client;
  let a: Settled;
  let b: Settled;
  /** Matches a row of B: its id, its teams and the people who are nowhere else. */
  let ofB: RegExp;
  const inA = (statement: string, values?: readonly unknown[]): Promise<Outcome> =>
    within(app, enter(a.orgId, a.ownerId), statement, values);

  /** B's rows with the transaction that wrote each. */
  const rowsOfB = async (table: Table): Promise<string[]> => {
    const { rows } = await harness.current.admin.query<{ row: string }>(
      `select t.xmin || ' ' || to_jsonb(t) as row from roster.${table.name} t
        where t::text ~ $1 order by 1`,
      [ofB.source],
    );
    return rows.map(({ row }) => row);
  };

  /**
   * Tries statements on every table and names those that neither were refused nor came to nothing.
   *
   * @param refusals the SQLSTATEs that count as refused
   */
  const breaches = async (
    attempts: (table: Table, mark: string) => readonly string[],
    values: (table: Table) => Promise<readonly unknown[]> | readonly unknown[] = () => [],
    refusals: readonly string[] = ["42501"],
  ): Promise<string[]> => {
    const found: string[] = [];
    for (const table of tables) {
      const before = await rowsOfB(table);
      for (const statement of attempts(table, `t::text ~ '${ofB.source}'`)) {
        const { rows, code } = await inA(statement, await values(table));
        if (
          code === undefined
            ? rows.some((row) => ofB.test(JSON.stringify(row)))
            : !refusals.includes(code)
        )
          found.push(`${code ?? "shows rows"}: ${statement.slice(0, 200)}`);
      }
      const after = await rowsOfB(table);
      if (JSON.stringify(after) !== JSON.stringify(before)) found.push(`${table.name} changed`);
    }
    return found;
  };

  /** A row of B as JSON, or of an org like it where the table has none. */
  const rowOfB = async ({ name }: Table): Promise<readonly unknown[]> => {
    const { rows } = await harness.current.admin.query(
      `select to_jsonb(t) as row from roster.${name} t where t::text ~ $1 limit 1`,
      [ofB.source],
    );
    return [JSON.stringify(rows[0]?.row ?? { org_id: b.orgId })];
  };

  beforeAll(async () => {
    tables = await tablesOf(harness.current);
    if (everything)
      await harness.current.admin.query(
        "grant select, insert, update, delete on all tables in schema roster to roster_app",
      );
    app = await connect(harness.current.urls.app);
    a = await settle(harness.current);
    b = await settle(harness.current);
    await sealAll(harness.current);
    await harness.current.admin.query(
      `insert into roster.audit_removals (org_id, number, until_xid, kept_from)
       select id, 0, '0', now() from roster.orgs`,
    );
    const shared = await harness.current.user();
    await Promise.all([
      a.owner.orgs.addOrgMember({ orgId: a.orgId, userId: shared }),
      b.owner.orgs.addOrgMember({ orgId: b.orgId, userId: shared }),
    ]);
    await b.owner.users.updateProfile({ profile: { userId: shared, orgId: b.orgId, bio: "In B" } });
    const { teams } = await b.owner.teams.listTeams({ orgId: b.orgId });
    const people = [b.ownerId, b.adminId, b.memberId, b.guestId, b.outsiderId];
    ofB = new RegExp([b.orgId, ...people, ...teams.map(({ id }) => id)].join("|"));
  });

  test("has rows in every table, so that there is something to find", async () => {
    const without: string[] = [];
    for (const table of tables) if ((await rowsOfB(table)).length === 0) without.push(table.name);
    expect(without).toEqual(["audit_feed", "schema_migrations"]);
  });

  test("is not read by SELECT, FOR UPDATE or COPY", async () => {
    expect(
      await breaches(({ name }, mark) => [
        `select t::text from roster.${name} t`,
        `select t::text from roster.${name} t where ${mark}`,
        `select t::text from roster.${name} t for update`,
        `select t::text from roster.${name} t for key share`,
        `select count(*) || '${b.orgId}' from roster.${name} t where ${mark} having count(*) > 0`,
      ]),
    ).toEqual([]);
    const copied: string[] = [];
    const { connection } = app as unknown as { connection: EventEmitter };
    const keep = ({ chunk }: { chunk: Buffer }) => copied.push(chunk.toString());
    connection.on("copyData", keep);
    // A partitioned table is copied by a query only.
    expect(
      await breaches(
        ({ name }) => [
          `copy roster.${name} to stdout`,
          `copy (select * from roster.${name}) to stdout`,
        ],
        () => [],
        ["42501", "42809"],
      ),
    ).toEqual([]);
    connection.off("copyData", keep);
    expect(copied.length).toBeGreaterThan(0);
    expect(copied.filter((line) => ofB.test(line))).toEqual([]);
  });

  test("is not changed by UPDATE, of any column", async () => {
    expect(
      await breaches(({ name, columns }, mark) =>
        columns.flatMap((column) => [
          `update roster.${name} t set ${column} = ${column} where ${mark} returning t::text`,
          `update roster.${name} t set ${column} = ${column}`,
        ]),
      ),
    ).toEqual([]);
  });

  test("takes no row by UPDATE of org_id", async () => {
    expect(
      await breaches(({ name, columns }) =>
        columns.includes("org_id") ? [`update roster.${name} set org_id = '${b.orgId}'`] : [],
      ),
    ).toEqual([]);
  });

  test("is not changed by DELETE", async () => {
    expect(
      await breaches(({ name }, mark) => [
        `delete from roster.${name} t where ${mark} returning t::text`,
      ]),
    ).toEqual([]);
  });

  test("takes no row by INSERT, with or without ON CONFLICT", async () => {
    expect(
      await breaches(({ name, columns, key }) => {
        const list = columns.join(", ");
        const insert = `insert into roster.${name} as t (${list})
          select ${list} from jsonb_populate_record(null::roster.${name}, $1)`;
        const [column = ""] = columns;
        return [
          insert,
          `${insert} on conflict do nothing`,
          `${insert} on conflict (${key}) do update set ${column} = excluded.${column} returning t::text`,
        ];
      }, rowOfB),
    ).toEqual([]);
  });

  test("is neither changed nor given a row by MERGE", async () => {
    expect(
      await breaches(({ name, columns }, mark) => {
        const [column = ""] = columns;
        const list = columns.join(", ");
        const merge = `merge into roster.${name} t
            using jsonb_populate_record(null::roster.${name}, $1) n on`;
        return [
          `${merge} ${mark} when matched then update set ${column} = n.${column}`,
          `${merge} ${mark} when matched then delete`,
          `${merge} false when not matched then insert (${list}) values (n.${columns.join(", n.")})`,
        ];
      }, rowOfB),
    ).toEqual([]);
  });

  test("takes no row by COPY FROM", async () => {
    // With row-level security PostgreSQL offers none.
    expect(
      await breaches(
        ({ name }) => [`copy roster.${name} from stdin`],
        () => [],
        ["42501", "0A000"],
      ),
    ).toEqual([]);
  });

  test("is not emptied by TRUNCATE", async () => {
    expect(await breaches(({ name }) => [`truncate roster.${name}`])).toEqual([]);
  });
});
