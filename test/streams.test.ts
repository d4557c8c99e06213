import { randomUUID } from "node:crypto";
import type { DescService } from "@bufbuild/protobuf";
import { describe, expect, onTestFinished, test } from "vitest";
import { AuditService } from "../src/gen/roster/v1/audit_service_pb.ts";
import { UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { serveGrpc } from "../src/transport/grpc.ts";
import { flushesOfRead, type Harness, startHarness, tokenFor, useHarness } from "./harness.ts";
import { openStream } from "./open-stream.ts";
import { loggedAs, RawClient, type RawOptions } from "./raw-client.ts";

const harness = useHarness();
const { exportUser, getUser } = UserService.method;

/** Five pages of changes, far more than what lies between a server and a reader who does not read. */
const changes = 2_400;
/** With the user, their profile, and the changes that made the two. */
const items = changes + 4;
/** One statement for each page: of user, profiles, org members, team members, invitations, changes and entries. */
const statements = 11;

/** A person whose data were changed often. */
const person = async (current: Harness): Promise<string> => {
  const id = await current.user();
  await current.admin.query(
    `insert into roster.audit_changes (entry_id, subject, method, correlation_id, resource_type, resource_id, person,
        kind, after, changed_fields)
      select gen_random_uuid(), 'service:test', 'test', 'test', 'user', $1::text, $1::text::uuid, 'UPDATED',
        jsonb_build_object('name', repeat('x', 4096)), '{name}' from generate_series(1, $2)`,
    [id, changes],
  );
  return id;
};

/** An export by the platform, or by whoever has the token, and how the log names it. */
const exporting = (current: Harness, userId: string, options: RawOptions = {}) => {
  const id = randomUUID();
  const stream = openStream(
    current.server.port,
    exportUser,
    { userId },
    { token: current.ops.token, ...options, metadata: { "x-request-id": id } },
  );
  return { ...stream, id, logged: () => loggedAs(current, id) };
};

/** Flushes of others while `calls` unary calls are answered, which take longer than a few statements of a stream. */
const meanwhile = async (current: Harness, userId: string, calls = 25): Promise<number> => {
  const before = current.server.roundTrips();
  for (let i = 0; i < calls; i++) await current.ops.users.getUser({ userId });
  return current.server.roundTrips() - before - calls * flushesOfRead;
};

describe("A stream", () => {
  test("sends all there is, a statement for each page, and one line to the log", async () => {
    const { current } = harness;
    const userId = await person(current);
    const stream = exporting(current, userId);
    const before = current.server.roundTrips();
    const { header, ...ending } = await stream.rest();
    expect(ending).toMatchObject({ code: "OK", received: items });
    expect(header?.get("x-request-id")).toEqual([stream.id]);
    expect(current.server.roundTrips() - before).toBe(statements * flushesOfRead);
    expect(await stream.logged()).toMatchObject({
      method: "roster.v1.UserService/ExportUser",
      code: "OK",
      messages: items,
      caller: "service:ops",
    });
  });

  test("fails before its first message as a unary RPC does", async () => {
    const { current } = harness;
    const [userId, other] = [await current.user(), await current.user()];
    const token = await tokenFor(other);
    const raw = new RawClient(current.server.port);
    onTestFinished(() => raw.close());
    for (const [asked, options] of [
      [userId, {}],
      [userId, { token: "garbage" }],
      [userId, { token }],
      ["not-an-id", { token: current.ops.token }],
      ["not-an-id", { token }],
      [randomUUID(), { token: current.ops.token }],
    ] as const) {
      const metadata = { "x-request-id": randomUUID() };
      const all = { ...options, metadata };
      const { header, trailer, received, code } = await openStream(
        current.server.port,
        exportUser,
        { userId: asked },
        all,
      ).rest();
      const unary = await raw.call(getUser, { userId: asked }, all);
      expect({ header, received, code }).toEqual({
        header: undefined,
        received: 0,
        code: unary.code,
      });
      const told = trailer.getMap();
      // What is missing differs: the one RPC has a permission for services.
      // So may the second in which it was told.
      const { date = "" } = told;
      if (code !== "PERMISSION_DENIED")
        expect(told).toEqual({ ...unary.trailer.getMap(), ...(date && { date }) });
      expect(told).toMatchObject(metadata);
    }
  });

  test("INTERNAL with an incident when a later page fails in a way that nobody foresaw", async () => {
    const { current } = harness;
    const grant = (word: string) =>
      current.admin.query(
        `${word.split(" ")[0]} execute on function roster.exported_entries(uuid, timestamptz, uuid, int)
          ${word.split(" ")[1]} roster_directory`,
      );
    const userId = await current.user();
    await grant("revoke from");
    onTestFinished(async () => void (await grant("grant to")));
    const stream = exporting(current, userId);
    expect(await stream.rest()).toMatchObject({
      code: "INTERNAL",
      reason: "INTERNAL",
      received: 4,
    });
    const said = current.logs.filter((line) => line.correlation_id === stream.id);
    expect(said).toMatchObject([
      { msg: "unforeseen error", sqlstate: "42501" },
      { code: "INTERNAL", messages: 4 },
    ]);
  });

  test("asks for no page that a slow reader has no room for", async () => {
    const { current } = harness;
    const userId = await person(current);
    const stream = exporting(current, userId);
    const before = current.server.roundTrips();
    await stream.read();
    const early = current.server.roundTrips() - before;
    const asked = early + (await meanwhile(current, userId));
    expect(asked).toBeLessThan((statements - 3) * flushesOfRead);
    expect(await stream.rest()).toMatchObject({ code: "OK", received: items });
  });

  test("PERMISSION_DENIED at the next page when its caller is suspended", async () => {
    const { current } = harness;
    const userId = await person(current);
    const stream = exporting(current, userId, { token: await tokenFor(userId) });
    await stream.read();
    await current.ops.users.suspendUser({ userId });
    const { received, ...ending } = await stream.rest();
    expect(ending).toMatchObject({ code: "PERMISSION_DENIED", reason: "CALLER_INACTIVE" });
    expect(received).toBeLessThan(items);
    expect(await stream.logged()).toMatchObject({ code: "PERMISSION_DENIED" });
  });

  test("UNAUTHENTICATED when the credential expires while it runs", async () => {
    const { current } = harness;
    const userId = await person(current);
    // Clocks may differ by a minute.
    const expires = Math.floor(Date.now() / 1000) - 55;
    const token = await tokenFor(userId, { expires });
    const stream = exporting(current, userId, { token });
    await stream.read();
    await expect.poll(() => Date.now() / 1000).toBeGreaterThan(expires + 60.1);
    expect(await stream.rest()).toMatchObject({
      code: "UNAUTHENTICATED",
      reason: "CREDENTIAL_EXPIRED",
    });
  });

  test("DEADLINE_EXCEEDED at its caller's deadline, after which no statement is sent", async () => {
    const { current } = harness;
    const userId = await person(current);
    const stream = exporting(current, userId, { timeoutMs: 2_000 });
    await stream.read();
    // Its client counts too, and may hang up well before the server's clock strikes.
    expect((await stream.logged()).code).toMatch(/^(DEADLINE_EXCEEDED|CANCELLED)$/);
    expect(await meanwhile(current, userId)).toBe(0);
    expect((await stream.rest()).code).toBe("DEADLINE_EXCEEDED");
  });

  test("CANCELLED in the log when its reader hangs up, after which no statement is sent", async () => {
    const { current } = harness;
    const userId = await person(current);
    const stream = exporting(current, userId);
    await stream.read();
    stream.cancel();
    const { messages, ...line } = await stream.logged();
    expect(line).toMatchObject({ code: "CANCELLED", reason: "CANCELLED" });
    expect(messages).toBeLessThan(items);
    expect(await meanwhile(current, userId)).toBe(0);
  });

  test("is not mounted where it would change something, or takes a stream of requests", async () => {
    const mounting = (change: object) => {
      const [method] = AuditService.methods;
      const service = {
        ...AuditService,
        methods: [{ ...method, ...change }],
      } as unknown as DescService;
      const routes = [{ service, implementation: { [method?.localName ?? ""]: () => {} } }];
      return serveGrpc({ host: "::1", port: 0, routes, interceptors: [], mayReflect: undefined });
    };
    await expect(mounting({ methodKind: "server_streaming", idempotency: 0 })).rejects.toThrow(
      "only reads",
    );
    await expect(mounting({ methodKind: "bidi_streaming" })).rejects.toThrow("not served");
  });
});

describe("A stream of a hasty server", () => {
  const hasty = useHarness({ deadlines: { defaultMs: 1_000, maximumMs: 1_000, streamMs: 3_000 } });

  test("DEADLINE_EXCEEDED when one statement takes longer than a unary RPC may", async () => {
    const { current } = hasty;
    const userId = await current.user();
    await current.admin.query("begin; lock table roster.team_members in access exclusive mode");
    onTestFinished(async () => void (await current.admin.query("rollback")));
    // Were it as old as a stream may be, it would be UNAVAILABLE.
    const ending = await exporting(current, userId).rest();
    expect(ending).toMatchObject({ code: "DEADLINE_EXCEEDED", received: 2 });
  });

  test("UNAVAILABLE when it is as old as a stream may be, though longer than a unary RPC may take", async () => {
    const { current } = hasty;
    const userId = await person(current);
    const start = performance.now();
    const stream = exporting(current, userId, { timeoutMs: 60_000 });
    await stream.read();
    await expect.poll(() => performance.now() - start).toBeGreaterThan(3_050);
    expect(await stream.rest()).toMatchObject({ code: "UNAVAILABLE", reason: "STREAM_ENDED" });
  });
});

test("A stream ends at once with UNAVAILABLE when the server stops", async () => {
  const own = await startHarness();
  const userId = await person(own);
  const stream = exporting(own, userId);
  await stream.read();
  const start = performance.now();
  const stopped = own.stop();
  expect(await stream.rest()).toMatchObject({ code: "UNAVAILABLE", reason: "STREAM_ENDED" });
  await stopped;
  expect(performance.now() - start).toBeLessThan(9_000);
  expect(await stream.logged()).toMatchObject({ code: "UNAVAILABLE", reason: "STREAM_ENDED" });
});
