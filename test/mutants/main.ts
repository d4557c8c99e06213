/**
 * Weakens one guard after another and runs the tests that should notice. `--only TEXT` takes the guards whose name
 * has the text in it. Exits with 1 when a guard can be weakened unnoticed.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { startEmbedded } from "../../src/database/embedded.ts";
import { guards } from "./guards.ts";
import { environmentOf } from "./weakness.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

interface Report {
  readonly numPassedTests: number;
  readonly testResults: readonly {
    readonly assertionResults: readonly { readonly status: string; readonly fullName: string }[];
  }[];
}

/** Runs test files and names the first test that fails; undefined when all pass. */
const firstFailure = async (
  tests: readonly string[],
  env: Record<string, string>,
): Promise<string | undefined> => {
  const outputFile = join(folder, "report.json");
  rmSync(outputFile, { force: true });
  const args = ["node_modules/vitest/vitest.mjs", "run", "--bail=1", "--reporter=json"];
  const child = spawn(
    process.execPath,
    [...args, `--outputFile=${outputFile}`, ...tests.map((name) => `test/${name}.test.ts`)],
    { cwd: root, env: { ...process.env, TEST_DATABASE_URL: adminUrl, ...env }, stdio: "ignore" },
  );
  const [code] = await once(child, "close");
  const { testResults, numPassedTests } = JSON.parse(readFileSync(outputFile, "utf8")) as Report;
  const failed = testResults
    .flatMap(({ assertionResults }) => assertionResults)
    .find(({ status }) => status === "failed");
  if (failed) return failed.fullName;
  // A file that could not even be loaded proves nothing.
  if (code !== 0 || numPassedTests === 0) throw new Error(`${tests.join(", ")}: did not run`);
  return undefined;
};

const { only } = parseArgs({ options: { only: { type: "string", default: "" } } }).values;
const chosen = guards.filter(({ guard }) => guard.includes(only));
const folder = mkdtempSync(join(tmpdir(), "roster-mutants-"));
// As root, PostgreSQL runs as another account, which must be able to enter.
chmodSync(folder, 0o755);
const embedded = await startEmbedded({ dataDir: join(folder, "postgres"), durable: false });
const { adminUrl } = embedded;
let survivors = 0;
try {
  const all = [...new Set(chosen.flatMap(({ tests }) => tests))];
  const before = await firstFailure(all, {});
  if (before !== undefined) throw new Error(`fails with every guard in place: ${before}`);
  for (const { guard, tests, weakness } of chosen) {
    const killer = await firstFailure(tests, environmentOf(weakness));
    if (killer === undefined) survivors++;
    console.log(killer === undefined ? `NOT KILLED  ${guard}` : `killed  ${guard}  by: ${killer}`);
  }
} finally {
  await embedded.stop();
  rmSync(folder, { recursive: true, force: true });
}
// Each guard counts like a test.
console.log(`${chosen.length - survivors} passed, ${survivors} failed`);
process.exitCode = survivors > 0 ? 1 : 0;
