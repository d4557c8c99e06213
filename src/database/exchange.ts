/**
 * What is asked of PostgreSQL on one connection and what it answers: statements up to one Sync are an exchange, and
 * exchanges that leave in one write are a flush.
 */
import { createHash } from "node:crypto";
import type { Socket } from "node:net";
import { prepareValue } from "pg/lib/utils.js";
import { cancelUnwanted } from "./cancel.ts";
import type { Packet } from "./packet.ts";
import type { Receiver } from "./reader.ts";
import { Shape } from "./shape.ts";

/** One statement with its values. */
export interface Step {
  readonly text: string;
  readonly values: readonly unknown[];
}

/** Statements that begin and end an explicit transaction. */
export const begin: Step = { text: "begin", values: [] };
export const commit: Step = { text: "commit", values: [] };
export const rollback: Step = { text: "rollback", values: [] };

export type TransactionStatus = "I" | "T" | "E";

/** The parts of pg's connection that its types leave out. */
export interface Wire {
  readonly stream: Socket;
  emit(event: "readyForQuery", message: { status: string }): void;
  on(event: "noData", listener: () => void): void;
  on(event: "errorMessage", listener: (error: ServerError) => void): void;
  off(event: "errorMessage", listener: (error: ServerError) => void): void;
  listeners(event: "errorMessage"): ((error: ServerError) => void)[];
}

/** What the server says of an error. */
export type ServerError = Error & { severity?: string; code?: string };

/** What one connection knows of itself. */
export interface Session {
  readonly wire: Wire;
  readonly packet: Packet;
  /** Names of statements whose own ParseComplete has arrived. */
  readonly prepared: Set<string>;
  /** What prepared statements answer with, by their text. */
  readonly shapes: Map<string, Shape>;
  status: TransactionStatus;
  current: Flush | null;
  /** What is written once the cancel request under way can no longer hit it; null: there is none. */
  held: (() => void)[] | null;
  /** Asks the server to end what the connection runs. @throws Error when nobody knows whether it will */
  readonly cancel: () => Promise<unknown>;
  /** Ends the names of statements, so that they can be made anew. */
  generation: number;
}

const forget = (session: Session): void => {
  session.prepared.clear();
  session.shapes.clear();
  session.generation++;
};

/** What the main statement of an exchange answered. */
export interface Outcome {
  readonly tag: string;
  readonly shape: Shape;
  /** What the rows weighed on the wire. */
  readonly bytes: number;
  readonly rows: Record<string, unknown>[];
}

const noColumns = new Shape([]);

/** What the server says of a statement that was cancelled; also told of one that was not begun. */
export const cancelledCode = "57014";
const notBegun = (): Error =>
  Object.assign(new Error("nobody waits for the statement"), { code: cancelledCode });

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

/** Statements up to one Sync, one of which somebody wants the answer of. */
export class Exchange {
  /** Nobody waits for the answer any more. */
  unwanted = false;
  /** Where it was sent. */
  session: Session | undefined;
  private readonly steps: readonly Step[];
  private readonly main: number;
  private readonly prepare: boolean;
  private readonly settle: (error: Error | null, outcome: Outcome) => void;
  private readonly parsing: string[] = [];
  private readonly rows: Record<string, unknown>[] = [];
  private shape = noColumns;
  /** The shape was known before, so its formats were asked for. */
  private known = false;
  /** The main statement's answer describes a statement that stays prepared. */
  private named = false;
  private bytes = 0;
  private failure: Error | null = null;
  private tag = "";
  private step = 0;

  constructor(
    steps: readonly Step[],
    main: number,
    prepare: boolean,
    settle: (error: Error | null, outcome: Outcome) => void,
  ) {
    this.steps = steps;
    this.main = main;
    this.prepare = prepare;
    this.settle = settle;
  }

