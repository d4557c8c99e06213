import { subscribe, unsubscribe } from "node:diagnostics_channel";
import { setTimeout as delay } from "node:timers/promises";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import type { CallOptions } from "@connectrpc/connect";
import { afterAll, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { examineReplica } from "../src/database/examine.ts";
import type { Step } from "../src/database/exchange.ts";
import { type Harness, pipelined, refusal, startHarness, type Tenant } from "./harness.ts";
import { makeWorld } from "./samples/world.ts";
import { callersFor, requestOf, send, ways } from "./samples.ts";
import { type Pair, startPair } from "./standby.ts";

vi.setConfig({ testTimeout: 60_000, hookTimeout: 120_000 });

const field = "roster-consistency-token";

interface Count {
  readonly standby: number;
  readonly primary: number;
}

let pair: Pair;
let harness: Harness;
let tenant: Tenant;
let teamId: string;

/** Follows one caller, who sends what their last response brought. */
class Follower {
  token = "";

  get next(): CallOptions {
    const headers: Record<string, string> = this.token === "" ? {} : { [field]: this.token };
    return {
      headers,
      onTrailer: (trailer) => {
        this.token = trailer.get(field) ?? "";
      },
    };
  }
}

/** What is asked of each server meanwhile: only the standby is asked what it has replayed, ahead of all else. */
const counting = async (work: () => Promise<unknown>): Promise<Count> => {
  const count = { standby: 0, primary: 0 };
  let before = "";
  const listen = (steps: unknown): void => {
    const text = (steps as readonly Step[]).map((step) => step.text).join("; ");
    if (text.includes("require_replay")) count.standby++;
    // Without pipelines each statement leaves by itself.
    else if (text.includes("roster.enter") && !before.includes("require_replay")) count.primary++;
    before = pipelined ? "" : text;
  };
  subscribe("roster:flush", listen);
  try {
    await work();
  } finally {
    unsubscribe("roster:flush", listen);
  }
  return count;
};

/** Tries again what fails because the process has to ask the primary now and then where that stands. */
const again = (work: () => Promise<void>): Promise<void> =>
  vi.waitFor(work, { timeout: 15_000, interval: 50 });

const pause = () => pair.standby.query("select pg_wal_replay_pause()");
const resume = () => pair.standby.query("select pg_wal_replay_resume()");

/** Waits until the standby has all that the primary has. */
const caughtUp = async (): Promise<void> => {
  const { rows } = await pair.primary.query("select pg_current_wal_insert_lsn() as lsn");
  await vi.waitFor(
    async () => {
      const text = "select pg_last_wal_replay_lsn() >= $1 as done";
      expect((await pair.standby.query(text, [rows[0].lsn])).rows[0].done).toBe(true);
    },
    { timeout: 10_000, interval: 20 },
  );
};

/** Waits until reads go to the standby. */
const served = (who?: Follower): Promise<void> =>
  again(async () => expect(await counting(() => read(who))).toEqual(atStandby));

const describeTeam = (description: string, who = new Follower(), id = teamId) =>
  tenant.owner.teams.updateTeam(
    { team: { orgId: tenant.orgId, id, description }, updateMask: { paths: ["description"] } },
    who.next,
  );

const read = async (who = new Follower(), id = teamId): Promise<string | undefined> => {
  const { team } = await tenant.owner.teams.getTeam({ orgId: tenant.orgId, teamId: id }, who.next);
  return team?.description;
};

/** Has the process know where the primary stands, without which it asks there. */
const learn = () => harness.ops.orgs.getOrg({ orgId: tenant.orgId });

const atStandby = { standby: 1, primary: 0 };
const atPrimary = { standby: 0, primary: 1 };

const newTeam = async (name: string): Promise<string> => {
  const { team } = await tenant.owner.teams.createTeam({ team: { orgId: tenant.orgId, name } });
  return team?.id ?? "";
};

beforeAll(async () => {
  pair = await startPair("replica");
  const { app, directory } = pair.urls;
  harness = await startHarness({
    database: { app, directory, worker: undefined, replica: pair.replica },
  });
  tenant = await harness.tenant();
  teamId = await newTeam("Team");
});
afterAll(async () => {
  await harness?.stop();
  await pair?.stop();
});

beforeEach(async () => {
  await resume();
  await caughtUp();
  await learn();
  await served();
});

describe("A standby that has replayed what a caller has seen", () => {
  test("answers their reads, and nobody asks the primary", async () => {
    const who = new Follower();
    await describeTeam("at the standby", who);
    await caughtUp();
    await served(who);
    expect(await read(who)).toBe("at the standby");
    await served();
    expect(await read()).toBe("at the standby");
  });

  test("costs what the primary costs: one flush for a read, and none more for a mutation", async () => {
    await again(async () => {
      let flushes = 0;
      const count = await counting(async () => {
        flushes = await harness.flushesOf(() => read());
      });
      expect(count).toEqual(atStandby);
      expect(flushes).toBe(pipelined ? 1 : 6);
    });
    const writing = await harness.flushesOf(() => describeTeam("counted"));
    const other = await startHarness();
    try {
      const their = await other.tenant();
      const made = await their.owner.teams.createTeam({ team: { orgId: their.orgId, name: "T" } });
      const id = made.team?.id ?? "";
      const change = { team: { orgId: their.orgId, id, description: "x" } };
      const alone = await other.flushesOf(() => their.owner.teams.updateTeam(change));
      expect(alone).toBe(pipelined ? writing : writing - 1);
    } finally {
      await other.stop();
    }
  });

  test("answers reads in an org, none twice, and no stream", async () => {
    const world = await makeWorld(harness);
    const answered = new Set<string>();
    for (const way of ways) {
      const callers = await callersFor(harness, way, world);
      const claims = JSON.parse(atob(callers.token.split(".")[1] ?? ""));
      const platform = String(claims.scope).includes("roster.platform");
      const reads = way.method.idempotency === Idempotency.NO_SIDE_EFFECTS;
      const unary = way.method.methodKind === "unary";
      // What watches comes to no end.
      if (platform || !reads || way.method.name.startsWith("Watch")) continue;
      const request = await requestOf(way, world);
      await again(async () => {
        await learn();
        await caughtUp();
        const count = await counting(() => send(callers, way.method, request));
        expect(count.standby === 0 || count.primary === 0, `${way.name} was done twice`).toBe(true);
        expect(unary || count.standby === 0, `${way.name} is a stream`).toBe(true);
        if (count.standby > 0) answered.add(way.name);
      });
    }
    expect(answered.size).toBeGreaterThan(20);
  });

  test("is not asked by operators, outside orgs, or for what is written", async () => {
    const { orgId, ownerId, owner } = tenant;
    const asOperator = () => harness.ops.teams.getTeam({ orgId, teamId });
    expect(await counting(asOperator)).toEqual(atPrimary);
    expect(await counting(() => owner.users.getUser({ userId: ownerId }))).toEqual(atPrimary);
    expect((await counting(() => describeTeam("again"))).standby).toBe(0);
  });
});

describe("A standby that lags", () => {
  test("never answers somebody with less than they have seen, however often it pauses", async () => {
    const teams = await Promise.all([1, 2, 3, 4, 5, 6].map((n) => newTeam(`Paused ${n}`)));
    let going = true;
    const disturb = async (): Promise<void> => {
      while (going) {
        await pause();
        await delay(Math.random() * 60);
        await resume();
        await delay(Math.random() * 120);
      }
    };
    const disturbing = disturb();
    const stale: string[] = [];
    const pairs = 50;
    const writeAndRead = async (id: string): Promise<void> => {
      const [writer, other] = [new Follower(), new Follower()];
      for (let i = 1; i <= pairs; i++) {
        await describeTeam(`${i}`, writer, id);
        const mine = await read(writer, id);
        // Who is told of it by somebody who read it must find it as well.
        other.token = writer.token;
        const theirs = await read(other, id);
        if (mine !== `${i}` || theirs !== `${i}`) stale.push(`${id} ${i}: ${mine} ${theirs}`);
      }
    };
    try {
      const count = await counting(() => Promise.all(teams.map(writeAndRead)));
      expect(stale).toEqual([]);
      // Both have answered.
      expect(count.standby).toBeGreaterThan(0);
      expect(count.primary).toBeGreaterThan(teams.length * pairs);
    } finally {
      going = false;
      await disturbing;
    }
  });

  test("is waited for a little, and answers when it comes", async () => {
    const who = new Follower();
    await again(async () => {
      await pause();
      await describeTeam("waited for", who);
      const resuming = delay(60).then(resume);
      const count = await counting(async () => expect(await read(who)).toBe("waited for"));
      await resuming;
      expect(count.primary).toBe(0);
      expect(count.standby).toBeGreaterThan(1);
    });
  });

  test("is waited for no longer than a part of the deadline, and then left alone", async () => {
    const who = new Follower();
    await pause();
    await describeTeam("not waited for", who);
    const { orgId } = tenant;
    await again(async () => {
      const start = performance.now();
      const count = await counting(async () => {
        const options = { ...who.next, timeoutMs: 800 };
        const { team } = await tenant.owner.teams.getTeam({ orgId, teamId }, options);
        expect(team?.description).toBe("not waited for");
      });
      expect(performance.now() - start).toBeLessThan(600);
      expect(count.standby).toBeGreaterThan(0);
    });
    const count = await counting(async () => {
      for (let i = 0; i < 5; i++) expect(await read(who)).toBe("not waited for");
    });
    expect(count).toEqual({ standby: 0, primary: 5 });
  });

  test("shows nobody what is older than a second, so that who was removed is soon out", async () => {
    const { orgId, owner, memberId, member } = tenant;
    await pause();
    await describeTeam("a second ago");
    await owner.orgs.removeOrgMember({ orgId, userId: memberId });
    await delay(1_100);
    expect(await read()).toBe("a second ago");
    await delay(1_100);
    expect((await refusal(member.orgs.getOrg({ orgId }))).reason).toBe("ORG_NOT_ALLOWED");
  });
});

describe("A standby that is not one of this primary", () => {
  const require = (history: string, lsn: string) =>
    pair.standby.query("select roster.require_replay($1, $2)", [history, lsn]);

  test("refuses to stand for another cluster, another timeline, or what it lacks", async () => {
    const { rows } = await pair.primary.query("select roster.wal_position() as position");
    const [history = "", lsn = ""] = rows[0].position.split(" ");
    const [system, timeline] = history.split("-");
    await caughtUp();
    await require(history, lsn);
    const strange = { code: "RS011" };
    await expect(require(`1-${timeline}`, lsn)).rejects.toMatchObject(strange);
    await expect(require(`${system}-00000002`, lsn)).rejects.toMatchObject(strange);
    await expect(require(history, "FFFFFFFF/0")).rejects.toMatchObject({ code: "RS010" });
    const atPrimaryToo = pair.primary.query("select roster.require_replay($1, $2)", [history, lsn]);
    await expect(atPrimaryToo).rejects.toMatchObject(strange);
    // A snapshot of before would not show what is there by now.
    await pair.standby.query("begin isolation level repeatable read");
    await expect(require(history, lsn)).rejects.toMatchObject(strange);
    await pair.standby.query("rollback");
  });

  test("is told by the doctor, as is one that lags or is gone", async () => {
    const target = (url: string) => ({
      name: "replica",
      url,
      role: "roster_app" as const,
      poolSize: 1,
    });
    const told = async (url: string): Promise<string[]> => {
      const lines = await examineReplica(target(url), pair.urls.app);
      return lines
        .filter(({ level }) => level !== "ok")
        .map(({ level, text }) => `${level}: ${text}`);
    };
    expect(await told(pair.replica)).toEqual([]);
    expect(await told(pair.urls.app)).toEqual([
      "problem: the server is no standby, so nothing is read there",
    ]);
    const elsewhere = await examineReplica(target(pair.replica), harness.urls.app);
    expect(elsewhere.map(({ text }) => text)).toContain(
      "the server follows another cluster or timeline than the primary's, so nothing is read there",
    );
    await pause();
    await describeTeam("unseen");
    expect(await told(pair.replica)).toEqual([
      expect.stringContaining("warning: the standby is more than"),
    ]);
    const gone = await told("postgres://roster_app@127.0.0.1:1/roster");
    expect(gone).toEqual([expect.stringContaining("ECONNREFUSED")]);
  });

  test("is not read when it is gone, nobody hears of it, and it serves when it is back", async () => {
    await pair.stopStandby();
    for (let i = 0; i < 20; i++) {
      await describeTeam(`${i}`);
      expect(await read()).toBe(`${i}`);
    }
    await pair.startStandby();
    await caughtUp();
    await served();
  });

  test("is not read once it is promoted, whatever is written there", async () => {
    const who = new Follower();
    await describeTeam("at the primary", who);
    await caughtUp();
    await pair.standby.query("select pg_promote()");
    // Nor by who takes its timeline for their primary's.
    const { rows } = await pair.standby.query("select roster.wal_history() as history");
    await expect(require(rows[0].history, "0/1")).rejects.toMatchObject({ code: "RS011" });
    await pair.standby.query("set session_replication_role = replica");
    await pair.standby.query("update roster.teams set description = 'elsewhere'");
    const start = performance.now();
    const count = await counting(async () => {
      for (let i = 0; i < 20; i++) {
        expect(await read(i % 2 ? who : new Follower())).toBe("at the primary");
        await describeTeam("at the primary", who);
      }
    });
    // It is asked once a second whether it is a standby again.
    expect(count.standby).toBeLessThan(3 + (performance.now() - start) / 1_000);
  });
});
