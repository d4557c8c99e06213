/** Removes the answers that are kept for requests sent again, once their day is over. */
import pg from "pg";

/** Keys that go in one transaction. */
const batch = 1_000;

/**
 * Removes every key that has expired.
 *
 * @param url logs in as roster_worker
 * @returns how many went
 */
export const removeExpiredKeys = async (url: string): Promise<number> => {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  // What breaks the connection fails the query as well.
  client.on("error", () => {});
  await client.connect();
  try {
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
  } finally {
    await client.end();
  }
};