  /** @param parsing names that this flush parses already, and which may yet fail */
  pack({ packet, prepared, shapes, generation }: Session, parsing: Set<string>): void {
    this.steps.forEach((step, index) => {
      let name = this.prepare ? `${nameOf(step.text)}${generation || ""}` : "";
      const own = this.parsing.includes(name);
      if (name !== "" && !own && parsing.has(name)) name = "";
      if (name === "" || !(own || prepared.has(name))) {
        packet.parse(name, step.text);
        this.parsing.push(name);
      }
      if (index === this.main) {
        this.named = name !== "";
        const known = this.named ? shapes.get(step.text) : undefined;
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
    for (const name of this.parsing) parsing.add(name);
  }

  /** It is not begun, or cancelled when it runs. */
  abandon(): void {
    this.unwanted = true;
    if (this.session) cancelUnwanted(this.session);
  }

  parsed({ prepared }: Session): void {
    const name = this.parsing.shift();
    if (name) prepared.add(name);
  }

  described({ shapes }: Session, shape: Shape): void {
    this.shape = shape;
    const text = this.steps[this.main]?.text;
    if (this.named && text !== undefined) shapes.set(text, shape);
  }

  row(bytes: Buffer, at: number, end: number): void {
    if (this.step !== this.main) return;
    this.bytes += end - at;
    try {
      this.rows.push(this.shape.row(bytes, at, this.known));
    } catch (error) {
      // Told at the end of the answer, when the connection is done with it.
      this.failure ??= error as Error;
    }
  }

  complete(tag: string): void {
    const step = this.steps[this.step];
    if (this.step === this.main) this.tag = tag;
    // A failed transaction answers COMMIT with ROLLBACK and no error.
    if (step?.text === commit.text && tag !== "COMMIT") {
      this.failure ??= Object.assign(new Error("transaction rolled back"), { code: "40000" });
    }
    this.step++;
  }

  failed(error: Error): void {
    this.failure ??= error;
  }

  finish(error: Error | null = null): void {
    const { tag, shape, bytes, rows } = this;
    this.settle(this.failure ?? error, { tag, shape, bytes, rows });
  }
}

/** Exchanges that leave in one write. pg queues it like a query of its own. */
export class Flush implements Receiver {
  readonly callback = (): void => {};
  private readonly session: Session;
  private readonly exchanges: Exchange[];
  /** The exchange whose answer is being read. */
  private at = 0;

  constructor(session: Session, exchanges: Exchange[]) {
    this.session = session;
    this.exchanges = exchanges;
  }

  /** The exchange that the server is at. */
  get running(): Exchange | undefined {
    return this.exchanges[this.at];
  }

  /** What is thrown here pg would never hear of, and it would wait for an answer for ever: so it is returned. */
  submit(): Error | null {
    const { session, exchanges } = this;
    const { packet, wire } = session;
    const parsing = new Set<string>();
    let fault: Error | null = null;
    for (let i = 0; i < exchanges.length; ) {
      const mark = packet.length;
      const exchange = exchanges[i] as Exchange;
      try {
        if (exchange.unwanted) throw notBegun();
        exchange.pack(session, parsing);
        exchange.session = session;
        i++;
      } catch (error) {
        packet.cut(mark);
        exchanges.splice(i, 1);
        fault = error as Error;
        exchange.finish(fault);
      }
    }
    if (exchanges.length === 0) return fault;
    session.current = this;
    const bytes = packet.take();
    if (session.held) session.held.push(() => wire.stream.write(bytes));
    else wire.stream.write(bytes);
    return null;
  }

  handleParseComplete(): void {
    this.exchanges[this.at]?.parsed(this.session);
  }

  handleRowDescription({ fields }: { fields: { name: string; dataTypeID: number }[] }): void {
    this.described(new Shape(fields));
  }

  handleNoData(): void {
    this.described(noColumns);
  }

  handleRow(bytes: Buffer, at: number, end: number): void {
    this.exchanges[this.at]?.row(bytes, at, end);
  }

  handleCommandComplete({ text }: { text: string }): void {
    this.exchanges[this.at]?.complete(text);
  }

  handleEmptyQuery(): void {
    this.exchanges[this.at]?.complete("");
  }

  /** What the server says went wrong. Its answer ends with ReadyForQuery all the same, unless the connection ends. */
  fail(error: ServerError): void {
    // The server lost a prepared statement, or the table under it changed: all are made anew, by new names.
    if (error.code === "26000" || error.code === "0A000") forget(this.session);
    this.exchanges[this.at]?.failed(error);
    if (error.severity === "FATAL" || error.severity === "PANIC") this.handleError(error);
  }

  /** True when more answers follow; one more exchange is done. */
  next(): boolean {
    if (this.at + 1 >= this.exchanges.length) return false;
    this.exchanges[this.at++]?.finish();
    return true;
  }

  /** The last answer has ended. */
  handleReadyForQuery(): void {
    this.end(null);
  }

  /** The connection is lost. */
  handleError(error: Error): void {
    this.end(error);
  }

  private described(shape: Shape): void {
    this.exchanges[this.at]?.described(this.session, shape);
  }

  private end(error: Error | null): void {
    // pg may have submitted the next one already.
    if (this.session.current === this) this.session.current = null;
    while (this.at < this.exchanges.length) this.exchanges[this.at++]?.finish(error);
  }
}
