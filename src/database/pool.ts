/** Pools of Slonik connections over the tenant driver, which know deadlines and refuse what they cannot serve. */
import { type CommonQueryMethods, createPool, type DatabasePool, type Interceptor } from "slonik";
import type { z } from "zod";
import { createTenantDriver, type RoundTrips } from "./driver.ts";
import { parseRow } from "./rows.ts";
import { type PoolMeter, unmetered } from "./telemetry.ts";

/** When an RPC must have answered. */
export interface Deadline {
  /** Milliseconds left, zero or less once it has passed. */
  remainingMs(): number;
  /** True once the deadline passed or the caller went away. */
  readonly over: boolean;
  /** Calls back when it is over, unless the function that it returns was called before. */
  onOver(listener: () => void): () => void;
}

/** The database cannot take the call now; the caller may try again. */
export class Overloaded extends Error {
  override readonly name = "Overloaded";
}

/** The call's deadline passed, or its caller went away, before the database was asked. */
export class DeadlinePassed extends Error {
  override readonly name = "DeadlinePassed";
}

/** Slonik ignores a query's zod schema until an interceptor runs it; the synchronous hook is the fast one. */
const parseRows: Interceptor = {
  name: "roster-parse-rows",
  transformRow: (context, _query, row, { length }) =>
    context.resultParser
      ? (parseRow(context.resultParser as unknown as z.ZodType, row, length) as typeof row)
      : row,
};

/** How a pool is made. */
export interface PoolOptions {
  /** Most connections at once. */
  readonly size: number;
  /** False for poolers that carry neither pipelines nor prepared statements. */
  readonly pipeline: boolean;
  /** Hears what it does; nobody does by default. */
  readonly meter?: PoolMeter;
}

/** A connection that somebody has. */
export interface Loan {
  readonly connection: CommonQueryMethods;
  /** True once the connection is gone, which may be while somebody has it. */
  gone: boolean;
  /** Ends the connection; with an error Slonik throws it away, without one it closes in order. */
  end(error?: unknown): void;
}

interface Waiter {
  /** With a connection, or without one where there is room to open another. */
  readonly serve: (loan: Loan | undefined) => void;
}

/**
 * Lends the connections of one database role. Slonik makes them, and each is taken from it once, for its whole
 * life: its own checkout costs as much as a query. Beyond the size a bounded queue waits, which Slonik's does
 * without a bound, a timeout or a way out.
 */
export class TenantPool {
  /** Counts what is sent. */
  readonly roundTrips: RoundTrips;
  readonly size: number;
  private readonly slonik: DatabasePool;
  private readonly limit: number;
  private readonly meter: PoolMeter;
  private readonly idle: Loan[] = [];
  private readonly waiting = new Set<Waiter>();
  /** Connections that are open or being opened. */
  private open = 0;
  private ending = false;

  /** @param size most connections  @param limit calls that may wait */
  constructor(
    slonik: DatabasePool,
    roundTrips: RoundTrips,
    size: number,
    limit: number,
    meter: PoolMeter,
  ) {
    this.slonik = slonik;
    this.roundTrips = roundTrips;
    this.size = size;
    this.limit = limit;
    this.meter = meter;
  }

  /** Calls that wait now. */
  get queued(): number {
    return this.waiting.size;
  }

  /** Connections that there are now. */
  get connections(): { readonly idle: number; readonly used: number } {
    const idle = this.idle.length;
    return { idle, used: this.open - idle };
  }

  /**
   * Takes a connection, which is to be given back.
   *
   * @throws Overloaded when too many wait already
   * @throws DeadlinePassed when the deadline passes first
   */
  take(deadline: Deadline): Loan | Promise<Loan> {
    if (deadline.over || deadline.remainingMs() <= 0) throw new DeadlinePassed();
    const loan = this.idle.pop();
    if (loan) return loan;
    if (this.open < this.size) return this.connect();
    return this.wait(deadline);
  }

  /** Gives a connection back, or with the error after which it must not be used again. */
  give(loan: Loan, error?: unknown): void {
    if (error !== undefined || this.ending || loan.gone) loan.end(error);
    else if (!this.serveNext(loan)) this.idle.push(loan);
  }

  /** Closes what is idle, and the rest as it is given back. */
  async end(): Promise<void> {
    this.ending = true;
    for (const loan of this.idle.splice(0)) loan.end();
    const ended = this.slonik.end();
    // Slonik refuses them now.
    while (this.serveNext(undefined));
    await ended;
  }

  private wait(deadline: Deadline): Promise<Loan> {
    if (this.waiting.size >= this.limit) throw new Overloaded();
    const startMs = performance.now();
    return new Promise((resolve, reject) => {
      const stay = deadline.onOver(() => {
        this.waiting.delete(waiter);
        this.meter.timedOut();
        reject(new DeadlinePassed());
      });
      const waiter: Waiter = {
        serve: (loan) => {
          this.waiting.delete(waiter);
          stay();
          this.meter.waited(performance.now() - startMs);
          // At once, so that nobody else takes the place meanwhile.
          resolve(loan ?? this.connect());
        },
      };
      this.waiting.add(waiter);
    });
  }

  /** Serves who has waited longest; false when nobody waits. */
  private serveNext(loan: Loan | undefined): boolean {
    for (const waiter of this.waiting) {
      waiter.serve(loan);
      return true;
    }
    return false;
  }

  private connect(): Promise<Loan> {
    this.open++;
    return new Promise((resolve, reject) => {
      let loan: Loan | undefined;
      const life = this.slonik.connect(
        (connection) =>
          new Promise<void>((close, destroy) => {
            loan = {
              connection,
              gone: false,
              end: (error) => (error === undefined ? close() : destroy(error)),
            };
            resolve(loan);
          }),
      );
      life
        .catch((error: unknown) => {
          // It broke while nobody used it, or could not be opened.
          loan?.end(error);
          reject(error);
        })
        .finally(() => {
          this.open--;
          if (loan) {
            loan.gone = true;
            const place = this.idle.indexOf(loan);
            if (place >= 0) this.idle.splice(place, 1);
          }
          this.serveNext(undefined);
        });
    });
  }
}

/** Opens a pool. It connects when first asked, so that a database that is down does not stop the start. */
export const openPool = async (
  url: string,
  { size, pipeline, meter = unmetered }: PoolOptions,
): Promise<TenantPool> => {
  const roundTrips: RoundTrips = { count: 0 };
  const slonik = await createPool(url, {
    driverFactory: createTenantDriver(pipeline, roundTrips, meter),
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
  return new TenantPool(slonik, roundTrips, size, size * 50, meter);
};
