import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { seal } from "../src/jobs/seal.ts";
import { heads, verifyAudit } from "../src/jobs/verify-audit.ts";
import { useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { faultsOf, sealAll, tamper } from "./sealed.ts";
import { useConnections } from "./sessions.ts";

const harness = useHarness();
const connect = useConnections();

const noOrg = "00000000-0000-0000-0000-000000000000";

/** An org with two seals, and the rows of its log in the order in which they are sealed. */
const sealedOrg = async () => {
  const tenant = await harness.current.tenant();
  await sealAll(harness.current);
  const { orgId, owner } = tenant;
  for (const name of ["Tenors", "Altos"]) await makeTeam(owner, { orgId, name });
  await sealAll(harness.current);
  const { rows } = await harness.current.admin.query<{ table: string; id: string; seal: number }>(
    `select case source when 1 then 'audit_entries' else 'audit_changes' end as table, l.id, s.number::int as seal
     from roster.audit_leaves_of($1) l
     join roster.audit_seals s on s.org_id = $1 and l.xid > s.after_xid and l.xid <= s.until_xid
     order by l.xid, l.source, l.id`,
    [orgId],
  );
  const rowsOf = (table: string, number: number) =>
    rows.filter((row) => row.table === table && row.seal === number).map(({ id }) => id);
  return { ...tenant, rowsOf };
};

/** The end of an org's seals. */
const headOf = async (orgId: string) => {
  const found = (await heads(harness.current.urls.worker)).find((head) => head.orgId === orgId);
  return found ?? expect.fail("the org has no log");
};

/** Runs statements that are taken back, and verification in between. */
const faultsAmid = async (
  orgId: string,
  ...statements: readonly string[]
): Promise<Record<string, unknown>[]> => {
  const { admin } = harness.current;
  await admin.query("begin; set local session_replication_role = replica");
  try {
    for (const statement of statements) await admin.query(statement);
    const { rows } = await admin.query(
      "select number::int, fault, source, id from roster.check_seals_of($1, 0, 100) where fault <> ''",
      [orgId],
    );
    return rows;
  } finally {
    await admin.query("rollback");
  }
};

describe("A seal", () => {
  test("covers what every org's log has got, in one chain for each org", async () => {
    const { urls, admin } = harness.current;
    const { orgId } = await sealedOrg();
    expect(await seal(urls.worker)).toBe(0);
    const { rows } = await admin.query(
      `select number::int, previous_root, root, after_xid::text, until_xid::text, size
       from roster.audit_seals where org_id = $1 order by number`,
      [orgId],
    );
    expect(rows.map(({ number }) => number)).toEqual([1, 2]);
    expect(rows[0].previous_root).toHaveLength(0);
    expect(rows[1].previous_root).toEqual(rows[0].root);
    expect(rows[1].after_xid).toBe(rows[0].until_xid);
    expect(rows[1].size).toBe(4);
    expect(await faultsOf(harness.current, orgId)).toEqual([]);
    expect(await faultsOf(harness.current, noOrg)).toEqual([]);
  });

  test("waits for a transaction under way, and skips nothing of it", async () => {
    const { urls, admin } = harness.current;
    const { orgId, owner } = await harness.current.tenant();
    await sealAll(harness.current);
    const slow = await connect(urls.admin);
    await slow.query("begin");
    const slowId = randomUUID();
    await slow.query(
      `insert into roster.audit_entries (id, org_id, subject, kind, method, correlation_id)
       values ($1, $2, 's', 'USER', 'm', 'c')`,
      [slowId, orgId],
    );
    await makeTeam(owner, { orgId, name: "Faster" });
    expect(await seal(urls.worker)).toBe(0);
    await slow.query("commit");
    await sealAll(harness.current);
    const { rows } = await admin.query(
      `select id from roster.audit_seals s, unnest(s.ids) with ordinality i (id, place)
       where s.org_id = $1 order by s.number desc, place desc limit 3`,
      [orgId],
    );
    expect(rows[2].id).toBe(slowId);
    expect(await faultsOf(harness.current, orgId)).toEqual([]);
  });

  test("is not made, nor anything removed, while transactions are behind it after a restored dump", async () => {
    const { admin } = harness.current;
    await harness.current.tenant();
    await sealAll(harness.current);
    await admin.query("begin; set local session_replication_role = replica");
    await admin.query("update roster.audit_seals set until_xid = '4000000000'");
    for (const job of ["seal_audit(1)", "expire_audit(0, 1)", "remove_expired_audit(1)"]) {
      await admin.query("savepoint asked");
      await expect(admin.query(`select roster.${job}`), job).rejects.toThrow(
        /^the log was sealed up to transaction 4000000000, and this server is only at \d+$/,
      );
      await admin.query("rollback to asked");
    }
    await admin.query("rollback");
  });

  test("is made by one process at a time", async () => {
    const { urls } = harness.current;
    await harness.current.tenant();
    await sealAll(harness.current);
    const before = await headOf(noOrg);
    await harness.current.user();
    await Promise.all([1, 2, 3, 4].map(() => seal(urls.worker)));
    await sealAll(harness.current);
    expect((await headOf(noOrg)).number).toBe(before.number + 1);
    expect(await faultsOf(harness.current, noOrg)).toEqual([]);
  });
});

describe("Verification of a log", () => {
  const other: Record<string, (column: string) => string> = {
    uuid: () => "gen_random_uuid()",
    text: (column) =>
      `case ${column} when 'USER' then 'SERVICE' when 'SUCCEEDED' then 'DENIED' when 'CREATED' then 'PURGED'
        else ${column} || 'x' end`,
    boolean: (column) => `not ${column}`,
    jsonb: () => `'{"edited": 1}'`,
    "text[]": (column) => `array_append(${column}, 'x')`,
    bytea: () => `'\\x00'`,
    "timestamp with time zone": (column) => `${column} + interval '1 microsecond'`,
    xid8: () => `'3'`,
  };

  test.each(["audit_entries", "audit_changes"])(
    "finds an edit of any column of %s, and names the row",
    async (table) => {
      const { admin } = harness.current;
      const { orgId, rowsOf } = await sealedOrg();
      const [id] = rowsOf(table, 2);
      const { rows: columns } = await admin.query<{ name: string; type: string }>(
        `select attname as name, format_type(atttypid, null) as type from pg_attribute
         where attrelid = $1::regclass and attnum > 0 and not attisdropped`,
        [`roster.${table}`],
      );
      expect(columns.length).toBeGreaterThan(11);
      for (const { name, type } of columns) {
        const value = other[type]?.(name) ?? expect.fail(`no other value of ${type}`);
        const edit = `update roster.${table} set ${name} = ${value} where id = '${id}'`;
        const found = (await faultsAmid(orgId, edit)).filter(({ number }) => number === 2);
        // Whose key or place was edited is missed where it was.
        const fault = ["id", "org_id", "xid"].includes(name) ? "DELETED" : "EDITED";
        expect(found[0], name).toEqual({
          number: 2,
          fault,
          source: table === "audit_entries" ? 1 : 2,
          id,
        });
      }
    },
  );

  test("finds a payload that was put in place of a blanked one", async () => {
    const { orgId, rowsOf } = await sealedOrg();
    const [id] = rowsOf("audit_changes", 2);
    const keepingDigest = `payload_digest = roster.payload_digest(salt, person, before, after)`;
    const blank = `update roster.audit_changes set ${keepingDigest}, salt = null, before = null, after = null
      where id = '${id}'`;
    expect(await faultsAmid(orgId, blank)).toEqual([]);
    for (const column of ["before", "after", "salt"]) {
      const value = column === "salt" ? `'\\x01'` : `'{"forged": true}'`;
      const forge = `update roster.audit_changes set ${column} = ${value} where id = '${id}'`;
      expect(await faultsAmid(orgId, blank, forge)).toMatchObject([{ fault: "EDITED", id }]);
    }
  });

  test("finds rows that were deleted, inserted or reordered, and rows cut off at the end", async () => {
    const { orgId, rowsOf } = await sealedOrg();
    for (const table of ["audit_entries", "audit_changes"]) {
      const source = table === "audit_entries" ? 1 : 2;
      const [first, second] = rowsOf(table, 2) as [string, string];
      expect(await faultsAmid(orgId, `delete from roster.${table} where id = '${first}'`)).toEqual([
        { number: 2, fault: "DELETED", source, id: first },
      ]);
      const copy = `create temp table copied on commit drop as select * from roster.${table} where id = '${first}'`;
      const inserted = randomUUID();
      const insert = [
        copy,
        `update copied set id = '${inserted}'`,
        `insert into roster.${table} select * from copied`,
      ];
      expect(await faultsAmid(orgId, ...insert)).toEqual([
        { number: 2, fault: "INSERTED", source, id: inserted },
      ]);
      // Older than all transactions that were sealed.
      const older = [...insert.slice(0, 2), "update copied set xid = '0'", ...insert.slice(2)];
      expect(await faultsAmid(orgId, ...older)).toEqual([
        { number: 0, fault: "INSERTED", source, id: inserted },
      ]);
      const swap = `update roster.${table} a set xid = b.xid from roster.${table} b
        where (a.id, b.id) in (('${first}', '${second}'), ('${second}', '${first}'))`;
      const swapped = await faultsAmid(orgId, swap);
      expect(swapped.map(({ id, fault }) => [id, fault]).sort()).toEqual(
        [first, second].sort().map((id) => [id, "EDITED"]),
      );
    }
    const cut = ["audit_entries", "audit_changes"].map(
      (table) =>
        `delete from roster.${table} where id in (${[...rowsOf(table, 2)].map((id) => `'${id}'`)})`,
    );
    expect((await faultsAmid(orgId, ...cut)).map(({ fault }) => fault)).toEqual(
      Array(4).fill("DELETED"),
    );
  });

  test("finds seals that were edited, reordered, removed or cut off", async () => {
    const { orgId, rowsOf } = await sealedOrg();
    const seal = `update roster.audit_seals set`;
    const second = `where org_id = '${orgId}' and number = 2`;
    for (const edit of [
      "ids[1] = ids[2], ids[2] = ids[1], digests[1] = digests[2], digests[2] = digests[1]",
      "merkle_root = digests[1]",
      "root = previous_root",
      "previous_root = root",
      "newest_time = newest_time + interval '1 hour'",
      "create_time = create_time + interval '1 hour'",
      "after_xid = '0'",
      "size = 5",
      "sources = '{1}'",
    ])
      expect(await faultsAmid(orgId, `${seal} ${edit} ${second}`), edit).toContainEqual({
        number: 2,
        fault: "SEAL_BROKEN",
        source: null,
        id: null,
      });
    // The first is made anew, then the second is bound to it, and made anew as well: the last is found no more.
    const anew = (number: number) =>
      `update roster.audit_seals s set root = roster.seal_root(s) where org_id = '${orgId}' and number = ${number}`;
    const steps = [
      `${seal} newest_time = newest_time + interval '1 hour' where org_id = '${orgId}' and number = 1`,
      anew(1),
      `${seal} previous_root = (select root from roster.audit_seals where org_id = '${orgId}' and number = 1)
        ${second}`,
      anew(2),
    ];
    const broken = (number: number) => ({ number, fault: "SEAL_BROKEN", source: null, id: null });
    for (const [count, faults] of [
      [1, [broken(1)]],
      [2, [broken(2)]],
      [3, [broken(2)]],
      [4, []],
    ] as const)
      expect(await faultsAmid(orgId, ...steps.slice(0, count))).toEqual(faults);
    // The two change places.
    const swapped = await faultsAmid(
      orgId,
      `${seal} number = 10 - number where org_id = '${orgId}'`,
      `${seal} number = number - 7 where org_id = '${orgId}'`,
    );
    expect(swapped[0]).toMatchObject({ number: 1, fault: "SEAL_BROKEN" });
    expect(
      await faultsAmid(
        orgId,
        `delete from roster.audit_seals where org_id = '${orgId}' and number = 1`,
      ),
    ).toContainEqual({ number: 1, fault: "SEAL_MISSING", source: null, id: null });
    // The log of no org was sealed at the same time, so what is behind the seal that is left is known to be late.
    await harness.current.user();
    await sealAll(harness.current);
    const late = await faultsAmid(orgId, `delete from roster.audit_seals ${second}`);
    expect(late.map(({ fault, id }) => [fault, id]).sort()).toEqual(
      ["audit_entries", "audit_changes"]
        .flatMap((table) => rowsOf(table, 2))
        .sort()
        .map((id) => ["INSERTED", id]),
    );
  });

  test("finds by a root kept elsewhere what was sealed anew, and nothing without", async () => {
    const { orgId, rowsOf } = await sealedOrg();
    const kept = await headOf(orgId);
    const [id] = rowsOf("audit_entries", 1);
    await tamper(
      harness.current,
      `with edited as (update roster.audit_entries set subject = 'nobody' where id = '${id}')
       delete from roster.audit_seals`,
    );
    await sealAll(harness.current);
    expect(await faultsOf(harness.current, orgId)).toEqual([]);
    expect(await faultsOf(harness.current, orgId, [kept])).toEqual([`SEAL_MISSING ${kept.number}`]);
    const first = await headOf(orgId);
    expect(await faultsOf(harness.current, orgId, [first])).toEqual([]);
    expect(await faultsOf(harness.current, orgId, [{ ...first, root: kept.root }])).toEqual([
      `ROOT_DIFFERS ${first.number}`,
    ]);
  });

  test("finds nothing in what erasures and purges have left", async () => {
    const { ops, urls } = harness.current;
    const { orgId, memberId, outsiderId } = await sealedOrg();
    const before = await headOf(orgId);
    await ops.users.eraseUser({ userId: memberId });
    // Rows that are not sealed yet are erased as well.
    await ops.users.updateUser({ user: { id: outsiderId, name: "Last name" } });
    await ops.users.eraseUser({ userId: outsiderId });
    for (const log of [orgId, noOrg]) expect(await faultsOf(harness.current, log)).toEqual([]);
    await sealAll(harness.current);
    await ops.orgs.deleteOrg({ orgId, force: true });
    await ops.orgs.purgeOrg({ orgId });
    await sealAll(harness.current);
    for (const log of [orgId, noOrg])
      expect(await faultsOf(harness.current, log, log === orgId ? [before] : [])).toEqual([]);
    const { rows } = await verifyAudit(urls.worker, orgId, [], () => expect.fail("a fault"));
    expect(rows).toBeGreaterThan(15);
  });
});
