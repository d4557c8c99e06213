/** What a benchmark runs on: a database of its own, the systems to compare, and the process that calls them. */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { fromBinary, type Message } from "@bufbuild/protobuf";
import grpc from "@grpc/grpc-js";
import { exportJWK, generateKeyPair, type JWK, SignJWT } from "jose";
import pg from "pg";
import pino from "pino";
import { startEmbedded } from "../../src/database/embedded.ts";
import { type Provisioned, provision } from "../../src/database/provision.ts";
import { startServer } from "../../src/main.ts";
import { tokenSecret } from "./data.ts";
import type { Counted, GivenCalls, LoadOptions, Run } from "./load.ts";
import { bytesOf, type Operation, pathOf } from "./operations.ts";
import {
  cpuUs,
  parentOf,
  postgresCpuUs,
  type Served,
  type SystemOptions,
  start,
} from "./process.ts";
import { type Templates, templatesOf } from "./statements.ts";

const issuer = "roster-bench";
const audience = "roster";
const poolSize = 10;
/** Calls that are under way at once. */
const callers = 16;

/** What one run cost. */
export interface Cost {
  readonly rps: number;
  readonly p50Ms: number;
  readonly p99Ms: number;
  /** CPU time of the server for one call, in microseconds. */
  readonly serverUs: number;
  /** CPU time of all of PostgreSQL for one call, in microseconds. */
  readonly postgresUs: number;
}

/** A migrated database and a superuser's connection to it. */
export interface Database {
  readonly urls: Provisioned;
  readonly admin: pg.Client;
}

/** A running database with what belongs to it. */
export class Stand {
  readonly urls: Provisioned;
  /** A superuser's connection. */
  readonly admin: pg.Client;
  /** Holds what the processes write and read; removed at the end. */
  readonly folder: string;
  private readonly signingKey: JWK;
  private readonly postmaster: number;
  private readonly stopDatabase: () => Promise<void>;
  private loader: ChildProcess | undefined;
  private readonly children: ChildProcess[] = [];
  private readonly further: pg.Client[] = [];

  constructor(
    parts: Pick<Stand, "urls" | "admin" | "folder">,
    signingKey: JWK,
    postmaster: number,
    stopDatabase: () => Promise<void>,
  ) {
    this.urls = parts.urls;
    this.admin = parts.admin;
    this.folder = parts.folder;
    this.signingKey = signingKey;
    this.postmaster = postmaster;
    this.stopDatabase = stopDatabase;
  }

  /** What `serve` is started with to run on this database. */
  environment(port = 0, urls = this.urls): NodeJS.ProcessEnv {
    return {
      ...process.env,
      ROSTER_DEV: "",
      DATABASE_URL: urls.app,
      DIRECTORY_DATABASE_URL: urls.directory,
      GRPC_ADDR: `127.0.0.1:${port}`,
      HTTP_ADDR: "127.0.0.1:0",
      JWKS_FILE: join(this.folder, "jwks.json"),
      JWT_ISSUER: issuer,
      JWT_AUDIENCE: audience,
      TOKEN_SECRET: tokenSecret,
      POOL_SIZE: String(poolSize),
    };
  }

  /** Starts Roster as `npx --no roster serve` does. It collects its garbage on SIGUSR2. */
  async serveRoster(urls = this.urls, flags: readonly string[] = []): Promise<Served> {
    const log = join(this.folder, `roster-${this.children.length}.log`);
    const collect = "process.on('SIGUSR2', () => { gc(); gc(); })";
    const child = spawn(
      process.execPath,
      [
        ...flags,
        "--expose-gc",
        `--import=data:text/javascript,${encodeURIComponent(collect)}`,
        fileURLToPath(new URL("../../src/cli/roster.js", import.meta.url)),
        "serve",
      ],
      { env: this.environment(0, urls), stdio: ["ignore", openSync(log, "w"), "inherit"] },
    );
    this.children.push(child);
    for (;;) {
      const port = /listening on 127\.0\.0\.1:(\d+)/.exec(readFileSync(log, "utf8"))?.[1];
      if (port !== undefined) return { pid: child.pid as number, port: Number(port) };
      if (child.exitCode !== null) throw new Error(`serve ended:\n${readFileSync(log, "utf8")}`);
      await sleep(2);
    }
  }

  /** Milliseconds until a server answers that is started now. It is stopped again. */
  async timeToServe(): Promise<number> {
    const begin = performance.now();
    const served = await this.serveRoster();
    const ms = performance.now() - begin;
    await this.stopServing(served);
    return ms;
  }

  /** Stops a server before the stand does. */
  async stopServing({ pid }: Served): Promise<void> {
    const child = this.children.find((candidate) => candidate.pid === pid) as ChildProcess;
    child.kill("SIGTERM");
    await once(child, "exit");
  }

  /** Starts a module of this folder that serves. */
  async serve(module: string, options: SystemOptions): Promise<Served> {
    const file = this.file(`${module}.json`, options);
    const { child, said } = await start<{ port: number }>(module, file);
    this.children.push(child);
    return { pid: child.pid as number, port: said.port };
  }

  /** Learns what Roster sends to the database for each operation, by its method. */
  async listen(operations: readonly Operation[]): Promise<Record<string, Templates>> {
    const server = await startServer({
      address: { host: "127.0.0.1", port: 0 },
      database: this.urls,
      poolSize: 1,
      pipeline: true,
      trust: {
        jwks: { file: join(this.folder, "jwks.json") },
        issuer,
        audience,
        orgClaim: "org",
      },
      tokenSecret,
      purgeAfterDays: 30,
      openReflection: false,
      log: pino({ level: "silent" }),
    });
    const client = new grpc.Client(`127.0.0.1:${server.port}`, grpc.credentials.createInsecure());
    const templates: Record<string, Templates> = {};
    for (const operation of operations) {
      templates[operation.method.name] = await templatesOf(
        operation,
        [3, 7],
        async (sender, request) => {
          const token = await this.tokenOf(sender);
          await callOnce(client, operation, request, token);
        },
      );
    }
    client.close();
    await server.stop();
    return templates;
  }

