/** What is told of statements: how long they took, and a span for each where somebody traces. Never a value. */
import { type Attributes, type Span, SpanKind, SpanStatusCode, trace } from "@opentelemetry/api";

/** Hears what a pool does. */
export interface PoolMeter {
  /** A call had to wait for a connection, and got one. */
  waited(ms: number): void;
  /** A call waited in vain until its time was over. */
  timedOut(): void;
  /**
   * A statement was answered.
   *
   * @param operation such as `SELECT`
   * @param error its SQLSTATE, `_OTHER` where PostgreSQL gave none, or nothing when it succeeded
   */
  asked(operation: string, error: string, ms: number): void;
}

/** For who does not want to know. */
export const unmetered: PoolMeter = { waited: () => {}, timedOut: () => {}, asked: () => {} };

/** What a statement is called: what it does, and what the tables and functions are that it does it to. */
interface Statement {
  readonly operation: string;
  readonly summary: string;
}

const targets = /\b(?:(insert)\s+into|(delete)\s+from|(update)|from|join)\s+(roster\.[a-z_]+)/g;
const mostKnown = 5_000;
const known = new Map<string, Statement>();

/** Reads a statement's text, in which no value ever stands. */
export const statementOf = (text: string): Statement => {
  let statement = known.get(text);
  if (!statement) {
    statement = read(text);
    // Filters compose texts without end.
    if (known.size >= mostKnown) known.clear();
    known.set(text, statement);
  }
  return statement;
};

const read = (text: string): Statement => {
  const parts = [...text.matchAll(targets)].map(([, insert, remove, update, target = ""]) => ({
    verb: (insert ?? remove ?? update ?? "select").toUpperCase(),
    target,
  }));
  const first = /^\s*(\w+)/.exec(text)?.[1]?.toUpperCase() ?? "_OTHER";
  const writing = parts.find(({ verb }) => verb !== "SELECT");
  const operation = first === "WITH" ? (writing?.verb ?? "SELECT") : first;
  const words = parts.map(({ verb, target }) => (verb === "SELECT" ? target : `${verb} ${target}`));
  const all = [...new Set(words)].join(" ");
  const summary = all.startsWith(operation) ? all : `${operation} ${all}`;
  return { operation, summary: summary.trim().slice(0, 255) };
};

/** What failed, as a metric and a span call it. */
export const errorTypeOf = (error: unknown): string => {
  const { code } = error as { code?: unknown };
  return typeof code === "string" && code !== "" ? code : "_OTHER";
};

/** Where statements go: what every span of a connection says. */
export const placeOf = (host: string, port: number, database: string): Attributes => ({
  "db.system.name": "postgresql",
  "db.namespace": database,
  "server.address": host,
  "server.port": port,
});

/** The span of a statement inside the call's; undefined, and nothing made, where nobody listens to that. */
export const spanOf = ({ operation, summary }: Statement, place: Attributes): Span | undefined => {
  if (!trace.getActiveSpan()?.isRecording()) return undefined;
  const named = { "db.operation.name": operation, "db.query.summary": summary };
  const attributes = { ...place, ...named };
  return trace.getTracer("roster").startSpan(summary, { kind: SpanKind.CLIENT, attributes });
};

const sqlstate = /^[0-9A-Z]{5}$/;

/** Notes a failure by its type alone: PostgreSQL's message can quote a row. */
export const failedSpan = (span: Span, type: string): void => {
  span.setAttribute("error.type", type);
  if (sqlstate.test(type)) span.setAttribute("db.response.status_code", type);
  span.setStatus({ code: SpanStatusCode.ERROR });
};
