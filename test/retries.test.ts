import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { routes } from "../src/routes.ts";
import { type Tenant, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { RawClient } from "./raw-client.ts";

const harness = useHarness();

const text = readFileSync(new URL("../proto/service_config.json", import.meta.url), "utf8");
const { methodConfig } = JSON.parse(text) as {
  methodConfig: { name: { service: string; method: string }[]; retryPolicy: object }[];
};

let tenant: Tenant;
let teamId: string;

beforeAll(async () => {
  tenant = await harness.current.tenant();
  ({ id: teamId } = await makeTeam(tenant.owner, { orgId: tenant.orgId, name: "Crew" }));
});

/**
 * A proxy that hands on what clients send, and cuts the connection instead of every third answer that comes over it.
 * Clients have one call under way each: what breaks between the message and the status of an answer no policy mends,
 * for its beginning was heard.
 */
const cuttingProxy = async (): Promise<{ port: number; cuts: () => number }> => {
  let cuts = 0;
  const open = new Set<Socket>();
  const proxy = createServer((client) => {
    const server = connect(harness.current.server.port, "127.0.0.1");
    for (const socket of [client, server]) {
      open.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => open.delete(socket));
    }
    client.pipe(server);
    client.on("close", () => server.destroy());
    server.on("close", () => client.destroy());
    let answers = 0;
    server.on("data", (bytes: Buffer) => {
      // Smaller than an answer are its end and the frames by which a connection begins.
      if (bytes.length > 150 && ++answers % 3 === 0) {
        cuts++;
        client.destroy();
      } else client.write(bytes);
    });
  });
  await once(proxy.listen(0, "127.0.0.1"), "listening");
  onTestFinished(() => {
    for (const socket of open) socket.destroy();
    proxy.close();
  });
  return { port: (proxy.address() as AddressInfo).port, cuts: () => cuts };
};

/** A client behind the proxy, with the policy or without. */
const clientOf = (port: number, policy: boolean): RawClient => {
  const client = new RawClient(port, {
    "grpc.initial_reconnect_backoff_ms": 10,
    "grpc.max_reconnect_backoff_ms": 50,
    "grpc.use_local_subchannel_pool": 1,
    ...(policy ? { "grpc.service_config": text } : { "grpc.enable_retries": 0 }),
  });
  onTestFinished(() => client.close());
  return client;
};

interface Told {
  readonly code: string;
  readonly reason: unknown;
  readonly correlationId: string;
}

/** Changes a team again and again while answers are cut off, and reads it in between. */
const changeAndRead = async (client: RawClient, requestIds: boolean): Promise<Told[]> => {
  const { owner, orgId } = tenant;
  const told: Told[] = [];
  for (let i = 0; i < 10; i++) {
    const correlationId = randomUUID();
    const options = {
      token: owner.token,
      metadata: { "x-request-id": correlationId },
      timeoutMs: 20_000,
    };
    const change = await client.call(
      TeamService.method.updateTeam,
      {
        team: { orgId, id: teamId, description: correlationId },
        requestId: requestIds ? randomUUID() : "",
      },
      options,
    );
    const read = await client.call(TeamService.method.getTeam, { orgId, teamId }, options);
    for (const { code, reason } of [change, read]) told.push({ code, reason, correlationId });
  }
  return told;
};

/** The same by several clients at once, each with a connection of its own. */
const crowd = async (port: number, policy: boolean, requestIds: boolean): Promise<Told[]> => {
  const clients = Array.from({ length: 4 }, () => clientOf(port, policy));
  return (await Promise.all(clients.map((client) => changeAndRead(client, requestIds)))).flat();
};

const effectsOf = async (told: readonly Told[]): Promise<number[]> => {
  const { rows } = await harness.current.admin.query<{ correlation_id: string; n: number }>(
    `select correlation_id, count(*)::int as n from roster.audit_changes
      where correlation_id = any ($1) group by 1`,
    [told.map(({ correlationId }) => correlationId)],
  );
  const counts = new Map(rows.map(({ correlation_id, n }) => [correlation_id, n]));
  return told.map(({ correlationId }) => counts.get(correlationId) ?? 0);
};

describe("The service config", () => {
  test("names every RPC of every service once", () => {
    const listed = methodConfig.flatMap(({ name }) =>
      name.map(({ service, method }) => `${service}/${method}`),
    );
    const offered = routes.flatMap(({ service }) =>
      service.methods.map(({ name }) => `${service.typeName}/${name}`),
    );
    expect(listed.sort()).toEqual(offered.sort());
  });
});

describe("A client whose answers are cut off", () => {
  test("sees no error with the service config, and each mutation takes effect once", async () => {
    const proxy = await cuttingProxy();
    const told = await crowd(proxy.port, true, true);
    expect(proxy.cuts()).toBeGreaterThan(10);
    expect(told.filter(({ code }) => code !== "OK")).toEqual([]);
    expect(new Set(await effectsOf(told))).toEqual(new Set([1]));
  });

  test("is told when it sends a mutation again without a request_id, which is not done twice", async () => {
    const proxy = await cuttingProxy();
    const told = await crowd(proxy.port, true, false);
    expect(new Set(told.map(({ code, reason }) => `${code} ${reason ?? ""}`.trim()))).toEqual(
      new Set(["OK", "ABORTED RETRY_WITHOUT_REQUEST_ID"]),
    );
    expect(Math.max(...(await effectsOf(told)))).toBe(1);
  });

  test("sees errors without it, which is what it is for", async () => {
    const proxy = await cuttingProxy();
    const told = await crowd(proxy.port, false, false);
    expect(told.some(({ code }) => code === "UNAVAILABLE")).toBe(true);
  });
});
