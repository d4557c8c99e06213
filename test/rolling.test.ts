/** `npm run test:rolling`: two servers restart in turns under load, ROLLING_ROUNDS times, 50 unless set. */
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import { expect, onTestFinished, test } from "vitest";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { refusal } from "./harness.ts";
import { Database, readiness, ServerProcess, tenantOn, until } from "./processes.ts";
import { RawClient } from "./raw-client.ts";

const rounds = Number(process.env.ROLLING_ROUNDS ?? 50);
const { createTeam, getTeam, updateTeam } = TeamService.method;

const config = {
  ...JSON.parse(readFileSync(new URL("../proto/service_config.json", import.meta.url), "utf8")),
  loadBalancingConfig: [{ round_robin: {} }],
};

const clientOf = (servers: readonly ServerProcess[], retries: boolean): RawClient =>
  new RawClient(
    servers.map(({ port }) => port),
    {
      "grpc.initial_reconnect_backoff_ms": 50,
      "grpc.max_reconnect_backoff_ms": 500,
      "grpc.use_local_subchannel_pool": 1,
      "grpc.service_config": JSON.stringify(
        retries ? config : { loadBalancingConfig: config.loadBalancingConfig },
      ),
      ...(retries ? {} : { "grpc.enable_retries": 0 }),
    },
  );

test(`${rounds} rolling restarts: who sends again sees no failure, and what was acknowledged stays`, async () => {
  const database = await Database.start("rolling");
  const servers = [await ServerProcess.on(database), await ServerProcess.on(database)];
  await Promise.all(servers.map((server) => server.start()));
  const { orgId, token, owner } = await tenantOn(servers[0]?.port ?? 0);
  const { team } = await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
  const id = team?.id ?? "";
  let over = false;
  const counts = { retrying: 0, http: 0, single: 0, refused: 0 };
  const failures: string[] = [];
  const acknowledged: string[] = [];
  const options = () => ({ token, timeoutMs: 20_000 });

  const retrying = async (client: RawClient): Promise<void> => {
    while (!over) {
      const word = randomUUID();
      const update = { team: { orgId, id, description: word }, requestId: randomUUID() };
      const answers = [
        await client.call(updateTeam, update, options()),
        await client.call(getTeam, { orgId, teamId: id }, options()),
      ];
      acknowledged.push(word);
      counts.retrying += 2;
      for (const { code, text, reason } of answers)
        if (code !== "OK") failures.push(`${code} ${reason} ${text}`);
    }
  };
  /** By JSON over HTTP/1.1, once more elsewhere when it is refused or breaks, as a load balancer would. */
  const overHttp = async (): Promise<void> => {
    while (!over) {
      const word = randomUUID();
      const body = JSON.stringify({
        team: { orgId, id, description: word },
        requestId: randomUUID(),
      });
      let status = 0;
      for (let i = 0; i < 6 && status !== 200; i++) {
        if (i > 0) await delay(50);
        const { httpPort } = servers[(i + counts.http) % 2] as ServerProcess;
        const url = `http://127.0.0.1:${httpPort}/roster.v1.TeamService/UpdateTeam`;
        const headers = { authorization: `Bearer ${token}`, "content-type": "application/json" };
        status = await fetch(url, { method: "POST", headers, body }).then(
          async (response) => {
            await response.text();
            return response.status;
          },
          () => 0,
        );
      }
      counts.http++;
      acknowledged.push(word);
      if (status !== 200) failures.push(`HTTP ${status}`);
    }
  };
  const single = async (client: RawClient): Promise<void> => {
    while (!over) {
      const name = randomUUID();
      const { code } = await client.call(createTeam, { team: { orgId, name } }, options());
      counts.single++;
      if (code === "OK") acknowledged.push(name);
      else counts.refused++;
      await delay(10);
    }
  };
  const working = [
    ...[1, 2, 3].map(() => retrying(clientOf(servers, true))),
    overHttp(),
    ...[1, 2].map(() => single(clientOf(servers, false))),
  ];
  const stopMs: number[] = [];
  for (let round = 0; round < rounds; round++) {
    const server = servers[round % 2] as ServerProcess;
    const start = performance.now();
    const ended = server.end("SIGTERM");
    await until(async () => (await readiness(server.httpPort)) !== 200);
    expect(await ended).toBe(0);
    stopMs.push(performance.now() - start);
    await server.start();
    await delay(300);
  }
  over = true;
  await Promise.all(working);
  const rows = await database.query<{ word: string; n: number }>(
    `select w.word, (select count(*)::int from roster.audit_changes c join roster.audit_entries e on e.id = c.entry_id
       where c.org_id = $2 and c.resource_type = 'team'
         and w.word = case c.kind when 'CREATED' then c.after ->> 'name' else c.after ->> 'description' end) as n
     from unnest($1::text[]) as w (word)`,
    [acknowledged, orgId],
  );
  console.log(
    `${rounds} restarts: ${counts.retrying} calls with retries and ${counts.http} over HTTP, ` +
      `${failures.length} failed; ${counts.single} writes without, ${counts.refused} refused; ` +
      `${rows.length} acknowledged; ` +
      `a server stopped within ${Math.round(Math.max(...stopMs))} ms, of which 1000 notice`,
  );
  expect(failures).toEqual([]);
  expect(rows.filter(({ n }) => n !== 1)).toEqual([]);
  for (const server of servers) expect(await server.end("SIGTERM")).toBe(0);
}, 7_200_000);

