import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import { describe, expect, onTestFinished, test } from "vitest";
import { RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import { type Harness, refusal, type Tenant, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { Watching } from "./watching.ts";

const limits = { watchersOfOrg: 3, watchers: 5 };
const few = useHarness({ feed: limits });

/** A watcher of an org from now on, who has begun. */
const watching = async (...given: ConstructorParameters<typeof Watching>): Promise<Watching> => {
  const watcher = new Watching(...given);
  await expect.poll(() => watcher.position).not.toBe("");
  return watcher;
};

describe("Of watchers there may be so many", () => {
  test("in an org and in a server: the next is RESOURCE_EXHAUSTED until one goes", async () => {
    const { current } = few;
    const [home, other] = [await current.tenant(), await current.tenant()];
    const watch = ({ owner, orgId }: Tenant) => watching(owner, { orgId });
    const refused = async ({ owner, orgId }: Tenant) => {
      const { code, reason, metadata, error } = await new Watching(owner, { orgId }).ended;
      expect(error.findDetails(RetryInfoSchema)).toHaveLength(1);
      return { code, reason, metadata };
    };
    const full = { code: "ResourceExhausted", reason: "WATCHERS_LIMIT_REACHED" };
    const mine = [await watch(home), await watch(home), await watch(home)];
    expect(await refused(home)).toEqual({ ...full, metadata: { where: "org", value: "3" } });
    const theirs = [await watch(other), await watch(other)];
    expect(await refused(other)).toEqual({ ...full, metadata: { where: "server", value: "5" } });
    mine[0]?.cancel();
    await expect.poll(() => current.server.watchers()).toBe(4);
    await watch(other);
    expect(theirs).toHaveLength(2);
  });

  test("and one who may not watch takes no place", async () => {
    const { current } = few;
    await expect.poll(() => current.server.watchers()).toBe(0);
    const { orgId, guest } = await current.tenant();
    expect(await new Watching(guest, { orgId }).ended).toMatchObject({
      reason: "PERMISSION_MISSING",
    });
    expect(current.server.watchers()).toBe(0);
  });
});

const usual = useHarness({ feed: { buffered: 1_000_000, bufferedBytes: 256 * 1024 } });

/** A superuser's connection whose transaction holds a table, until it is let go. */
const hold = async ({ urls }: Harness, table: string): Promise<() => Promise<unknown>> => {
  const client = new pg.Client({ connectionString: urls.admin });
  await client.connect();
  onTestFinished(() => client.end());
  await client.query(`begin; lock table roster.${table} in access exclusive mode`);
  return () => client.query("rollback");
};

/** Changes of a role, made behind the back of the server in one transaction. */
const change = ({ admin }: Harness, orgId: string, rows: number, bytes: number) =>
  admin.query(
    `insert into roster.audit_changes (org_id, entry_id, subject, method, correlation_id, resource_type, resource_id,
        kind, after, changed_fields)
      select $1, gen_random_uuid(), 'test', 'test', 'test', 'role', n, 'UPDATED',
        jsonb_build_object('name', n::text, 'title', repeat('x', $3), 'permissions', '[]'::jsonb), '{}'
      from generate_series(1, $2::int) n`,
    [orgId, rows, bytes],
  );

test("When a role is changed, few of those who watch the org are judged at once, and all are", async () => {
  const { current } = usual;
  const { orgId, owner } = await current.tenant();
  const crowd = await Promise.all(Array.from({ length: 40 }, () => watching(owner, { orgId })));
  const letGo = await hold(current, "org_members");
  await change(current, orgId, 1, 0);
  const used = async (): Promise<number> => {
    const metrics = await fetch(`http://127.0.0.1:${current.server.httpPort}/metrics`);
    const line = /connection_count\{[^}]*"roster_app"[^}]*"used"[^}]*\} (\d+)/;
    return Number(line.exec(await metrics.text())?.[1]);
  };
  await expect.poll(used).toBeGreaterThan(0);
  // More would come at once.
  await delay(300);
  expect(await used()).toBeLessThanOrEqual(2);
  await letGo();
  await expect.poll(() => crowd.every(({ told }) => told.join() === "role UPDATED")).toBe(true);
});

