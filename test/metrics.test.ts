/** Every figure at /metrics, after calls that move it. */
import type { CallOptions } from "@connectrpc/connect";
import { describe, expect, onTestFinished, test } from "vitest";
import { startHarness, useHarness } from "./harness.ts";
import { collectGarbage, scrape } from "./scraped.ts";

const harness = useHarness();
const now = () => scrape(harness.current);
const pool = (name: string) => ({ db_client_connection_pool_name: name });

describe("Metrics", () => {
  test("say of each what it is and in which unit", async () => {
    const { helps, samples } = await now();
    expect(helps.size).toBeGreaterThan(40);
    const known = new Set(helps.keys());
    const bare = (name: string): string => name.replace(/_(bucket|sum|count)$/, "");
    expect(samples.filter(({ name }) => !known.has(name) && !known.has(bare(name)))).toEqual([]);
    const unit = /second|byte|number|ratio|1 while|delay|version|active/i;
    const unclear = [...helps].filter(
      ([name, help]) => !unit.test(help) && !/_seconds$/.test(name),
    );
    expect(unclear).toEqual([]);
  });

  test("count and time calls, by method and code", async () => {
    const { ops, user } = harness.current;
    const labels = { rpc_method: "roster.v1.UserService/GetUser", rpc_system_name: "grpc" };
    const userId = await user.call(harness.current);
    for (let i = 0; i < 3; i++) await ops.users.getUser({ userId });
    const told = await now();
    const name = "rpc_server_call_duration_seconds";
    expect(told.sum(`${name}_count`, { ...labels, rpc_status_code: "OK" })).toBe(3);
    expect(told.sum(`${name}_bucket`, { ...labels, le: "+Inf" })).toBe(3);
    const seconds = told.sum(`${name}_sum`, labels);
    expect(seconds).toBeGreaterThan(0.0005);
    expect(seconds).toBeLessThan(60);
    expect(told.of("roster_rpc_in_flight")).toEqual([0]);
    // On a busy machine it is now and then not ready for a moment.
    await expect.poll(async () => (await now()).of("roster_ready")).toEqual([1]);
  });

  test("time statements by what they do, also those that fail", async () => {
    const { ops } = harness.current;
    const { orgId, owner } = await harness.current.tenant();
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Altos" } });
    await owner.teams.getTeam({ orgId, teamId: team?.id ?? "" });
    await expect(owner.teams.createTeam({ team: { orgId, name: "Altos" } })).rejects.toThrow();
    await expect(ops.users.getUser({ userId: orgId })).rejects.toThrow();
    const told = await now();
    const name = "db_client_operation_duration_seconds";
    const app = { ...pool("roster_app"), db_system_name: "postgresql" };
    const of = (operation: string, error = "") =>
      told.sum(`${name}_count`, { ...app, db_operation_name: operation, error_type: error });
    expect(of("SELECT")).toBeGreaterThan(0);
    expect(of("INSERT")).toBeGreaterThan(0);
    expect(of("COMMIT")).toBeGreaterThan(0);
    expect(of("INSERT", "23505")).toBe(1);
    expect(told.sum(`${name}_sum`, app)).toBeGreaterThan(0.0005);
    expect(told.of("db_client_connection_limit", pool("roster_app"))).toEqual([6]);
    const state = (of: string) => ({ ...pool("roster_app"), db_client_connection_state: of });
    expect(told.sum("db_client_connection_count", state("idle"))).toBeGreaterThan(0);
    expect(told.of("db_client_connection_count", state("used"))).toEqual([0]);
    expect(told.sum("roster_database_flushes_total")).toBe(harness.current.server.roundTrips());
  });

  test("tell of a pool that is too small: who waits, how long, in vain, and who is shed", async () => {
    const { admin, urls: database } = harness.current;
    const { orgId, ownerId } = await harness.current.tenant();
    const deadlines = { defaultMs: 1_000, maximumMs: 60_000, streamMs: 60_000 };
    const small = await startHarness({ database, poolSize: 1, deadlines });
    onTestFinished(() => small.stop());
    const { teams } = await small.as(ownerId);
    const list = (options: CallOptions = { timeoutMs: 60_000 }) =>
      teams.listTeams({ orgId }, options);
    const app = pool("roster_app");
    const figure =
      (name: string, labels = {}) =>
      async () =>
        (await scrape(small)).sum(name, labels);
    const used = figure("db_client_connection_count", {
      ...app,
      db_client_connection_state: "used",
    });
    const pending = figure("db_client_connection_pending_requests", app);
    const failed = (reason: string) => figure("roster_rpc_failures_total", { reason });

    await admin.query("begin; lock table roster.teams in access exclusive mode");
    onTestFinished(async () => void (await admin.query("rollback")));
    const held = list();
    await expect.poll(used).toBe(1);
    const waiting = Array.from({ length: 50 }, () => list());
    await expect.poll(pending).toBe(50);
    await expect(list()).rejects.toThrow();
    expect(await failed("OVERLOADED")()).toBe(1);
    await admin.query("rollback");
    await Promise.all([held, ...waiting]);
    expect(await figure("db_client_connection_wait_time_seconds_count", app)()).toBe(50);
    expect(await figure("db_client_connection_wait_time_seconds_sum", app)()).toBeGreaterThan(0);

    await admin.query("begin; lock table roster.teams in access exclusive mode");
    const again = list();
    await expect.poll(used).toBe(1);
    const hanging = new AbortController();
    const hungUp = list({ timeoutMs: 60_000, signal: hanging.signal });
    await expect.poll(pending).toBe(1);
    hanging.abort();
    await expect(hungUp).rejects.toThrow();
    await expect.poll(failed("CANCELLED")).toBe(1);
    await expect(list({})).rejects.toThrow();
    expect(await failed("DEADLINE_EXCEEDED")()).toBe(1);
    expect(await figure("db_client_connection_timeouts_total", app)()).toBe(2);
    await admin.query("rollback");
    await again;
  });

  test("count who reaches for another org, by reason and never by org", async () => {
    const [home, other] = [await harness.current.tenant(), await harness.current.tenant()];
    const denied = async () => {
      const told = await now();
      const of = (reason: string) => told.sum("roster_cross_tenant_denials_total", { reason });
      return [of("ORG_NOT_ALLOWED"), of("ORG_MISMATCH")];
    };
    const [before = 0, mixed = 0] = await denied();
    await expect(home.owner.teams.listTeams({ orgId: other.orgId })).rejects.toThrow();
    const headers = { "roster-org-id": home.orgId };
    const mixing = home.owner.teams.listTeams({ orgId: other.orgId }, { headers });
    await expect(mixing).rejects.toThrow();
    await expect(home.guest.teams.createTeam({ team: { name: "x" } })).rejects.toThrow();
    expect(await denied()).toEqual([before + 1, mixed + 1]);
    const { text, samples } = await now();
    expect(text).not.toMatch(/[0-9a-f]{8}-[0-9a-f]{4}|@example|service:/);
    const names = new Set(samples.flatMap(({ labels }) => Object.keys(labels)));
    expect([...names].filter((name) => /org|user|caller|tenant/.test(name))).toEqual([]);
  });

  test("tell of watchers, and how old what they were told is", async () => {
    const { orgId, owner } = await harness.current.tenant();
    expect((await now()).of("roster_feed_lag_seconds")).toEqual([]);
    const leaving = new AbortController();
    const stream = owner.changes.watchChanges({ orgId }, { signal: leaving.signal });
    const messages = stream[Symbol.asyncIterator]();
    await messages.next();
    const told = await now();
    expect(told.of("roster_feed_watchers")).toEqual([1]);
    expect(told.of("roster_feed_lag_seconds")[0]).toBeLessThan(10);
    await harness.current.admin.query("begin; lock table roster.audit_changes");
    onTestFinished(async () => void (await harness.current.admin.query("rollback")));
    const lag = async () => (await now()).sum("roster_feed_lag_seconds");
    await expect.poll(lag).toBeGreaterThan(1);
    await harness.current.admin.query("rollback");
    await expect.poll(lag).toBeLessThan(1);
    leaving.abort();
    await expect(messages.next()).rejects.toThrow();
    await expect.poll(async () => (await now()).sum("roster_feed_watchers")).toBe(0);
    await expect.poll(async () => (await now()).of("roster_feed_lag_seconds")).toEqual([]);
  });

  test("tell how far seals are behind, where a worker runs, and that they are held back", async () => {
    expect((await now()).of("roster_seal_lag_seconds")).toEqual([]);
    const { urls, admin } = harness.current;
    const working = await startHarness({ database: urls });
    onTestFinished(() => working.stop());
    const lag = async () => (await scrape(working)).of("roster_seal_lag_seconds")[0] ?? -1;
    await expect.poll(lag).toBeGreaterThanOrEqual(0);
    await admin.query("begin; select pg_current_xact_id()");
    onTestFinished(async () => void (await admin.query("rollback")));
    await harness.current.user();
    const seal = "select roster.seal_lag() as ms";
    const held = async () => (await working.admin.query("select 1")) && (await lag());
    await expect.poll(held, { timeout: 20_000 }).toBeGreaterThan(3);
    await admin.query("rollback");
    const ms = async () => (await admin.query(seal)).rows[0].ms;
    await expect.poll(ms, { timeout: 20_000 }).toBe(0);
    await expect.poll(lag, { timeout: 20_000 }).toBeLessThan(3);
  });

  test("tell of the process: CPU, memory, event loop, garbage", async () => {
    await collectGarbage(harness.current);
    const told = await now();
    expect(told.sum("process_cpu_seconds_total")).toBeGreaterThan(0);
    expect(told.sum("process_resident_memory_bytes")).toBeGreaterThan(10_000_000);
    expect(told.sum("nodejs_heap_size_used_bytes")).toBeGreaterThan(1_000_000);
    expect(told.of("nodejs_eventloop_lag_p99_seconds")).toHaveLength(1);
    expect(told.sum("nodejs_gc_duration_seconds_count")).toBeGreaterThan(0);
  });
});
