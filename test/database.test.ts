import { randomUUID } from "node:crypto";
import { Code } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { flights, type Step } from "../src/database/driver.ts";
import { type Deadline, openPool, type TenantPool } from "../src/database/pool.ts";
import { type Query, sql, type UnitOfWork } from "../src/database/sql.ts";
import { type Entering, inTransaction, ReadSession } from "../src/database/unit-of-work.ts";
import { failureOf } from "../src/errors.ts";
import { type Tenant, useHarness } from "./harness.ts";

const harness = useHarness();

const within = (ms: number): Deadline => {
  const end = performance.now() + ms;
  return { remainingMs: () => end - performance.now(), signal: AbortSignal.timeout(ms) };
};

/** The statement by which the service enters an org: for a mutation with an audit entry. */
const enter = (orgId: string, userId: string, entry: string | null, timeoutMs: number): Step => ({
  text: "select roster.enter($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
  values: [
    orgId,
    userId,
    false,
    false,
    null,
    "",
    true,
    null,
    false,
    timeoutMs,
    entry,
    userId,
    [],
    "test",
    "test",
  ],
});

const enterDirectory = (newOrgId: string, timeoutMs: number): Step => ({
  text: "select roster.enter_directory($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
  values: [
    null,
    true,
    null,
    "",
    true,
    newOrgId,
    timeoutMs,
    randomUUID(),
    "test",
    [],
    "test",
    "test",
  ],
});

const number = z.object({ n: z.number() });
/** A statement that no connection has seen. */
const fresh = (): Query<typeof number> =>
  sql.type(number)`select ${sql.literalValue(randomUUID())}::text is not null, 7 as n`;

