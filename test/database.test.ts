import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { flights } from "../src/database/driver.ts";
import { openPool, type TenantPool } from "../src/database/pool.ts";
import { sql } from "../src/database/sql.ts";
import { useHarness } from "./harness.ts";
import { clean, failing, fresh, number, Pools, sleeping, usePools, within } from "./pools.ts";

const harness = useHarness();

/** Ways in which work on a connection fails, each with what the error says. */
const failures: Record<string, [object, (pools: Pools) => Promise<unknown>]> = {
  "a refusal": [
    { message: "ORG_NOT_ALLOWED" },
    (pools) => pools.reading(pools.tenant.outsiderId).many(fresh()),
  ],
  "a refused mutation": [
    { message: "ORG_NOT_ALLOWED" },
    (pools) => pools.writing((unit) => unit.many(fresh()), { userId: pools.tenant.outsiderId }),
  ],
  "a refused mutation that had sent nothing": [
    { message: "ORG_NOT_ALLOWED" },
    (pools) => pools.writing(async () => {}, { userId: pools.tenant.outsiderId }),
  ],
  "a missing row": [
    { message: "missing" },
    (pools) =>
      pools.reading().one(sql.type(number)`select 1 as n where false`, () => new Error("missing")),
  ],
  "a row too many": [
    { message: "expected at most one row, got 2" },
    (pools) => pools.reading().maybeOne(sql.type(number)`select n from generate_series(1, 2) n`),
  ],
  "a row that does not fit": [
    { name: "ZodError" },
    (pools) => pools.reading().many(sql.type(number)`select 'one' as n`),
  ],
  "a syntax error": [{ code: "42601" }, (pools) => pools.reading().many(sql.type(number)`selec`)],
  "a value that cannot be read": [
    { code: "22P02" },
    (pools) => pools.reading().many(sql.type(number)`select 1 as n where ${"x"}::uuid is null`),
  ],
  "an error while running": [{ code: "22023" }, (pools) => pools.reading().many(failing("22023"))],
  "a write in a read": [{ code: "25006" }, (pools) => pools.reading().many(pools.addTeam("Never"))],
  "a unique violation": [
    { constraint: "teams_org_id_parent_team_id_name_key_key" },
    (pools) =>
      pools.writing(async (unit) => {
        await unit.many(pools.addTeam("Twice"));
        await unit.many(pools.addTeam("twice"));
      }),
  ],
  "a violation of row-level security": [
    { code: "42501" },
    (pools) =>
      pools.writing((unit) =>
        unit.many(sql.type(number)`
          insert into roster.profiles (id, user_id) values (gen_random_uuid(), ${pools.tenant.ownerId})
          returning 1 as n`),
      ),
  ],
  "a time limit": [
    { code: "57014" },
    (pools) => pools.reading(pools.tenant.ownerId, 300).many(sleeping(20)),
  ],
  "a time limit in a mutation": [
    { code: "57014" },
    (pools) => pools.writing((unit) => unit.many(sleeping(20)), { ms: 300 }),
  ],
  "a handler that throws": [
    { message: "thrown" },
    (pools) =>
      pools.writing(async (unit) => {
        await unit.many(pools.addTeam("Thrown"));
        throw new Error("thrown");
      }),
  ],
  "a handler that passes over an error": [
    { code: "40000" },
    (pools) => pools.writing((unit) => unit.many(failing("22023")).catch(() => {})),
  ],
};

describe.each([
  ["pipelined", true],
  ["plain", false],
])("a connection of the %s driver", (_, pipeline) => {
  const pools = usePools(harness, pipeline);

  test("reads in the tenant", async () => {
    const row = z.object({ org_id: z.string() });
    const rows = await pools.current
      .reading()
      .many(sql.type(row)`select distinct org_id from roster.org_members`);
    expect(rows).toEqual([{ org_id: pools.current.tenant.orgId }]);
  });

  test("is sent nothing outside a tenant", async () => {
    const { app } = pools.current;
    const { count } = app.roundTrips;
    const loan = await app.take(within(1_000));
    const bare = () => loan.connection.any(sql.type(number)`select 1 as n`);
    await expect(bare()).rejects.toThrow("outside a tenant");
    const unentered = flights.run({ before: [], prepare: true }, bare);
    await expect(unentered).rejects.toThrow("outside a tenant");
    await expect(loan.connection.transaction(bare)).rejects.toThrow("outside a tenant");
    expect(app.roundTrips.count).toBe(count);
    app.give(loan);
  });

  test.each(Object.entries(failures))("is as new after %s", async (_, [error, fail]) => {
    const { pid } = await pools.current.probe();
    await expect(fail(pools.current)).rejects.toMatchObject(error);
    expect(await pools.current.probe()).toEqual({ pid, settings: clean });
    expect(await pools.current.reading().many(fresh())).toEqual([{ n: 7 }]);
    expect(await pools.current.writing((unit) => unit.many(fresh()))).toEqual([{ n: 7 }]);
    expect(await pools.current.probe()).toEqual({ pid, settings: clean });
  });

  test("is as new after reads and mutations that went well", async () => {
    const { pid } = await pools.current.probe();
    await pools.current.reading().many(fresh());
    await pools.current.writing((unit) => unit.many(pools.current.addTeam(randomUUID())));
    expect(await pools.current.probe()).toEqual({ pid, settings: clean });
  });

  test("takes a statement whose first flights were refused", async () => {
    const query = fresh();
    for (let i = 0; i < 2; i++) {
      const refused = pools.current.reading(pools.current.tenant.outsiderId).many(query);
      await expect(refused).rejects.toMatchObject({ message: "ORG_NOT_ALLOWED" });
    }
    for (let i = 0; i < 2; i++)
      expect(await pools.current.reading().many(query)).toEqual([{ n: 7 }]);
    expect(await pools.current.writing((unit) => unit.many(query))).toEqual([{ n: 7 }]);
  });

  test("takes a statement again that failed the first time", async () => {
    const query = (text: string) => sql.type(number)`select 1 as n where ${text}::uuid is not null`;
    const first = pools.current.reading().many(query("x"));
    await expect(first).rejects.toMatchObject({ code: "22P02" });
    expect(await pools.current.reading().many(query(randomUUID()))).toEqual([{ n: 1 }]);
  });
});

describe("a prepared statement", () => {
  const row = z.object({ name: z.string() });
  const namesOf = async (pool: TenantPool): Promise<string[]> => {
    const before = [{ text: "select 1", values: [] }];
    const loan = await pool.take(within(10_000));
    const rows = await flights.run({ before, prepare: false }, () =>
      loan.connection.any(sql.type(row)`select name from pg_prepared_statements`),
    );
    pool.give(loan);
    return rows.map(({ name }) => name).sort();
  };

  test("has one name on every connection; the plain driver prepares none", async () => {
    const { current } = harness;
    const tenant = await current.tenant();
    const queries = [fresh(), fresh()];
    const used = async (pipeline: boolean): Promise<string[]> => {
      const app = await openPool(current.urls.app, { size: 1, pipeline });
      const session = new Pools(current, app, app, tenant).reading();
      for (const query of [...queries, ...queries]) await session.many(query);
      await session.many(fresh(), { prepare: false });
      const names = await namesOf(app);
      await app.end();
      return names;
    };
    const names = await used(true);
    // The one that enters, and the two queries; PostgreSQL cuts names at 63 bytes.
    expect(names).toHaveLength(3);
    expect(names.every((name) => name !== "" && name.length < 64)).toBe(true);
    expect(await used(true)).toEqual(names);
    expect(await used(false)).toEqual([]);
  });
});
