import { execFile } from "node:child_process";
import { randomUUID } from "node:crypto";
import { promisify } from "node:util";
import { create, toBinary } from "@bufbuild/protobuf";
import { type ContextValues, createContextValues } from "@connectrpc/connect";
import pg from "pg";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { type Caller, keys } from "../src/context.ts";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { deadline } from "../src/interceptors/deadline.ts";
import { root } from "./command.ts";
import { startHarness, useHarness } from "./harness.ts";
import { frame, loggedAs, RawClient, type RawOptions, sendBytes } from "./raw-client.ts";

const harness = useHarness();

const { createTeam, deleteTeam, updateTeam } = TeamService.method;

/** Updates a team whose row another transaction holds until the test ends or `release` is called. */
const blockedUpdate = async (port = harness.current.server.port) => {
  const { current } = harness;
  const { orgId, owner } = await current.tenant();
  const { team } = await owner.teams.createTeam({ team: { orgId, name: "Before" } });
  const holder = new pg.Client({ connectionString: current.urls.admin });
  await holder.connect();
  onTestFinished(() => holder.end());
  await holder.query("begin");
  await holder.query("select from roster.teams where id = $1 for update", [team?.id]);
  const raw = new RawClient(port);
  onTestFinished(() => raw.close());
  /** How many backends run the update now. */
  const running = async (): Promise<number> => {
    const { rowCount } = await current.admin.query(`
      select from pg_stat_activity where datname = current_database()
        and state = 'active' and wait_event_type = 'Lock' and query like '%update roster.teams%'`);
    return rowCount ?? 0;
  };
  return {
    orgId,
    start: (options: RawOptions) =>
      raw.start(
        updateTeam,
        { team: { orgId, id: team?.id ?? "", name: "After" } },
        { token: owner.token, ...options },
      ),
    running,
    /** Lets the row go, and sees that nothing came of the update and that the server is well. */
    expectNothingWritten: async (correlationId: string) => {
      await holder.query("rollback");
      await expect.poll(running).toBe(0);
      const read = await owner.teams.getTeam({ orgId, teamId: team?.id ?? "" });
      expect(read.team).toEqual(team);
      const { rowCount } = await current.admin.query(
        "select from roster.audit_entries where correlation_id = $1",
        [correlationId],
      );
      expect(rowCount).toBe(0);
      await owner.teams.updateTeam({ team: { orgId, id: team?.id ?? "", name: "Later" } });
    },
  };
};

describe("a deadline", () => {
  test("DEADLINE_EXCEEDED when it is shorter than the work; the SQL ends with it, nothing is written", async () => {
    const update = await blockedUpdate();
    const correlationId = randomUUID();
    // Only the server knows of it: a client that counts too may cancel a moment earlier.
    const metadata = { "x-request-id": correlationId, "grpc-timeout": "3000m" };
    const call = update.start({ metadata });
    await expect.poll(update.running).toBe(1);
    const answer = await call.answer;
    expect(answer.code).toBe("DEADLINE_EXCEEDED");
    await expect.poll(update.running).toBe(0);
    await update.expectNothingWritten(correlationId);
    expect(await loggedAs(harness.current, correlationId)).toMatchObject({
      code: "DEADLINE_EXCEEDED",
      reason: "DEADLINE_EXCEEDED",
    });
  });

  test("leaves a later statement of a mutation what the earlier ones did not use", async () => {
    const { current } = harness;
    const { orgId, owner } = await current.tenant();
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Before" } });
    const hold = async (text: string, id: string | undefined): Promise<pg.Client> => {
      const holder = new pg.Client({ connectionString: current.urls.admin });
      await holder.connect();
      onTestFinished(() => holder.end());
      await holder.query("begin");
      await holder.query(text, [id]);
      return holder;
    };
    const ofOrg = await hold("select from roster.orgs where id = $1 for update", orgId);
    const ofTeam = await hold("select from roster.teams where id = $1 for update", team?.id);
    /** The statement of ours that waits for a lock. */
    const waiting = async (): Promise<string> => {
      const { rows } = await current.admin.query(`
        select query from pg_stat_activity
        where datname = current_database() and usename = 'roster_app' and wait_event_type = 'Lock'`);
      return rows[0]?.query ?? "";
    };
    const raw = new RawClient(current.server.port);
    onTestFinished(() => raw.close());
    const request = { orgId, teamId: team?.id ?? "" };
    const metadata = { "grpc-timeout": "4000m" };
    const call = raw.start(deleteTeam, request, { token: owner.token, metadata });
    // The org is locked first, and given free when half of the time is over.
    await expect.poll(waiting).toContain("lock_org");
    await new Promise((resume) => setTimeout(resume, 2_000));
    await ofOrg.query("rollback");
    await expect.poll(waiting).toContain("update roster.teams");
    expect((await call.answer).code).toBe("DEADLINE_EXCEEDED");
    await expect.poll(waiting).toBe("");
    await ofTeam.query("rollback");
    expect((await owner.teams.getTeam(request)).team).toEqual(team);
  });

  test("DEADLINE_EXCEEDED when it passes on the way; the work is not begun", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const request = create(createTeam.input, { team: { orgId, name: "Late" } });
    const status = await sendBytes(
      harness.current.server.port,
      "/roster.v1.TeamService/CreateTeam",
      frame(toBinary(createTeam.input, request)),
      { "grpc-timeout": "1n", authorization: `Bearer ${owner.token}` },
    );
    expect(status).toBe("DEADLINE_EXCEEDED");
    expect((await owner.teams.listTeams({ orgId })).teams).toEqual([]);
  });

  test("is the server's default when the caller sends none, and its maximum when they send more", async () => {
    const hasty = await startHarness({
      database: harness.current.urls,
      deadlines: { defaultMs: 300, maximumMs: 3_000, streamMs: 3_000 },
    });
    onTestFinished(() => hasty.stop());
    const update = await blockedUpdate(hasty.server.port);
    for (const [timeoutMs, least, most] of [
      [undefined, 300, 2_900],
      [60_000, 3_000, 30_000],
    ] as const) {
      const correlationId = randomUUID();
      const metadata = { "x-request-id": correlationId };
      const { answer } = update.start({ metadata, ...(timeoutMs ? { timeoutMs } : {}) });
      const { code, reason, elapsedMs } = await answer;
      expect({ code, reason }).toEqual({ code: "DEADLINE_EXCEEDED", reason: "DEADLINE_EXCEEDED" });
      expect(elapsedMs).toBeGreaterThan(least - 5);
      expect(elapsedMs).toBeLessThan(most);
    }
    await update.expectNothingWritten("none");
  });
});