describe.each([
  ["pipelined", true],
  ["plain", false],
])("the %s driver", (_, pipeline) => {
  let app: TenantPool;
  let directory: TenantPool;
  let tenant: Tenant;

  beforeAll(async () => {
    const { urls } = harness.current;
    await harness.current.admin.query(`
      create or replace function test_raise(code text) returns int language plpgsql
      as $$ begin raise exception 'test' using errcode = code; end $$`);
    app = await openPool(urls.app, { size: 1, pipeline });
    directory = await openPool(urls.directory, { size: 1, pipeline });
    tenant = await harness.current.tenant();
  });
  afterAll(() => Promise.all([app.slonik.end(), directory.slonik.end()]));

  const reading = (ms = 10_000): ReadSession =>
    new ReadSession(
      app,
      (timeoutMs) => enter(tenant.orgId, tenant.ownerId, null, timeoutMs),
      within(ms),
    );
  const refused = (): ReadSession =>
    new ReadSession(
      app,
      (timeoutMs) => enter(tenant.orgId, tenant.outsiderId, null, timeoutMs),
      within(10_000),
    );
  const writing = <T>(work: (unit: UnitOfWork) => Promise<T>, ms = 10_000): Promise<T> =>
    inTransaction(
      app,
      (timeoutMs) => enter(tenant.orgId, tenant.ownerId, randomUUID(), timeoutMs),
      within(ms),
      work,
    );

  const addTeam = (name: string, orgId = tenant.orgId) => sql.type(z.object({ name: z.string() }))`
    insert into roster.teams (org_id, id, name) values (${orgId}, ${randomUUID()}, ${name}) returning name`;
  const teams = async (name: string): Promise<number> => {
    const { rows } = await harness.current.admin.query(
      "select count(*)::int as n from roster.teams where name = $1",
      [name],
    );
    return rows[0].n;
  };

  /** What a borrower finds who entered nothing: the connection, and every setting that `enter` makes. */
  const probe = async (): Promise<{ pid: number; left: Record<string, string | null> }> => {
    const row = z.object({ pid: z.number(), left: z.record(z.string(), z.string().nullable()) });
    const before = [{ text: "select 1", values: [] }];
    const rows = await flights.run({ before, prepare: false }, () =>
      app.slonik.connect((connection) =>
        connection.any(sql.type(row)`
          select pg_backend_pid() as pid, (
            select jsonb_object_agg(name, current_setting(name, true))
            from unnest('{roster.org_id, roster.actor, roster.platform, roster.entry_id, roster.subject, roster.method,
              roster.correlation_id, roster.team_sight, roster.held_permissions, statement_timeout, lock_timeout,
              transaction_read_only, role, search_path}'::text[]) name) as left`),
      ),
    );
    const { pid, left } = rows[0] as z.output<typeof row>;
    return { pid, left: Object.fromEntries(Object.entries(left).filter(([, value]) => value)) };
  };
  const clean = {
    statement_timeout: "0",
    lock_timeout: "0",
    transaction_read_only: "off",
    role: "none",
    search_path: '"$user", public',
  };

  test("reads in the tenant", async () => {
    const row = z.object({ org_id: z.string() });
    const rows = await reading().many(
      sql.type(row)`select distinct org_id from roster.org_members`,
    );
    expect(rows).toEqual([{ org_id: tenant.orgId }]);
  });

  test("sends nothing outside a tenant", async () => {
    const query = sql.type(number)`select 1 as n`;
    const { count } = app.roundTrips;
    const bare = () => app.slonik.any(query);
    await expect(bare()).rejects.toThrow("outside a tenant");
    await expect(flights.run({ before: [], prepare: true }, bare)).rejects.toThrow(
      "outside a tenant",
    );
    await expect(app.slonik.transaction((connection) => connection.any(query))).rejects.toThrow();
    expect(app.roundTrips.count).toBe(count);
  });

  const failures: Record<string, () => Promise<unknown>> = {
    "a refusal": () => refused().many(fresh()),
    "a refused mutation": () =>
      inTransaction(
        app,
        (ms) => enter(tenant.orgId, tenant.outsiderId, randomUUID(), ms),
        within(10_000),
        (unit) => unit.many(fresh()),
      ),
    "a refused mutation that sent nothing": () =>
      inTransaction(
        app,
        (ms) => enter(tenant.orgId, tenant.outsiderId, randomUUID(), ms),
        within(10_000),
        async () => {},
      ),
    "a failed statement that was passed over": () =>
      writing((unit) =>
        unit.many(sql.type(number)`select 1 as n from test_raise('23514')`).catch(() => {}),
      ),
    "a missing row": () =>
      reading().one(sql.type(number)`select 1 as n where false`, () => new Error("missing")),
    "too many rows": () =>
      reading().maybeOne(sql.type(number)`select n from generate_series(1, 2) n`),
    "a row that does not fit": () => reading().many(sql.type(number)`select 'one' as n`),
    "a syntax error": () => reading().many(sql.type(number)`selec`),
    "an error while running": () =>
      reading().many(sql.type(number)`select 1 / (random() * 0)::int as n`),
    "a value that does not parse": () =>
      reading().many(sql.type(number)`select 1 as n where ${"x"}::uuid is null`),
    "a write in a read": () => reading().many(addTeam("Never")),
    "a unique violation": () =>
      writing(async (unit) => {
        await unit.many(addTeam("Twice"));
        await unit.many(addTeam("twice"));
      }),
    "a violation of row-level security": () =>
      writing((unit) => unit.many(addTeam("Foreign", randomUUID()))),
    "a time limit": () => reading(100).many(sql.type(number)`select 1 as n from pg_sleep(20)`),
    "a time limit in a mutation": () =>
      writing((unit) => unit.many(sql.type(number)`select 1 as n from pg_sleep(20)`), 100),
    "a handler that throws": () =>
      writing(async (unit) => {
        await unit.many(addTeam("Thrown"));
        throw new Error("thrown");
      }),
  };

  test.each(Object.entries(failures))("is as new after %s", async (_, fail) => {
    const { pid } = await probe();
    await expect(fail()).rejects.toThrow();
    expect(await probe()).toEqual({ pid, left: clean });
    expect(await reading().many(fresh())).toEqual([{ n: 7 }]);
    expect(await writing((unit) => unit.many(fresh()))).toEqual([{ n: 7 }]);
    expect(await probe()).toEqual({ pid, left: clean });
  });

  test("sends a statement well whose first flight was refused", async () => {
    const query = fresh();
    await expect(refused().many(query)).rejects.toMatchObject({ code: "RS001" });
    await expect(refused().many(query)).rejects.toMatchObject({ code: "RS001" });
    expect(await reading().many(query)).toEqual([{ n: 7 }]);
    expect(await reading().many(query)).toEqual([{ n: 7 }]);
    expect(await writing((unit) => unit.many(query))).toEqual([{ n: 7 }]);
  });

  test("ends a statement that outlasts the deadline, the second of a mutation too", async () => {
    const slow = sql.type(number)`select 1 as n from pg_sleep(20)`;
    const start = performance.now();
    await expect(reading(200).many(slow)).rejects.toMatchObject({ code: "57014" });
    const mutation = writing(async (unit) => {
      await unit.many(sql.type(number)`select 1 as n from pg_sleep(0.2)`);
      await unit.many(slow);
    }, 400);
    await expect(mutation).rejects.toMatchObject({ code: "57014" });
    expect(performance.now() - start).toBeLessThan(1_500);
  });

  test("writes nothing when a handler throws", async () => {
    const name = randomUUID();
    const thrown = writing(async (unit) => {
      await unit.many(addTeam(name));
      throw new Error("thrown");
    });
    await expect(thrown).rejects.toThrow("thrown");
    expect(await teams(name)).toBe(0);
  });

  test("writes nothing and says so when a handler goes on after a failed statement", async () => {
    const name = randomUUID();
    const swallowed = writing(async (unit) => {
      await unit.many(addTeam(name));
      await unit.many(addTeam(name)).catch(() => {});
      return "done";
    });
    await expect(swallowed).rejects.toThrow();
    expect(await teams(name)).toBe(0);
    expect(await reading().many(fresh())).toEqual([{ n: 7 }]);
  });

  const orgs = async (id: string): Promise<number> => {
    const { rows } = await harness.current.admin.query(
      `select (select count(*) from roster.orgs where id = $1)::int
        + (select count(*) from roster.audit_entries where org_id = $1)::int as n`,
      [id],
    );
    return rows[0].n;
  };
  const addOrg = (id: string) => sql.type(z.object({ id: z.string() }))`
    insert into roster.orgs (id, name, slug) values (${id}, 'Ownerless', ${id}) returning id`;

  test("writes nothing and says so when the commit fails", async () => {
    const id = randomUUID();
    const entering: Entering = (timeoutMs) => enterDirectory(id, timeoutMs);
    const ownerless = inTransaction(directory, entering, within(10_000), (unit) =>
      unit.many(addOrg(id)),
    );
    await expect(ownerless).rejects.toMatchObject({ code: "RS001", message: "LAST_OWNER" });
    expect(await orgs(id)).toBe(0);
  });

  test("writes nothing and says so when the end of a lone statement fails", async () => {
    const id = randomUUID();
    const entering: Entering = (timeoutMs) => enterDirectory(id, timeoutMs);
    const ownerless = new ReadSession(directory, entering, within(10_000)).many(addOrg(id));
    await expect(ownerless).rejects.toMatchObject({ code: "RS001", message: "LAST_OWNER" });
    expect(await orgs(id)).toBe(0);
  });

  test("writes the audit entry of a mutation that sent nothing", async () => {
    const entry = randomUUID();
    const entering: Entering = (ms) => enter(tenant.orgId, tenant.ownerId, entry, ms);
    expect(await inTransaction(app, entering, within(10_000), async () => "done")).toBe("done");
    const { rows } = await harness.current.admin.query(
      "select org_id from roster.audit_entries where id = $1",
      [entry],
    );
    expect(rows).toEqual([{ org_id: tenant.orgId }]);
  });

  test.each(["40001", "40P01"])(
    "does lost work again after %s, three times at most",
    async (code) => {
      const name = randomUUID();
      const lose = sql.type(number)`select 1 as n from test_raise(${code})`;
      let runs = 0;
      const lost = writing(async (unit) => {
        runs++;
        await unit.many(addTeam(name));
        await unit.many(lose);
      });
      await expect(lost).rejects.toMatchObject({ code });
      expect(runs).toBe(3);
      expect(await teams(name)).toBe(0);
      await writing(async (unit) => {
        await unit.many(addTeam(name));
        if (++runs < 6) await unit.many(lose);
      });
      expect(runs).toBe(6);
      expect(await teams(name)).toBe(1);
    },
  );

  test("does nothing again after any other error", async () => {
    let runs = 0;
    const failed = writing(async (unit) => {
      runs++;
      await unit.many(sql.type(number)`select 1 as n from test_raise('23514')`);
    });
    await expect(failed).rejects.toMatchObject({ code: "23514" });
    expect(runs).toBe(1);
  });

  test("opens a new connection after it lost one in the middle of a mutation", async () => {
    const name = randomUUID();
    const lost = writing(async (unit) => {
      await unit.many(addTeam(name));
      await unit.many(sql.type(z.object({}))`select pg_terminate_backend(pg_backend_pid())`);
    });
    expect(failureOf(await lost.catch((error) => error))?.code).toBe(Code.Unavailable);
    expect(await teams(name)).toBe(0);
    expect(await reading().many(fresh())).toEqual([{ n: 7 }]);
    expect((await probe()).left).toEqual(clean);
  });
});

