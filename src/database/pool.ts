/** Slonik pools over the tenant driver, each behind a gate that knows deadlines. */
import { createPool, type DatabasePool, type Interceptor } from "slonik";
import type { z } from "zod";
import { createTenantDriver, type RoundTrips } from "./driver.ts";

/** When an RPC must have answered. */
export interface Deadline {
  /** Milliseconds left, zero or less once it has passed. */
  remainingMs(): number;
  /** Aborted when the deadline passes or the caller goes away. */
  readonly signal: AbortSignal;
}

/** The database cannot take the call now; the caller may try again. */
export class Overloaded extends Error {
  override readonly name = "Overloaded";
}

/** The call's deadline passed, or its caller went away, before the database was asked. */
export class DeadlinePassed extends Error {
  override readonly name = "DeadlinePassed";
}

interface Waiter {
  readonly enter: () => void;
}

/**
 * Lets as many calls to the pool as it has connections, and a bounded queue wait. Slonik itself queues
 * without a bound, a timeout or a way out.
 */
export class Gate {
  private free: number;
  private readonly limit: number;
  private readonly waiting = new Set<Waiter>();

  /** @param size connections of the pool  @param limit calls that may wait */
  constructor(size: number, limit: number) {
    this.free = size;
    this.limit = limit;
  }

  /** Calls that wait now. */
  get queued(): number {
    return this.waiting.size;
  }

  /**
   * Waits for a place.
   *
   * @throws Overloaded when too many wait already
   * @throws DeadlinePassed when the deadline passes first
   */
  async pass(deadline: Deadline): Promise<void> {
    if (deadline.signal.aborted || deadline.remainingMs() <= 0) throw new DeadlinePassed();
    if (this.free > 0) {
      this.free--;
      return;
    }
    if (this.waiting.size >= this.limit) throw new Overloaded();
    await new Promise<void>((resolve, reject) => {
      const leave = (): void => {
        this.waiting.delete(waiter);
        reject(new DeadlinePassed());
      };
      const waiter: Waiter = {
        enter: () => {
          this.waiting.delete(waiter);
          deadline.signal.removeEventListener("abort", leave);
          resolve();
        },
      };
      this.waiting.add(waiter);
      deadline.signal.addEventListener("abort", leave, { once: true });
    });
  }

  /** Gives the place to the call that has waited longest. */
  release(): void {
    for (const waiter of this.waiting) {
      waiter.enter();
      return;
    }
    this.free++;
  }
}

/** Slonik ignores a query's zod schema until an interceptor runs it; the synchronous hook is the fast one. */
const parseRows: Interceptor = {
  name: "roster-parse-rows",
  transformRow: (context, _query, row) =>
    context.resultParser
      ? ((context.resultParser as unknown as z.ZodType).parse(row) as typeof row)
      : row,
};

/** A pool of one database role. */
export interface TenantPool {
  readonly slonik: DatabasePool;
  readonly gate: Gate;
  readonly roundTrips: RoundTrips;
}

/** How a pool is made. */
export interface PoolOptions {
  /** Most connections at once. */
  readonly size: number;
  /** False for poolers that carry neither pipelines nor prepared statements. */
  readonly pipeline: boolean;
}

/** Opens a pool. It connects when first asked, so that a database that is down does not stop the start. */
export const openPool = async (
  url: string,
  { size, pipeline }: PoolOptions,
): Promise<TenantPool> => {
  const roundTrips: RoundTrips = { count: 0 };
  const slonik = await createPool(url, {
    driverFactory: createTenantDriver(pipeline, roundTrips),
    interceptors: [parseRows],
    maxPoolSize: size,
    connectionRetryLimit: 0,
    connectionTimeout: 5_000,
    // Retries happen once, outside, around the whole unit of work.
    queryRetryLimit: 0,
    transactionRetryLimit: 0,
    // Every setting ends with its transaction, so there is nothing to reset between borrowers.
    resetConnection: async () => {},
    idleTimeout: "DISABLE_TIMEOUT",
    // The driver parses types itself and leaves time limits to `roster.enter`.
    typeParsers: [],
    statementTimeout: "DISABLE_TIMEOUT",
    idleInTransactionSessionTimeout: "DISABLE_TIMEOUT",
  });
  // Slonik reports errors here too; every one reaches its caller already.
  slonik.on("error", () => {});
  return { slonik, gate: new Gate(size, size * 50), roundTrips };
};
