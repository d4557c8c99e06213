import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";
import { setTimeout as delay } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { fromJsonString } from "@bufbuild/protobuf";
import { describe, expect, inject, onTestFinished, test } from "vitest";
import { ChangeSchema } from "../src/gen/roster/v1/change_pb.ts";
import { slug, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { Fold, tablesOf } from "./watching.ts";

const harness = useHarness();
const program = fileURLToPath(new URL("../examples/mirror.ts", import.meta.url));

/** What the copy holds. */
const held = (file: string): Fold => {
  const fold = new Fold();
  const db = new DatabaseSync(file, { readOnly: true });
  const rows = db.prepare("select json from resources").all();
  db.close();
  const changes = rows.map(({ json }) => fromJsonString(ChangeSchema, String(json)));
  const flags = { position: "all", snapshot: true, heartbeat: false };
  fold.hear({ ...flags, changes, $typeName: "roster.v1.WatchChangesResponse" });
  return fold;
};

describe("examples/mirror.ts", () => {
  test("holds what the tables do, however often it is killed while others write", async () => {
    const { current } = harness;
    const { orgId, owner, adminId } = await current.tenant();
    const file = join(inject("folder"), `${slug()}.db`);
    const env = { ...process.env, TOKEN: owner.token };
    let mirror: ChildProcess | undefined;
    const start = (): void => {
      mirror = spawn(process.execPath, [program, `127.0.0.1:${current.server.port}`, orgId, file], {
        env,
        stdio: "ignore",
      });
    };
    const kill = async (): Promise<void> => {
      if (mirror?.exitCode !== null || mirror.signalCode !== null) return;
      mirror.kill("SIGKILL");
      await once(mirror, "exit");
    };
    onTestFinished(kill);

    let over = false;
    let count = 0;
    const write = async (): Promise<void> => {
      while (!over) {
        const { id: teamId } = await makeTeam(owner, { orgId, name: `Team ${count++}` });
        const userId = await current.user();
        await owner.orgs.addOrgMember({ orgId, userId });
        await owner.teams.addTeamMember({ orgId, teamId, userId });
        await owner.teams.addTeamMember({ orgId, teamId, userId: adminId });
        if (count % 2 === 0) await owner.teams.deleteTeam({ orgId, teamId });
        if (count % 3 === 0) await owner.orgs.removeOrgMember({ orgId, userId });
        else await current.ops.users.updateUser({ user: { id: userId, name: `Some ${count}` } });
      }
    };
    const writing = write();
    for (let i = 0; i < 3; i++) {
      start();
      await delay(500 + Math.random() * 700);
      await kill();
    }
    over = true;
    await writing;
    start();
    const tables = await tablesOf(owner, orgId);
    await expect.poll(() => held(file).shown(), { timeout: 10_000, interval: 200 }).toEqual(tables);
    expect(count).toBeGreaterThan(3);
  });
});
