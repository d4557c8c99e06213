/**
 * Tenant-scoped sessions. A read sends `enter` and its query under one Sync and holds no connection in
 * between. A mutation is one transaction whose first flush carries BEGIN, `enter` and the first statement.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { CommonQueryMethods } from "slonik";
import type { z } from "zod";
import { positionOf, type Sight } from "./consistency.ts";
import { type Flight, flights } from "./driver.ts";
import { begin, cancelledCode, commit, type Step } from "./exchange.ts";
import { heavy, heavyBytes } from "./page.ts";
import { type Deadline, DeadlinePassed, type TenantPool } from "./pool.ts";
import type { Replica } from "./replica.ts";
import { type Query, type QueryOptions, sql, type UnitOfWork } from "./sql.ts";

/** Makes the statement that enters the tenant, given the milliseconds that are left. */
export type Entering = (timeoutMs: number) => Step;

/** What PostgreSQL says of an error, as far as Roster reads it. */
export interface DatabaseError extends Error {
  readonly code?: string;
  readonly severity?: string;
  readonly constraint?: string;
  readonly detail?: string;
}

/** A unit of work is done again three times at most. */
const attempts = 4;
const nothing = sql.typeAlias("void")`select`;
const committing = sql.typeAlias("void")`commit`;
const checkingConstraints: Step = { text: "set constraints all immediate", values: [] };
const rollingBack = sql.typeAlias("void")`rollback`;

/** Serialization failures and deadlocks: the same work may succeed when it is done again. */
const retryable = (error: unknown): boolean => {
  const { code } = error as DatabaseError;
  return code === "40001" || code === "40P01";
};

const isCancelled = (error: unknown): boolean => (error as DatabaseError).code === cancelledCode;

/** True when the server answered, so that the connection is still good. Codes of sockets and of Node begin with E. */
export const answered = (error: unknown): boolean => {
  const { code, severity } = error as DatabaseError;
  return code !== undefined && !/^(08|57P|XX|E)/.test(code) && severity !== "FATAL";
};

/** Borrows a connection for `work`. @throws Unanswered when the connection was lost */
const borrow = async <T>(
  pool: TenantPool,
  deadline: Deadline,
  work: (connection: CommonQueryMethods) => Promise<T>,
): Promise<T> => {
  // What needs no waiting is not awaited: a read comes through here in one turn.
  const taken = pool.take(deadline);
  const loan = taken instanceof Promise ? await taken : taken;
  let lost: unknown;
  try {
    return await work(loan.connection);
  } catch (error) {
    if (error instanceof Unanswered) lost = error.cause;
    throw error;
  } finally {
    pool.give(loan, lost);
  }
};

/** Marks an error after which the connection must not be used again. */
class Unanswered extends Error {}

const send = async <Row extends z.ZodType>(
  connection: CommonQueryMethods,
  flight: Flight,
  query: Query<Row>,
): Promise<readonly z.output<Row>[]> => {
  try {
    let bytes = 0;
    const received = (weight: number): void => {
      bytes = weight;
    };
    const rows = await flights.run({ ...flight, received }, () => connection.any(query));
    if (bytes > heavyBytes) heavy.set(rows, bytes);
    return rows as readonly z.output<Row>[];
  } catch (error) {
    // A row that does not fit its schema is our fault, not the connection's.
    const ours = (error as Error).name === "ZodError";
    throw answered(error) || ours ? error : new Unanswered("connection lost", { cause: error });
  }
};

abstract class Session implements UnitOfWork {
  /** @param single whether one row at most is expected, so that the statement is a short one */
  protected abstract ask<Row extends z.ZodType>(
    query: Query<Row>,
    options: QueryOptions,
    single: boolean,
  ): Promise<readonly z.output<Row>[]>;

  many<Row extends z.ZodType>(
    query: Query<Row>,
    options: QueryOptions = {},
  ): Promise<readonly z.output<Row>[]> {
    return this.ask(query, options, false);
  }

  async maybeOne<Row extends z.ZodType>(
    query: Query<Row>,
    options: QueryOptions = {},
  ): Promise<z.output<Row> | null> {
    const rows = await this.ask(query, options, true);
    if (rows.length > 1) throw new Error(`expected at most one row, got ${rows.length}`);
    return rows[0] ?? null;
  }

