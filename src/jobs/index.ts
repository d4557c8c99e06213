/** What runs without a caller, beside the server, in every process that may log in as roster_worker. */
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { removeExpiredAudit } from "./audit-retention.ts";
import { removeExpiredKeys } from "./expired-keys.ts";
import { removeExpiredMembers } from "./expired-members.ts";
import { makePartitions } from "./partitions.ts";
import { purge } from "./purge.ts";
import { keepSealing } from "./seal.ts";
import type { Limits } from "./worker.ts";

const minuteMs = 60_000;
const sealMs = 2_000;

/** Background work under way. */
export interface Jobs {
  /** How old the oldest row of the audit log that is not sealed is at most: while nobody can look, ever older. */
  readonly sealLagMs: number;
  /** Starts nothing more and breaks off what runs. */
  stop(): Promise<void>;
}

/** How the background work is done. */
export interface JobOptions {
  /** How long the audit log that belongs to no org is kept; 0, as without it: for good. */
  readonly auditRetentionDays?: number | undefined;
  /** Milliseconds from the end of one round to the next: a minute unless set. */
  readonly everyMs?: number;
}

/** One kind of work. It says in figures what it did, or nothing. */
type Job = (
  url: string,
  limits: Limits,
  options: JobOptions,
) => Promise<Readonly<Record<string, number>>>;

/** By the names that the log gives them: those of the audit, where they leave entries. */
const jobs: Readonly<Record<string, Job>> = {
  remove_expired_keys: async (url, limits) => ({
    removed: await removeExpiredKeys(url, limits),
  }),
  remove_expired_members: async (url, limits) => ({
    removed: await removeExpiredMembers(url, limits),
  }),
  purge: async (url, limits) => ({ ...(await purge(url, limits)) }),
  make_partitions: async (url, limits) => ({ made: await makePartitions(url, limits) }),
  remove_expired_audit: async (url, limits, { auditRetentionDays = 0 }) => ({
    ...(await removeExpiredAudit(url, auditRetentionDays, limits)),
  }),
};

/**
 * Starts the background work: first at some moment of the first minute, so that processes which start together do
 * not all come at once, then every minute. The audit log is sealed in a rhythm of its own, every two seconds.
 *
 * @param url logs in as roster_worker
 */
export const startJobs = (url: string, log: Logger, options: JobOptions = {}): Jobs => {
  const { everyMs = minuteMs } = options;
  const stopping = new AbortController();
  const { signal } = stopping;
  const failed = (job: string, error: unknown): void => {
    const { message, code } = error as Error & { code?: string };
    // The next round tries again.
    if (!signal.aborted) log.warn({ job, code, error: message }, "background work failed");
  };
  const wait = (ms: number): Promise<void> =>
    delay(ms, undefined, { signal, ref: false }).catch(() => undefined);

  const rounds = async (): Promise<void> => {
    await wait(Math.random() * everyMs);
    while (!signal.aborted) {
      for (const [job, work] of Object.entries(jobs)) {
        if (signal.aborted) return;
        try {
          const done = await work(url, { signal }, options);
          if (Object.values(done).some((count) => count > 0))
            log.info({ job, ...done }, "background work done");
        } catch (error) {
          failed(job, error);
        }
      }
      await wait(everyMs);
    }
  };

  let lag = { ms: 0, sinceMs: performance.now() };
  const lags = (ms: number): void => {
    lag = { ms, sinceMs: performance.now() };
  };
  const sealing = async (): Promise<void> => {
    const rhythmMs = Math.min(sealMs, everyMs);
    while (!signal.aborted) {
      await wait(rhythmMs);
      if (!signal.aborted)
        await keepSealing(url, { signal }, rhythmMs, lags).catch((error) =>
          failed("seal_audit", error),
        );
    }
  };

  const running = Promise.all([rounds(), sealing()]);
  return {
    get sealLagMs() {
      return lag.ms + performance.now() - lag.sinceMs;
    },
    stop: async () => {
      stopping.abort();
      await running;
    },
  };
};
