import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import { describe, expect, onTestFinished, test, vi } from "vitest";
import { flights } from "../src/database/driver.ts";
import { type Deadline, type Loan, openPool, type TenantPool } from "../src/database/pool.ts";
import { sql } from "../src/database/sql.ts";
import { ReadSession } from "../src/database/unit-of-work.ts";
import { pipelined, useHarness } from "./harness.ts";
import { number, sleeping, within } from "./pools.ts";

const harness = useHarness();
const patience = { timeout: 15_000, interval: 20 };

const open = async (size = 1, url = harness.current.urls.app): Promise<TenantPool> => {
  const pool = await openPool(url, { size, pipeline: pipelined });
  onTestFinished(() => pool.end());
  return pool;
};

/** The backend of a connection, which must work. */
const pidOf = async ({ connection }: Loan): Promise<number> => {
  const flight = { before: [{ text: "select 1", values: [] }], prepare: true };
  const query = sql.type(number)`select pg_backend_pid() as n`;
  return (await flights.run(flight, () => connection.any(query)))[0]?.n ?? 0;
};

/** Ends a backend, and waits until this process heard of it. */
const terminate = async (pid: number): Promise<void> => {
  const { admin } = harness.current;
  await admin.query("select pg_terminate_backend($1)", [pid]);
  const gone = async () => {
    const { rowCount } = await admin.query("select from pg_stat_activity where pid = $1", [pid]);
    expect(rowCount).toBe(0);
  };
  await vi.waitFor(gone, patience);
  await new Promise((resume) => setTimeout(resume, 50));
};

/** Whether something comes within a moment. */
const comes = (loan: Loan | Promise<Loan>): Promise<boolean> =>
  Promise.race([
    Promise.resolve(loan).then(() => true),
    new Promise<boolean>((resolve) => setTimeout(() => resolve(false), 300)),
  ]);

