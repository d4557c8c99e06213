/**
 * The Slonik driver by which a tenant-scoped statement costs one round trip.
 *
 * In PostgreSQL's extended protocol everything up to a Sync is one implicit transaction. So the statement
 * that enters the tenant and the query itself travel as Bind/Execute, Bind/Execute, Sync: there is no BEGIN,
 * no COMMIT and no reset, and when entering is refused the server itself skips the query.
 */
import { AsyncLocalStorage } from "node:async_hooks";
import { createHash } from "node:crypto";
import { channel } from "node:diagnostics_channel";
import type { Socket } from "node:net";
import pg from "pg";
import { prepareValue } from "pg/lib/utils.js";
import { createDriverFactory, type DriverFactory } from "slonik";
import { Packet } from "./packet.ts";
import { type Receiver, readerOf } from "./reader.ts";
import { Shape } from "./shape.ts";

/** One statement with its values. */
export interface Step {
  readonly text: string;
  readonly values: readonly unknown[];
}

/** What travels in the same flush as a Slonik query. */
export interface Flight {
  readonly before: readonly Step[];
  readonly after?: readonly Step[];
  /** False for statements whose generic plan would be bad, such as pages of a partitioned table. */
  readonly prepare: boolean;
  /** Hears what the rows weighed on the wire, in bytes. */
  readonly received?: (bytes: number) => void;
}

/** How the driver learns what travels with a query: Slonik hands on text and values, nothing else. */
export const flights = new AsyncLocalStorage<Flight>();

/** Statements that begin and end an explicit transaction. */
export const begin: Step = { text: "begin", values: [] };
export const commit: Step = { text: "commit", values: [] };
export const rollback: Step = { text: "rollback", values: [] };

/** The parts of pg's connection that its types leave out. */
interface Wire {
  readonly stream: Socket;
  emit(event: "readyForQuery", message: { status: string }): void;
  on(event: "readyForQuery", listener: (message: { status: TransactionStatus }) => void): void;
  on(event: "noData", listener: () => void): void;
  once(event: "readyForQuery" | "end", listener: () => void): void;
  off(event: "readyForQuery" | "end", listener: () => void): void;
}

type TransactionStatus = "I" | "T" | "E";

/** What one connection knows of itself. */
interface Session {
  readonly wire: Wire;
  readonly packet: Packet;
  /** Names of statements whose own ParseComplete has arrived. */
  readonly prepared: Set<string>;
  /** What prepared statements answer with, by their text. */
  readonly shapes: Map<string, Shape>;
  status: TransactionStatus;
  current: Exchange | null;
  /** Ends the names of statements, so that they can be made anew. */
  generation: number;
}

const forget = (session: Session): void => {
  session.prepared.clear();
  session.shapes.clear();
  session.generation++;
};

interface Outcome {
  readonly tag: string;
  readonly shape: Shape;
  /** What the rows weighed on the wire. */
  readonly bytes: number;
  readonly rows: Record<string, unknown>[];
}

const noColumns = new Shape([]);
const names = new Map<string, string>();

/** A prepared statement's name: a digest of its text, so that every connection uses the same. */
const nameOf = (text: string): string => {
  let name = names.get(text);
  if (name === undefined) {
    name = createHash("sha256").update(text).digest("base64url").slice(0, 22);
    names.set(text, name);
  }
  return name;
};

/** Statements up to one Sync. pg queues it like a query of its own and feeds it the server's messages. */
class Exchange implements Receiver {
  readonly callback = (): void => {};
  private readonly session: Session;
  private readonly steps: readonly Step[];
  private readonly main: number;
  private readonly prepare: boolean;
  private readonly settle: (error: Error | null, outcome: Outcome) => void;
  private readonly parsing: string[] = [];
  private readonly rows: Record<string, unknown>[] = [];
  private shape = noColumns;
  /** The shape was known before, so its formats were asked for. */
  private known = false;
  private bytes = 0;
  private unreadable: Error | null = null;
  private tag = "";
  private step = 0;

  constructor(
    session: Session,
    steps: readonly Step[],
    main: number,
    prepare: boolean,
    settle: (error: Error | null, outcome: Outcome) => void,
  ) {
    this.session = session;
    this.steps = steps;
    this.main = main;
    this.prepare = prepare;
    this.settle = settle;
  }

  /** What is thrown here pg would never hear of, and it would wait for an answer for ever: so it is returned. */
  submit(): Error | null {
    try {
      this.pack();
    } catch (error) {
      this.session.packet.clear();
      return error as Error;
    }
    this.session.current = this;
    this.session.wire.stream.write(this.session.packet.take());
    return null;
  }

  private pack(): void {
    const { packet, prepared, shapes, generation } = this.session;
    this.steps.forEach((step, index) => {
      const name = this.prepare ? `${nameOf(step.text)}${generation || ""}` : "";
      if (name === "" || !(prepared.has(name) || this.parsing.includes(name))) {
        packet.parse(name, step.text);
        this.parsing.push(name);
      }
      if (index === this.main) {
        const known = this.prepare ? shapes.get(step.text) : undefined;
        if (known) this.shape = known;
        this.known = known !== undefined;
        packet.bind(name, step.values.map(prepareValue), known?.formats);
        if (!known) packet.describe();
      } else {
        packet.bind(name, step.values.map(prepareValue));
      }
      packet.execute();
    });
    packet.sync();
  }

