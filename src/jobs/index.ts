/** What runs without a caller, beside the server, in every process that may log in as roster_worker. */
import type { Logger } from "pino";
import { removeExpiredKeys } from "./expired-keys.ts";
import { removeExpiredMembers } from "./expired-members.ts";
import { purge } from "./purge.ts";
import type { Limits } from "./worker.ts";

const minuteMs = 60_000;

/** Background work under way. */
export interface Jobs {
  /** Starts nothing more and breaks off what runs. */
  stop(): Promise<void>;
}

/** One kind of work. It says in figures what it did, or nothing. */
type Job = (url: string, limits: Limits) => Promise<Readonly<Record<string, number>>>;

/** By the names that the log gives them: those of the audit, where they leave entries. */
const jobs: Readonly<Record<string, Job>> = {
  remove_expired_keys: async (url, limits) => ({
    removed: await removeExpiredKeys(url, limits),
  }),
  remove_expired_members: async (url, limits) => ({
    removed: await removeExpiredMembers(url, limits),
  }),
  purge: async (url, limits) => ({ ...(await purge(url, limits)) }),
};

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
    for (const [job, work] of Object.entries(jobs)) {
      if (signal.aborted) return;
      try {
        const done = await work(url, { signal });
        if (Object.values(done).some((count) => count > 0))
          log.info({ job, ...done }, "background work done");
      } catch (error) {
        const { message, code } = error as Error & { code?: string };
        // The next round tries again.
        if (!signal.aborted) log.warn({ job, code, error: message }, "background work failed");
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
