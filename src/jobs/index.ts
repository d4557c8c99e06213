/** What runs without a caller, beside the server, in every process that may log in as roster_worker. */
import type { Logger } from "pino";
import { removeExpiredKeys } from "./expired-keys.ts";
import { removeExpiredMembers } from "./expired-members.ts";

const minuteMs = 60_000;
const jobs = [
  [removeExpiredKeys, "removed expired idempotency keys"],
  [removeExpiredMembers, "removed expired memberships"],
] as const;

/** Background work under way. */
export interface Jobs {
  /** Starts nothing more and breaks off what runs. */
  stop(): Promise<void>;
}

/**
 * Starts the background work: first at some moment of the first minute, so that processes which start together do
 * not all come at once, then every minute.
 *
 * @param url logs in as roster_worker
 * @param everyMs milliseconds from the end of one round to the next
 */
export const startJobs = (url: string, log: Logger, everyMs = minuteMs): Jobs => {
  const stopping = new AbortController();
  const { signal } = stopping;
  let running = Promise.resolve();
  const run = async (): Promise<void> => {
    for (const [remove, done] of jobs) {
      if (signal.aborted) return;
      try {
        const removed = await remove(url, { signal });
        if (removed > 0) log.debug({ removed }, done);
      } catch (error) {
        const { message, code } = error as Error & { code?: string };
        // The next round tries again.
        if (!signal.aborted) log.warn({ code, error: message }, "background work failed");
      }
    }
    if (!signal.aborted) wait(everyMs);
  };
  let timer: NodeJS.Timeout;
  const wait = (ms: number): void => {
    timer = setTimeout(() => {
      running = run();
    }, ms);
    timer.unref();
  };
  wait(Math.random() * everyMs);
  return {
    stop: async () => {
      clearTimeout(timer);
      stopping.abort();
      await running;
    },
  };
};
