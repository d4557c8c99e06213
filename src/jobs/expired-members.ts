import { inBatches, type Limits } from "./worker.ts";

/** Removes memberships whose time has come, with all that hangs on them, and says how many. */
export const removeExpiredMembers = (url: string, limits?: Limits): Promise<number> =>
  inBatches(url, "select roster.remove_expired_members($1)", limits);
