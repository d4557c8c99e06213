/** The HTTP port by plain HTTP: JSON, GET, pages of other origins, probes, metrics, and how it stops. */
import { once } from "node:events";
import net from "node:net";
import { gzipSync } from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import pg from "pg";
import { describe, expect, onTestFinished, test } from "vitest";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { routes } from "../src/routes.ts";
import { type Harness, startHarness, useHarness } from "./harness.ts";

const origin = "https://admin.example";
const harness = useHarness({ http: { host: "127.0.0.1", port: 0, origins: [origin] } });

const urlOf = ({ server }: Harness, path: string): string =>
  `http://127.0.0.1:${server.httpPort}${path}`;
const get = (path: string, init?: RequestInit): Promise<Response> =>
  fetch(urlOf(harness.current, path), init);
const json = { "content-type": "application/json" };
const credential = () => ({ authorization: `Bearer ${harness.current.ops.token}` });
const service = "/roster.v1.UserService";
const post = (rpc: string, body: string, headers: Record<string, string> = {}) =>
  get(`${service}/${rpc}`, { method: "POST", body, headers: { ...json, ...headers } });

describe("JSON by plain POST", () => {
  test("is answered as JSON, with metadata as headers", async () => {
    const userId = await harness.current.user("Ada");
    const answer = await post("GetUser", `{"userId":"${userId}"}`, {
      ...credential(),
      "x-request-id": "j-1",
    });
    expect(answer.status).toBe(200);
    expect(await answer.json()).toMatchObject({ user: { id: userId, name: "Ada" } });
    const { headers } = answer;
    expect(headers.get("x-request-id")).toBe("j-1");
    expect(headers.get("trailer-roster-consistency-token")).toMatch(/\S{20}/);
    expect(headers.get("cache-control")).toBe("no-store");
  });

  test("names what is wrong with it, once the caller is known", async () => {
    for (const body of ['{"userId": 3}', "{", "[]"]) {
      expect((await post("GetUser", body)).status).toBe(401);
      const refused = await post("GetUser", body, credential());
      expect(refused.status).toBe(400);
      expect(refused.headers.get("x-request-id")).toMatch(/\S{36}/);
      expect(await refused.json()).toMatchObject({
        code: "invalid_argument",
        message: expect.stringContaining("request: must be a roster.v1.GetUserRequest: "),
        details: [
          { type: "google.rpc.ErrorInfo", debug: { reason: "FIELD_INVALID", domain: "roster" } },
          { type: "google.rpc.BadRequest" },
        ],
      });
    }
    const bytes = await get(`${service}/GetUser`, {
      method: "POST",
      body: new Uint8Array([0xff, 0xff]),
      headers: { ...credential(), "content-type": "application/proto" },
    });
    expect(((await bytes.json()) as { message: string }).message).toBe(
      "request: must be a roster.v1.GetUserRequest",
    );
  });

  test("keeps the time that connect-timeout-ms allows, also the longest that can be written", async () => {
    const late = await post("GetCaller", "{}", { ...credential(), "connect-timeout-ms": "0" });
    expect(late.status).toBe(504);
    expect(await late.json()).toMatchObject({
      code: "deadline_exceeded",
      details: [{ debug: { reason: "DEADLINE_EXCEEDED" } }, ...[]],
    });
    const long = { ...credential(), "connect-timeout-ms": "9999999999" };
    expect((await post("GetCaller", "{}", long)).status).toBe(200);
    const none = await post("GetCaller", "{}", { ...credential(), "connect-timeout-ms": "x" });
    expect(none.status).toBe(400);
  });

  test("is unpacked up to 1 MiB, by gzip alone", async () => {
    const sendPacked = (body: Buffer, encoding: string) =>
      get(`${service}/GetCaller`, {
        method: "POST",
        body: new Uint8Array(body),
        headers: { ...json, ...credential(), "content-encoding": encoding },
      });
    expect((await sendPacked(gzipSync("{}"), "gzip")).status).toBe(200);
    const bomb = await sendPacked(gzipSync(Buffer.alloc(64 * 1024 * 1024, " ")), "gzip");
    expect(await bomb.json()).toMatchObject({ code: "resource_exhausted" });
    expect(await (await sendPacked(Buffer.from("{}"), "br")).json()).toMatchObject({
      code: "unimplemented",
    });
  });

  test("UNAUTHENTICATED for every RPC without a credential; GET is for unary reads alone", async () => {
    for (const { service: of } of routes)
      for (const method of of.methods) {
        const path = `/${of.typeName}/${method.name}`;
        const unary = method.methodKind === "unary";
        const reads = method.idempotency === Idempotency.NO_SIDE_EFFECTS;
        const asked = await get(`${path}?connect=v1&encoding=json&message=%7B%7D`);
        expect({ path, status: asked.status }).toEqual({
          path,
          status: reads ? (unary ? 401 : 415) : 405,
        });
        if (unary)
          expect((await get(path, { method: "POST", body: "{}", headers: json })).status).toBe(401);
      }
  });
});

