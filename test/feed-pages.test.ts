import { randomUUID } from "node:crypto";
import pg from "pg";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { explain, nodesOf, plans } from "./explained.ts";
import { type Callers, type Tenant, useHarness } from "./harness.ts";

const harness = useHarness({ poolSize: 1, pipeline: true });

const firstId = "00000000-0000-0000-0000-000000000000";

interface Change {
  readonly id: string;
  readonly last: string;
}

/** What a page must hold: by its definition, which reads everything. */
const defined = `
  select f.id, f.last from (
    select c.xid, c.id, max(c.id::text collate "C") over (partition by c.xid)::uuid as last
    from roster.audit_changes c
    where ($1::uuid is null or c.org_id = $1) and not ($2 and c.copied)
      and not pg_visible_in_snapshot(c.xid, $3) and ($4::pg_snapshot is null or pg_visible_in_snapshot(c.xid, $4))) f
  where (f.last, f.id) > ($5::uuid, $6::uuid)
  order by f.last, f.id limit $7`;
const walked = `
  select id, last from roster.feed_page($1, $2, $3, $4, $5, $6, $7) order by last, id`;

/** Writes changes of an org, in the transaction that is open. */
const insert = (client: pg.Client, orgId: string | undefined, rows: number) =>
  client.query(
    `insert into roster.audit_changes (org_id, copied, entry_id, subject, method, correlation_id, resource_type,
      resource_id, kind, changed_fields)
     select $1, n % 3 = 0, gen_random_uuid(), 't', 't', 't', 'team', 't', 'UPDATED', '{}'
     from generate_series(1, $2::int) n`,
    [orgId, rows],
  );

const connected = async (count: number): Promise<readonly pg.Client[]> => {
  const connectionString = harness.current.urls.admin;
  const clients = Array.from({ length: count }, () => new pg.Client({ connectionString }));
  onTestFinished(async () => void (await Promise.all(clients.map((client) => client.end()))));
  await Promise.all(clients.map((client) => client.connect()));
  return clients;
};

const snapshot = async (): Promise<string> => {
  const { rows } = await harness.current.admin.query("select pg_current_snapshot()::text as now");
  return rows[0].now;
};

describe("A page of the feed", () => {
  test("holds what was open when its reader looked, though nothing was written after that", async () => {
    const { admin } = harness.current;
    const orgId = randomUUID();
    const [first, second] = await connected(2);
    if (!first || !second) return;
    await first.query("begin");
    await insert(first, orgId, 1);
    await second.query("begin");
    await insert(second, orgId, 1);
    await insert(first, orgId, 1);
    await first.query("commit");
    // Its end is behind the last transaction that was over, so the second lies behind it.
    const seen = await snapshot();
    await second.query("commit");
    const page = await admin.query(walked, [orgId, false, seen, null, firstId, firstId, 10]);
    expect(page.rows).toHaveLength(1);
  });

  test("holds what comes next, whichever transactions were open, whoever looks", async () => {
    const { admin } = harness.current;
    const orgs = [randomUUID(), randomUUID()];
    const seed = 20;
    let state = seed;
    const draw = (below: number): number => {
      state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
      return Math.floor((state / 2 ** 31) * below);
    };
    const clients = await connected(5);
    const open = new Set<pg.Client>();
    const snapshots: string[] = [];
    for (let step = 0; step < 300; step++) {
      const client = clients[draw(clients.length)] as pg.Client;
      if (!open.has(client)) await client.query("begin");
      open.add(client);
      await insert(client, orgs[draw(2)], draw(4));
      if (draw(5) === 0) {
        await client.query(draw(4) === 0 ? "rollback" : "commit");
        open.delete(client);
      }
      if (draw(20) === 0) snapshots.push(await snapshot());
    }
    for (const client of open) await client.query("commit");
    const ask = async (text: string, values: unknown[]): Promise<Change[]> =>
      (await admin.query<Change>(text, values)).rows;
    const sights = [...orgs.map((org) => [org, false]), [null, true], [null, false]];
    expect(snapshots.length).toBeGreaterThan(5);
    let found = 0;
    for (let round = 0; round < 30; round++) {
      const from = draw(snapshots.length);
      const part = draw(3) === 0 ? null : snapshots[from + draw(snapshots.length - from)];
      const sight = sights[draw(sights.length)] ?? [];
      const behind = [...sight, snapshots[from], part];
      const all = await ask(defined, [...behind, firstId, firstId, 10_000]);
      found += all.length;
      const size = 1 + draw(40);
      const read: Change[] = [];
      for (;;) {
        const { last, id } = read.at(-1) ?? { last: firstId, id: firstId };
        const page = await ask(walked, [...behind, last, id, size]);
        read.push(...page);
        if (page.length < size) break;
      }
      expect(read).toEqual(all);
    }
    expect(found).toBeGreaterThan(500);
  });
});