  async one<Row extends z.ZodType>(
    query: Query<Row>,
    missing: () => Error,
    options: QueryOptions = {},
  ): Promise<z.output<Row>> {
    const row = await this.maybeOne(query, options);
    if (row === null) throw missing();
    return row;
  }
}

/** Where there is a replica: which reads may go there, and who hears what they saw. */
export interface Replicated {
  readonly replica: Replica;
  readonly sight: Sight;
  /** False for what only the primary may answer. */
  readonly anywhere: boolean;
}

/** Notes where the primary's log stood behind a statement. */
export const notingPrimary =
  ({ replica, sight }: Replicated) =>
  (text: string | null): void => {
    const position = positionOf(text);
    sight.saw(position);
    replica.learn(position);
  };

/** A session for reads: each statement enters by itself and costs one round trip. */
export class ReadSession extends Session {
  private readonly pool: TenantPool;
  private readonly entering: Entering;
  private readonly deadline: Deadline;
  private readonly replicated: Replicated | undefined;
  /** Until a statement has left the read's entry. */
  private recording: Entering | undefined;

  /** @param recording enters in place of `entering` until a statement is answered, and leaves an entry */
  constructor(
    pool: TenantPool,
    entering: Entering,
    deadline: Deadline,
    replicated?: Replicated | undefined,
    recording?: Entering | undefined,
  ) {
    super();
    this.pool = pool;
    this.entering = entering;
    this.deadline = deadline;
    this.replicated = replicated;
    this.recording = recording;
  }

  protected async ask<Row extends z.ZodType>(
    query: Query<Row>,
    options: QueryOptions,
    single: boolean,
  ): Promise<readonly z.output<Row>[]> {
    const { replicated, recording } = this;
    const located = replicated && notingPrimary(replicated);
    if (recording) {
      // In one write with it others would wait until its entry is safe.
      const rows = await this.askPrimary(recording, query, options, false, located);
      this.recording = undefined;
      return rows;
    }
    const answer =
      replicated?.anywhere && !options.primary
        ? await this.askStandby(replicated, query, options, single)
        : undefined;
    return answer?.value ?? this.askPrimary(this.entering, query, options, single, located);
  }

  private askStandby<Row extends z.ZodType>(
    { replica, sight }: Replicated,
    query: Query<Row>,
    { prepare = true }: QueryOptions,
    shared: boolean,
  ): ReturnType<typeof replica.read<readonly z.output<Row>[]>> {
    const located = (text: string | null): void => sight.saw(positionOf(text));
    return replica.read(sight.least, this.deadline, (pool, check, deadline) =>
      borrow(pool, deadline, (connection) => {
        const before = [check, this.entering(timeoutOf(deadline))];
        return send(connection, { before, prepare, shared, located, deadline }, query);
      }),
    );
  }

  /** A read changes nothing, so one that was lost with its connection or hit by another's cancel is asked once more. */
  private async askPrimary<Row extends z.ZodType>(
    entering: Entering,
    query: Query<Row>,
    { prepare = true }: QueryOptions,
    single: boolean,
    located?: Flight["located"],
  ): Promise<readonly z.output<Row>[]> {
    const { deadline } = this;
    const [limitMs, startMs] = [timeoutOf(deadline), performance.now()];
    const work = (shared: boolean) => (connection: CommonQueryMethods) => {
      const before = [entering(timeoutOf(deadline))];
      return send(connection, { before, prepare, shared, located, deadline }, query);
    };
    try {
      return await borrow(this.pool, deadline, work(single));
    } catch (error) {
      // What left in one write with it may have been cancelled a moment late. PostgreSQL says the same of a statement
      // that took too long.
      const early = !deadline.over && performance.now() - startMs < limitMs;
      const hit = single && isCancelled(error) && early;
      if (!(error instanceof Unanswered || hit)) throw error;
    }
    try {
      return await borrow(this.pool, deadline, work(false));
    } catch (error) {
      throw error instanceof Unanswered ? error.cause : error;
    }
  }

  /** Enters and does nothing else: for asking whether the caller may. */
  async enter(): Promise<void> {
    await this.many(nothing);
  }
}

class WriteSession extends Session {
  private entered = false;
  private readonly connection: CommonQueryMethods;
  private readonly opening: (timeoutMs: number) => readonly Step[];
  private readonly deadline: Deadline;

