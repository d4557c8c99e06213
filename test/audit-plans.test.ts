import { randomUUID } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { explain, faultsOf, nodesOf, nodesOfCall, plans, useTenTimes } from "./explained.ts";
import { type Tenant, useHarness } from "./harness.ts";

const harness = useHarness({ poolSize: 1, pipeline: true });

const count = 40_000;
const subject = randomUUID();
const resource = randomUUID();

/** An org with a long log and others beside it. Of one caller and of one resource there is little in it, long ago. */
const load = (orgId: string): string => `
  begin;
  set local session_replication_role = replica;
  create temporary table log on commit drop as
    select n, gen_random_uuid() as id,
      now() - make_interval(mins => n) + case n % 2 when 0 then interval '1 month' else '0' end as create_time,
      case when n % 10 > 0 then '${orgId}'::uuid else md5('org' || n % 100)::uuid end as org_id
    from generate_series(1, ${count}) n;
  insert into roster.audit_entries (id, org_id, subject, kind, method, correlation_id, create_time)
    select id, org_id, case when n > ${count} - 300 and n % 3 = 0 then '${subject}' else md5('user' || n % 500) end,
      'USER', 'm', 'c', create_time from log;
  insert into roster.audit_changes (org_id, entry_id, subject, method, correlation_id, resource_type, resource_id,
      kind, changed_fields, create_time)
    select org_id, id, 'x', 'm', 'c', 'team',
      case when n > ${count} - 300 and n % 3 = 0 then '${resource}' else md5('team' || n % 5000) end,
      'UPDATED', '{}', create_time
    from log;
  commit;
  analyze`;

let tenant: Tenant;

beforeAll(async () => {
  const { admin } = harness.current;
  await explain(admin);
  tenant = await harness.current.tenant();
  await admin.query(load(tenant.orgId));
});

const most = 3 * 21;
const list = (filter: string, pageToken = "") =>
  tenant.owner.audit.listAuditEntries({ orgId: tenant.orgId, filter, pageSize: 20, pageToken });

describe("ListAuditEntries of a long log reads little more than it shows", () => {
  test.each([
    ["what somebody did", `actor.subject = ${subject}`],
    ["what somebody did, in some way", `actor.subject = ${subject} AND outcome = SUCCEEDED`],
    ["a time", "create_time < 2200-01-01T00:00:00Z AND outcome = SUCCEEDED"],
  ])("of %s", async (_, filter) => {
    const first = () => list(filter);
    await useTenTimes(first);
    expect(faultsOf(await nodesOfCall(first), most)).toEqual([]);
    const { nextPageToken, auditEntries } = await first();
    expect(auditEntries).toHaveLength(20);
    const later = () => list(filter, nextPageToken);
    expect(faultsOf(await nodesOfCall(later), most)).toEqual([]);
  });

  test("of what became of something: the changes of that, and no others", async () => {
    const filter = `changes.resource_id = ${resource}`;
    const first = () => list(filter);
    await useTenTimes(first);
    expect(faultsOf(await nodesOfCall(first), 300)).toEqual([]);
    expect((await first()).auditEntries).toHaveLength(20);
  });
});

test("ExportAuditEntries reads each page by its key, wherever it lies", async () => {
  const { orgId, owner } = tenant;
  plans.length = 0;
  for await (const _ of owner.audit.exportAuditEntries({ orgId }));
  const pages = plans.map(nodesOf).filter((nodes) => nodes.some((node) => node["Relation Name"]));
  expect(pages.length).toBeGreaterThan(30);
  // Of a page of a thousand PostgreSQL may rather sort the end of a month; never the log.
  for (const nodes of pages) expect(faultsOf(nodes, 8_000)).toEqual([]);
});

test("ListAuditChanges reads a page of an entry of thousands, the first or a later one", async () => {
  const { orgId, owner } = tenant;
  const id = randomUUID();
  await harness.current.admin.query(
    `with made as (
       insert into roster.audit_entries (id, org_id, subject, kind, method, correlation_id)
       values ($1, $2, 'service:x', 'SERVICE', 'm', 'c'))
     insert into roster.audit_changes (org_id, entry_id, subject, method, correlation_id, resource_type, resource_id,
       kind, changed_fields)
     select $2, $1, 'x', 'm', 'c', 'team', n::text, 'DELETED', '{}' from generate_series(1, 10000) n`,
    [id, orgId],
  );
  await harness.current.admin.query("analyze roster.audit_changes");
  const page = (pageSize: number, pageToken = "") =>
    owner.audit.listAuditChanges({ orgId, auditEntryId: id, pageSize, pageToken });
  const pageOf = async (call: () => Promise<unknown>) => {
    plans.length = 0;
    await call();
    return plans
      .map(nodesOf)
      .filter((nodes) => nodes.some((node) => /^audit_changes/.test(node["Relation Name"] ?? "")));
  };
  await useTenTimes(() => page(20));
  for (const nodes of await pageOf(() => page(20))) expect(faultsOf(nodes, most)).toEqual([]);
  const { nextPageToken } = await page(900);
  const later = await nodesOfCall(() => page(20, nextPageToken));
  expect(faultsOf(later, most)).toEqual([]);
});
