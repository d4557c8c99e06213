/** Spans of calls and their statements, as a registered SDK gets them, and the trace ids in logs. */
import { randomBytes, randomUUID } from "node:crypto";
import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { context, SpanKind, SpanStatusCode, trace } from "@opentelemetry/api";
import type { InMemorySpanExporter, ReadableSpan } from "@opentelemetry/sdk-trace-node";
import { describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { audience, issuer, startHarness, useHarness } from "./harness.ts";
import { listening } from "./listening.ts";

const harness = useHarness();

/** A caller's span, and what it sends of it. */
const callerSpan = (flags = "01") => {
  const [traceId, spanId] = [randomBytes(16).toString("hex"), randomBytes(8).toString("hex")];
  return { traceId, spanId, headers: { traceparent: `00-${traceId}-${spanId}-${flags}` } };
};

const spansOf = (exporter: InMemorySpanExporter, traceId: string) => {
  const spans = exporter
    .getFinishedSpans()
    .filter((span) => span.spanContext().traceId === traceId);
  const of = (kind: SpanKind) => spans.filter((span) => span.kind === kind);
  return { calls: of(SpanKind.SERVER), statements: of(SpanKind.CLIENT) };
};

const only = (spans: readonly ReadableSpan[]): ReadableSpan =>
  spans.length === 1 && spans[0] ? spans[0] : expect.fail(`${spans.length} spans`);

const logged = (id: string) =>
  harness.current.logs.find((line) => line.correlation_id === id && "code" in line);

describe("With an SDK", () => {
  test("a call is a span inside its caller's, and its statement one inside that", async () => {
    const exporter = listening();
    const { orgId, owner, ownerId } = await harness.current.tenant();
    const { traceId, spanId, headers } = callerSpan();
    const id = randomUUID();
    const sent = { ...headers, tracestate: "vendor=1", "x-request-id": id };
    await owner.users.getUser({ userId: ownerId, orgId }, { headers: sent });
    const { calls, statements } = spansOf(exporter, traceId);
    const call = only(calls);
    expect(call.name).toBe("roster.v1.UserService/GetUser");
    expect(call.parentSpanContext).toMatchObject({ spanId, isRemote: true });
    expect(call.spanContext().traceState?.get("vendor")).toBe("1");
    expect(call.attributes).toEqual({
      "rpc.system.name": "grpc",
      "rpc.method": "roster.v1.UserService/GetUser",
      "rpc.status_code": "OK",
    });
    expect(call.status.code).toBe(SpanStatusCode.UNSET);
    const statement = only(statements);
    expect(statement.parentSpanContext?.spanId).toBe(call.spanContext().spanId);
    expect(statement.name).toMatch(/^SELECT roster\.users/);
    expect(statement.attributes).toEqual({
      "db.system.name": "postgresql",
      "db.namespace": expect.stringMatching(/^\w+$/),
      "db.operation.name": "SELECT",
      "db.query.summary": statement.name,
      "server.address": expect.any(String),
      "server.port": expect.any(Number),
    });
    expect(logged(id)).toMatchObject({ trace_id: traceId, span_id: call.spanContext().spanId });
  });

  test("Connect's protocol is another system; a call without a caller's span begins a trace", async () => {
    const exporter = listening();
    const { ops, server } = harness.current;
    const authorization = `Bearer ${ops.token}`;
    const transport = createConnectTransport({
      baseUrl: `http://127.0.0.1:${server.httpPort}`,
      httpVersion: "1.1",
    });
    const { headers, traceId } = callerSpan();
    const client = createClient(UserService, transport);
    await client.getCaller({}, { headers: { authorization, ...headers } });
    const { attributes } = only(spansOf(exporter, traceId).calls);
    expect(attributes).toMatchObject({ "rpc.system.name": "connectrpc", "rpc.status_code": "OK" });
    exporter.reset();
    await ops.users.getCaller({});
    const begun = exporter.getFinishedSpans().filter(({ kind }) => kind === SpanKind.SERVER);
    expect(only(begun).parentSpanContext).toBeUndefined();
  });

  test("a failure has its code and reason, and is an error where the server is at fault; rows stay out", async () => {
    const exporter = listening();
    const { ops, admin } = harness.current;
    const { traceId, headers } = callerSpan();
    const email = `canary.${randomUUID()}@example.com`;
    const user = { email, name: "Canary Ada", labels: { phone: "+1 555 0100" } };
    await ops.users.createUser({ user });
    await expect(ops.users.createUser({ user }, { headers })).rejects.toThrow();
    const { calls, statements } = spansOf(exporter, traceId);
    const taken = only(calls);
    expect(taken.attributes).toMatchObject({
      "rpc.status_code": "ALREADY_EXISTS",
      "roster.error_reason": "EMAIL_TAKEN",
    });
    expect(taken.attributes["error.type"]).toBeUndefined();
    expect(taken.status.code).toBe(SpanStatusCode.UNSET);
    const failed = only(statements.filter(({ status }) => status.code === SpanStatusCode.ERROR));
    expect(failed.name).toContain("INSERT roster.users");
    expect(failed.attributes).toMatchObject({
      "error.type": "23505",
      "db.response.status_code": "23505",
    });

    await admin.query("begin; lock table roster.users in access exclusive mode");
    onTestFinished(async () => void (await admin.query("rollback")));
    const late = callerSpan();
    // Only the server knows of it: a client that counts too may cancel a moment earlier.
    const options = { headers: { ...late.headers, "grpc-timeout": "300m" } };
    const call = ops.users.getUser({ userId: randomUUID() }, options);
    await expect(call).rejects.toThrow();
    await expect.poll(() => spansOf(exporter, late.traceId).calls).toHaveLength(1);
    const overdue = only(spansOf(exporter, late.traceId).calls);
    expect(overdue.status.code).toBe(SpanStatusCode.ERROR);
    expect(overdue.attributes["error.type"]).toBe("DEADLINE_EXCEEDED");
    const told = exporter
      .getFinishedSpans()
      .map(({ name, attributes, events, status }) => ({ name, attributes, events, status }));
    expect(JSON.stringify(told)).not.toMatch(/canary|555 0100/i);
  });

  test("statements of a stream belong to it until its end; the poll for all watchers belongs to none", async () => {
    const exporter = listening();
    const { orgId, owner } = await harness.current.tenant();
    const { traceId, headers } = callerSpan();
    const leaving = new AbortController();
    const stream = owner.changes.watchChanges({ orgId }, { headers, signal: leaving.signal });
    const messages = stream[Symbol.asyncIterator]();
    await messages.next();
    await owner.orgs.updateOrg({ org: { id: orgId, name: "Renamed" } });
    await messages.next();
    leaving.abort();
    await expect(messages.next()).rejects.toThrow();
    await expect.poll(() => spansOf(exporter, traceId).calls).toHaveLength(1);
    const { calls, statements } = spansOf(exporter, traceId);
    expect(only(calls).attributes["rpc.status_code"]).toBe("CANCELLED");
    expect(statements.length).toBeGreaterThan(0);
    const ids = new Set(statements.map(({ parentSpanContext }) => parentSpanContext?.spanId));
    expect([...ids]).toEqual([only(calls).spanContext().spanId]);
    const polls = exporter
      .getFinishedSpans()
      .filter(({ kind, parentSpanContext }) => kind === SpanKind.CLIENT && !parentSpanContext);
    expect(polls).toEqual([]);
    // Each of the stream's own statements leaves a span, and none of some hundred polls does.
    expect(statements.length).toBeLessThan(10);
  });

  test("the endpoint of the keys hears which trace asks it", async () => {
    const asked: unknown[] = [];
    const { d: _private, ...key } = inject("signingKey");
    const endpoint = createServer(({ headers }, response) => {
      asked.push(headers.traceparent);
      response.end(JSON.stringify({ keys: [key] }));
    }).listen(0, "127.0.0.1");
    await once(endpoint, "listening");
    onTestFinished(() => void endpoint.close());
    const url = `http://127.0.0.1:${(endpoint.address() as AddressInfo).port}`;
    const database = harness.current.urls;
    const trust = { jwks: { url }, issuer, audience, orgClaim: "org" };
    const current = await startHarness({ database, trust });
    onTestFinished(() => current.stop());
    listening();
    const { traceId, headers } = callerSpan();
    await current.ops.users.getCaller({}, { headers });
    expect(asked).toEqual([expect.stringContaining(traceId)]);
  });

  test("a caller who is not sampled leaves no spans, and is logged all the same", async () => {
    const exporter = listening();
    const { traceId, headers } = callerSpan("00");
    const id = randomUUID();
    await harness.current.ops.users.getCaller({}, { headers: { ...headers, "x-request-id": id } });
    expect(exporter.getFinishedSpans()).toEqual([]);
    expect(logged(id)).toMatchObject({ trace_id: traceId });
  });
});

describe("Without an SDK", () => {
  test("nothing is made for a call, and its log line has the caller's ids", async () => {
    const made = [
      vi.spyOn(trace, "getTracer"),
      vi.spyOn(trace, "setSpan"),
      vi.spyOn(context, "with"),
    ];
    onTestFinished(() => void vi.restoreAllMocks());
    const { traceId, spanId, headers } = callerSpan();
    const id = randomUUID();
    await harness.current.ops.users.getCaller({}, { headers: { ...headers, "x-request-id": id } });
    expect(logged(id)).toMatchObject({ trace_id: traceId, span_id: spanId });
    for (const spy of made) expect(spy).not.toHaveBeenCalled();
  });

  test("what is no traceparent is passed over", async () => {
    const [traceId, spanId] = ["a".repeat(32), "b".repeat(16)];
    const zeros = [`00-${"0".repeat(32)}-${spanId}-01`, `00-${traceId}-${"0".repeat(16)}-01`];
    const others = ["x", `ff-${traceId}-${spanId}-01`, `00-${traceId}-${spanId}-01-more`];
    for (const traceparent of [...zeros, ...others, `00-${traceId.toUpperCase()}-${spanId}-01`]) {
      const id = randomUUID();
      const headers = { traceparent, "x-request-id": id };
      await harness.current.ops.users.getCaller({}, { headers });
      expect(logged(id)).not.toHaveProperty("trace_id");
    }
    const id = randomUUID();
    const headers = { traceparent: `01-${traceId}-${spanId}-01-more`, "x-request-id": id };
    await harness.current.ops.users.getCaller({}, { headers });
    expect(logged(id)).toMatchObject({ trace_id: traceId, span_id: spanId });
  });
});
