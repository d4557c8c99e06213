/** Removes what of the audit log is kept no longer. */
import { batch, inBatches, type Limits, numberOf, withWorker } from "./worker.ts";

/** How much went. */
export interface Expired {
  /** Seals of which the rows are kept no longer. */
  readonly seals: number;
  /** Tables that were dropped: months of entries or of changes. */
  readonly months: number;
  /** Rows that were removed one by one, in months that hold others too. */
  readonly removed: number;
}

/**
 * Removes what orgs, by their limits, and the platform keep no longer: whole months where nobody needs them, else row
 * by row in small transactions.
 *
 * @param url logs in as roster_worker
 * @param platformDays how long the log that belongs to no org, or to one that is gone, is kept; 0: for good
 */
export const removeExpiredAudit = async (
  url: string,
  platformDays: number,
  limits: Limits = {},
): Promise<Expired> => {
  const { seals, months } = await withWorker(url, limits, async (client) => {
    let all = 0;
    for (let some = -1; some !== 0; all += some)
      some = await numberOf(client, "select roster.expire_audit($1, $2)", [platformDays, batch]);
    const months = await numberOf(client, "select roster.drop_expired_months()");
    return { seals: all, months };
  });
  const text = "select roster.remove_expired_audit($1)";
  return { seals, months, removed: await inBatches(url, text, limits) };
};
