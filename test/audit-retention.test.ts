import { describe, expect, test } from "vitest";
import { removeExpiredAudit } from "../src/jobs/audit-retention.ts";
import { makePartitions } from "../src/jobs/partitions.ts";
import { heads } from "../src/jobs/verify-audit.ts";
import { log } from "./audit-log.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";
import { faultsOf, sealAll, tamper } from "./sealed.ts";

const harness = useHarness();
const fresh = useHarness();

const noOrg = "00000000-0000-0000-0000-000000000000";

/** Lets all of a log that is not sealed yet have happened at a time, and seals it. */
const agedTo = async (time: string, orgId?: string, { current } = harness): Promise<void> => {
  for (const table of ["audit_entries", "audit_changes"]) {
    await tamper(
      current,
      `update roster.${table} set create_time = $1::timestamptz + interval '1 hour' * random()
       where xid > roster.sealed_until() and ($2::uuid is null or org_id = $2)`,
      [time, orgId],
    );
  }
  await sealAll(current);
};

const daysAgo = (days: number): string => new Date(Date.now() - days * 86_400_000).toISOString();

const rowsOf = async (orgId: string, { current } = harness): Promise<number> => {
  const { rows } = await current.admin.query(
    "select count(*)::int as n from roster.audit_leaves_of($1)",
    [orgId],
  );
  return rows[0].n;
};

const keep = (orgId: string, auditRetentionDays: number) =>
  harness.current.ops.orgs.updateOrgLimits({ limits: { orgId, auditRetentionDays } });

const expire = () => removeExpiredAudit(harness.current.urls.worker, 0);

