import type { ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { maybeOrgId, unitOfWork } from "../context.ts";
import { maybeInstant, sql } from "../database/sql.ts";
import { AuditFaultKind } from "../gen/roster/v1/audit_pb.ts";
import type { AuditService } from "../gen/roster/v1/audit_service_pb.ts";

/** Seals that one statement examines. */
const batch = 200;

/** Stands for no org where the log is sealed. */
const noOrg = "00000000-0000-0000-0000-000000000000";

const stateRow = z.object({ sealed_until: maybeInstant, kept_from: maybeInstant });

const stepRow = z.object({
  number: z.bigint(),
  fault: z.enum(["EDITED", "DELETED", "INSERTED", "SEAL_BROKEN", "SEAL_MISSING"]).nullable(),
  source: z.number().nullable(),
  id: z.string().nullable(),
});

export const auditProofs = {
  async verifyAuditLog(_request, context) {
    const unit = unitOfWork(context);
    const orgId = maybeOrgId(context) ?? "";
    const log = orgId || noOrg;
    const [state] = await unit.many(sql.type(stateRow)`
      select
        (select create_time from roster.audit_seals where org_id = ${log} order by number desc limit 1)
          as sealed_until,
        (select kept_from from roster.audit_removals where org_id = ${log}) as kept_from`);
    const answer = { sealedUntil: state?.sealed_until, keptFrom: state?.kept_from };
    for (let behind = 0n; ; ) {
      const steps = await unit.many(sql.type(stepRow)`
        select number, fault, source, id from roster.check_seals(${log}, ${behind}, ${batch})`);
      for (const { number, fault, source, id } of steps) {
        if (fault === null) continue;
        const kind = AuditFaultKind[fault];
        const table = source === null ? "" : source === 1 ? "audit_entries" : "audit_changes";
        const firstFault = { kind, orgId, sealNumber: number, table, rowId: id ?? "" };
        return { ...answer, verified: false, firstFault };
      }
      if (steps.length < batch) return { ...answer, verified: true };
      behind = steps.at(-1)?.number ?? behind;
    }
  },
} satisfies Pick<ServiceImpl<typeof AuditService>, "verifyAuditLog">;
