/** Removes for good what was deleted, once its purge_time has come. */
import { setTimeout as delay } from "node:timers/promises";
import { v7 as uuid } from "uuid";
import { batch, type Limits, withWorker } from "./worker.ts";

const busyMs = 200;

/** What one transaction removed. */
export interface PurgeStep {
  readonly resourceType: "org" | "user" | "team";
  /** The org, or the org of the teams; null for users. */
  readonly resourceId: string | null;
  /** How many users or teams are gone, or whether the org is: 0 while rows of it are left. */
  readonly items: number;
  /** Rows that were removed, without those that went with them by themselves. */
  readonly rows: number;
}

/** How many of each went. */
export interface Purged {
  orgs: number;
  users: number;
  teams: number;
}

/** What could be removed now. */
export interface Purgeable {
  readonly resourceType: "org" | "user" | "team";
  /** The org; null for all users and for all teams together. */
  readonly resourceId: string | null;
  /** When the first of them was due. */
  readonly dueTime: Date;
  readonly items: number;
  /** Memberships, and teams of an org, that hang on them. */
  readonly rows: number;
}

interface Row {
  readonly resource_type: PurgeStep["resourceType"] | "busy";
  readonly resource_id: string | null;
  readonly items: number;
  readonly rows: number;
}

/**
 * Removes all that is due, in small transactions, each with its audit entry. Of several processes one is at it at any
 * time. What was broken off goes on where it was.
 *
 * @param url logs in as roster_worker
 * @param onStep hears of each transaction after its commit
 */
export const purge = (
  url: string,
  limits: Limits = {},
  onStep: (step: PurgeStep) => void = () => {},
): Promise<Purged> =>
  withWorker(url, limits, async (client) => {
    const all: Purged = { orgs: 0, users: 0, teams: 0 };
    for (;;) {
      const { rows } = await client.query<Row>("select * from roster.purge($1, $2)", [
        batch,
        uuid(),
      ]);
      const [row] = rows;
      if (!row) return all;
      const { resource_type: resourceType, resource_id: resourceId, items } = row;
      if (resourceType === "busy") {
        await delay(busyMs, undefined, { signal: limits.signal });
        continue;
      }
      all[`${resourceType}s`] += items;
      onStep({ resourceType, resourceId, items, rows: row.rows });
    }
  });

/** Says what `purge` would remove, and changes nothing. */
export const purgeable = (url: string, limits: Limits = {}): Promise<readonly Purgeable[]> =>
  withWorker(url, limits, async (client) => {
    const { rows } = await client.query<Row & { due_time: Date }>(
      "select * from roster.purgeable()",
    );
    return rows.map((row) => ({
      resourceType: row.resource_type as Purgeable["resourceType"],
      resourceId: row.resource_id,
      dueTime: row.due_time,
      items: Number(row.items),
      rows: Number(row.rows),
    }));
  });