describe("GET", () => {
  const query = (message: string, encoding = "json", base64 = "") =>
    `${service}/GetUser?connect=v1&encoding=${encoding}${base64}&message=${encodeURIComponent(message)}`;

  test("answers a read to whoever may have it, and nobody may keep it", async () => {
    const { current } = harness;
    const userId = await current.user("Ada");
    const answer = await get(query(`{"userId":"${userId}"}`), { headers: credential() });
    expect(await answer.json()).toMatchObject({ user: { name: "Ada" } });
    expect(answer.headers.get("cache-control")).toBe("no-store");
    const stranger = await current.as(await current.user());
    const headers = { authorization: `Bearer ${stranger.token}` };
    expect((await get(query(`{"userId":"${userId}"}`), { headers })).status).toBe(403);
    const { input } = UserService.method.getUser;
    const bytes = toBinary(input, create(input, { userId }));
    const packed = query(Buffer.from(bytes).toString("base64url"), "proto", "&base64=1");
    expect((await get(packed, { headers: credential() })).status).toBe(200);
    const bad = await get(query("{"), { headers: credential() });
    expect(await bad.json()).toMatchObject({ code: "invalid_argument", details: [{}, {}] });
  });
});

describe("A web page", () => {
  const preflight = (from: string) =>
    get(`${service}/GetCaller`, {
      method: "OPTIONS",
      headers: {
        origin: from,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,connect-protocol-version,content-type",
      },
    });

  test("of a listed origin may ask, and see metadata", async () => {
    const { status, headers } = await preflight(origin);
    expect(status).toBe(204);
    expect(headers.get("access-control-allow-origin")).toBe(origin);
    const allowed = headers.get("access-control-allow-headers")?.toLowerCase().split(", ");
    const needed = ["authorization", "connect-protocol-version", "roster-org-id", "x-grpc-web"];
    expect(allowed).toEqual(expect.arrayContaining(needed));
    expect(headers.get("access-control-allow-methods")).toBe("POST, GET");
    const answer = await post("GetCaller", "{}", { ...credential(), origin });
    expect(answer.headers.get("access-control-allow-origin")).toBe(origin);
    const exposed = answer.headers.get("access-control-expose-headers")?.split(", ");
    expect(exposed).toEqual(
      expect.arrayContaining(["x-request-id", "trailer-roster-consistency-token"]),
    );
    expect(answer.headers.get("vary")).toContain("origin");
  });

  test("of another origin is told nothing, nor is any where none is listed", async () => {
    const closed = await startHarness({ database: harness.current.urls });
    onTestFinished(() => closed.stop());
    const answers = [
      await preflight("https://evil.example"),
      await post("GetCaller", "{}", { ...credential(), origin: "https://admin.example.evil" }),
      await fetch(urlOf(closed, `${service}/GetCaller`), {
        method: "OPTIONS",
        headers: { origin },
      }),
    ];
    for (const { headers } of answers)
      expect([...headers.keys()].filter((name) => name.startsWith("access-control"))).toEqual([]);
    expect(answers.map(({ status }) => status)).toEqual([405, 200, 405]);
  });
});

