/** Seals the audit log: proves later that nobody has altered it. */
import { setTimeout as delay } from "node:timers/promises";
import type pg from "pg";
import { type Limits, numberOf, withWorker } from "./worker.ts";

/** Rows that one transaction seals, about: it takes whole transactions of others. */
const most = 10_000;
const busyMs = 200;

/** Seals one batch. @returns how many rows; null while another process is at it */
const sealSome = (client: pg.Client): Promise<number | null> =>
  numberOf<number | null>(client, "select roster.seal_audit($1)", [most]);

/**
 * Seals all that is committed and not sealed, in every org's log, up to the oldest transaction that is under way.
 *
 * @param url logs in as roster_worker
 * @returns how many rows
 */
export const seal = (url: string, limits: Limits = {}): Promise<number> =>
  withWorker(url, limits, async (client) => {
    let all = 0;
    for (;;) {
      const sealed = await sealSome(client);
      if (sealed === 0) return all;
      if (sealed === null) await delay(busyMs, undefined, { signal: limits.signal });
      else all += sealed;
    }
  });

/**
 * Seals again and again, on one connection, until it is told to end or fails. Of several processes one does it at
 * any time.
 *
 * @param everyMs milliseconds between two looks when there is nothing to do
 * @param lags hears after each look how old the oldest row is that is not sealed, in milliseconds
 */
export const keepSealing = (
  url: string,
  limits: Limits,
  everyMs: number,
  lags: (ms: number) => void,
): Promise<never> =>
  withWorker(url, limits, async (client) => {
    for (;;) {
      const sealed = await sealSome(client);
      lags(await numberOf(client, "select roster.seal_lag()"));
      if (!sealed) await delay(everyMs, undefined, { signal: limits.signal });
    }
  });
