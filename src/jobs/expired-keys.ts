import { inBatches, type Limits } from "./worker.ts";

/** Removes the answers that are kept for requests sent again, once their day is over, and says how many. */
export const removeExpiredKeys = (url: string, limits?: Limits): Promise<number> =>
  inBatches(url, "select roster.remove_expired_keys($1)", limits);
