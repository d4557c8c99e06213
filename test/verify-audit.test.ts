import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { AuditFaultKind } from "../src/gen/roster/v1/audit_pb.ts";
import { refusal, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { sealAll, tamper } from "./sealed.ts";
import { enter, useConnections, within } from "./sessions.ts";

const harness = useHarness();
const connect = useConnections();

/** A sealed org of which somebody has edited an entry, and that entry. */
const edited = async () => {
  const tenant = await harness.current.tenant();
  const { orgId, owner } = tenant;
  await sealAll(harness.current);
  await makeTeam(owner, { orgId, name: "Crew" });
  await sealAll(harness.current);
  const { auditEntries } = await owner.audit.listAuditEntries({ orgId, pageSize: 1 });
  const rowId = auditEntries[0]?.id ?? "";
  const edit = "update roster.audit_entries set subject = 'nobody' where id = $1";
  await tamper(harness.current, edit, [rowId]);
  return { ...tenant, rowId };
};

describe("AuditService.VerifyAuditLog", () => {
  test("says until when a log is sealed, and that it is as it was written", async () => {
    const { orgId, owner, admin } = await harness.current.tenant();
    expect(await owner.audit.verifyAuditLog({ orgId })).toMatchObject({ verified: true });
    const started = Date.now() / 1000;
    await sealAll(harness.current);
    const answer = await admin.audit.verifyAuditLog({ orgId });
    expect(answer).toMatchObject({ verified: true });
    expect(answer.firstFault).toBeUndefined();
    expect(answer.keptFrom).toBeUndefined();
    expect(Number(answer.sealedUntil?.seconds)).toBeGreaterThan(started - 60);
  });

  test("names the first fault to the org's auditors, and nothing of it to those of others", async () => {
    const { orgId, owner, ownerId, rowId } = await edited();
    const other = await harness.current.tenant();
    await sealAll(harness.current);
    const { verified, firstFault } = await owner.audit.verifyAuditLog({ orgId });
    expect(verified).toBe(false);
    expect(firstFault).toMatchObject({
      kind: AuditFaultKind.EDITED,
      orgId,
      sealNumber: 2n,
      table: "audit_entries",
      rowId,
    });
    const theirs = await other.owner.audit.verifyAuditLog({ orgId: other.orgId });
    expect(theirs).toMatchObject({ verified: true });
    expect(await refusal(other.owner.audit.verifyAuditLog({ orgId }))).toMatchObject({
      code: "PermissionDenied",
      reason: "ORG_NOT_ALLOWED",
    });
    // Whatever statement is sent.
    const app = await connect(harness.current.urls.app);
    const check = "select * from roster.check_seals($1, 0, 100) where fault <> ''";
    const inside = (org: string, user: string) => within(app, enter(org, user), check, [orgId]);
    expect((await inside(orgId, ownerId)).rows).toHaveLength(1);
    expect(await inside(other.orgId, other.ownerId)).toMatchObject({ rows: [], code: undefined });
  });

  test("goes on behind a seal, and says when half of its time was not enough", async () => {
    const { orgId, owner } = await harness.current.tenant();
    for (let i = 0; i < 10; i++) {
      await makeTeam(owner, { orgId, name: `Team ${i}` });
      await sealAll(harness.current);
    }
    const whole = await owner.audit.verifyAuditLog({ orgId });
    expect(whole).toMatchObject({ verified: true, more: false, verifiedSealNumber: 10n });
    const { admin } = harness.current;
    await admin.query("begin; lock table roster.audit_seals in access exclusive mode");
    const slow = owner.audit.verifyAuditLog({ orgId }, { timeoutMs: 8_000 });
    const waits = async () => {
      const { rowCount } = await admin.query(
        "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
      );
      return rowCount;
    };
    await expect.poll(waits).toBe(1);
    await delay(4_200);
    await admin.query("rollback");
    expect(await slow).toMatchObject({ verified: true, more: true, verifiedSealNumber: 8n });
    const rest = await owner.audit.verifyAuditLog({ orgId, afterSealNumber: 8n });
    expect(rest).toMatchObject({ verified: true, more: false, verifiedSealNumber: 10n });
    expect(await owner.audit.verifyAuditLog({ orgId, afterSealNumber: 11n })).toMatchObject({
      verified: false,
      verifiedSealNumber: 0n,
      firstFault: { kind: AuditFaultKind.SEAL_MISSING, sealNumber: 11n },
    });

    await tamper(
      harness.current,
      `update roster.audit_entries set subject = 'nobody'
       where id = (select id from roster.audit_entries where org_id = $1 order by create_time desc limit 1)`,
      [orgId],
    );
    expect(await owner.audit.verifyAuditLog({ orgId })).toMatchObject({
      verified: false,
      verifiedSealNumber: 9n,
      firstFault: { kind: AuditFaultKind.EDITED, sealNumber: 10n },
    });
    const behind = await owner.audit.verifyAuditLog({ orgId, afterSealNumber: 10n });
    expect(behind).toMatchObject({ verified: true, verifiedSealNumber: 10n });
  });

  test("proves to operators each org's log, and the one that belongs to none", async () => {
    const { ops } = harness.current;
    const { orgId, rowId } = await edited();
    expect(await ops.audit.verifyAuditLog({ orgId })).toMatchObject({ firstFault: { rowId } });
    expect(await ops.audit.verifyAuditLog({})).toMatchObject({ verified: true });
    await harness.current.user();
    await sealAll(harness.current);
    const { rows } = await harness.current.admin.query(
      "select id from roster.audit_changes where org_id is null order by xid desc, id limit 1",
    );
    await tamper(harness.current, "delete from roster.audit_changes where id = $1", [rows[0].id]);
    const { verified, firstFault } = await ops.audit.verifyAuditLog({});
    expect(verified).toBe(false);
    expect(firstFault).toMatchObject({
      kind: AuditFaultKind.DELETED,
      orgId: "",
      table: "audit_changes",
      rowId: rows[0].id,
    });
    const service = await harness.current.as("service:crm", { scope: "audit.read" });
    expect(await refusal(service.audit.verifyAuditLog({}))).toMatchObject({
      reason: "ORG_REQUIRED",
    });
  });
});