  /** A token of a user, or of an operator. */
  tokenOf(sender: string | undefined): Promise<string> {
    return new SignJWT(sender === undefined ? { scope: "roster.platform" } : {})
      .setProtectedHeader({ alg: "ES256", kid: "bench" })
      .setSubject(sender ?? "service:bench")
      .setIssuer(issuer)
      .setAudience(audience)
      .setExpirationTime("1h")
      .sign(this.signingKey);
  }

  /** Makes another empty, migrated database in the same PostgreSQL. */
  async addDatabase(name: string): Promise<Database> {
    const server = new URL(this.urls.admin);
    server.pathname = "/postgres";
    const urls = await provision(server.href, name);
    const admin = new pg.Client({ connectionString: urls.admin });
    await admin.connect();
    this.further.push(admin);
    return { urls, admin };
  }

  /** Makes the n-th call of an operation and returns the answer. */
  async call(served: Served, operation: Operation, n = 0): Promise<Message> {
    const { sender, request } = operation.call(n);
    const client = new grpc.Client(`127.0.0.1:${served.port}`, grpc.credentials.createInsecure());
    try {
      const bytes = await callOnce(client, operation, request, await this.tokenOf(sender));
      return fromBinary(operation.method.output, bytes);
    } finally {
      client.close();
    }
  }

  /**
   * Runs the closed loop against a system and takes the CPU time of it and of PostgreSQL. The
   * operation is one of the list by its name, or calls that were made of another one.
   */
  async measure(
    served: Served,
    operation: string | GivenCalls,
    seconds: number,
    { echo = false } = {},
  ): Promise<Cost> {
    const run: Run = { port: served.port, operation, echo, seconds, callers };
    const before = [cpuUs(served.pid), postgresCpuUs(this.postmaster)] as const;
    const counted = await this.drive(run);
    const after = [cpuUs(served.pid), postgresCpuUs(this.postmaster)] as const;
    return {
      rps: counted.calls / counted.seconds,
      p50Ms: counted.p50Ms,
      p99Ms: counted.p99Ms,
      serverUs: (after[0] - before[0]) / counted.calls,
      postgresUs: (after[1] - before[1]) / counted.calls,
    };
  }

  private async drive(run: Run): Promise<Counted> {
    if (!this.loader) {
      const options: LoadOptions = { signingKey: this.signingKey, issuer, audience };
      this.loader = (await start("load.ts", this.file("load.json", options))).child;
      this.children.push(this.loader);
      this.loader.on("exit", (code) => {
        if (code) throw new Error(`the calling process ended with ${code}`);
      });
    }
    const { loader } = this;
    loader.send(run);
    const [message] = (await once(loader, "message")) as [{ counted?: Counted; error?: string }];
    if (!message.counted) throw new Error(message.error);
    return message.counted;
  }

  /** Writes a file for a process to read and returns its path. */
  file(name: string, content: unknown): string {
    const path = join(this.folder, name);
    writeFileSync(path, JSON.stringify(content), { mode: 0o600 });
    return path;
  }

  async stop(): Promise<void> {
    const running = this.children.filter(
      (child) => child.exitCode === null && child.signalCode === null,
    );
    const ended = running.map((child) => once(child, "exit"));
    for (const child of running) child.kill("SIGTERM");
    await Promise.all(ended);
    for (const client of [this.admin, ...this.further]) await client.end();
    await this.stopDatabase();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

const callOnce = (
  client: grpc.Client,
  { method }: Operation,
  request: Message,
  token: string,
): Promise<Buffer> => {
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  return new Promise((resolve, reject) => {
    client.makeUnaryRequest(
      pathOf(method),
      (bytes: Buffer) => bytes,
      (bytes: Buffer) => bytes,
      bytesOf(method, request),
      metadata,
      (error, bytes) => (error ? reject(error) : resolve(bytes as Buffer)),
    );
  });
};

/**
 * Starts a PostgreSQL of its own, with an empty, migrated database. One that is not durable loads faster
 * and reads at the same cost.
 */
export const openStand = async ({ durable = true } = {}): Promise<Stand> => {
  const folder = mkdtempSync(join(tmpdir(), "roster-bench-"));
  // As root, PostgreSQL runs as another account, which must be able to enter.
  chmodSync(folder, 0o755);
  const embedded = await startEmbedded({ dataDir: join(folder, "postgres"), durable });
  const urls = await provision(embedded.adminUrl, "roster_bench");
  const admin = new pg.Client({ connectionString: urls.admin });
  await admin.connect();
  const { rows } = await admin.query("select pg_backend_pid() as pid");
  const postmaster = parentOf(rows[0].pid);

  const { privateKey } = await generateKeyPair("ES256", { extractable: true });
  const signingKey = { ...(await exportJWK(privateKey)), kid: "bench", alg: "ES256" };
  const { d: _private, ...publicKey } = signingKey;
  writeFileSync(join(folder, "jwks.json"), JSON.stringify({ keys: [publicKey] }));
  const stand = new Stand({ urls, admin, folder }, signingKey, postmaster, () => embedded.stop());
  // Who gives up half-way leaves no server and no gigabytes behind.
  for (const signal of ["SIGINT", "SIGTERM"])
    process.once(signal, () => void stand.stop().finally(() => process.exit(1)));
  return stand;
};
