import { describe, expect, test, vi } from "vitest";
import { roster } from "./command.ts";
import { useHarness } from "./harness.ts";
import { sealable, tamper } from "./sealed.ts";

// Each starts several processes, which takes its time on a busy machine.
vi.setConfig({ testTimeout: 60_000 });

const harness = useHarness();

const noOrg = "00000000-0000-0000-0000-000000000000";

describe("roster seal, audit head and audit verify", () => {
  test("seal the log, print its roots, verify it against them, and find what was edited", async () => {
    const { urls, admin } = harness.current;
    const env = { WORKER_DATABASE_URL: urls.worker };
    const { orgId } = await harness.current.tenant();
    await sealable(harness.current);
    expect(await roster(["seal"], env)).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(/^sealed \d+ rows\n$/),
      stderr: "",
    });
    const [head, json, verified] = await Promise.all([
      roster(["audit", "head"], env),
      roster(["audit", "head", "--json"], env),
      roster(["audit", "verify"], env),
    ]);
    const lines = head.stdout.trimEnd().split("\n");
    expect(lines).toHaveLength(2);
    expect(lines[0]).toMatch(new RegExp(`^${noOrg} \\d+ [0-9a-f]{64}$`));
    const [org, number, root] = lines[1]?.split(" ") ?? [];
    expect(org).toBe(orgId);
    expect(JSON.parse(json.stdout)[1]).toEqual({ orgId, number: Number(number), root });
    expect(verified).toMatchObject({ code: 0, stderr: "" });
    expect(verified.stdout).toMatch(/^verified \d+ rows under \d+ seals of 2 logs\n$/);

    const { rows } = await admin.query(
      "select id from roster.audit_entries where org_id = $1 order by xid limit 1",
      [orgId],
    );
    const edit = "update roster.audit_entries set reason = 'none' where id = $1";
    await tamper(harness.current, edit, [rows[0].id]);
    const wrong = `${root}`.replace(/^./, (digit) => (digit === "0" ? "1" : "0"));
    const [all, none, kept] = await Promise.all([
      roster(["audit", "verify"], env),
      roster(["audit", "verify", "--org", noOrg], env),
      roster(
        ["audit", "verify", "--org", orgId, "--root", `1:${wrong}`, "--root", `9:${root}`],
        env,
      ),
    ]);
    const fault = `org ${orgId}: seal 1: audit_entries ${rows[0].id} was edited`;
    expect(all.code).toBe(1);
    expect(all.stdout.split("\n")).toEqual([
      fault,
      expect.stringMatching(/^found 1 fault in /),
      "",
    ]);
    expect(none.code).toBe(0);
    expect(kept.code).toBe(1);
    expect(kept.stdout.split("\n").slice(0, -2)).toEqual([
      fault,
      `org ${orgId}: seal 1 has another root than the one kept`,
      `org ${orgId}: seal 9 is gone`,
    ]);
  });

  test("exit with 2 when the database is away, and for a wrong call or configuration", async () => {
    const away = { WORKER_DATABASE_URL: "postgres://roster_worker:secret@127.0.0.1:1/roster" };
    const [gone, ...wrong] = await Promise.all([
      roster(["audit", "verify"], away),
      ...[
        ["audit", "prove"],
        ["audit", "verify", "--root", `1:${"0".repeat(64)}`],
        ["audit", "verify", "--org", noOrg, "--root", "latest"],
        ["seal", "--all"],
      ].map((args) => roster(args, away)),
      roster(["audit", "head"], { WORKER_DATABASE_URL: "mysql://x" }),
    ]);
    expect(gone).toMatchObject({ code: 2, stdout: "" });
    expect(gone?.stderr).toContain("ECONNREFUSED");
    expect(gone?.stderr).not.toContain("secret");
    for (const { code, stdout } of wrong) expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  });
});