describe("a caller who hangs up", () => {
  test("CANCELLED in the log too; nothing is written, and the server is well", async () => {
    const update = await blockedUpdate();
    const correlationId = randomUUID();
    const call = update.start({ metadata: { "x-request-id": correlationId } });
    await expect.poll(update.running).toBe(1);
    call.cancel();
    expect((await call.answer).code).toBe("CANCELLED");
    expect(await loggedAs(harness.current, correlationId)).toMatchObject({
      code: "CANCELLED",
      reason: "CANCELLED",
      method: "roster.v1.TeamService/UpdateTeam",
      org_id: update.orgId,
    });
    await update.expectNothingWritten(correlationId);
  });
});

describe("the clock of a call", () => {
  const limits = { defaultMs: 100, maximumMs: 1_000, streamMs: 1_000 };
  /** A call whose caller can leave. */
  const calling = (aborted = false, methodKind = "unary") => {
    let leave = (): void => {};
    const signal = {
      aborted,
      addEventListener: (_: string, listener: () => void) => {
        leave = listener;
      },
    };
    return {
      request: { signal, method: { methodKind }, contextValues: createContextValues() } as never,
      leave: () => leave(),
    };
  };

  test("begins nothing for a caller who has left already", async () => {
    const next = vi.fn();
    await expect(deadline(limits)(next)(calling(true).request)).rejects.toMatchObject({
      message: expect.stringContaining("canceled"),
    });
    expect(next).not.toHaveBeenCalled();
  });

  test("ends the call of who leaves at once, and hears no more of one that was answered", async () => {
    const { request, leave } = calling();
    const call = deadline(limits)(() => new Promise(() => {}))(request);
    leave();
    await expect(call).rejects.toMatchObject({ message: expect.stringContaining("canceled") });
    const answered = calling();
    const answer = {} as never;
    expect(await deadline(limits)(async () => answer)(answered.request)).toBe(answer);
    answered.leave();
  });

  test("ends calls in time, in the order in which they are over", async () => {
    const over: number[] = [];
    const calls = [300, 100, 200].map(async (defaultMs) => {
      const start = performance.now();
      const work = deadline({ ...limits, defaultMs })(() => new Promise(() => {}));
      await expect(work(calling().request)).rejects.toMatchObject({ name: "ConnectError" });
      over.push(defaultMs);
      expect(performance.now() - start).toBeGreaterThanOrEqual(defaultMs);
    });
    await Promise.all(calls);
    expect(over).toEqual([100, 200, 300]);
  });

  test("ends whoever makes a stream's messages as soon as it is over, though nobody asks for the next", async () => {
    const ended = vi.fn();
    async function* making() {
      try {
        for (;;) yield {};
      } finally {
        ended();
      }
    }
    const { request, leave } = calling(false, "server_streaming");
    (request as { contextValues: ContextValues }).contextValues.set(keys.caller, {
      expiresMs: Number.POSITIVE_INFINITY,
    } as Caller);
    const answer = { stream: true, message: making() } as never;
    const { message } = await deadline(limits)(async () => answer)(request);
    const messages = (message as AsyncIterable<unknown>)[Symbol.asyncIterator]();
    await messages.next();
    expect(ended).not.toHaveBeenCalled();
    leave();
    await expect.poll(() => ended.mock.calls.length).toBe(1);
    await expect(messages.next()).rejects.toMatchObject({ name: "ConnectError" });
  });

  test("keeps no process alive when all calls have ended, however they ended", async () => {
    const script = `
      import { createContextValues } from "@connectrpc/connect";
      import { deadline } from "./src/interceptors/deadline.ts";
      const signal = (aborted) => ({ aborted, addEventListener: () => {} });
      const call = (work, ms, aborted = false) => Promise.resolve(
        deadline({ defaultMs: ms, maximumMs: 60_000, streamMs: 60_000 })(work)(
          { signal: signal(aborted), method: { methodKind: "unary" },
            contextValues: createContextValues() })).catch(() => {});
      await call(async () => 1, 60_000);
      await call(async () => { throw new Error("a"); }, 60_000);
      await call(() => { throw new Error("b"); }, 60_000);
      await call(() => new Promise(() => {}), 50);
      await call(() => new Promise(() => {}), 60_000, true);
      console.log("done");`;
    const args = ["--input-type=module", "--eval", script];
    const { stdout } = await promisify(execFile)(process.execPath, args, {
      cwd: root,
      timeout: 20_000,
    });
    expect(stdout).toBe("done\n");
  });
});
