import { defineConfig } from "vitest/config";
import { weakenSources, weakensSource } from "./test/mutants/weakness.ts";

/** What takes long or starts servers more, and runs when it is named. */
const apart = ["replica", "cancel-storm", "kills", "rolling"];
const named = (name: string): boolean => process.argv.slice(2).join().includes(name);

export default defineConfig({
  plugins: [weakenSources()],
  test: {
    include: ["test/**/*.test.ts"],
    exclude: apart.filter((name) => !named(name)).map((name) => `test/${name}.test.ts`),
    // Starts the one database server of the run; each file clones its own database from it.
    globalSetup: ["test/setup.ts"],
    pool: "forks",
    // What a worker has loaded serves its next file too: loading it again takes a fifth of the run.
    isolate: false,
    maxWorkers: 4,
    // What a weakened source became is not to be kept for other runs.
    fsModuleCache: !weakensSource(),
    testTimeout: 30_000,
    hookTimeout: 60_000,
    // What comes soon comes later on a busy machine.
    expect: { poll: { timeout: 10_000 } },
  },
});
