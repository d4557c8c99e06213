/** One request for each RPC of AuditService. */
import type { Samples } from "./world.ts";

export const auditSamples: Samples = {
  "AuditService.GetAuditEntry": {
    by: "owner",
    request: ({ orgId, auditEntryId }) => ({ orgId, auditEntryId }),
  },
  "AuditService.GetAuditEntry everywhere": {
    by: "platform",
    request: ({ auditEntryId }) => ({ auditEntryId }),
  },
  "AuditService.ListAuditEntries": { by: "owner", request: ({ orgId }) => ({ orgId }) },
  "AuditService.ListAuditEntries everywhere": { by: "platform", request: () => ({}) },
  "AuditService.ListAuditChanges": {
    by: "owner",
    request: ({ orgId, auditEntryId }) => ({ orgId, auditEntryId }),
  },
  "AuditService.ListAuditChanges everywhere": {
    by: "platform",
    request: ({ auditEntryId }) => ({ auditEntryId }),
  },
  "AuditService.ExportAuditEntries": { by: "owner", request: ({ orgId }) => ({ orgId }) },
  "AuditService.ExportAuditEntries everywhere": { by: "platform", request: () => ({}) },
  "AuditService.VerifyAuditLog": { by: "owner", request: ({ orgId }) => ({ orgId }) },
  "AuditService.VerifyAuditLog everywhere": { by: "platform", request: () => ({}) },
};
