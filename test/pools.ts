/** The pools and sessions of src/database without a server in front: one tenant, one connection each. */
import { randomUUID } from "node:crypto";
import { afterAll, beforeAll } from "vitest";
import { z } from "zod";
import { flights, type Step } from "../src/database/driver.ts";
import { type Deadline, openPool, type TenantPool } from "../src/database/pool.ts";
import { type Query, sql, type UnitOfWork } from "../src/database/sql.ts";
import { inTransaction, ReadSession } from "../src/database/unit-of-work.ts";
import type { Harness, Tenant } from "./harness.ts";

/** A deadline so many milliseconds from now. */
export const within = (ms: number): Deadline => {
  const end = performance.now() + ms;
  return { remainingMs: () => end - performance.now(), signal: AbortSignal.timeout(ms) };
};

/** The statement by which the service enters an org; with an entry it opens a mutation. */
const enter = (org: string, user: string, entry: string | null, timeoutMs: number): Step => ({
  text: "select roster.enter($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
  values: [org, user, false, false, null, "", true, null, false, timeoutMs, entry, user].concat([
    [],
    "test",
    "test",
  ] as never),
});

/** The statement by which the service enters no org, to make this one. */
export const enterDirectory = (newOrg: string, timeoutMs: number): Step => ({
  text: "select roster.enter_directory($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
  values: [null, true, null, "", true, newOrg, timeoutMs, randomUUID(), "x", [], "x", "x"],
});

export const number = z.object({ n: z.number() });

/** A statement that no connection has seen. */
export const fresh = (): Query<typeof number> =>
  sql.type(number)`select ${sql.literalValue(randomUUID())}::text is not null as said, 7 as n`;
