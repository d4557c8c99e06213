import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { describe, expect, onTestFinished, test } from "vitest";
import { accessTable } from "../scripts/access-table.ts";
import { useHarness } from "./harness.ts";

const harness = useHarness();
const file = new URL("../README.md", import.meta.url);
const table = /(<!-- access table: [^\n]* -->\n)([\s\S]*?)(<!-- end of access table -->)/;

const root = fileURLToPath(new URL("..", import.meta.url));

/** Starts what `npm start` starts, on a free port and in a folder of its own. */
const startDevelopment = async (): Promise<Record<"address" | "http" | "dataDir", string>> => {
  const folder = mkdtempSync(join(tmpdir(), "roster-readme-"));
  chmodSync(folder, 0o755);
  const dataDir = join(folder, "data");
  const env = {
    ...process.env,
    ROSTER_DEV: "1",
    ROSTER_DATA_DIR: dataDir,
    GRPC_ADDR: "127.0.0.1:0",
    HTTP_ADDR: "127.0.0.1:0",
  };
  const server = spawn(process.execPath, ["src/cli/roster.js", "serve"], { cwd: root, env });
  onTestFinished(async () => {
    server.kill("SIGTERM");
    if (server.exitCode === null) await once(server, "exit");
    rmSync(folder, { recursive: true, force: true });
  });
  let printed = "";
  for await (const line of createInterface({ input: server.stdout })) {
    printed += `${line}\n`;
    const address = /listening on (127\.0\.0\.1:\d+)/.exec(line)?.[1];
    if (address !== undefined) {
      server.stdout.resume();
      return { address, http: /HTTP on (127\.0\.0\.1:\d+)/.exec(printed)?.[1] ?? "", dataDir };
    }
  }
  throw new Error(`the server did not start: ${printed}`);
};

describe("README", () => {
  test("has a tour of which every line works when pasted", async () => {
    const text = readFileSync(file, "utf8");
    const tour = text.slice(text.indexOf("## A tour"), text.indexOf("## What it does"));
    const lines = [...tour.matchAll(/```sh\n([\s\S]*?)```/g)].map(([, block]) => block).join("");
    const { address, http, dataDir } = await startDevelopment();
    const here = lines.replaceAll("127.0.0.1:50051", address).replaceAll("127.0.0.1:8080", http);
    // What npx finds, without the half second that npm takes to find it.
    const npx = [
      'npx() { shift; if [ "$1" = roster ]; then shift; node src/cli/roster.js "$@";',
      'else "node_modules/.bin/$@"; fi; }',
    ].join(" ");
    const script = `set -euo pipefail\n${npx}\n${here}`;
    const { stdout, stderr } = await promisify(execFile)("bash", ["-c", script], {
      cwd: root,
      env: { ...process.env, ROSTER_DATA_DIR: dataDir },
    });
    expect(stdout).toContain('"role": "TEAM_ROLE_MAINTAINER"');
    expect(stdout).toContain('"bio": "Likes tapes."');
    expect(stdout).toContain('"method": "roster.v1.TeamService/UpdateTeam"');
    expect(stdout).toContain('"description": "They bootstrap."');
    expect(stdout).not.toContain("They wait.");
    expect(stdout).toContain('"title": "Press office"');
    expect(stdout).toContain('"reason": "ACCESS_REASON_TEAM_ROLE"');
    expect(stdout.match(/"token": "0\./g)).toHaveLength(2);
    expect(stdout).toContain("refused: ETAG_STALE");
    expect(stderr).toContain("the resource changed; its etag is now");
    expect(stdout).toContain("refused: ORG_NOT_ALLOWED");
    expect(stdout).toContain('"kind":"ACTOR_KIND_USER"');
    expect(stderr).toContain("no such org for you");
  }, 180_000);

  test("shows the access table that protos and database make", async () => {
    const { rows } = await harness.current.admin.query<{ role: string; permissions: string[] }>(`
      select role, roster.built_in_permissions(role) as permissions
      from unnest(array['guest', 'member', 'admin', 'owner']) role
      union all
      select role, roster.team_permissions(role) from unnest(array['MEMBER', 'MAINTAINER']) role
      union all
      select 'closed', array_agg(permission) from unnest(roster.built_in_permissions('owner')) permission
      where not roster.open_to_services(permission)`);
    const made = accessTable(
      Object.fromEntries(rows.map(({ role, permissions }) => [role, permissions])),
    );
    const text = readFileSync(file, "utf8");
    if (process.env.UPDATE_DOCS === "1") {
      writeFileSync(file, text.replace(table, `$1\n${made}\n\n$3`));
    }
    const shown = table.exec(readFileSync(file, "utf8"))?.[2]?.trim();
    expect(shown, "run: npm run docs").toBe(made);
  });
});