test("a server is not ready within 2 s of losing its database, and ready within 5 s of its return", async () => {
  const database = await Database.start("away");
  const server = await ServerProcess.on(database);
  await server.start();
  const { orgId, owner } = await tenantOn(server.port);
  const told: string[] = [];
  for (const how of ["stopped", "killed"] as const) {
    const losing = until(async () => (await readiness(server.httpPort)) === 503);
    if (how === "stopped") await database.stop();
    else database.kill();
    const lostMs = await losing;
    expect(lostMs).toBeLessThan(2_000);
    await database.restart();
    const backMs = await until(async () => (await readiness(server.httpPort)) === 200);
    expect(backMs).toBeLessThan(5_000);
    expect((await owner.orgs.getOrg({ orgId })).org?.id).toBe(orgId);
    told.push(
      `${how}: not ready after ${Math.round(lostMs)} ms, ready ${Math.round(backMs)} ms after its return`,
    );
  }
  console.log(told.join("; "));
  expect(await server.end("SIGTERM")).toBe(0);
}, 600_000);

test("a server that stops says so while it still takes calls, and cancels what does not end", async () => {
  const database = await Database.start("stopping");
  const server = await ServerProcess.on(database);
  await server.start();
  const { orgId, owner } = await tenantOn(server.port);
  const holder = new pg.Client({ connectionString: database.urls.admin });
  await holder.connect();
  onTestFinished(() => holder.end());
  await holder.query("begin; lock table roster.teams in access exclusive mode");
  const waiting = async (): Promise<number> => {
    const found = await database.query(
      "select pid from pg_stat_activity where usename = 'roster_app' and wait_event_type = 'Lock'",
    );
    return found.length;
  };
  const stuck = refusal(owner.teams.listTeams({ orgId }, { timeoutMs: 50_000 }));
  await until(async () => (await waiting()) === 1);
  const start = performance.now();
  const ended = server.end("SIGTERM");
  await until(async () => (await readiness(server.httpPort)) === 503);
  expect((await owner.orgs.getOrg({ orgId })).org?.id).toBe(orgId);
  expect(await ended).toBe(0);
  console.log(
    `stopped after ${Math.round(performance.now() - start)} ms, of which 1000 notice and 10000 grace`,
  );
  await stuck;
  expect(await waiting()).toBe(0);
}, 600_000);
