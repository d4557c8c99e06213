import { randomUUID } from "node:crypto";
import { setTimeout } from "node:timers/promises";
import pino from "pino";
import { describe, expect, onTestFinished, test } from "vitest";
import { removeExpiredKeys } from "../src/jobs/expired-keys.ts";
import { startJobs } from "../src/jobs/index.ts";
import { useHarness } from "./harness.ts";
import { asAdmin } from "./sessions.ts";

const harness = useHarness();

/** A mutation's key that has expired, and how to ask whether it is still there. */
const expiredKey = async (): Promise<() => Promise<boolean>> => {
  const requestId = randomUUID();
  const user = { email: `${requestId}@example.com`, name: "Some One" };
  await harness.current.ops.users.createUser({ user, requestId });
  const expire = "update roster.idempotency_keys set expire_time = now() where request_id = $1";
  await asAdmin(harness.current, expire, [requestId]);
  const find = "select from roster.idempotency_keys where request_id = $1";
  return async () => (await harness.current.admin.query(find, [requestId])).rowCount === 1;
};

/** Starts the background work in short rounds, and keeps what it logs. */
const started = (url: string) => {
  const lines: Record<string, unknown>[] = [];
  const log = pino({ level: "debug" }, { write: (line) => void lines.push(JSON.parse(line)) });
  const jobs = startJobs(url, log, { everyMs: 20 });
  onTestFinished(() => jobs.stop());
  return { jobs, lines };
};

/** Has everybody wait for the keys until the test is over. */
const locked = async (): Promise<void> => {
  const { admin } = harness.current;
  onTestFinished(async () => void (await admin.query("rollback")));
  await admin.query("begin; lock table roster.idempotency_keys in access exclusive mode");
};

/** How many wait for the keys. */
const waiting = async (): Promise<number> => {
  const { rows } = await harness.current.admin.query(
    `select count(*)::int as n from pg_locks
     where relation = 'roster.idempotency_keys'::regclass and not granted`,
  );
  return rows[0].n;
};

describe("The background work", () => {
  test("removes expired keys, round by round, until it is stopped", async () => {
    const { jobs, lines } = started(harness.current.urls.worker);
    for (let i = 0; i < 2; i++) await expect.poll(await expiredKey()).toBe(false);
    await jobs.stop();
    const removed = { job: "remove_expired_keys", removed: 1 };
    expect(lines).toMatchObject([removed, removed]);
    const left = await expiredKey();
    await setTimeout(200);
    expect(await left()).toBe(true);
  });

  test("warns of each that fails while the database is away, and tries again", async () => {
    const { lines } = started("postgres://roster_worker:secret@127.0.0.1:1/roster");
    const rounds = () => lines.filter(({ job }) => job !== "seal_audit");
    await expect.poll(() => rounds().length).toBeGreaterThan(3);
    expect(lines.length).toBeGreaterThan(rounds().length);
    const warnings = ["remove_expired_keys", "remove_expired_members", "purge"].map((job) => ({
      level: 40,
      job,
      code: "ECONNREFUSED",
    }));
    expect(rounds().slice(0, 3)).toMatchObject(warnings);
    expect(JSON.stringify(lines)).not.toContain("secret");
  });

  test("seals the audit log, in a rhythm of its own", async () => {
    const { admin, urls } = harness.current;
    started(urls.worker);
    const seals = async () => {
      await harness.current.user();
      return (await admin.query("select count(*)::int as n from roster.audit_seals")).rows[0].n;
    };
    const before = await seals();
    await expect.poll(seals, { timeout: 15_000 }).toBeGreaterThan(before + 1);
  });

  test("stops at once, also while the database keeps it waiting", async () => {
    const { jobs, lines } = started(harness.current.urls.worker);
    await locked();
    await expect.poll(waiting).toBe(1);
    const stopped = jobs.stop().then(() => "stopped");
    expect(await Promise.race([stopped, setTimeout(5_000, "still waiting")])).toBe("stopped");
    expect(lines).toEqual([]);
  });

  test("gives up on a database that keeps it waiting for long", async () => {
    await locked();
    const removal = removeExpiredKeys(harness.current.urls.worker, { limitMs: 100 });
    await expect(removal).rejects.toMatchObject({ code: "57014" });
  });
});