describe("a pool", () => {
  test("lends as many connections as it has, then to who has waited longest", async () => {
    const pool = await open(2);
    const [one, two] = [await pool.take(within(5_000)), await pool.take(within(5_000))];
    const pids = [await pidOf(one), await pidOf(two)];
    expect(new Set(pids).size).toBe(2);
    const order: string[] = [];
    const wait = async (name: string): Promise<void> => {
      const loan = await pool.take(within(5_000));
      order.push(name);
      expect(pids).toContain(await pidOf(loan));
      pool.give(loan);
    };
    const all = [wait("a"), wait("b"), wait("c")];
    expect(pool.queued).toBe(3);
    pool.give(two);
    pool.give(one);
    await Promise.all(all);
    expect(order).toEqual(["a", "b", "c"]);
    expect(pool.queued).toBe(0);
  });

  test("has no connection for who is too late, and none waits for who left", async () => {
    const pool = await open();
    expect(() => pool.take(within(0))).toThrow(expect.objectContaining({ name: "DeadlinePassed" }));
    const loan = await pool.take(within(5_000));
    const left = pool.take(within(30));
    await expect(left).rejects.toMatchObject({ name: "DeadlinePassed" });
    expect(pool.queued).toBe(0);
    pool.give(loan);
    expect(pool.take(within(5_000))).toBe(loan);
  });

  test("lets fifty wait for each connection, and no more", async () => {
    const pool = await open();
    const loan = await pool.take(within(5_000));
    const waiting = Array.from({ length: 50 }, () => Promise.resolve(pool.take(within(10_000))));
    const overloaded = expect.objectContaining({ name: "Overloaded" });
    await expect((async () => pool.take(within(5_000)))()).rejects.toEqual(overloaded);
    pool.give(loan);
    for (const each of waiting) pool.give(await each);
    expect(pool.queued).toBe(0);
    expect(pool.take(within(5_000))).toBe(loan);
  });

  test("opens another connection after an error, first for who waits", async () => {
    const pool = await open();
    for (let i = 0; i < 5; i++) {
      const loan = await pool.take(within(5_000));
      const pid = await pidOf(loan);
      const waiting = pool.take(within(5_000));
      pool.give(loan, new Error("broken"));
      const next = await waiting;
      expect(await pidOf(next)).not.toBe(pid);
      pool.give(next);
    }
  });

  test("keeps the place of a lost connection for who waits, whoever asks meanwhile", async () => {
    const pool = await open();
    const loan = await pool.take(within(5_000));
    let intruder: Loan | Promise<Loan> | undefined;
    const usual = within(5_000);
    const deadline: Deadline = {
      over: false,
      remainingMs: () => 5_000,
      onOver: (listener) => {
        const stay = usual.onOver(listener);
        return () => {
          stay();
          // Comes just when the one that waits is told to open a connection.
          queueMicrotask(() => {
            intruder = pool.take(within(5_000));
          });
        };
      },
    };
    const waiting = pool.take(deadline);
    pool.give(loan, new Error("broken"));
    const served = await waiting;
    expect(await comes(intruder as Promise<Loan>)).toBe(false);
    pool.give(served);
    const after = await (intruder as Promise<Loan>);
    expect(after).toBe(served);
    pool.give(after);
  }, 10_000);

  test("forgets a connection that ends while nobody has it", async () => {
    const pool = await open();
    const loan = await pool.take(within(5_000));
    const pid = await pidOf(loan);
    pool.give(loan);
    await terminate(pid);
    const next = await pool.take(within(5_000));
    expect(await pidOf(next)).not.toBe(pid);
    pool.give(next);
  });

  test("lends none that ended while somebody had it, though it comes back without an error", async () => {
    const pool = await open();
    for (const waits of [false, true]) {
      const loan = await pool.take(within(5_000));
      const pid = await pidOf(loan);
      const waiting = waits ? pool.take(within(5_000)) : undefined;
      await terminate(pid);
      pool.give(loan);
      const next = await (waiting ?? pool.take(within(5_000)));
      expect(await pidOf(next)).not.toBe(pid);
      pool.give(next);
    }
  });

  test("is asked again when the network cuts a connection, and in vain when it cuts the next one too", async () => {
    const url = new URL(harness.current.urls.app);
    const [port, host] = [Number(url.port), url.hostname];
    const sockets: Socket[] = [];
    const proxy = createServer((socket) => {
      const database = connect(port, host);
      socket.pipe(database).pipe(socket);
      for (const each of [socket, database]) each.on("error", () => database.destroy());
      sockets.push(socket);
    });
    await once(proxy.listen(0, "127.0.0.1"), "listening");
    onTestFinished(() => void proxy.close());
    url.hostname = "127.0.0.1";
    url.port = String((proxy.address() as AddressInfo).port);
    const pool = await open(1, url.href);
    const entering = () => ({ text: "select 1", values: [] });
    const reading = () => new ReadSession(pool, entering, within(10_000));
    const cutOff: number[] = [];
    /** Cuts a connection once a query is under way on it, which takes a second. */
    const cut = async (): Promise<void> => {
      const sleeps = async () => {
        const { rows } = await harness.current.admin.query(
          `select pid from pg_stat_activity where datname = current_database() and state = 'active'
            and query like '%as n from pg_sleep(%' and pid <> all ($1)`,
          [cutOff],
        );
        expect(rows).toHaveLength(1);
        cutOff.push(rows[0].pid);
      };
      await vi.waitFor(sleeps, patience);
      sockets.at(-1)?.resetAndDestroy();
    };
    for (const [cuts, outcome] of [
      [1, { status: "fulfilled", value: [{ n: 1 }] }],
      [2, { status: "rejected", reason: { code: "ECONNRESET" } }],
    ] as const) {
      expect(await reading().many(sql.type(number)`select 7 as n`)).toEqual([{ n: 7 }]);
      const asked = Promise.allSettled([reading().many(sleeping(1))]);
      const waiting = reading().many(sql.type(number)`select 7 as n`);
      for (let i = 0; i < cuts; i++) await cut();
      expect(await asked).toMatchObject([outcome]);
      expect(await waiting).toEqual([{ n: 7 }]);
    }
  });

  test("fails whoever asks while nothing can be opened, each time and without keeping the place", async () => {
    const pool = await open(2, "postgres://roster_app:x@127.0.0.1:1/roster");
    for (let i = 0; i < 3; i++) {
      const takes = Array.from({ length: 10 }, async () => pool.take(within(5_000)));
      const outcomes = await Promise.allSettled(takes);
      for (const outcome of outcomes)
        expect(outcome).toMatchObject({
          status: "rejected",
          reason: { cause: { code: "ECONNREFUSED" } },
        });
      expect(pool.queued).toBe(0);
    }
  });

  test("fails who waits when it ends, and who asks later", async () => {
    const pool = await openPool(harness.current.urls.app, { size: 1, pipeline: pipelined });
    const loan = await pool.take(within(20_000));
    const waiting = Promise.resolve(pool.take(within(20_000)));
    const refused = expect(waiting).rejects.toThrow(/shut down|terminated/);
    const ended = pool.end();
    await refused;
    pool.give(loan);
    await ended;
    expect(pool.queued).toBe(0);
    await expect((async () => pool.take(within(5_000)))()).rejects.toThrow(/shut down|ended/);
  }, 10_000);

  test("ends while a connection is being opened", async () => {
    const pool = await openPool(harness.current.urls.app, { size: 1, pipeline: pipelined });
    const opening = Promise.resolve(pool.take(within(5_000))).then(
      (loan) => pool.give(loan),
      (error: unknown) => expect(error).toBeInstanceOf(Error),
    );
    await pool.end();
    await opening;
  }, 10_000);
});
