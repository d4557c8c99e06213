/** The processes of a benchmark: how they are started, told what to do, and what they cost. */
import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import type { Templates } from "./statements.ts";

/** What the floor and the naive composition are started with. */
export interface SystemOptions {
  readonly urls: { readonly app: string; readonly directory: string };
  readonly poolSize: number;
  /** By method. */
  readonly statements: Readonly<Record<string, Templates>>;
}

/** What this process was started with. */
export const systemOptions = (): SystemOptions =>
  JSON.parse(readFileSync(process.argv[2] ?? "", "utf8"));

/** Tells the starting process the port. */
export const ready = (port: number): void => {
  process.send?.({ port });
  process.on("SIGTERM", () => process.exit(0));
};

/** A process that serves calls. */
export interface Served {
  readonly pid: number;
  readonly port: number;
}

/** Starts a module of this folder, and waits for what it says first. */
export const start = async <T>(
  module: string,
  optionsFile: string,
): Promise<{ child: ChildProcess; said: T }> => {
  const child = fork(new URL(module, import.meta.url), [optionsFile]);
  const [said] = await Promise.race([
    once(child, "message") as Promise<[T]>,
    once(child, "exit").then(([code]) => {
      throw new Error(`${module} ended with ${code}`);
    }),
  ]);
  return { child, said };
};

/** The ticks of /proc are hundredths of a second, on every Linux. */
const tickUs = 10_000;

/** What /proc tells of a process, from its state on: `stat` counts fields from one, here it is the third. */
const statOf = (pid: number | string): string[] => {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  // The command's name may hold spaces and parentheses; what follows it does not.
  return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
};

/** The CPU time of a process and all its threads so far, in microseconds, to the nearest 10 ms. */
export const cpuUs = (pid: number): number => {
  const stat = statOf(pid);
  return (Number(stat[11]) + Number(stat[12])) * tickUs;
};

/** The process that started another one. */
export const parentOf = (pid: number | string): number => Number(statOf(pid)[1]);

/** Resident memory of a process, in MB. */
const residentMb = (pid: number): number => {
  const pages = Number(readFileSync(`/proc/${pid}/statm`, "utf8").split(" ")[1]);
  return (pages * 4096) / 1e6;
};

/** The CPU time of every process of a PostgreSQL server so far, ended ones too, in microseconds. */
export const postgresCpuUs = (postmaster: number): number => {
  const stat = statOf(postmaster);
  const ended = (Number(stat[13]) + Number(stat[14])) * tickUs;
  let living = onCpuUs(postmaster);
  for (const name of readdirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      if (parentOf(name) === postmaster) living += onCpuUs(Number(name));
    } catch (error) {
      // It ended while the list was read.
      if (!["ENOENT", "ESRCH"].includes((error as NodeJS.ErrnoException).code ?? "")) throw error;
    }
  }
  return ended + living;
};

/** PostgreSQL's processes have one thread each, of which the scheduler counts nanoseconds. */
const onCpuUs = (pid: number): number =>
  Number(readFileSync(`/proc/${pid}/schedstat`, "utf8").split(" ")[0]) / 1000;

/** Packages that `serve` imports. */
const packages = [
  "@bufbuild/protobuf",
  "@bufbuild/protovalidate",
  "@connectrpc/connect",
  "@connectrpc/connect-node",
  "@grpc/grpc-js",
  "@grpc/reflection",
  "@opentelemetry/api",
  "@prometheus-io/client",
  "grpc-health-check",
  "jose",
  "pg",
  "pino",
  "slonik",
  "uuid",
  "zod",
];

/** Milliseconds that node takes to start and import what `serve` imports, and nothing else. */
export const timeToImport = async (): Promise<number> => {
  const begin = performance.now();
  const script = `await Promise.all(${JSON.stringify(packages)}.map((name) => import(name)));
    console.log("imported");`;
  const child = spawn(process.execPath, ["--input-type=module", "--eval", script]);
  await once(child.stdout, "data");
  const ms = performance.now() - begin;
  await once(child, "exit");
  return ms;
};

/** Collects the garbage of a server that was started with `serveRoster`, and tells what memory it holds, in MB. */
export const idleMb = async (pid: number): Promise<number> => {
  process.kill(pid, "SIGUSR2");
  await sleep(2_000);
  return residentMb(pid);
};

/** The middle of some numbers. */
export const median = (numbers: readonly number[]): number => {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? (sorted[middle] ?? Number.NaN)
    : ((sorted[middle - 1] ?? Number.NaN) + (sorted[middle] ?? Number.NaN)) / 2;
};