const [before, changes] = [8_000, 10_000];
const size = 1_000;

/** A change in a transaction of its own, or of four, or of a thousand. Of each five one is of another org. */
const write = (orgId: string, most: number): string => `
  do $$
  declare written int := 0; rows int;
  begin
    while written < ${most} loop
      rows := case when written % 10000 = 0 then 1000 when written % 7 = 0 then 4 else 1 end;
      insert into roster.audit_changes (org_id, entry_id, subject, method, correlation_id, resource_type, resource_id,
          kind, changed_fields)
        select case when n % 5 > 0 or rows < 5 then '${orgId}'::uuid else gen_random_uuid() end, gen_random_uuid(),
          't', 't', 't', 'team', 't', 'UPDATED', '{}'
        from generate_series(1, rows) n;
      written := written + rows;
      commit;
    end loop;
  end
  $$`;

describe("Whoever has much to catch up with", () => {
  let tenant: Tenant;
  let mine: string;
  let everyones: string;

  beforeAll(async () => {
    const { admin, ops } = harness.current;
    await explain(admin);
    const { rows } = await admin.query("select current_database() as name");
    for (const role of ["roster_app", "roster_directory"])
      await admin.query(
        `alter role ${role} in database ${rows[0].name} set auto_explain.log_nested_statements = on`,
      );
    tenant = await harness.current.tenant();
    await admin.query(write(tenant.orgId, before));
    mine = (await tenant.owner.changes.listChanges({ orgId: tenant.orgId })).position;
    everyones = (await ops.changes.listChanges({})).position;
    await admin.query(write(tenant.orgId, changes));
    await admin.query("analyze roster.audit_changes");
  });

  const reading = /^audit_changes/;
  /** The rows of the log that were read for each page up to the end, and how many there were. */
  const costs = async ({ changes: client }: Callers, orgId: string, start: string) => {
    const read: number[] = [];
    let [told, position] = [0, start];
    for (let more = true; more; ) {
      plans.length = 0;
      const page = await client.listChanges({ orgId, position, pageSize: size });
      ({ position, more } = page);
      told += page.changes.length;
      read.push(
        plans
          .flatMap(nodesOf)
          .filter((node) => reading.test(node["Relation Name"] ?? ""))
          .reduce(
            (sum, node) =>
              sum +
              (node["Actual Rows"] + (node["Rows Removed by Filter"] ?? 0)) * node["Actual Loops"],
            0,
          ),
      );
    }
    return { read, told };
  };

  test.each([
    ["in an org", () => costs(tenant.owner, tenant.orgId, mine)],
    ["in all orgs", () => costs(harness.current.ops, "", everyones)],
  ])("reads for each page about what it gets, the first as the last, %s", async (_, all) => {
    const { read, told } = await all();
    expect(told).toBeGreaterThan(changes * 0.9);
    // Each change is walked over, asked whether it is the last, and given; a transaction of a thousand as a whole.
    expect(Math.max(...read)).toBeLessThan(4 * (size + 1_000));
    expect(read[0]).toBeGreaterThan(size);
    expect(read.length).toBeGreaterThan(8);
  });
});
