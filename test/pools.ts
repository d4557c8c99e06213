/** The pools and sessions of src/database without a server in front: a tenant, a connection for each role. */
import { randomUUID } from "node:crypto";
import { afterAll, beforeAll } from "vitest";
import { z } from "zod";
import { flights } from "../src/database/driver.ts";
import type { Step } from "../src/database/exchange.ts";
import { type Deadline, openPool, type TenantPool } from "../src/database/pool.ts";
import { type Query, sql, type UnitOfWork } from "../src/database/sql.ts";
import { type Around, inTransaction, ReadSession } from "../src/database/unit-of-work.ts";
import type { Harness, Tenant } from "./harness.ts";

/** A deadline so many milliseconds from now. */
export const within = (ms: number): Deadline => {
  const end = performance.now() + ms;
  const signal = AbortSignal.timeout(ms);
  return {
    remainingMs: () => end - performance.now(),
    get over() {
      return signal.aborted;
    },
    onOver: (listener) => {
      signal.addEventListener("abort", listener, { once: true });
      return () => signal.removeEventListener("abort", listener);
    },
  };
};

/** The statement by which the service enters an org; with an entry it opens a mutation. */
const enter = (org: string, user: string, entry: string | null, ms: number): Step => ({
  text: "select roster.enter($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
  values: [org, user, false, false, null, "", true, null, false, ms, entry, user, [], "x", "x"],
});

/** The statement by which the service enters no org, to make this one. */
const enterDirectory = (newOrg: string, ms: number): Step => ({
  text: "select roster.enter_directory($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
  values: [null, true, null, "", true, newOrg, ms, randomUUID(), "x", [], "x", "x"],
});

export const number = z.object({ n: z.number() });

/** A statement that no connection has seen. */
export const fresh = (): Query<typeof number> =>
  sql.type(number)`select 7 as n where ${sql.literalValue(randomUUID())} <> ''`;

/** A statement that fails with this SQLSTATE. */
export const failing = (code: string): Query<typeof number> =>
  sql.type(number)`select 1 as n from test_raise(${code})`;

/** A statement that takes this long. */
export const sleeping = (seconds: number): Query<typeof number> =>
  sql.type(number)`select 1 as n from pg_sleep(${seconds})`;

/** What a connection is and which settings its last borrower left. */
export interface Probe {
  readonly pid: number;
  readonly settings: Readonly<Record<string, string>>;
}

const probeRow = z.object({ pid: z.number(), settings: z.record(z.string(), z.string()) });

/** Pools, and one tenant's sessions on them. */
export class Pools {
  readonly app: TenantPool;
  readonly directory: TenantPool;
  readonly tenant: Tenant;
  private readonly harness: Harness;

  constructor(harness: Harness, app: TenantPool, directory: TenantPool, tenant: Tenant) {
    this.harness = harness;
    this.app = app;
    this.directory = directory;
    this.tenant = tenant;
  }

  /** A read by the org's owner, or by another user. */
  reading(userId = this.tenant.ownerId, ms = 10_000): ReadSession {
    return new ReadSession(
      this.app,
      (left) => enter(this.tenant.orgId, userId, null, left),
      within(ms),
    );
  }

  /** A mutation by the org's owner, or by another user. */
  writing<T>(
    work: (unit: UnitOfWork) => Promise<T>,
    { userId = this.tenant.ownerId, ms = 10_000, entry = randomUUID(), rehearsal = false } = {},
  ): Promise<T> {
    const entering = (left: number) => enter(this.tenant.orgId, userId, entry, left);
    return inTransaction(this.app, entering, within(ms), work, { rehearsal });
  }

  /** A mutation outside any org that makes this one. */
  makingOrg<T>(
    id: string,
    work: (unit: UnitOfWork) => Promise<T>,
    around: Around<T> = {},
  ): Promise<T> {
    const entering = (left: number) => enterDirectory(id, left);
    return inTransaction(this.directory, entering, within(10_000), work, around);
  }

  /** The same without a transaction around its statements. */
  makingOrgAlone(id: string): ReadSession {
    return new ReadSession(this.directory, (left) => enterDirectory(id, left), within(10_000));
  }

  /** A statement that adds a team to the org, or to another. */
  addTeam(name: string, orgId = this.tenant.orgId) {
    return sql.type(z.object({ name: z.string() }))`
      insert into roster.teams (org_id, id, name) values (${orgId}, ${randomUUID()}, ${name}) returning name`;
  }

  /** How many teams of this name there are. */
  async teams(name: string): Promise<number> {
    const text = "select count(*)::int as n from roster.teams where name = $1";
    return (await this.harness.admin.query(text, [name])).rows[0].n;
  }

  /** What a borrower of the app's connection finds who enters nothing. */
  async probe(): Promise<Probe> {
    const before = [{ text: "select 1", values: [] }];
    const loan = await this.app.take(within(10_000));
    const rows = await flights.run({ before, prepare: false }, () =>
      loan.connection.any(sql.type(probeRow)`
          select pg_backend_pid() as pid, (
            select jsonb_object_agg(name, value)
            from unnest('{roster.org_id, roster.actor, roster.platform, roster.entry_id, roster.subject,
              roster.method, roster.correlation_id, roster.team_sight, roster.held_permissions,
              statement_timeout, lock_timeout, idle_in_transaction_session_timeout, transaction_read_only,
              role, search_path}'::text[]) name
            cross join lateral current_setting(name, true) value
            where value <> '') as settings`),
    );
    this.app.give(loan);
    return rows[0] as Probe;
  }
}

/** What a borrower finds when nobody left anything behind. */
export const clean = {
  statement_timeout: "0",
  lock_timeout: "0",
  idle_in_transaction_session_timeout: "0",
  transaction_read_only: "off",
  role: "none",
  search_path: '"$user", public',
};

/** Opens pools for the tests of one block, of one connection each unless told otherwise. */
export const usePools = (
  harness: { readonly current: Harness },
  pipeline: boolean,
  size = 1,
): { readonly current: Pools } => {
  let pools: Pools | undefined;
  beforeAll(async () => {
    const { admin, urls } = harness.current;
    await admin.query(`
      create or replace function test_raise(code text) returns int language plpgsql
      as $$ begin raise exception 'test' using errcode = code; end $$`);
    pools = new Pools(
      harness.current,
      await openPool(urls.app, { size, pipeline }),
      await openPool(urls.directory, { size: 1, pipeline }),
      await harness.current.tenant(),
    );
  });
  afterAll(() => Promise.all([pools?.app.end(), pools?.directory.end()]));
  return {
    get current() {
      if (!pools) throw new Error("the pools are there inside tests only");
      return pools;
    },
  };
};
