import { type Limits, withWorker } from "./worker.ts";

const monthsAhead = 12;

/** Makes the audit log's partitions of the coming year that are not there yet, and says how many. */
export const makePartitions = (url: string, limits: Limits = {}): Promise<number> =>
  withWorker(url, limits, async (client) => {
    const { rows } = await client.query<{ made: number }>(
      "select roster.make_partitions($1) as made",
      [monthsAhead],
    );
    return rows[0]?.made ?? 0;
  });
