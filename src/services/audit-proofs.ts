import type { ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { deadlineOf, maybeOrgId, unitOfWork } from "../context.ts";
import { maybeInstant, sql } from "../database/sql.ts";
import { AuditFaultKind } from "../gen/roster/v1/audit_pb.ts";
import type { AuditService } from "../gen/roster/v1/audit_service_pb.ts";

/** Seals that one statement examines: at first, at most, and as many as take about so long. */
const [firstBatch, mostBatch, batchMs] = [8, 512, 200];

/** Stands for no org where the log is sealed. */
const noOrg = "00000000-0000-0000-0000-000000000000";

const stateRow = z.object({
  sealed_until: maybeInstant,
  kept_from: maybeInstant,
  begins: z.boolean(),
});

const stepRow = z.object({
  number: z.bigint(),
  fault: z.enum(["EDITED", "DELETED", "INSERTED", "SEAL_BROKEN", "SEAL_MISSING"]).nullable(),
  source: z.number().nullable(),
  id: z.string().nullable(),
});

export const auditProofs = {
  async verifyAuditLog({ afterSealNumber }, context) {
    const deadline = deadlineOf(context.values);
    const enoughMs = deadline.remainingMs() / 2;
    const unit = unitOfWork(context);
    const orgId = maybeOrgId(context) ?? "";
    const log = orgId || noOrg;
    const [state] = await unit.many(sql.type(stateRow)`
      select
        (select create_time from roster.audit_seals where org_id = ${log} order by number desc limit 1)
          as sealed_until,
        (select kept_from from roster.audit_removals where org_id = ${log}) as kept_from,
        ${afterSealNumber} = 0 or exists (
          select from roster.audit_seals where org_id = ${log} and number = ${afterSealNumber}) as begins`);
    const times = { sealedUntil: state?.sealed_until, keptFrom: state?.kept_from };
    if (!state?.begins) {
      const firstFault = { kind: AuditFaultKind.SEAL_MISSING, orgId, sealNumber: afterSealNumber };
      return { ...times, verified: false, firstFault };
    }
    let behind = afterSealNumber;
    for (let batch = firstBatch; ; ) {
      const begin = performance.now();
      const steps = await unit.many(sql.type(stepRow)`
        select number, fault, source, id from roster.check_seals(${log}, ${behind}, ${batch})`);
      for (const { number, fault, source, id } of steps) {
        if (fault === null) {
          behind = number;
          continue;
        }
        const kind = AuditFaultKind[fault];
        const table = source === null ? "" : source === 1 ? "audit_entries" : "audit_changes";
        const firstFault = { kind, orgId, sealNumber: number, table, rowId: id ?? "" };
        return { ...times, verified: false, firstFault, verifiedSealNumber: behind };
      }
      const more = steps.length === batch;
      if (!more || deadline.remainingMs() < enoughMs)
        return { ...times, verified: true, verifiedSealNumber: behind, more };
      const quick = performance.now() - begin < batchMs;
      batch = quick ? Math.min(2 * batch, mostBatch) : Math.max(1, batch >> 1);
    }
  },
} satisfies Pick<ServiceImpl<typeof AuditService>, "verifyAuditLog">;
