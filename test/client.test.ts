import { randomUUID } from "node:crypto";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { Code } from "@connectrpc/connect";
import { describe, expect, onTestFinished, test } from "vitest";
import { createRoster, errorInfoOf, pages, type Roster, type Watched } from "../src/client.ts";
import { startHarness, tokenFor, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { lineOf } from "./watching.ts";

const harness = useHarness();

const rosterOn = (port: number, token: string | (() => Promise<string>)): Roster => {
  const roster = createRoster({ address: `127.0.0.1:${port}`, token, timeoutMs: 30_000 });
  onTestFinished(() => roster.close());
  return roster;
};

/** A way to a server that can be led elsewhere, lose its answers, and break. */
const proxyTo = async (first: number) => {
  const open = new Set<Socket>();
  const cut = (): void => {
    for (const socket of open) socket.destroy();
  };
  const way = { port: 0, to: first, loses: false, opened: 0, cut };
  const proxy = createServer((client) => {
    way.opened++;
    const server = connect(way.to, "127.0.0.1");
    for (const socket of [client, server]) {
      open.add(socket);
      socket.on("error", () => {});
      socket.on("close", () => open.delete(socket));
    }
    client.pipe(server);
    server.on("data", (bytes) => way.loses || client.write(bytes));
    client.on("close", () => server.destroy());
    server.on("close", () => client.destroy());
  });
  await once(proxy.listen(0, "127.0.0.1"), "listening");
  onTestFinished(() => {
    way.cut();
    proxy.close();
  });
  way.port = (proxy.address() as AddressInfo).port;
  return way;
};

/** Reads what is watched, until the test ends. */
const watched = (roster: Roster, request: Parameters<Roster["watch"]>[0]): Watched[] => {
  const heard: Watched[] = [];
  const leaving = new AbortController();
  const read = async (): Promise<void> => {
    for await (const one of roster.watch(request, { signal: leaving.signal })) heard.push(one);
  };
  const reading = read().catch((thrown: unknown) => {
    if (!leaving.signal.aborted) throw thrown;
  });
  onTestFinished(async () => {
    leaving.abort();
    await reading;
  });
  return heard;
};

const namesIn = (heard: readonly Watched[]): string[] =>
  heard.flatMap(({ changes }) =>
    changes.flatMap((one) => (one.resource.case === "team" ? [one.resource.value.name] : [])),
  );

describe("roster/client", () => {
  test("sends a mutation again whose answer was lost with its connection, and doubles nothing", async () => {
    const { current } = harness;
    const way = await proxyTo(current.server.port);
    const { users } = rosterOn(way.port, current.ops.token);
    await users.getCaller({});
    const email = `${randomUUID()}@example.com`;
    way.loses = true;
    const request = { user: { email, name: "Once" } };
    const made = users.createUser(request);
    const found = async () =>
      (await current.ops.users.listUsers({ filter: `email = "${email}"` })).users;
    await expect.poll(found).toHaveLength(1);
    way.loses = false;
    way.cut();
    const { user } = await made;
    expect((await found()).map(({ id }) => id)).toEqual([user?.id]);
    // The same request from the program is another one.
    const again = await users.createUser(request).catch(errorInfoOf);
    expect(again).toMatchObject({ code: Code.AlreadyExists, reason: "EMAIL_TAKEN" });
  });

  test("tries no longer than the deadline where nobody listens", async () => {
    const way = await proxyTo(1);
    const { users } = rosterOn(way.port, "any");
    const { reason } = await users.getCaller({}, { timeoutMs: 300 }).then(() => {
      throw new Error("nobody is there to answer");
    }, errorInfoOf);
    expect(reason).toBe("");
    // The third wait alone, 0.2 s at least, would end too late.
    expect(way.opened).toBeLessThanOrEqual(3);
  });

  test("asks for a token once, and once more when it has expired, for many calls and for streams", async () => {
    const { current } = harness;
    const { orgId, ownerId } = await current.tenant();
    let asked = 0;
    const token = async (): Promise<string> =>
      tokenFor(ownerId, asked++ === 0 ? { expires: Math.floor(Date.now() / 1000) - 120 } : {});
    const roster = rosterOn(current.server.port, token);
    const all = await Promise.all([1, 2, 3].map(() => roster.users.getCaller({})));
    expect(all).toHaveLength(3);
    expect(asked).toBe(2);

    asked = 0;
    const heard = watched(rosterOn(current.server.port, token), { orgId, snapshot: true });
    await expect.poll(() => heard.length).toBeGreaterThan(0);
    expect(asked).toBe(2);

    asked = 0;
    const { changes } = rosterOn(current.server.port, token);
    const first = async (): Promise<unknown> =>
      changes.watchChanges({ orgId })[Symbol.asyncIterator]().next();
    expect(await first().catch(errorInfoOf)).toMatchObject({ reason: "CREDENTIAL_EXPIRED" });
    expect(await first()).toMatchObject({ value: { heartbeat: true } });
    expect(asked).toBe(2);

    const fixed = rosterOn(current.server.port, await tokenFor(ownerId, { expires: 1 }));
    const refused = await fixed.users.getCaller({}).catch(errorInfoOf);
    expect(refused).toMatchObject({ code: Code.Unauthenticated, reason: "CREDENTIAL_EXPIRED" });
  });

  test("walks all pages, and says of an error its reason, metadata and fields", async () => {
    const { current } = harness;
    const { orgId, owner } = await current.tenant();
    for (const name of ["A", "B", "C"]) await makeTeam(owner, { orgId, name });
    const { teams } = rosterOn(current.server.port, owner.token);
    const names: string[][] = [];
    for await (const page of pages(teams.listTeams, { orgId, pageSize: 2, orderBy: "name" }))
      names.push(page.teams.map(({ name }) => name));
    expect(names).toEqual([["A", "B"], ["C"]]);

    const invalid = await teams.listTeams({ orgId, pageSize: -1 }).catch(errorInfoOf);
    expect(invalid).toMatchObject({
      code: Code.InvalidArgument,
      reason: "FIELD_INVALID",
      fields: [{ field: "page_size" }],
    });
    const outside = rosterOn(current.server.port, current.ops.token);
    const filter = await outside.users.listUsers({ filter: "name ~" }).catch(errorInfoOf);
    expect(filter).toMatchObject({
      reason: "FILTER_INVALID",
      metadata: { token: expect.any(String) },
    });
  });

  test("sends reads what earlier answers have seen, and forgets it when the servers' secret is another", async () => {
    const { current } = harness;
    const database = { ...current.urls, worker: undefined };
    const other = await startHarness({
      database,
      tokenSecret: "another secret of thirty-two characters",
    });
    onTestFinished(() => other.stop());
    const way = await proxyTo(current.server.port);
    const { users } = rosterOn(way.port, current.ops.token);
    await users.getCaller({});
    const wrong = { headers: { "roster-consistency-token": "wrong" } };
    const refused = await users.getCaller({}, wrong).catch(errorInfoOf);
    expect(refused).toMatchObject({ reason: "CONSISTENCY_TOKEN_INVALID" });
    way.to = other.server.port;
    way.cut();
    const before = other.logs.length;
    await users.getCaller({});
    // The token was sent and refused there, and the call made without.
    await expect
      .poll(() => other.logs.slice(before).map(({ reason }) => reason ?? ""))
      .toContain("CONSISTENCY_TOKEN_INVALID");
  });

  test("watches on from where it was when the server goes and another comes", async () => {
    const { current } = harness;
    const { orgId, owner } = await current.tenant();
    const database = { ...current.urls, worker: undefined };
    const leaving = await startHarness({ database });
    onTestFinished(() => leaving.stop());
    const way = await proxyTo(leaving.server.port);
    const heard = watched(rosterOn(way.port, owner.token), { orgId, snapshot: true });
    await expect.poll(() => heard.length).toBeGreaterThan(0);
    expect(heard.map(({ snapshot }) => snapshot)[0]).toBe(true);
    await makeTeam(owner, { orgId, name: "Before" });
    await expect.poll(() => namesIn(heard)).toEqual(["Before"]);
    way.to = current.server.port;
    await leaving.server.stop();
    await makeTeam(owner, { orgId, name: "Between" });
    await expect.poll(() => namesIn(heard)).toEqual(["Before", "Between"]);
    way.cut();
    await makeTeam(owner, { orgId, name: "After" });
    await expect.poll(() => namesIn(heard)).toEqual(["Before", "Between", "After"]);
    expect(heard.filter(({ snapshot }) => snapshot)).toHaveLength(1);
  });

  test("watches on with a snapshot when its position is kept no more, or says so where none was asked", async () => {
    const { current } = harness;
    const { orgId, owner } = await current.tenant();
    const roster = rosterOn(current.server.port, owner.token);
    const heard = watched(roster, { orgId, snapshot: true });
    await expect.poll(() => heard.length).toBeGreaterThan(0);
    const { position = "" } = heard.at(-1) ?? {};
    await current.admin.query("update roster.audit_feed set epoch = gen_random_uuid()");
    await expect.poll(() => heard.filter(({ snapshot }) => snapshot)).toHaveLength(2);
    expect(heard.at(-1)?.changes.map(lineOf)).toContain("org CREATED");
    const lost = await roster.watch({ orgId, position }).next().catch(errorInfoOf);
    expect(lost).toMatchObject({ code: Code.OutOfRange, reason: "POSITION_OUT_OF_RANGE" });
    const left = rosterOn(current.server.port, owner.token);
    left.close();
    const closed = await left.watch({ orgId }).next().catch(errorInfoOf);
    expect(closed).toMatchObject({ code: Code.FailedPrecondition, reason: "" });
    const denied = await rosterOn(current.server.port, "forged")
      .watch({ orgId })
      .next()
      .catch(errorInfoOf);
    expect(denied).toMatchObject({ reason: "CREDENTIAL_INVALID" });
  });
});
