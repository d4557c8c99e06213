import { randomUUID } from "node:crypto";
import { expect } from "vitest";
import type { Harness } from "./harness.ts";
import { force } from "./sessions.ts";

/** How many sessions wait for a lock. */
const waiting = async ({ admin }: Harness): Promise<number> => {
  // Without this a transaction sees the activity of its beginning.
  await admin.query("select pg_stat_clear_snapshot()");
  const { rows } = await admin.query(
    "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
  );
  return rows.length;
};

/**
 * Lets two mutations overlap: each stops right after its first change, with its locks held, until both stand
 * there or wait for one another's locks. Then both may end.
 */
export const overlap = async (
  harness: Harness,
  first: () => Promise<unknown>,
  second: () => Promise<unknown>,
): Promise<PromiseSettledResult<unknown>[]> => {
  const { admin } = harness;
  const outcomes: Promise<PromiseSettledResult<unknown>[]>[] = [];
  await admin.query("begin");
  try {
    // Every change is written here too, by a trigger behind it.
    await admin.query("lock table roster.audit_changes in share mode");
    for (const [index, call] of [first, second].entries()) {
      outcomes.push(Promise.allSettled([call()]));
      await expect.poll(() => waiting(harness), { interval: 5 }).toBe(index + 1);
    }
  } finally {
    await admin.query("commit");
  }
  return (await Promise.all(outcomes)).flat();
};

/**
 * Changes rows by hand while a mutation stands at the end of a statement, also of one that met no row: that did not
 * see the change, and the next one will.
 */
export const cutIn = async (
  harness: Harness,
  call: () => Promise<unknown>,
  text: string,
  values: readonly unknown[],
): Promise<PromiseSettledResult<unknown> | undefined> => {
  const { admin } = harness;
  await admin.query("begin");
  let outcome: Promise<PromiseSettledResult<unknown>[]>;
  try {
    await admin.query(force(randomUUID()));
    await admin.query("lock table roster.audit_changes in share mode");
    outcome = Promise.allSettled([call()]);
    await expect.poll(() => waiting(harness), { interval: 5 }).toBe(1);
    await admin.query(text, [...values]);
  } finally {
    await admin.query("commit");
  }
  return (await outcome)[0];
};