  constructor(
    connection: CommonQueryMethods,
    opening: (timeoutMs: number) => readonly Step[],
    deadline: Deadline,
  ) {
    super();
    this.connection = connection;
    this.opening = opening;
    this.deadline = deadline;
  }

  protected async ask<Row extends z.ZodType>(
    query: Query<Row>,
    { prepare = true }: QueryOptions,
  ): Promise<readonly z.output<Row>[]> {
    // Whoever asked has had their answer, so nothing more may happen.
    if (this.deadline.over || this.deadline.remainingMs() <= 0) throw new DeadlinePassed();
    const left = timeoutOf(this.deadline);
    const before = this.entered ? [limiting(left)] : this.open(left);
    return send(this.connection, { before, prepare, deadline: this.deadline }, query);
  }

  /**
   * Nothing of it is cancelled: a commit that waits for a standby would be done and say that it was given up.
   *
   * @param last goes before the commit, in its flush
   * @param located hears where the log stood behind the commit
   */
  async commit(last: readonly Step[], located: Flight["located"]): Promise<void> {
    if (this.deadline.over || this.deadline.remainingMs() <= 0) throw new DeadlinePassed();
    if (this.entered)
      await send(this.connection, { before: last, prepare: true, located }, committing);
    else
      await send(
        this.connection,
        {
          before: [...this.open(timeoutOf(this.deadline)), ...last],
          after: [commit],
          prepare: true,
          located,
        },
        nothing,
      );
  }

  /** Has everything checked that a commit would check, and gives it up. */
  async rehearse(located: Flight["located"]): Promise<void> {
    if (!this.entered) await this.many(nothing);
    const before = [checkingConstraints];
    const { connection, deadline } = this;
    await send(connection, { before, prepare: true, located, deadline }, rollingBack);
  }

  private open(timeoutMs: number): readonly Step[] {
    this.entered = true;
    return [begin, ...this.opening(timeoutMs)];
  }

  /** Ends the transaction if the connection is in one: a commit that failed may have ended it, or not begun. */
  async rollback(): Promise<void> {
    await send(this.connection, { before: [], prepare: true }, rollingBack);
  }
}

/** What `enter` allowed was for one statement; each later one may take what is left. */
const limiting = (timeoutMs: number): Step => ({
  text: "select set_config('statement_timeout', $1, true)",
  values: [timeoutMs],
});

const timeoutOf = (deadline: Deadline): number => Math.max(1, Math.ceil(deadline.remainingMs()));

/** What else happens in a mutation's transaction. */
export interface Around<T> {
  /** Goes behind entering, before all other work. */
  readonly first?: Step | undefined;
  /** Makes what goes before the commit, of what the work came to. */
  readonly last?: ((value: T) => Step) | undefined;
  /** The work is checked and given up. */
  readonly rehearsal?: boolean;
  /** Hears where the log stood behind all of it. */
  readonly located?: Flight["located"];
}

/**
 * Runs a mutation as one transaction: committed when `work` returns, rolled back when it throws. A lost
 * race (40001, 40P01) runs it again, three times at most.
 */
export const inTransaction = async <T>(
  pool: TenantPool,
  entering: Entering,
  deadline: Deadline,
  work: (unit: UnitOfWork) => Promise<T>,
  { first, last, rehearsal = false, located }: Around<T> = {},
): Promise<T> => {
  const opening = (timeoutMs: number): Step[] => [
    entering(timeoutMs),
    ...(first === undefined ? [] : [first]),
  ];
  for (let attempt = 1; ; attempt++) {
    try {
      return await borrow(pool, deadline, async (connection) => {
        const session = new WriteSession(connection, opening, deadline);
        try {
          const value = await work(session);
          if (rehearsal) await session.rehearse(located);
          else await session.commit(last === undefined ? [] : [last(value)], located);
          return value;
        } catch (error) {
          if (error instanceof Unanswered) throw error;
          // A transaction whose connection is lost is rolled back as well; what went wrong before is the answer.
          await session.rollback().catch(() => {
            throw new Unanswered("connection lost", { cause: error });
          });
          throw error;
        }
      });
    } catch (thrown) {
      const error = thrown instanceof Unanswered ? thrown.cause : thrown;
      if (attempt >= attempts || !retryable(error) || deadline.remainingMs() <= 0) throw error;
      await delay(Math.random() * 20 * attempt);
    }
  }
};