describe("The audit log's retention", () => {
  test("removes what an org keeps no longer, and nothing of others; the rest is still verified", async () => {
    const { ops } = harness.current;
    const [{ orgId, owner }, other] = [
      await harness.current.tenant(),
      await harness.current.tenant(),
    ];
    await agedTo(daysAgo(40));
    const kept = (await heads(harness.current.urls.worker)).find((head) => head.orgId === orgId);
    await ops.orgs.updateOrg({ org: { id: orgId, name: "Renamed" } });
    await agedTo(daysAgo(20));
    await sealAll(harness.current);
    expect(await expire()).toEqual({ seals: 0, months: 0, removed: 0 });

    // Where exports of the org's log and of all have sent the oldest entry.
    const { rows } = await harness.current.admin.query(
      "select min(create_time) as oldest from roster.audit_entries where org_id = $1",
      [orgId],
    );
    const filter = `create_time < ${new Date(rows[0].oldest.getTime() + 1).toISOString()}`;
    const positionOf = async ({ audit }: Callers, id: string): Promise<string> => {
      let position = "";
      for await (const message of audit.exportAuditEntries({ orgId: id, filter }))
        ({ position } = message);
      return position;
    };
    const [ofOrg, ofAll] = [await positionOf(owner, orgId), await positionOf(ops, "")];
    await keep(orgId, 30);
    const [before, others] = [await rowsOf(orgId), await rowsOf(other.orgId)];
    expect(await expire()).toEqual({ seals: 1, months: 0, removed: before - 4 });
    expect(await expire()).toEqual({ seals: 0, months: 0, removed: 0 });
    expect(await rowsOf(other.orgId)).toBe(others);
    await sealAll(harness.current);
    expect((await log(owner, orgId)).map(({ method }) => method)).toEqual([
      "roster.v1.OrgService/UpdateOrgLimits",
      "roster.v1.OrgService/UpdateOrg",
    ]);

    // An export that was left behind hears that it missed something.
    const goOn = async ({ audit }: Callers, request: { orgId?: string; position: string }) => {
      for await (const message of audit.exportAuditEntries(request)) if (message.position) return;
    };
    const refused = { code: "OutOfRange", reason: "EXPORT_POSITION_OUT_OF_RANGE" };
    expect(await refusal(goOn(owner, { orgId, position: ofOrg }))).toMatchObject(refused);
    expect(await refusal(goOn(ops, { position: ofAll }))).toMatchObject(refused);
    const anew = owner.audit.exportAuditEntries({ orgId });
    const { value } = await anew[Symbol.asyncIterator]().next();
    expect(value.auditEntries).toHaveLength(2);
    await goOn(owner, { orgId, position: value.position });

    for (const id of [orgId, other.orgId, noOrg])
      expect(await faultsOf(harness.current, id)).toEqual([]);
    // Seals of what is gone stay, and so do their roots.
    if (!kept) return expect.fail("there is no root");
    expect(await faultsOf(harness.current, orgId, [kept])).toEqual([]);
    const wrong = { number: kept.number, root: kept.root.replace(/^../, "zz") };
    expect(await faultsOf(harness.current, orgId, [wrong])).toEqual(["ROOT_DIFFERS 1"]);
    const { verified, keptFrom } = await owner.audit.verifyAuditLog({ orgId });
    expect(verified).toBe(true);
    expect(Number(keptFrom?.seconds)).toBeGreaterThan(Date.parse(daysAgo(40)) / 1000 - 1);
    expect(Number(keptFrom?.seconds)).toBeLessThan(Date.parse(daysAgo(39)) / 1000);
    expect(await other.owner.audit.verifyAuditLog({ orgId: other.orgId })).not.toHaveProperty(
      "keptFrom",
    );
  });

  test("finds what was put where it has left nothing", async () => {
    const { orgId } = await harness.current.tenant();
    await agedTo(daysAgo(40), orgId);
    await keep(orgId, 30);
    await expire();
    await sealAll(harness.current);
    await tamper(
      harness.current,
      `insert into roster.audit_entries (id, org_id, subject, kind, method, correlation_id, xid)
       select gen_random_uuid(), org_id, 's', 'USER', 'm', 'c', until_xid
       from roster.audit_removals where org_id = $1`,
      [orgId],
    );
    expect(await faultsOf(harness.current, orgId)).toEqual([
      expect.stringMatching(/^INSERTED 1 audit_entries /),
    ]);
  });

  test("removes no seal that holds anything younger, and none behind it", async () => {
    const { ops, admin } = harness.current;
    const { orgId } = await harness.current.tenant();
    await sealAll(harness.current);
    await ops.orgs.updateOrg({ org: { id: orgId, name: "Of old" } });
    await agedTo(daysAgo(40), orgId);
    await keep(orgId, 30);
    const before = await rowsOf(orgId);
    await expire();
    expect(await rowsOf(orgId)).toBe(before);
    // Nor can it be made to, by whoever has no more rights than the functions that do it.
    await admin.query("begin; set local role roster_gate");
    const { rowCount } = await admin.query("delete from roster.audit_entries where org_id = $1", [
      orgId,
    ]);
    await admin.query("rollback");
    expect(rowCount).toBe(0);
  });

  test("drops a month whole once nobody needs it: no org, and not the platform", async () => {
    const { admin, ops, urls } = fresh.current;
    const { orgId } = await fresh.current.tenant();
    const gone = await fresh.current.tenant();
    await ops.orgs.deleteOrg({ orgId: gone.orgId, force: true });
    await ops.orgs.purgeOrg({ orgId: gone.orgId });
    await agedTo("2020-05-10T12:00:00Z", undefined, fresh);
    await makePartitions(urls.worker);
    const months = async (): Promise<number> => {
      const text = "select from pg_class where relname ~ '^audit_(entries|changes)_2020_05$'";
      return (await admin.query(text)).rowCount ?? 0;
    };
    expect(await months()).toBe(2);

    // The org keeps its log for good, the platform its own and that of the purged org for a year.
    expect(await removeExpiredAudit(urls.worker, 365)).toMatchObject({ seals: 2, months: 0 });
    expect(await rowsOf(gone.orgId, fresh)).toBe(0);
    expect(await rowsOf(orgId, fresh)).toBeGreaterThan(0);
    expect(await months()).toBe(2);
    await ops.orgs.updateOrgLimits({ limits: { orgId, auditRetentionDays: 365 } });
    expect(await removeExpiredAudit(urls.worker, 365)).toEqual({ seals: 1, months: 2, removed: 0 });
    expect(await months()).toBe(0);
    await sealAll(fresh.current);
    for (const { orgId } of await heads(urls.worker))
      expect(await faultsOf(fresh.current, orgId)).toEqual([]);
  });
});
