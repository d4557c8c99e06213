/**
 * The Slonik driver by which a tenant-scoped statement costs one round trip.
 *
 * In PostgreSQL's extended protocol everything up to a Sync is one implicit transaction. So the statement
 * that enters the tenant and the query itself travel as Bind/Execute, Bind/Execute, Sync: there is no BEGIN,
 * no COMMIT and no reset, and when entering is refused the server itself skips the query.
 *
 * A write to a socket costs more than all that goes into it. So short reads that are asked for in one turn of the
 * event loop, by whomever, leave in one write, each up to a Sync of its own: a transaction and a tenant for each.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { channel } from "node:diagnostics_channel";
import pg from "pg";
import { createDriverFactory, type DriverFactory } from "slonik";
import { cancelUnwanted, requestCancel } from "./cancel.ts";
import {
  begin,
  commit,
  Exchange,
  Flush,
  type Outcome,
  rollback,
  type ServerError,
  type Session,
  type Step,
  type TransactionStatus,
  type Wire,
} from "./exchange.ts";
import { Packet } from "./packet.ts";
import { withPasswordNow } from "./passwords.ts";
import type { Deadline } from "./pool.ts";
import { readerOf } from "./reader.ts";
import {
  errorTypeOf,
  failedSpan,
  type PoolMeter,
  placeOf,
  spanOf,
  statementOf,
  unmetered,
} from "./telemetry.ts";

/** What travels in the same flush as a Slonik query. */
export interface Flight {
  readonly before: readonly Step[];
  readonly after?: readonly Step[];
  /** False for statements whose generic plan would be bad, such as pages of a partitioned table. */
  readonly prepare: boolean;
  /** A short read that stands alone, and so may leave in one write with others. */
  readonly shared?: boolean;
  /** When it is over, the statements are cancelled in the database. Without it they run to their end. */
  readonly deadline?: Deadline;
  /** Hears what the rows weighed on the wire, in bytes. */
  readonly received?: (bytes: number) => void;
  /** Hears a position of the log behind the statements; null when it is not known. It is asked in the same write. */
  readonly located?: ((position: string | null) => void) | undefined;
}

/** How the driver learns what travels with a query: Slonik hands on text and values, nothing else. */
export const flights = new AsyncLocalStorage<Flight>();

const nothingToRollBack = { command: "ROLLBACK" as "SELECT", fields: [], rowCount: 0, rows: [] };

/** Tells who listens which statements go out in one flush, with their values. */
const flushed = channel("roster:flush");

/** Most exchanges in one write: more would save little, and the last waits for all before it. */
const mostShared = 8;

/** Asks where the log stands, behind all that its flush has done, and so with a Sync and a failure of its own. */
const locating: Step = { text: "select roster.wal_position() as position", values: [] };

const positionIn = ({ rows }: Outcome): string | null =>
  (rows[0]?.position ?? null) as string | null;

/** An exchange, and who wants to hear of a position behind it. */
interface Asked {
  readonly exchange: Exchange;
  readonly located: Flight["located"];
}

/** The exchanges of one flush: where somebody wants a position, one more asks it for all of them. */
const flushOf = (asked: readonly Asked[]): Exchange[] => {
  const exchanges = asked.map(({ exchange }) => exchange);
  const wanting = asked.filter(({ located }) => located !== undefined);
  if (wanting.length === 0) return exchanges;
  const hear = (error: Error | null, outcome: Outcome): void => {
    const position = error ? null : positionIn(outcome);
    for (const { located } of wanting) located?.(position);
  };
  return [...exchanges, new Exchange([locating], 0, true, hear)];
};

/** Gathers exchanges of one turn of the event loop, which leave in one write over the connection of the first. */
const gatherer = (): ((asked: Asked, send: (asked: readonly Asked[]) => void) => void) => {
  let open: Asked[] | undefined;
  return (asked, send) => {
    if (open) {
      open.push(asked);
      if (open.length === mostShared) open = undefined;
      return;
    }
    const gathered = [asked];
    open = gathered;
    setImmediate(() => {
      if (open === gathered) open = undefined;
      send(gathered);
    });
  };
};

/** How many flushes have been sent: what a test of round trips counts. */
export interface RoundTrips {
  count: number;
}

/**
 * Makes the driver. Every query must come with a {@link Flight}: outside a transaction one that enters,
 * inside a transaction any; a query that would run unentered is refused before it is sent.
 *
 * @param pipeline false sends each statement by itself and unnamed, for poolers that can carry neither
 *   pipelines nor prepared statements; results are equal
 * @param roundTrips counts what is sent
 * @param meter hears how long statements took
 */
