import { expect } from "vitest";
import type { AuditEntry } from "../src/gen/roster/v1/audit_pb.ts";
import type { Callers } from "./harness.ts";

/** The newest entries of an org's log, or without an org of all logs. */
export const log = async ({ audit }: Callers, orgId = "", pageSize = 20): Promise<AuditEntry[]> =>
  (await audit.listAuditEntries({ orgId, pageSize })).auditEntries;

export const newest = async (callers: Callers, orgId = ""): Promise<AuditEntry> =>
  (await log(callers, orgId, 1))[0] ?? expect.fail("the log is empty");

export const methodsOf = (entries: readonly AuditEntry[]): string[] =>
  entries.map(({ method }) => method.split("/")[1] ?? "");