test("A watch ends RESOURCE_EXHAUSTED when what waits for it weighs too much, and may go on", async () => {
  const { current } = usual;
  const { orgId, owner } = await current.tenant();
  const watcher = await watching(owner, { orgId });
  await change(current, orgId, 30, 16 * 1024);
  const { code, reason, metadata } = await watcher.ended;
  expect({ code, reason }).toEqual({ code: "ResourceExhausted", reason: "WATCH_TOO_SLOW" });
  const again = await watching(owner, { orgId, position: metadata.position ?? "" });
  expect(again.changes).toHaveLength(30);
});

test("No message is too large, however heavy the changes and long the page", async () => {
  const { current } = usual;
  const { orgId, owner } = await current.tenant();
  const { position } = await owner.changes.listChanges({ orgId });
  await change(current, orgId, 150, 64 * 1024);
  const told: number[] = [];
  for (let at = position, more = true; more; ) {
    const page = await owner.changes.listChanges({ orgId, position: at, pageSize: 1_000 });
    ({ position: at, more } = page);
    told.push(page.changes.length);
  }
  expect(told.reduce((sum, count) => sum + count)).toBe(150);
  expect(told.length).toBeGreaterThan(3);
  const watcher = new Watching(owner, { orgId, position });
  await expect.poll(() => watcher.changes.length).toBe(150);
});

test("A live watch ends OUT_OF_RANGE when the database has another history, and hears nothing of that", async () => {
  const { current } = usual;
  const { orgId, owner } = await current.tenant();
  const watchers = [await watching(owner, { orgId }), await watching(current.ops, {})];
  const before = watchers.map(({ position }) => position);
  await current.admin.query("update roster.audit_feed set epoch = gen_random_uuid()");
  const gone = { code: "OutOfRange", reason: "POSITION_OUT_OF_RANGE" };
  for (const watcher of watchers) expect(await watcher.ended).toMatchObject(gone);
  const list = owner.changes.listChanges({ orgId, position: before[0] ?? "" });
  expect(await refusal(list)).toMatchObject(gone);
  // From now on there is the other history.
  const anew = await watching(owner, { orgId });
  await makeTeam(owner, { orgId, name: "Anew" });
  await expect.poll(() => anew.told).toEqual(["team CREATED"]);
});

describe("The poll", () => {
  test("is done again when it fails, and no watch ends of that", async () => {
    const { current } = usual;
    const { orgId, owner } = await current.tenant();
    const watcher = await watching(owner, { orgId });
    const { rows } = await current.admin.query("select current_database() as name");
    const admit = (most: number) =>
      current.admin.query(`alter database ${rows[0].name} connection limit ${most}`);
    await admit(0);
    onTestFinished(async () => void (await admit(-1)));
    await current.admin.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and usename = 'roster_directory'`,
    );
    await makeTeam(owner, { orgId, name: "Meanwhile" });
    await delay(300);
    expect(watcher.told).toEqual([]);
    await admit(-1);
    await expect.poll(() => watcher.told).toEqual(["team CREATED"]);
    await makeTeam(owner, { orgId, name: "Later" });
    await expect.poll(() => watcher.told).toEqual(["team CREATED", "team CREATED"]);
  });

  test("waits for no call", async () => {
    const { current } = usual;
    const { orgId, owner } = await current.tenant();
    const watcher = await watching(owner, { orgId });
    const letGo = await hold(current, "org_slugs");
    const calls = Array.from({ length: 8 }, () =>
      current.ops.orgs.lookupOrg({ key: { case: "slug", value: "nobodys" } }).catch(() => {}),
    );
    await makeTeam(owner, { orgId, name: "Meanwhile" });
    await expect.poll(() => watcher.told).toEqual(["team CREATED"]);
    await letGo();
    await Promise.all(calls);
  });
});