export const createTenantDriver = (
  pipeline: boolean,
  roundTrips: RoundTrips,
  meter: PoolMeter = unmetered,
): DriverFactory =>
  createDriverFactory(async ({ driverConfiguration }) => {
    const gather = gatherer();
    return {
      createPoolClient: async ({ clientEventEmitter }) => {
        const timeout = driverConfiguration.connectionTimeout;
        const client = new pg.Client({
          connectionString: withPasswordNow(driverConfiguration.connectionUri),
          connectionTimeoutMillis: timeout === "DISABLE_TIMEOUT" ? 0 : timeout,
          keepAlive: true,
        });
        const wire = (client as unknown as { connection: Wire }).connection;
        const place = placeOf(client.host, client.port, client.database ?? "");
        const session: Session = {
          wire,
          packet: new Packet(),
          prepared: new Set(),
          shapes: new Map(),
          status: "I",
          current: null,
          held: null,
          cancel: () => requestCancel(client),
          generation: 0,
        };
        client.on("error", (error) => clientEventEmitter.emit("error", error));
        wire.on("noData", () => session.current?.handleNoData());

        const exchange = (
          steps: readonly Step[],
          main: number,
          prepare: boolean,
          { shared = false, located, deadline }: Partial<Flight> = {},
        ): Promise<Outcome> =>
          new Promise((resolve, reject) => {
            roundTrips.count++;
            if (flushed.hasSubscribers) flushed.publish(steps);
            let answer: Outcome | undefined;
            const exchange = new Exchange(steps, main, prepare, (error, outcome) => {
              stay?.();
              if (error) reject(error);
              else if (located) answer = outcome;
              else resolve(outcome);
            });
            const stay = deadline?.onOver(() => exchange.abandon());
            if (deadline?.over) exchange.abandon();
            const told = (position: string | null): void => {
              // Of what failed nobody wants to know.
              if (answer === undefined) return;
              located?.(position);
              resolve(answer);
            };
            const asked = { exchange, located: located && told };
            const send = (all: readonly Asked[]): void => {
              client.query(new Flush(session, flushOf(all)) as unknown as pg.Submittable);
            };
            if (shared) gather(asked, send);
            else send([asked]);
          });

        /** The same steps one by one. What the pipeline wraps in one Sync is wrapped in BEGIN and COMMIT here. */
        const oneByOne = async (
          steps: readonly Step[],
          main: number,
          { located, deadline }: Flight,
        ): Promise<Outcome> => {
          const alone = session.status === "I" && steps[0] !== begin;
          const all = alone ? [begin, ...steps, commit] : steps;
          let outcome: Outcome | undefined;
          try {
            for (const [index, step] of all.entries()) {
              const result = await exchange([step], 0, false, deadline && { deadline });
              if (index === main + (alone ? 1 : 0)) outcome = result;
            }
          } catch (error) {
            // Over a lost connection it would only hide why that was lost.
            if (alone && (session.status as TransactionStatus) !== "I" && wire.stream.writable)
              await exchange([rollback], 0, false);
            throw error;
          }
          if (located)
            await exchange([locating], 0, false)
              .then(positionIn, () => null)
              .then(located);
          return outcome as Outcome;
        };

        return {
          connect: async () => {
            await client.connect();
            const { stream } = wire;
            const [others] = stream.listeners("data") as [(bytes: Buffer) => void];
            const ready = (status: string): void => {
              session.status = status as TransactionStatus;
              if (session.current?.next()) cancelUnwanted(session);
              else wire.emit("readyForQuery", { status });
            };
            stream.on(
              "data",
              readerOf(() => session.current, ready, others),
            );
            stream.off("data", others);
            // pg takes a second error in one flush for the connection's end.
            const [usual] = wire.listeners("errorMessage") as [(error: ServerError) => void];
            wire.on("errorMessage", (error) =>
              session.current ? session.current.fail(error) : usual(error),
            );
            wire.off("errorMessage", usual);
          },
          end: () => client.end(),
          query: async (text, values = []) => {
            const flight = flights.getStore();
            const before = flight?.before ?? [];
            if (text === rollback.text && session.status === "I") return nothingToRollBack;
            if (!flight || (before.length === 0 && session.status === "I")) {
              throw new Error("refused to send a statement outside a tenant");
            }
            const steps = [...before, { text, values }, ...(flight.after ?? [])];
            const statement = statementOf(text);
            const span = spanOf(statement, place);
            const startMs = performance.now();
            let failure = "";
            let outcome: Outcome;
            try {
              outcome = pipeline
                ? await exchange(steps, before.length, flight.prepare, flight)
                : await oneByOne(steps, before.length, flight);
            } catch (error) {
              failure = errorTypeOf(error);
              throw error;
            } finally {
              meter.asked(statement.operation, failure, performance.now() - startMs);
              if (span && failure !== "") failedSpan(span, failure);
              span?.end();
            }
            const { tag, shape, bytes, rows } = outcome;
            const [command = "", ...counts] = tag.split(" ");
            flight.received?.(bytes);
            return {
              command: command as "SELECT",
              fields: [...shape.columns],
              rowCount: Number(counts.at(-1) ?? 0),
              rows,
            };
          },
          stream: () => {
            throw new Error("streams are not offered by this driver");
          },
        };
      },
    };
  });
