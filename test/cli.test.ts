import { type ChildProcess, execFile } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { signToken } from "../src/cli/development.ts";
import { base, dataDir, type Ended, folder, launch, root, roster } from "./command.ts";
import { type Callers, callersOf } from "./harness.ts";

/** The PostgreSQL processes that hold the database of `dataDir`, the first one alone of each. */
const postmasters = async (): Promise<number[]> => {
  const { stdout } = await promisify(execFile)("ps", ["-A", "-ww", "-o", "pid=,args="]);
  return stdout
    .split("\n")
    .filter((line) => line.includes(` -D ${join(dataDir, "postgres", "pgdata")} `))
    .map((line) => Number.parseInt(line, 10));
};

afterAll(async () => {
  // Left by a test that failed.
  for (const pid of await postmasters()) process.kill(pid, "SIGKILL");
});

// Each starts several processes, which takes its time on a busy machine.
vi.setConfig({ testTimeout: 90_000 });

interface Serving {
  readonly child: ChildProcess;
  readonly said: { readonly stdout: string };
  readonly ended: Promise<Ended>;
  readonly address: string;
  readonly orgId: string;
  readonly ownerId: string;
  /** The line that begins so, as it is pasted. */
  readonly line: (start: string) => string;
}

/** Starts a development server and waits until all is on the screen. */
const serve = async (env: NodeJS.ProcessEnv = {}): Promise<Serving> => {
  const { child, said, ended } = launch(["serve"], {
    ROSTER_DEV: "1",
    GRPC_ADDR: "127.0.0.1:0",
    ...env,
  });
  const gone = ended.then(({ stdout, stderr }) => {
    throw new Error(`the server ended: ${stdout}${stderr}`);
  });
  gone.catch(() => undefined);
  while (!said.stdout.includes("Ctrl-C stops")) {
    await Promise.race([once(child.stdout as NodeJS.ReadableStream, "data"), gone]);
  }
  const find = (pattern: RegExp): string => pattern.exec(said.stdout)?.[1] ?? "";
  return {
    child,
    said,
    ended,
    address: find(/listening on ([\d.:]+)/),
    orgId: find(/Acme: +(\S+)/),
    ownerId: find(/Ada.*: +(\S+)/),
    line: (start) =>
      said.stdout
        .split("\n")
        .map((text) => text.trim())
        .find((text) => text.startsWith(start)) ?? "",
  };
};

const stop = async ({ child, ended }: Serving, signal: NodeJS.Signals = "SIGTERM") => {
  child.kill(signal);
  // npm hands on the Ctrl-C of a terminal, which this process heard by itself already.
  if (signal === "SIGINT") setTimeout(() => child.kill(signal), 20);
  return ended;
};

/** Pastes lines into a shell of this folder. */
const paste = async (...lines: readonly string[]): Promise<string> => {
  const env = { ...base, PATH: `${join(root, "node_modules/.bin")}:${base.PATH}` };
  const { stdout } = await promisify(execFile)("bash", ["-euc", lines.join("\n")], {
    cwd: root,
    env,
  });
  return stdout;
};

const operator = async ({ address }: Serving): Promise<Callers> => {
  const claims = { subject: "service:ops", scope: ["roster.platform"], ttl: "1m" };
  return callersOf(`http://${address}`, await signToken(dataDir, claims));
};

/** The names of all users. */
const names = async (server: Serving): Promise<string[]> =>
  (await (await operator(server)).users.listUsers({})).users.map(({ name }) => name);

