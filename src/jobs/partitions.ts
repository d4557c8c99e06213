import { type Limits, numberOf, withWorker } from "./worker.ts";

const monthsAhead = 12;

/** Makes the audit log's partitions of the coming year that are not there yet, and says how many. */
export const makePartitions = (url: string, limits: Limits = {}): Promise<number> =>
  withWorker(url, limits, (client) =>
    numberOf(client, "select roster.make_partitions($1)", [monthsAhead]),
  );
