/** Connections of the background work. */
import pg from "pg";

const defaultLimitMs = 30_000;

/** When work gives up. */
export interface Limits {
  /** Ends it at once. */
  readonly signal?: AbortSignal | undefined;
  /** How long the database may take over one transaction. */
  readonly limitMs?: number | undefined;
}

/**
 * Lends work a connection of its own, on which each statement is a transaction.
 *
 * @param url logs in as roster_worker
 */
export const withWorker = async <T>(
  url: string,
  { signal, limitMs = defaultLimitMs }: Limits,
  work: (client: pg.Client) => Promise<T>,
): Promise<T> => {
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
    return await work(client);
  } finally {
    signal?.removeEventListener("abort", end);
    await client.end();
  }
};
