import { describe, expect, test, vi } from "vitest";
import { roster } from "./command.ts";
import { useHarness } from "./harness.ts";
import { asAdmin, settle } from "./sessions.ts";

// Each starts several processes, which takes its time on a busy machine.
vi.setConfig({ testTimeout: 60_000 });

const harness = useHarness();

describe("roster purge", () => {
  test("says with --dry-run what would go, removes it without, and then finds nothing", async () => {
    const { ops, urls } = harness.current;
    const { orgId, outsiderId: userId } = await settle(harness.current);
    await ops.orgs.deleteOrg({ orgId, force: true });
    await ops.users.deleteUser({ userId });
    for (const table of ["orgs", "users"])
      await asAdmin(
        harness.current,
        `update roster.${table} set purge_time = '2026-01-02 03:04:05Z' where purge_time is not null`,
      );
    const env = { WORKER_DATABASE_URL: urls.worker };
    const dry = await roster(["purge", "--dry-run"], env);
    expect(dry).toEqual({
      code: 0,
      stderr: "",
      stdout: [
        `would purge org ${orgId}, due since 2026-01-02T03:04:05.000Z, with 7 rows that hang on it`,
        "would purge 1 user, due since 2026-01-02T03:04:05.000Z, with 0 rows that hang on them\n",
      ].join("\n"),
    });
    expect((await roster(["purge", "--dry-run"], env)).stdout).toBe(dry.stdout);
    expect(await roster(["purge"], env)).toEqual({
      code: 0,
      stderr: "",
      stdout: `purged org ${orgId}: 11 rows\npurged 1 org, 1 user, 0 teams\n`,
    });
    expect((await roster(["purge", "--dry-run"], env)).stdout).toBe("nothing is due\n");
    expect((await roster(["purge"], env)).stdout).toBe("purged 0 orgs, 0 users, 0 teams\n");
  });

  test("exits with 1 when the database is away, and with 2 for a wrong call or configuration", async () => {
    const away = { WORKER_DATABASE_URL: "postgres://roster_worker:secret@127.0.0.1:1/roster" };
    const failed = await roster(["purge"], away);
    expect(failed).toMatchObject({ code: 1, stdout: "" });
    expect(failed.stderr).toContain("ECONNREFUSED");
    expect(failed.stderr).not.toContain("secret");
    expect(await roster(["purge", "--all"], away)).toMatchObject({ code: 2, stdout: "" });
    const { app: DATABASE_URL, directory: DIRECTORY_DATABASE_URL } = harness.current.urls;
    const without = await roster(["purge"], { DATABASE_URL, DIRECTORY_DATABASE_URL });
    expect(without.code).toBe(2);
    expect(without.stderr).toContain("WORKER_DATABASE_URL: must be set");
    const wrong = await roster(["purge"], { WORKER_DATABASE_URL: "mysql://x" });
    expect(wrong.code).toBe(2);
    expect(wrong.stderr).toContain("WORKER_DATABASE_URL: must be a URL");
  });
});
