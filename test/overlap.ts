import { expect } from "vitest";
import type { Harness } from "./harness.ts";

/**
 * Lets two mutations overlap: each stops right after its first change, with its locks held, until both stand
 * there or wait for one another's locks. Then both may end.
 */
export const overlap = async (
  { admin }: Harness,
  first: () => Promise<unknown>,
  second: () => Promise<unknown>,
): Promise<PromiseSettledResult<unknown>[]> => {
  const waiting = async (): Promise<number> => {
    // Without this a transaction sees the activity of its beginning.
    await admin.query("select pg_stat_clear_snapshot()");
    const { rows } = await admin.query(
      "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
    );
    return rows.length;
  };
  const outcomes: Promise<PromiseSettledResult<unknown>[]>[] = [];
  await admin.query("begin");
  try {
    // Every change is written here too, by a trigger behind it.
    await admin.query("lock table roster.audit_changes in share mode");
    for (const [index, call] of [first, second].entries()) {
      outcomes.push(Promise.allSettled([call()]));
      await expect.poll(waiting, { interval: 5 }).toBe(index + 1);
    }
  } finally {
    await admin.query("commit");
  }
  return (await Promise.all(outcomes)).flat();
};
