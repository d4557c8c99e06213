/** Connections of the background work. */
import pg from "pg";
import { withPasswordNow } from "../database/passwords.ts";

/** Rows that go in one transaction. */
export const batch = 1_000;
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
    connectionString: withPasswordNow(url),
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

/** Runs a statement that answers with one number, or where its type says so with null in place of one. */
export const numberOf = async <Answer extends number | null = number>(
  client: pg.Client,
  text: string,
  values: readonly number[] = [],
): Promise<Answer> => {
  const { rows } = await client.query<[Answer]>({
    text,
    values: [...values],
    rowMode: "array",
  });
  const [row] = rows;
  if (!row) throw new Error("the statement answered nothing");
  return row[0];
};

/**
 * Runs a statement again and again, until it takes away less than it may.
 *
 * @param url logs in as roster_worker
 * @param text takes as $1 how many rows it may take away, and answers how many went
 * @returns how many went in all
 */
export const inBatches = (url: string, text: string, limits: Limits = {}): Promise<number> =>
  withWorker(url, limits, async (client) => {
    let all = 0;
    for (;;) {
      const removed = await numberOf(client, text, [batch]);
      all += removed;
      if (removed < batch) return all;
    }
  });
