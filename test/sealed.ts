/** A sealed log, hands that alter it behind the back of its triggers, and what verification then finds. */
import { vi } from "vitest";
import { seal } from "../src/jobs/seal.ts";
import { type Fault, type KeptRoot, verifyAudit } from "../src/jobs/verify-audit.ts";
import type { Harness } from "./harness.ts";

/** Waits until all there is can be sealed, which transactions of other tests on the same server may hold back. */
export const sealable = async ({ admin }: Harness): Promise<void> => {
  const free = async (): Promise<void> => {
    const { rows } = await admin.query(`
      select count(*)::int as held
      from (select xid from roster.audit_entries union all select xid from roster.audit_changes) r
      where r.xid >= pg_snapshot_xmin(pg_current_snapshot())`);
    if (rows[0].held > 0) throw new Error("a transaction holds the seal back");
  };
  await vi.waitFor(free, { timeout: 20_000 });
};

/** Seals all there is, once in each log. */
export const sealAll = async (harness: Harness): Promise<void> => {
  await sealable(harness);
  await seal(harness.urls.worker);
};

/** Runs statements as a superuser who has switched triggers off. */
export const tamper = async (
  { admin }: Harness,
  text: string,
  values: readonly unknown[] = [],
): Promise<void> => {
  await admin.query("begin; set local session_replication_role = replica");
  await admin.query(text, [...values]);
  await admin.query("commit");
};

/** What verification finds in a log, a line for each fault. */
export const faultsOf = async (
  { urls }: Harness,
  orgId: string,
  kept: readonly KeptRoot[] = [],
): Promise<string[]> => {
  const found: string[] = [];
  const tell = ({ kind, number, row }: Fault): void =>
    void found.push([kind, number, ...(row ? [row.table, row.id] : [])].join(" "));
  await verifyAudit(urls.worker, orgId, kept, tell);
  return found;
};
