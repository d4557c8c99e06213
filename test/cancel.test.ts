import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { createConnectTransport } from "@connectrpc/connect-node";
import pg from "pg";
import { describe, expect, onTestFinished, test } from "vitest";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { ConnectClient, grpcClient } from "./connect-client.ts";
import { startHarness, useHarness } from "./harness.ts";

// One connection, so that whoever comes next gets the one on which something was cancelled.
const harness = useHarness({ poolSize: 1 });
const { createTeam, getTeam, listTeams } = TeamService.method;

/** Holds a table that every call about teams needs, until it is let go. */
const holdTeams = async () => {
  const holder = new pg.Client({ connectionString: harness.current.urls.admin });
  await holder.connect();
  onTestFinished(() => holder.end());
  await holder.query("begin; lock table roster.teams in access exclusive mode");
  return () => holder.query("rollback");
};

/** Backends of the app that run something now, or are in a transaction. */
const running = async (states = "active, idle in transaction"): Promise<number[]> => {
  const { rows } = await harness.current.admin.query<{ pid: number }>(
    `
    select pid from pg_stat_activity
    where datname = current_database() and usename = 'roster_app' and state = any(string_to_array($1, ', '))`,
    [states],
  );
  return rows.map(({ pid }) => pid);
};

/** Backends of the app. */
const connections = async (): Promise<number[]> => {
  const { rows } = await harness.current.admin.query<{ pid: number }>(`
    select pid from pg_stat_activity where datname = current_database() and usename = 'roster_app'
      and application_name <> 'roster readiness'`);
  return rows.map(({ pid }) => pid);
};

const clients = {
  "the gRPC port": () => grpcClient(harness.current.server.port),
  "the HTTP port by HTTP/2": () => overHttp("2"),
  "the HTTP port by HTTP/1.1": () => overHttp("1.1"),
};
const overHttp = (httpVersion: "1.1" | "2") => {
  const baseUrl = `http://127.0.0.1:${harness.current.server.httpPort}`;
  return new ConnectClient(createConnectTransport({ baseUrl, httpVersion }));
};

describe.each(Object.entries(clients))("a caller of %s who hangs up", (_, clientOf) => {
  test.each([
    ["a read", getTeam],
    ["a list", listTeams],
    ["a mutation", createTeam],
  ] as const)(
    "has the SQL of %s cancelled, and the connection serves the next",
    async (_, method) => {
      const { orgId, owner } = await harness.current.tenant();
      const { team } = await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
      const before = await connections();
      const letGo = await holdTeams();
      const request = { orgId, teamId: team?.id ?? "", team: { orgId, name: "Cancelled" } };
      const call = clientOf().start(method as typeof getTeam, request, { token: owner.token });
      await expect.poll(() => running()).toHaveLength(1);
      call.cancel();
      expect((await call.answer).code).toBe("CANCELLED");
      // The lock is still held: nothing but a cancel ends the wait for it.
      await expect.poll(() => running()).toEqual([]);
      await letGo();
      const { teams } = await owner.teams.listTeams({ orgId });
      expect(teams.map(({ name }) => name)).toEqual(["Crew"]);
      await owner.teams.createTeam({ team: { orgId, name: "Next" } });
      expect(await connections()).toEqual(before);
    },
  );
});

test("a read that is hit in place of another is asked again", async () => {
  const { orgId, owner } = await harness.current.tenant();
  const { team } = await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
  const letGo = await holdTeams();
  const call = owner.teams.getTeam({ orgId, teamId: team?.id ?? "" });
  await expect.poll(() => running()).toHaveLength(1);
  const { admin } = harness.current;
  await admin.query("select pg_cancel_backend($1)", [(await running())[0]]);
  await letGo();
  expect((await call).team?.id).toBe(team?.id);
});

/** A way to PostgreSQL on which cancel requests wait until they are let through. */
const slowCancels = async (url: string) => {
  const { hostname, port } = new URL(url);
  const sockets = new Set<Socket>();
  const waiting: (() => void)[] = [];
  const server = createServer((near) => {
    const far = connect(Number(port), hostname);
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(one);
      one.on("error", () => other.destroy());
      one.on("close", () => other.destroy());
    }
    far.pipe(near);
    near.once("data", (first: Buffer) => {
      const go = (): void => {
        far.write(first);
        near.pipe(far);
      };
      // A length of 16 and the code of a cancel request.
      if (first.length === 16 && first.readUInt32BE(4) === 80_877_102) waiting.push(go);
      else go();
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  const through = new URL(url);
  through.host = `127.0.0.1:${(server.address() as AddressInfo).port}`;
  return { url: through.href, waiting };
};

test("a cancel that comes late does not hit the next on the connection", async () => {
  const { current } = harness;
  const { url, waiting } = await slowCancels(current.urls.app);
  const other = await startHarness({
    poolSize: 1,
    database: { ...current.urls, worker: undefined, app: url },
  });
  onTestFinished(() => other.stop());
  const { orgId, owner } = await current.tenant();
  const client = grpcClient(other.server.port);
  onTestFinished(() => client.close());
  const letGo = await holdTeams();
  const first = client.start(listTeams, { orgId }, { token: owner.token });
  await expect.poll(() => running()).toHaveLength(1);
  first.cancel();
  await expect.poll(() => waiting.length).toBe(1);
  await letGo();
  await expect.poll(() => running("active")).toEqual([]);

  const letGoAgain = await holdTeams();
  const team = { orgId, name: "Next" };
  const second = client.start(createTeam, { team }, { token: owner.token });
  // Nobody can say that a thing will not come; without the guard it comes at once, and is hit.
  await new Promise((resume) => setTimeout(resume, 200));
  for (const go of waiting) go();
  await expect.poll(() => running()).toHaveLength(1);
  await letGoAgain();
  expect((await second.answer).code).toBe("OK");
});