describe("prepared statements", () => {
  const prepared = async (pool: TenantPool): Promise<string[]> => {
    const row = z.object({ name: z.string() });
    const before = [{ text: "select 1", values: [] }];
    const rows = await flights.run({ before, prepare: false }, () =>
      pool.slonik.connect((connection) =>
        connection.any(sql.type(row)`select name from pg_prepared_statements`),
      ),
    );
    return rows.map(({ name }) => name).sort();
  };

  test("have the same name on every connection, and the plain driver makes none", async () => {
    const { urls } = harness.current;
    const { orgId, ownerId } = await harness.current.tenant();
    const queries = [fresh(), fresh()] as const;
    const used = async (pipeline: boolean): Promise<string[]> => {
      const pool = await openPool(urls.app, { size: 1, pipeline });
      const session = new ReadSession(
        pool,
        (ms) => enter(orgId, ownerId, null, ms),
        within(10_000),
      );
      for (const query of [...queries, ...queries]) await session.many(query);
      await session.many(fresh(), { prepare: false });
      const names = await prepared(pool);
      await pool.slonik.end();
      return names;
    };
    const names = await used(true);
    // Entering and the two queries; each fits PostgreSQL's 63 bytes.
    expect(names).toHaveLength(3);
    expect(names.every((name) => name.length > 0 && name.length < 64)).toBe(true);
    expect(await used(true)).toEqual(names);
    expect(await used(false)).toEqual([]);
  });
});
