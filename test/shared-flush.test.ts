import { randomUUID } from "node:crypto";
import net from "node:net";
import { beforeAll, describe, expect, test, vi } from "vitest";
import { z } from "zod";
import { type Query, sql } from "../src/database/sql.ts";
import { useHarness } from "./harness.ts";
import { failing, fresh, number, type Pools, usePools } from "./pools.ts";

const harness = useHarness();

const size = 6;
const seen = z.object({ pid: z.number(), org_id: z.string(), said: z.string() });

/** Tells over which connection and in which org it was asked, and says what it was told. */
const echo = (text: string): Query<typeof seen> => sql.type(seen)`
  select pg_backend_pid() as pid, roster.current_org() as org_id, ${text}::text as said`;

const missing = (): Error => new Error("no row");

/** Opens all connections, so that none is being opened when reads are to leave together. */
const warm = async (pools: Pools): Promise<void> => {
  await Promise.all(
    Array.from({ length: size }, () =>
      pools.reading().many(sql.type(number)`select 1 as n from pg_sleep(0.02)`),
    ),
  );
};

/** Every write to a socket meanwhile that holds more than one exchange, by their count. */
const sharedWrites = async (work: () => Promise<unknown>): Promise<number[]> => {
  const write = vi.spyOn(net.Socket.prototype, "write");
  await work();
  const sync = Buffer.from([0x53, 0, 0, 0, 4]);
  const counts = write.mock.calls.map(([bytes]) => {
    let count = 0;
    if (Buffer.isBuffer(bytes))
      for (let at = bytes.indexOf(sync); at >= 0; at = bytes.indexOf(sync, at + 1)) count++;
    return count;
  });
  write.mockRestore();
  return counts.filter((count) => count > 1);
};

describe("reads of one row that are asked for in one turn", () => {
  const pools = usePools(harness, true, size);
  beforeAll(() => warm(pools.current));

  test("leave in one write, and each gets its own answer", async () => {
    const texts = Array.from({ length: size }, () => randomUUID());
    const writes = await sharedWrites(async () => {
      const rows = await Promise.all(
        texts.map((text) => pools.current.reading().one(echo(text), missing)),
      );
      expect(rows.map(({ said }) => said)).toEqual(texts);
      expect(new Set(rows.map(({ pid }) => pid)).size).toBe(1);
    });
    expect(writes).toEqual([size]);
  });

  test("stay each in its own org", async () => {
    const other = await harness.current.tenant();
    const theirs = new (pools.current.constructor as typeof Pools)(
      harness.current,
      pools.current.app,
      pools.current.directory,
      other,
    );
    const asked = [pools.current, theirs, pools.current, theirs, theirs];
    const rows = await Promise.all(asked.map((who) => who.reading().one(echo("x"), missing)));
    expect(rows.map(({ org_id }) => org_id)).toEqual(asked.map(({ tenant }) => tenant.orgId));
    expect(new Set(rows.map(({ pid }) => pid)).size).toBe(1);
  });

  test("fail each by itself: refused, in error, unreadable, not to be sent, or with a row too many", async () => {
    const { current } = pools;
    // PostgreSQL takes no more than 65,535 values.
    const values = sql.join(new Array(65_536).fill(1), sql.fragment`, `);
    const session = () => current.reading();
    const outcomes = await Promise.allSettled([
      session().one(echo("first"), missing),
      current.reading(current.tenant.outsiderId).one(echo("never"), missing),
      session().one(failing("22023"), missing),
      session().one(sql.type(number)`select array_length(array[${values}], 1) as n`, missing),
      session().maybeOne(sql.type(number)`select n from generate_series(1, 2) n`),
      session().one(echo("last"), missing),
    ]);
    const told = outcomes.map((outcome) =>
      outcome.status === "fulfilled"
        ? (outcome.value as { said: string }).said
        : ((outcome.reason as { code?: string }).code ?? outcome.reason.message),
    );
    expect(told).toEqual([
      "first",
      "RS001",
      "22023",
      "ERR_OUT_OF_RANGE",
      "expected at most one row, got 2",
      "last",
    ]);
    // No connection was given up for it.
    const before = await Promise.all(
      Array.from({ length: size }, () => session().one(echo(""), missing)),
    );
    expect(before).toHaveLength(size);
  });

  test("may use one statement that nobody has prepared, also when the first of them is refused", async () => {
    const { current } = pools;
    const query = fresh();
    const refused = current.reading(current.tenant.outsiderId).one(query, missing);
    const rest = [1, 2, 3].map(() => current.reading().one(query, missing));
    await expect(refused).rejects.toThrow("ORG_NOT_ALLOWED");
    expect(await Promise.all(rest)).toEqual([{ n: 7 }, { n: 7 }, { n: 7 }]);
    // And again, when some connections have it and others not.
    for (let i = 0; i < 3; i++) {
      const again = Array.from({ length: size }, () => current.reading().one(query, missing));
      expect(await Promise.all(again)).toEqual(Array.from({ length: size }, () => ({ n: 7 })));
    }
  });

  test("do not wait for lists, which leave by themselves", async () => {
    const { current } = pools;
    const slow = current.reading().many(sql.type(number)`select 1 as n from pg_sleep(1.5)`);
    let over = false;
    slow.then(() => {
      over = true;
    });
    await Promise.all([1, 2, 3].map(() => current.reading().one(echo(""), missing)));
    expect(over).toBe(false);
    await slow;
  });

  test("are asked once more when their connection is lost, and the next are served", async () => {
    const { current } = pools;
    const end = sql.type(z.object({ ended: z.boolean() }))`
      select pg_terminate_backend(pg_backend_pid()) as ended`;
    const outcomes = await Promise.allSettled([
      current.reading().one(echo("before"), missing),
      current.reading().one(end, missing),
      current.reading().one(echo("behind"), missing),
    ]);
    expect(outcomes.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
    const texts = Array.from({ length: size * 3 }, (_, i) => `${i}`);
    const rows = await Promise.all(texts.map((text) => current.reading().one(echo(text), missing)));
    expect(rows.map(({ said }) => said)).toEqual(texts);
  });

  test("are never sent into a mutation's transaction", async () => {
    const { current } = pools;
    const txid = sql.type(z.object({ pid: z.number(), started: z.boolean() }))`
      select pg_backend_pid() as pid, now() = statement_timestamp() as started`;
    await current.writing(async (unit) => {
      const mine = await unit.one(txid, missing);
      const others = await Promise.all(
        Array.from({ length: size - 1 }, () => current.reading().one(txid, missing)),
      );
      const again = await unit.one(txid, missing);
      expect(again.pid).toBe(mine.pid);
      expect(others.every(({ pid }) => pid !== mine.pid)).toBe(true);
    });
  });
});

describe("reads through the plain driver", () => {
  const pools = usePools(harness, false, size);

  test("leave each by itself, and answer alike", async () => {
    await warm(pools.current);
    const writes = await sharedWrites(async () => {
      const rows = await Promise.all(
        ["a", "b", "c"].map((text) => pools.current.reading().one(echo(text), missing)),
      );
      expect(rows.map(({ said }) => said)).toEqual(["a", "b", "c"]);
    });
    expect(writes).toEqual([]);
  });
});
