import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import { describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { folder, launch } from "./command.ts";
import { audience, callersOf, issuer, refusal, tokenFor, useHarness } from "./harness.ts";

const harness = useHarness();

// Each starts a process, which takes its time on a busy machine.
vi.setConfig({ testTimeout: 60_000 });

type Line = Record<string, unknown>;

/** Starts a server as in production, whose log is written in batches. */
const serve = async (env: NodeJS.ProcessEnv = {}) => {
  const { d: _private, ...key } = inject("signingKey");
  const JWKS_FILE = join(folder, "jwks.json");
  writeFileSync(JWKS_FILE, JSON.stringify({ keys: [key] }));
  const { app, directory } = harness.current.urls;
  const { child, said, ended } = launch(["serve"], {
    DATABASE_URL: app,
    DIRECTORY_DATABASE_URL: directory,
    GRPC_ADDR: "127.0.0.1:0",
    JWKS_FILE,
    SHUTDOWN_NOTICE_SECONDS: "0",
    JWT_ISSUER: issuer,
    JWT_AUDIENCE: audience,
    TOKEN_SECRET: "x".repeat(32),
    ...env,
  });
  const address = await vi.waitFor(
    () => {
      const found = /listening on ([\d.:]+)/.exec(said.stdout)?.[1];
      if (found === undefined) throw new Error(`not listening: ${said.stdout}${said.stderr}`);
      return found;
    },
    { timeout: 30_000, interval: 5 },
  );
  const callers = (id: string) => callersOf(`http://${address}`, operator, { "x-request-id": id });
  const operator = await tokenFor("service:ops", { scope: "roster.platform" });
  return { child, said, ended, callers };
};

/** The lines of a log, all of which must be whole. */
const linesOf = (stdout: string): Line[] => {
  expect(stdout.endsWith("\n")).toBe(true);
  return stdout
    .slice(0, -1)
    .split("\n")
    .map((line) => JSON.parse(line) as Line);
};
const correlationIds = (lines: readonly Line[]) =>
  lines.flatMap(({ correlation_id: id }) => (typeof id === "string" ? [id] : []));

/** Makes calls one after the other, and names them in their order. */
const callOften = async ({ callers }: Awaited<ReturnType<typeof serve>>, count: number) => {
  const ids = Array.from({ length: count }, (_, n) => `call-${n}`);
  for (const id of ids) await callers(id).users.getCaller({});
  return ids;
};

describe("a log that is written in batches", () => {
  test("has every line in order when the server is stopped, also those of the last moment", async () => {
    const server = await serve();
    const ids = await callOften(server, 150);
    server.child.kill("SIGTERM");
    const { code, stdout, stderr } = await server.ended;
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const lines = linesOf(stdout);
    expect(correlationIds(lines)).toEqual(ids);
    expect(lines.slice(-2).map(({ msg }) => msg)).toEqual(["SIGTERM: stopping", "stopped"]);
    const times = lines.map(({ time }) => Number(time));
    expect(times).toEqual([...times].sort((a, b) => a - b));
  });

  test("is written within a moment while the server runs", async () => {
    const server = await serve();
    await callOften(server, 1);
    const written = () => expect(server.said.stdout).toContain('"correlation_id":"call-0"');
    await vi.waitFor(written, { timeout: 10_000, interval: 20 });
  });

  test("has every line when nothing foresaw the end", async () => {
    const planted = 'process.on("SIGUSR2", () => { throw new Error("planted"); });';
    const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(planted)}`;
    const server = await serve({ NODE_OPTIONS });
    const ids = await callOften(server, 20);
    server.child.kill("SIGUSR2");
    const { code, stdout, stderr } = await server.ended;
    expect(code).not.toBe(0);
    expect(stderr).toContain("planted");
    expect(correlationIds(linesOf(stdout))).toEqual(ids);
  });

  test("has every line when a second signal ends the server at once", async () => {
    const { admin, urls } = harness.current;
    const userId = await harness.current.user();
    const holder = new pg.Client({ connectionString: urls.admin });
    await holder.connect();
    onTestFinished(() => holder.end());
    const server = await serve();
    await holder.query("begin");
    await holder.query("lock table roster.users in access exclusive mode");
    const refused = refusal(server.callers("refused").users.getUser({ userId: "x" }));
    const leaving = new AbortController();
    const { users } = server.callers("held");
    const held = refusal(users.getUser({ userId }, { signal: leaving.signal }));
    const cut = refusal(server.callers("cut").users.getUser({ userId }));
    await refused;
    const waits = async () => {
      const { rowCount } = await admin.query(
        "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
      );
      expect(rowCount).toBe(2);
    };
    await vi.waitFor(waits, { timeout: 10_000 });
    server.child.kill("SIGTERM");
    await delay(1_200);
    // Ends with a line that no batch has taken yet when the second signal comes.
    leaving.abort();
    await delay(50);
    server.child.kill("SIGTERM");
    const { code, stdout } = await server.ended;
    expect(code).toBe(1);
    await Promise.all([held, cut]);
    const lines = linesOf(stdout);
    expect(correlationIds(lines)).toEqual(["refused", "held"]);
  });
});
