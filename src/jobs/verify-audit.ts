/** Proves that the audit log is as it was written, or says where it is not. */
import { type Limits, withWorker } from "./worker.ts";

/** Seals that one statement examines. */
const batch = 100;
const limitMs = 10 * 60_000;

/** Under this id is the log that belongs to no org. */
export const noOrg = "00000000-0000-0000-0000-000000000000";

/** The end of an org's seals. */
export interface Head {
  readonly orgId: string;
  /** How many seals there are; 0 while there is none. */
  readonly number: number;
  /** Of the last seal, in hexadecimal; empty while there is none. */
  readonly root: string;
  /** Up to when retention has removed rows, if it has. */
  readonly keptFrom: Date | undefined;
}

/** A root that was kept elsewhere. */
export interface KeptRoot {
  readonly number: number;
  readonly root: string;
}

/** What is wrong with a log. */
export interface Fault {
  readonly kind:
    | "EDITED"
    | "DELETED"
    | "INSERTED"
    | "SEAL_BROKEN"
    | "SEAL_MISSING"
    | "ROOT_DIFFERS";
  /** The seal that tells. */
  readonly number: number;
  /** The row at fault; undefined when it is the seal itself. */
  readonly row: { readonly table: string; readonly id: string } | undefined;
}

/** How far the verification of a log is. */
export interface Progress {
  readonly seals: number;
  readonly rows: number;
}

interface Step {
  readonly number: string;
  readonly size: number;
  readonly root: string;
  readonly removed: boolean;
  readonly fault: Fault["kind"] | null;
  readonly source: number | null;
  readonly id: string | null;
}

/** The last seal of every log. @param url logs in as roster_worker */
export const heads = (url: string, limits: Limits = {}): Promise<readonly Head[]> =>
  withWorker(url, limits, async (client) => {
    const { rows } = await client.query("select * from roster.audit_heads()");
    return rows.map((row) => ({
      orgId: row.org_id,
      number: Number(row.number ?? 0),
      root: row.root ?? "",
      keptFrom: row.kept_from ?? undefined,
    }));
  });

/**
 * Follows the seals of one log from the first to the last, digests the rows anew, and tells of each fault. It holds
 * some seals at a time, however long the log is.
 *
 * @param url logs in as roster_worker
 * @param kept roots that the seals must still have
 */
export const verifyAudit = (
  url: string,
  orgId: string,
  kept: readonly KeptRoot[],
  onFault: (fault: Fault) => void,
  onProgress: (progress: Progress) => void = () => {},
): Promise<Progress> =>
  withWorker(url, { limitMs }, async (client) => {
    const missing = new Map(kept.map(({ number, root }) => [number, root]));
    let [seals, rows, behind] = [0, 0, 0];
    for (;;) {
      const { rows: steps } = await client.query<Step>(
        "select number, size, root, removed, fault, source, id from roster.check_seals_of($1, $2, $3)",
        [orgId, behind, batch],
      );
      const before = seals;
      for (const step of steps) {
        const number = Number(step.number);
        if (step.fault) {
          const table = step.source === 1 ? "audit_entries" : "audit_changes";
          const row = step.id === null ? undefined : { table, id: step.id };
          onFault({ kind: step.fault, number, row });
          continue;
        }
        const root = missing.get(number);
        missing.delete(number);
        if (root !== undefined && root !== step.root)
          onFault({ kind: "ROOT_DIFFERS", number, row: undefined });
        seals++;
        if (!step.removed) rows += step.size;
        behind = number;
      }
      onProgress({ seals, rows });
      if (seals - before < batch) break;
    }
    for (const number of missing.keys()) onFault({ kind: "SEAL_MISSING", number, row: undefined });
    return { seals, rows };
  });
