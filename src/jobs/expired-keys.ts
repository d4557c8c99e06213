/** Removes the answers that are kept for requests sent again, once their day is over. */
import { type Limits, withWorker } from "./worker.ts";

/** Keys that go in one transaction. */
const batch = 1_000;

/**
 * Removes every key that has expired.
 *
 * @param url logs in as roster_worker
 * @returns how many went
 */
export const removeExpiredKeys = (url: string, limits: Limits = {}): Promise<number> =>
  withWorker(url, limits, async (client) => {
    let all = 0;
    for (;;) {
      const { rows } = await client.query<{ removed: number }>(
        "select roster.remove_expired_keys($1) as removed",
        [batch],
      );
      const removed = rows[0]?.removed ?? 0;
      all += removed;
      if (removed < batch) return all;
    }
  });
