/** The real commands in processes of their own, with a data folder that goes with the run. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { inject, onTestFinished } from "vitest";

/** This clone. */
export const root = fileURLToPath(new URL("..", import.meta.url));
/** Made for this test process, whose files share it; it goes with the run's. */
export const folder = mkdtempSync(join(inject("folder"), "cli-"));
// As root, PostgreSQL runs as another account, which must be able to enter.
chmodSync(folder, 0o755);
/** What the commands keep, unless told otherwise. */
export const dataDir = join(folder, "data");

/** Nothing of the environment of the tests but what every shell has. */
export const base = {
  PATH: process.env.PATH,
  HOME: process.env.HOME,
  ROSTER_DATA_DIR: dataDir,
  HTTP_ADDR: "127.0.0.1:0",
};

/** How a command ended. */
export interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** Starts a command; `said` grows with what it says. */
export const launch = (args: readonly string[], env: NodeJS.ProcessEnv = {}) => {
  const child = spawn(process.execPath, ["src/cli/roster.js", ...args], {
    cwd: root,
    env: { ...base, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  const said = { stdout: "", stderr: "" };
  child.stdout.on("data", (chunk) => {
    said.stdout += chunk;
  });
  child.stderr.on("data", (chunk) => {
    said.stderr += chunk;
  });
  const ended = once(child, "close").then(([code]): Ended => ({ code, ...said }));
  onTestFinished(() => void child.kill("SIGKILL"));
  return { child, said, ended };
};

/** Runs a command to its end. */
export const roster = (args: readonly string[], env?: NodeJS.ProcessEnv): Promise<Ended> =>
  launch(args, env).ended;