// In this order: all use one data folder, as they would on a developer's machine.
describe("a development server", () => {
  test("migrate makes the database when there is none, says what it applied, and leaves nothing running", async () => {
    const { code, stdout, stderr } = await roster(["migrate"]);
    expect({ code, stdout }).toEqual({
      code: 0,
      stdout: expect.stringMatching(/^(applied \d{3}_[a-z_]+\.sql\n)+$/),
    });
    expect(stderr).toContain(dataDir);
    expect(await postmasters()).toEqual([]);
  });

  test("serve shows where it listens and lines that work when pasted, last of all", async () => {
    const server = await serve();
    const { stdout } = server.said;
    const [before = "", shown = ""] = stdout.split(/\n(?=\nRoster is up)/);
    expect(before.split("\n").at(-1)).toContain(`listening on ${server.address}`);
    expect(before).not.toContain("CreateUser");
    expect(shown).not.toContain('"level"');
    expect(shown.split("\n").filter((line) => line.length > 0).length).toBeLessThan(12);

    const operators = server.line("export TOKEN=");
    const curl = server.line("npx --no buf curl").replace("npx --no buf", "buf");
    const members = JSON.parse(await paste(operators, curl)).members as Record<string, string>[];
    expect(members.map(({ role }) => role).sort()).toEqual(["admin", "member", "member", "owner"]);
    expect(members.find(({ role }) => role === "owner")?.userId).toBe(server.ownerId);

    // Not installed here: the same header, body and target through buf.
    const grpcurl = server.line("grpcurl ");
    const [, flags, target, method] =
      /^grpcurl -plaintext (-H ".*" -d '.*') (\S+) (\S+)$/.exec(grpcurl) ?? [];
    expect(target).toBe(server.address);
    expect(curl).toContain(flags);
    const same = `buf curl --protocol grpc --http2-prior-knowledge ${flags} http://${target}/${method}`;
    const teams = JSON.parse(await paste(operators, same)).teams as Record<string, string>[];
    expect(teams.map(({ name }) => name).sort()).toEqual(["Design", "Engineering", "Support"]);

    const byHttp = JSON.parse(
      await paste(operators, server.line("curl ").replace("curl", "curl -s")),
    );
    expect(byHttp.org).toMatchObject({ id: server.orgId, name: "Acme" });

    const ada = await paste(server.line(`ROSTER_DATA_DIR='${dataDir}' npx --no roster token`));
    const { users } = callersOf(`http://${server.address}`, ada.trim());
    expect(await users.getCaller({})).toMatchObject({
      subject: server.ownerId,
      orgId: server.orgId,
      role: "owner",
    });
    const { code, stderr, stdout: all } = await stop(server, "SIGINT");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(await postmasters()).toEqual([]);
    // PostgreSQL was waited for, not just told to go.
    const last = JSON.parse(all.trim().split("\n").at(-1) ?? "") as { msg: string; time: number };
    expect(last.msg).toBe("stopped");
    const log = readFileSync(join(dataDir, "postgres", "postgres.log"), "utf8");
    const [, down = ""] = /(\S+ \S+) UTC .*database system is shut down\n$/.exec(log) ?? [];
    expect(Date.parse(`${down}Z`)).toBeLessThanOrEqual(last.time);
  });

  test("shares its database with a second server and a migration", async () => {
    const first = await serve();
    const [second, migration] = await Promise.all([serve(), roster(["migrate"])]);
    expect(migration).toMatchObject({ code: 0, stdout: "up to date\n" });
    expect(second.orgId).toBe(first.orgId);
    expect(second.address).not.toBe(first.address);
    const name = "Kept";
    await (await operator(second)).users.createUser({ user: { name, email: "k@example.com" } });
    expect(await stop(second)).toMatchObject({ code: 0 });
    expect(await names(first)).toContain(name);
    // What follows begins with a server that was killed.
    await stop(first, "SIGKILL");
  });

  test("takes over the PostgreSQL that a killed server left, and finds everything there", async () => {
    const [orphan] = await postmasters();
    expect(orphan).toBeGreaterThan(0);
    const server = await serve();
    expect(await postmasters()).toEqual([orphan]);
    expect(await names(server)).toEqual([
      "Ada Owner",
      "Ben Admin",
      "Cleo Member",
      "Dan Member",
      "Kept",
    ]);
    await (await operator(server)).orgs.deleteOrg({ orgId: server.orgId, force: true });
    process.kill(orphan as number, "SIGKILL");
    await stop(server, "SIGKILL");
  });

  test("recovers a PostgreSQL that was killed, and makes the demo again for whoever deleted it", async () => {
    const server = await serve();
    expect(await names(server)).toHaveLength(5);
    const { orgs } = await operator(server);
    const { members } = await orgs.listOrgMembers({ orgId: server.orgId });
    expect(members).toHaveLength(4);
    expect((await orgs.listOrgs({})).orgs.map(({ id }) => id)).toEqual([server.orgId]);
    expect(await stop(server)).toMatchObject({ code: 0, stderr: "" });
    expect(await postmasters()).toEqual([]);
  });

  test("stops when the signal comes during the start", async () => {
    const { child, said, ended } = launch(["serve"], { ROSTER_DEV: "1", GRPC_ADDR: "127.0.0.1:0" });
    await expect.poll(() => said.stdout, { timeout: 20_000 }).toContain("PostgreSQL 18 runs");
    child.kill("SIGTERM");
    expect(await ended).toMatchObject({ code: 0, stderr: "" });
    expect(await postmasters()).toEqual([]);
  });

  test("exits with 1 and names port and GRPC_ADDR when the port is taken", async () => {
    const holder = createServer().listen(0, "127.0.0.1");
    await once(holder, "listening");
    onTestFinished(() => void holder.close());
    const { port } = holder.address() as { port: number };
    const GRPC_ADDR = `127.0.0.1:${port}`;
    const { code, stderr } = await roster(["serve"], { ROSTER_DEV: "1", GRPC_ADDR });
    expect(code).toBe(1);
    expect(stderr).toContain(GRPC_ADDR);
    expect(stderr).toContain("GRPC_ADDR");
    expect(stderr).not.toContain("    at ");
    expect(await postmasters()).toEqual([]);
  });

  test.runIf(process.getuid?.() === 0)(
    "exits with 1 and names the folder that PostgreSQL may not enter",
    async () => {
      const closed = join(folder, "closed");
      mkdirSync(closed, { mode: 0o700 });
      const env = { ROSTER_DEV: "1", ROSTER_DATA_DIR: join(closed, "data") };
      const { code, stderr } = await roster(["serve"], env);
      expect(code).toBe(1);
      expect(stderr).toContain(closed);
      expect(stderr).toContain("ROSTER_DATA_DIR");
    },
  );
});
