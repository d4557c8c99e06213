import { execFile } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import { promisify } from "node:util";

// A registry that carries only some platforms makes npm leave the other optional packages out of
// the lockfile, and `npm ci` on those platforms then refuses it. This adds the missing entries in
// the form that npm itself writes. On a complete lockfile it changes nothing.

interface Entry {
  version: string;
  integrity?: string;
  cpu?: string[];
  dev?: boolean;
  libc?: string[];
  license?: string;
  optional?: boolean;
  os?: string[];
  engines?: Record<string, string>;
  optionalDependencies?: Record<string, string>;
}

interface Lockfile {
  packages: Record<string, Entry>;
}

const run = promisify(execFile);
const path = new URL("../package-lock.json", import.meta.url);
const cpuOf: Record<string, string> = { aarch64: "arm64", armv7: "arm" };

/** The checksum of a published package, or nothing where the registry does not carry it. */
async function integrityOf(name: string, version: string): Promise<string | undefined> {
  try {
    const { stdout } = await run("npm", ["view", `${name}@${version}`, "dist.integrity"]);
    return stdout.trim() || undefined;
  } catch {
    return undefined;
  }
}

/** The entry of a package named `…-<os>-<cpu>[-musl]`, like a sibling that npm did write. */
async function entryFor(name: string, version: string, sibling: Entry): Promise<Entry> {
  const [, os, cpu, musl] = /-(android|darwin|linux|win32)-(\w+)(-musl)?$/.exec(name) ?? [];
  if (!os || !cpu) throw new Error(`Cannot tell the platform of ${name}`);
  const integrity = await integrityOf(name, version);
  return {
    version,
    ...(integrity && { integrity }),
    cpu: [cpuOf[cpu] ?? cpu],
    ...(sibling.dev && { dev: true }),
    ...(sibling.libc && os === "linux" && { libc: [musl ? "musl" : "glibc"] }),
    ...(sibling.license && { license: sibling.license }),
    optional: true,
    os: [os],
    ...(sibling.engines && { engines: sibling.engines }),
  };
}

const text = await readFile(path, "utf8");
const lock = JSON.parse(text) as Lockfile;
const { packages } = lock;
for (const [parent, { optionalDependencies = {} }] of Object.entries(packages)) {
  // A nested copy under the parent serves as well as a hoisted one.
  const placesOf = (name: string) => [`${parent}/node_modules/${name}`, `node_modules/${name}`];
  const names = Object.keys(optionalDependencies);
  const sibling = names.flatMap(placesOf).find((place) => packages[place]);
  for (const [name, version] of Object.entries(optionalDependencies)) {
    if (placesOf(name).some((place) => packages[place])) continue;
    if (!sibling) throw new Error(`No platform of ${parent} is in the lockfile`);
    packages[`node_modules/${name}`] = await entryFor(name, version, packages[sibling] as Entry);
    console.log(`added ${name}@${version}`);
  }
}
lock.packages = Object.fromEntries(
  Object.entries(packages).sort(([a], [b]) => a.localeCompare(b, "en")),
);
const completed = `${JSON.stringify(lock, null, 2)}\n`;
if (completed !== text) await writeFile(path, completed);