describe("Metrics", () => {
  test("count calls of both ports by method and code, and name no tenant and nobody", async () => {
    const { current } = harness;
    const { orgId, ownerId, owner } = await current.tenant();
    const { users } = byConnect(current, owner.token);
    await users.getUser({ userId: ownerId });
    await owner.users.getUser({ userId: ownerId });
    await expect(current.ops.users.getUser({ userId: orgId })).rejects.toThrow();
    const answer = await get("/metrics");
    expect(answer.headers.get("content-type")).toContain("text/plain; version=0.0.4");
    const text = await answer.text();
    const count = (system: string, code: string): number => {
      const labels = `rpc_system_name="${system}",rpc_method="roster.v1.UserService/GetUser"`;
      const name = `rpc_server_call_duration_seconds_count{${labels},rpc_status_code="${code}"}`;
      return Number(text.split(`${name} `)[1]?.split("\n")[0]);
    };
    expect(count("grpc", "OK")).toBeGreaterThanOrEqual(1);
    expect(count("connectrpc", "OK")).toBeGreaterThanOrEqual(1);
    expect(count("grpc", "NOT_FOUND")).toBe(1);
    for (const name of [
      "roster_rpc_in_flight 0",
      "roster_ready ",
      'db_client_connection_count{db_client_connection_pool_name="roster_app",',
      "nodejs_eventloop_lag_p99_seconds ",
      "process_cpu_seconds_total ",
      "process_resident_memory_bytes ",
    ])
      expect(text).toContain(name);
    expect(text).not.toMatch(/[0-9a-f]{8}-[0-9a-f]{4}|@example|service:/);
    const labels = [...text.matchAll(/[{,](\w+)="/g)].map(([, label = ""]) => label);
    expect(labels.filter((label) => /org|user|caller|subject|tenant/.test(label))).toEqual([]);
  });
});

const byConnect = ({ server }: Harness, token: string) => {
  const headers = { authorization: `Bearer ${token}` };
  const transport = createConnectTransport({
    baseUrl: `http://127.0.0.1:${server.httpPort}`,
    httpVersion: "1.1",
    interceptors: [
      (next) => (request) => {
        for (const [name, value] of Object.entries(headers)) request.header.set(name, value);
        return next(request);
      },
    ],
  });
  return { users: createClient(UserService, transport) };
};

describe("Probes", () => {
  test("are read by GET and HEAD; other paths are not there", async () => {
    for (const path of ["/livez", "/readyz"]) {
      expect(await (await get(path)).text()).toBe("ok\n");
      expect((await get(path, { method: "HEAD" })).status).toBe(200);
      expect((await get(path, { method: "POST" })).status).toBe(405);
    }
    expect((await get("/")).status).toBe(404);
    expect((await get("/roster.v1.UserService/")).status).toBe(404);
  });

  test("say within 2 s that the database is lost, and within 5 s that it is back; alive all along", async () => {
    const own = await startHarness();
    onTestFinished(() => own.stop());
    const status = async (path: string) => (await fetch(urlOf(own, path))).status;
    const name = new URL(own.urls.admin).pathname.slice(1);
    const elsewhere = new pg.Client({
      connectionString: Object.assign(new URL(own.urls.admin), { pathname: "/postgres" }).href,
    });
    await elsewhere.connect();
    onTestFinished(() => elsewhere.end());
    expect(await status("/readyz")).toBe(200);
    await own.admin.query(`revoke connect on database ${name} from public, roster_app`);
    await elsewhere.query(
      `select pg_terminate_backend(pid) from pg_stat_activity where datname = $1 and usename = 'roster_app'`,
      [name],
    );
    await expect.poll(() => status("/readyz")).toBe(503);
    expect(await status("/livez")).toBe(200);
    await own.admin.query(`grant connect on database ${name} to public`);
    await expect.poll(() => status("/readyz")).toBe(200);
  });

  test("say that the schema is not known, unless it was only migrated further", async () => {
    const own = await startHarness();
    onTestFinished(() => own.stop());
    const ready = async () => (await fetch(urlOf(own, "/readyz"))).status;
    await own.admin.query(
      "insert into roster.schema_migrations (version, name, sha256) values (999, '999_x.sql', 'x')",
    );
    await new Promise((resume) => setTimeout(resume, 700));
    expect(await ready()).toBe(200);
    await own.admin.query("delete from roster.schema_migrations where version = 3");
    await expect.poll(ready).toBe(503);
  });
});

describe("A server that stops", () => {
  test("lets calls on both ports end, takes no new ones, and says that it is not ready", async () => {
    const own = await startHarness();
    const { orgId, owner } = await own.tenant();
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Before" } });
    const holder = new pg.Client({ connectionString: own.urls.admin });
    await holder.connect();
    await holder.query("begin");
    await holder.query("select from roster.teams where id = $1 for update", [team?.id]);
    const headers = { authorization: `Bearer ${owner.token}` };
    const call = (rpc: string, body: object) =>
      fetch(urlOf(own, `/roster.v1.TeamService/${rpc}`), {
        method: "POST",
        headers: { ...headers, ...json },
        body: JSON.stringify(body),
      });
    const baseUrl = `http://127.0.0.1:${own.server.httpPort}`;
    const http2 = createClient(TeamService, createGrpcTransport({ baseUrl }));
    const update = { team: { orgId, id: team?.id ?? "", description: "Later" } };
    const running = [
      call("UpdateTeam", update).then((answer) => answer.status),
      owner.teams.updateTeam(update).then(() => 200),
      http2.updateTeam(update, { headers }).then(() => 200),
    ];
    const inFlight = async () =>
      /roster_rpc_in_flight (\d)/.exec(await (await fetch(`${baseUrl}/metrics`)).text())?.[1];
    await expect.poll(inFlight).toBe("3");
    let stopped = false;
    const stopping = own.stop().then(() => {
      stopped = true;
    });
    const probe = await fetch(urlOf(own, "/readyz"));
    expect([probe.status, await probe.text()]).toEqual([503, "draining\n"]);
    expect((await fetch(urlOf(own, "/livez"))).status).toBe(200);
    const late = await call("ListTeams", {});
    expect([late.status, late.headers.get("retry-after")]).toEqual([503, "1"]);
    expect(stopped).toBe(false);
    await holder.query("rollback");
    await holder.end();
    expect(await Promise.all(running)).toEqual([200, 200, 200]);
    await stopping;
    await expect(fetch(urlOf(own, "/livez"))).rejects.toThrow();
  });
});

describe("The port", () => {
  /** What a connection that sends these pieces, one after the other, hears until it is closed. */
  const speak = async (...pieces: readonly string[]): Promise<string> => {
    const socket = net.connect(harness.current.server.httpPort ?? 0, "127.0.0.1");
    onTestFinished(() => void socket.destroy());
    let heard = "";
    socket.on("data", (chunk) => {
      heard += chunk.toString("latin1");
    });
    const closed = once(socket, "close");
    for (const piece of pieces) {
      socket.write(piece);
      await new Promise((resume) => setTimeout(resume, 30));
    }
    await closed;
    return heard;
  };

  test("knows HTTP/1.1 and HTTP/2 apart however their first bytes come, and survives what is neither", async () => {
    const request = "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    expect(await speak(request)).toMatch(/^HTTP\/1\.1 200 OK/);
    expect(await speak("G", "ET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).toMatch(
      /^HTTP\/1\.1 200 OK/,
    );
    expect(await speak("PATCH / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")).toContain(
      "404",
    );
    expect(await speak("\0\x01garbage\r\n\r\n")).toContain("400");
    // A frame of the server comes ahead of what is wrong with the client.
    const answered = await speak("P", "R", "I * HTTP/2.0\r\n\r\nSM\r\n\r\n", "garbage!!".repeat(9));
    expect(answered).not.toContain("HTTP/1.1");
    expect(answered.length).toBeGreaterThan(9);
    expect(
      await speak(`POST ${service}/GetCaller HTTP/1.1\r\nhost: a b\r\nconnection: close\r\n\r\n`),
    ).toContain("400");
    expect((await get("/livez")).status).toBe(200);
  });

  test("refuses a credential that is sent twice", async () => {
    const { authorization } = credential();
    const head = `POST ${service}/GetCaller HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n`;
    const rest = "connection: close\r\ncontent-length: 2\r\n\r\n{}";
    const line = `authorization: ${authorization}\r\n`;
    expect(await speak(head + line + rest)).toMatch(/^HTTP\/1\.1 200/);
    expect(await speak(head + line + line + rest)).toMatch(/^HTTP\/1\.1 401/);
  });
});
