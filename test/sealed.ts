/** A sealed log, hands that alter it behind the back of its triggers, and what verification then finds. */
import { vi } from "vitest";
import { seal } from "../src/jobs/seal.ts";
import { type Fault, type KeptRoot, verifyAudit } from "../src/jobs/verify-audit.ts";
import type { Harness } from "./harness.ts";

/** Seals all there is. Transactions of other tests on the same server may hold it back for a while. */
export const sealAll = async ({ urls, admin }: Harness): Promise<void> => {
  const unsealed = async (): Promise<number> => {
    await seal(urls.worker);
    const { rows } = await admin.query(`
      select count(*)::int as n
      from (select xid from roster.audit_entries union all select xid from roster.audit_changes) r
      where r.xid > roster.sealed_until()`);
    return rows[0].n;
  };
  const sealed = async (): Promise<void> => {
    if ((await unsealed()) > 0) throw new Error("a transaction holds the seal back");
  };
  await vi.waitFor(sealed, { timeout: 20_000 });
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
