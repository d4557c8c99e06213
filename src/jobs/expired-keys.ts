/** Removes the answers that are kept for requests sent again, once their day is over. */
import pg from "pg";

/** Keys that go in one transaction. */
const batch = 1_000;
const defaultLimitMs = 30_000;

/** When the removal gives up. */
export interface Limits {
  /** Ends it at once. */
  readonly signal?: AbortSignal;
  /** How long the database may take over one transaction. */
  readonly limitMs?: number;
}

/**
 * Removes every key that has expired.
 *
 * @param url logs in as roster_worker
 * @returns how many went
 */
export const removeExpiredKeys = async (
  url: string,
  { signal, limitMs = defaultLimitMs }: Limits = {},
): Promise<number> => {
  const client = new pg.Client({
    connectionString: url,
    connectionTimeoutMillis: 5_000,
    // A lock held for long, and a database that is silent.
    statement_timeout: limitMs,
    query_timeout: limitMs + 1_000,
  });
  // What breaks the connection fails the query as well.
  client.on("error", () => {});
  await client.connect();
  // It breaks a connection that is waiting for an answer.
  const end = () => void client.end();
  signal?.addEventListener("abort", end);
  try {
    signal?.throwIfAborted();
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
    signal?.removeEventListener("abort", end);
    await client.end();
  }
};