  handleParseComplete(): void {
    const name = this.parsing.shift();
    if (name) this.session.prepared.add(name);
  }

  handleRowDescription({ fields }: { fields: { name: string; dataTypeID: number }[] }): void {
    this.described(new Shape(fields));
  }

  described(shape: Shape): void {
    this.shape = shape;
    const text = this.steps[this.main]?.text;
    if (this.prepare && text !== undefined) this.session.shapes.set(text, shape);
  }

  handleRow(bytes: Buffer, at: number, end: number): void {
    if (this.step !== this.main) return;
    this.bytes += end - at;
    try {
      this.rows.push(this.shape.row(bytes, at, this.known));
    } catch (error) {
      // Told at the end of the answer, when the connection is done with it.
      this.unreadable ??= error as Error;
    }
  }

  handleCommandComplete(message: { text: string }): void {
    const step = this.steps[this.step];
    if (this.step === this.main) this.tag = message.text;
    // A failed transaction answers COMMIT with ROLLBACK and no error.
    if (step === commit && message.text !== "COMMIT") this.tag = "ROLLBACK";
    this.step++;
  }

  handleEmptyQuery(): void {
    this.step++;
  }

  /** An error of one statement ends with ReadyForQuery; only then is the connection usable again. */
  handleError(error: Error & { severity?: string; code?: string }): void {
    // The server lost a prepared statement, or the table under it changed: all are made anew, by new names.
    if (error.code === "26000" || error.code === "0A000") forget(this.session);
    const lost =
      error.severity === undefined || error.severity === "FATAL" || error.severity === "PANIC";
    if (lost) {
      this.finish(error);
      return;
    }
    const { wire } = this.session;
    const end = (): void => {
      wire.off("readyForQuery", end);
      wire.off("end", end);
      this.finish(error);
    };
    wire.once("readyForQuery", end);
    wire.once("end", end);
  }

  handleReadyForQuery(): void {
    this.finish(
      this.tag === "ROLLBACK" && this.steps.some(({ text }) => text === commit.text)
        ? Object.assign(new Error("transaction rolled back"), { code: "40000" })
        : this.unreadable,
    );
  }

  private finish(error: Error | null): void {
    // pg may have submitted the next one already.
    if (this.session.current === this) this.session.current = null;
    const { tag, shape, bytes, rows } = this;
    this.settle(error, { tag, shape, bytes, rows });
  }
}

const nothingToRollBack = { command: "ROLLBACK" as "SELECT", fields: [], rowCount: 0, rows: [] };

/** Tells who listens which statements go out in one flush, with their values. */
const flushed = channel("roster:flush");

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
 */
export const createTenantDriver = (pipeline: boolean, roundTrips: RoundTrips): DriverFactory =>
  createDriverFactory(async ({ driverConfiguration }) => ({
    createPoolClient: async ({ clientEventEmitter }) => {
      const timeout = driverConfiguration.connectionTimeout;
      const client = new pg.Client({
        connectionString: driverConfiguration.connectionUri,
        connectionTimeoutMillis: timeout === "DISABLE_TIMEOUT" ? 0 : timeout,
        keepAlive: true,
      });
      const wire = (client as unknown as { connection: Wire }).connection;
      const session: Session = {
        wire,
        packet: new Packet(),
        prepared: new Set(),
        shapes: new Map(),
        status: "I",
        current: null,
        generation: 0,
      };
      client.on("error", (error) => clientEventEmitter.emit("error", error));
      wire.on("readyForQuery", ({ status }) => {
        session.status = status;
      });
      wire.on("noData", () => session.current?.described(noColumns));

      const exchange = (steps: readonly Step[], main: number, prepare: boolean): Promise<Outcome> =>
        new Promise((resolve, reject) => {
          roundTrips.count++;
          if (flushed.hasSubscribers) flushed.publish(steps);
          const settle = (error: Error | null, outcome: Outcome): void =>
            error ? reject(error) : resolve(outcome);
          client.query(
            new Exchange(session, steps, main, prepare, settle) as unknown as pg.Submittable,
          );
        });

      /** The same steps one by one. What the pipeline wraps in one Sync is wrapped in BEGIN and COMMIT here. */
      const oneByOne = async (steps: readonly Step[], main: number): Promise<Outcome> => {
        const alone = session.status === "I" && steps[0] !== begin;
        const all = alone ? [begin, ...steps, commit] : steps;
        let outcome: Outcome | undefined;
        try {
          for (const [index, step] of all.entries()) {
            const result = await exchange([step], 0, false);
            if (index === main + (alone ? 1 : 0)) outcome = result;
          }
        } catch (error) {
          // Over a lost connection it would only hide why that was lost.
          if (alone && (session.status as TransactionStatus) !== "I" && wire.stream.writable)
            await exchange([rollback], 0, false);
          throw error;
        }
        return outcome as Outcome;
      };

      return {
        connect: async () => {
          await client.connect();
          const { stream } = wire;
          const [others] = stream.listeners("data") as [(bytes: Buffer) => void];
          stream.on(
            "data",
            readerOf(
              () => session.current,
              (status) => wire.emit("readyForQuery", { status }),
              others,
            ),
          );
          stream.off("data", others);
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
          const { tag, shape, bytes, rows } = pipeline
            ? await exchange(steps, before.length, flight.prepare)
            : await oneByOne(steps, before.length);
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
  }));
