/**
 * Weakens one guard after another and runs the tests that should notice. `--only TEXT` takes the guards whose name
 * has the text in it. Exits with 1 when a guard can be weakened unnoticed, or its tests could not be run.
 */
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { startEmbedded } from "../../src/database/embedded.ts";
import type { Guard } from "./guard.ts";
import { guards } from "./guards.ts";
import { environmentOf } from "./weakness.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));

interface Report {
  readonly numPassedTests: number;
  readonly testResults: readonly {
    readonly assertionResults: readonly { readonly status: string; readonly fullName: string }[];
  }[];
}

/** What became of a run: the first test that failed, if one did, and whether the tests were run at all. */
interface Outcome {
  readonly failed: string | undefined;
  readonly ran: boolean;
}

/**
 * Runs test files.
 *
 * @param test part of the names of the tests to run; all without it
 */
const outcomeOf = async (
  files: readonly string[],
  env: Record<string, string>,
  test?: string,
): Promise<Outcome> => {
  const report = join(folder, `${randomUUID()}.json`);
  const args = ["node_modules/vitest/vitest.mjs", "run", "--bail=1", "--reporter=json"];
  // What vitest takes for a name is a pattern.
  if (test !== undefined) args.push("--testNamePattern", test.replace(/[^\w\s'-]/g, "\\$&"));
  const child = spawn(
    process.execPath,
    [...args, `--outputFile=${report}`, ...files.map((name) => `test/${name}.test.ts`)],
    { cwd: root, env: { ...process.env, TEST_DATABASE_URL: adminUrl, ...env }, stdio: "ignore" },
  );
  const [code] = await once(child, "close");
  if (!existsSync(report)) return { failed: undefined, ran: false };
  const { testResults, numPassedTests } = JSON.parse(readFileSync(report, "utf8")) as Report;
  const failed = testResults
    .flatMap(({ assertionResults }) => assertionResults)
    .find(({ status }) => status === "failed")?.fullName;
  // A file that could not even be loaded proves nothing.
  return { failed, ran: failed !== undefined || (code === 0 && numPassedTests > 0) };
};

/** Guards are taken by this many runs at a time. */
const lanes = 2;

const { only } = parseArgs({ options: { only: { type: "string", default: "" } } }).values;
const chosen = guards.filter(({ guard }) => guard.includes(only));
const folder = mkdtempSync(join(tmpdir(), "roster-mutants-"));
// As root, PostgreSQL runs as another account, which must be able to enter.
chmodSync(folder, 0o755);
const embedded = await startEmbedded({ dataDir: join(folder, "postgres"), durable: false });
const { adminUrl } = embedded;
let killed = 0;

/** Weakens guards until none are left. */
const weaken = async (left: Iterator<Guard, undefined>): Promise<void> => {
  for (let next = left.next(); next.value; next = left.next()) {
    const { guard, file, test, weakness } = next.value;
    const { failed, ran } = await outcomeOf([file], environmentOf(weakness), test);
    if (failed !== undefined) killed++;
    const why = ran ? "" : `  for ${file}.test.ts did not run`;
    console.log(
      failed === undefined ? `NOT KILLED  ${guard}${why}` : `killed  ${guard}  by: ${failed}`,
    );
  }
};

try {
  const before = await outcomeOf([...new Set(chosen.map(({ file }) => file))], {});
  if (before.failed !== undefined || !before.ran)
    throw new Error(`with every guard in place: ${before.failed ?? "the tests did not run"}`);
  const left = chosen.values();
  await Promise.all(Array.from({ length: lanes }, () => weaken(left)));
} finally {
  await embedded.stop();
  rmSync(folder, { recursive: true, force: true });
}
// Each guard counts like a test.
console.log(`${killed} passed, ${chosen.length - killed} failed`);
process.exitCode = killed < chosen.length ? 1 : 0;
