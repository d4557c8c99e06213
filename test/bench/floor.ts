/**
 * The floor: a bare grpc-js handler with a bare one-Sync exchange of the very statements that Roster sends.
 * No Slonik, no zod, no corridor: no token is verified, no rule is checked, nothing is logged. What stands
 * here is what such a call costs at least with these libraries.
 */
import { create, type DescMessage, fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import grpc from "@grpc/grpc-js";
import pg from "pg";
import { prepareValue } from "pg/lib/utils.js";
import { v7 as uuid } from "uuid";
import type { Step } from "../../src/database/exchange.ts";
import { parserOf } from "../../src/database/types.ts";
import { answers, type Row } from "./answers.ts";
import { type Operation, operationOf, pathOf } from "./operations.ts";
import { ready, type SystemOptions, systemOptions } from "./process.ts";
import { fillerOf, isOutsideOrgs } from "./statements.ts";

interface Wire {
  stream: { cork(): void; uncork(): void };
  parse(message: object): void;
  bind(message: object): void;
  describe(message: object): void;
  execute(message: object): void;
  sync(): void;
}

type Column = readonly [name: string, parse: (text: string) => unknown];

/** One connection and what it has prepared: names by text, columns by name. */
class Connection {
  readonly client: pg.Client;
  readonly names = new Map<string, string>();
  readonly columns = new Map<string, readonly Column[]>();

  constructor(url: string) {
    this.client = new pg.Client(url);
  }

  exchange(steps: readonly Step[]): Promise<Row[]> {
    return new Promise((resolve, reject) => {
      this.client.query(new Exchange(this, steps, resolve, reject) as unknown as pg.Submittable);
    });
  }
}

/** The last statement with columns answers; those before it only enter. */
class Exchange {
  readonly callback = (): void => {};
  private columns: readonly Column[] = [];
  private rows: Row[] = [];
  private step = 0;
  private failure: Error | undefined;
  private readonly connection: Connection;
  private readonly steps: readonly Step[];
  private readonly resolve: (rows: Row[]) => void;
  private readonly reject: (error: Error) => void;

  constructor(
    connection: Connection,
    steps: readonly Step[],
    resolve: (rows: Row[]) => void,
    reject: (error: Error) => void,
  ) {
    this.connection = connection;
    this.steps = steps;
    this.resolve = resolve;
    this.reject = reject;
  }

  submit(): null {
    const { client, names, columns } = this.connection;
    const wire = (client as unknown as { connection: Wire }).connection;
    wire.stream.cork();
    this.steps.forEach(({ text, values }, index) => {
      let name = names.get(text);
      if (name === undefined) {
        name = `s${names.size}`;
        names.set(text, name);
        wire.parse({ name, text, types: [] });
      }
      wire.bind({ portal: "", statement: name, values: values.map(prepareValue) });
      if (index === this.steps.length - 1) {
        const known = columns.get(text);
        if (known) this.columns = known;
        else wire.describe({ type: "P", name: "" });
      }
      wire.execute({ portal: "", rows: 0 });
    });
    wire.sync();
    wire.stream.uncork();
    return null;
  }

  handleRowDescription({ fields }: { fields: { name: string; dataTypeID: number }[] }): void {
    this.columns = fields.map(({ name, dataTypeID }) => [name, parserOf(dataTypeID)]);
    this.connection.columns.set(this.steps.at(-1)?.text ?? "", this.columns);
  }

  handleDataRow({ fields }: { fields: (string | null)[] }): void {
    if (this.step < this.steps.length - 1) return;
    const row: Row = {};
    this.columns.forEach(([name, parse], index) => {
      const text = fields[index];
      row[name] = text === null || text === undefined ? null : parse(text);
    });
    this.rows.push(row);
  }

  handleCommandComplete(): void {
    this.step++;
  }

  handleError(error: Error): void {
    this.failure = error;
    (this.connection.client as unknown as { connection: NodeJS.EventEmitter }).connection.once(
      "readyForQuery",
      () => this.reject(error),
    );
  }

  handleReadyForQuery(): void {
    if (!this.failure) this.resolve(this.rows);
  }
}

/** Lends connections in turn; who finds none waits. */
class Connections {
  private readonly free: Connection[] = [];
  private readonly waiting: ((connection: Connection) => void)[] = [];

  async open(url: string, size: number): Promise<void> {
    for (let i = 0; i < size; i++) {
      const connection = new Connection(url);
      await connection.client.connect();
      this.free.push(connection);
    }
  }

  async use<T>(work: (connection: Connection) => Promise<T>): Promise<T> {
    const connection =
      this.free.pop() ?? (await new Promise<Connection>((resolve) => this.waiting.push(resolve)));
    try {
      return await work(connection);
    } finally {
      const next = this.waiting.shift();
      if (next) next(connection);
      else this.free.push(connection);
    }
  }
}

type Handler = (call: grpc.ServerUnaryCall<Message, Message>) => Promise<Message>;

const handlerOf = (
  { name, method }: Operation,
  { statements }: SystemOptions,
  pools: { app: Connections; directory: Connections },
): Handler => {
  const templates = statements[name] ?? [];
  const fill = fillerOf(templates, uuid);
  const answer = answers[name];
  if (!answer) throw new Error(`${name}: no answer`);
  const pool = isOutsideOrgs(templates) ? pools.directory : pools.app;
  return async ({ request, metadata }) => {
    const flushes = fill(metadata.get("actor")[0]?.toString(), request);
    const rows = await pool.use(async (connection) => {
      let found: Row[] = [];
      for (const steps of flushes) {
        const answered = await connection.exchange(steps);
        if (answered.length > 0) found = answered;
      }
      return found;
    });
    return create(method.output as DescMessage, answer(rows) as Record<string, unknown>);
  };
};

const definitionOf = (
  method: Operation["method"],
  path: string,
): grpc.MethodDefinition<Message, Message> => ({
  path,
  requestStream: false,
  responseStream: false,
  requestSerialize: () => Buffer.alloc(0),
  requestDeserialize: (bytes) => fromBinary(method.input as DescMessage, bytes),
  responseSerialize: (message) => Buffer.from(toBinary(method.output as DescMessage, message)),
  responseDeserialize: () => create(method.output as DescMessage),
});

const serve = async (options: SystemOptions): Promise<number> => {
  const pools = { app: new Connections(), directory: new Connections() };
  await pools.app.open(options.urls.app, options.poolSize);
  await pools.directory.open(options.urls.directory, options.poolSize);
  const server = new grpc.Server();
  for (const name of Object.keys(options.statements)) {
    const operation = operationOf(name);
    const { method } = operation;
    const handle = handlerOf(operation, options, pools);
    let last: Message | undefined;
    server.addService(
      {
        [name]: definitionOf(method, pathOf(method)),
        // The same answer from memory: what the messages and the transport cost by themselves.
        [`${name}Echo`]: definitionOf(method, `${pathOf(method)}Echo`),
      },
      {
        [name]: (
          call: grpc.ServerUnaryCall<Message, Message>,
          done: grpc.sendUnaryData<Message>,
        ) => {
          handle(call).then(
            (answer) => {
              last = answer;
              done(null, answer);
            },
            (error: Error) => done({ code: grpc.status.INTERNAL, details: error.message }),
          );
        },
        [`${name}Echo`]: (_call: unknown, done: grpc.sendUnaryData<Message>) =>
          last
            ? done(null, last)
            : done({ code: grpc.status.FAILED_PRECONDITION, details: "nothing to repeat yet" }),
      },
    );
  }
  return new Promise((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, port) =>
      error ? reject(error) : resolve(port),
    );
  });
};

ready(await serve(systemOptions()));
