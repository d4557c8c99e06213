/** Servers in processes of their own, as an operator runs them, on a PostgreSQL that keeps what it acknowledged. */
import { randomUUID } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import { inject, onTestFinished } from "vitest";
import { type Embedded, startEmbedded } from "../src/database/embedded.ts";
import { provision } from "../src/database/provision.ts";
import { launch } from "./command.ts";
import { audience, callersOf, issuer, slug, tokenFor } from "./harness.ts";

/** A port that is free now. */
export const freePort = async (): Promise<number> => {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
};

/** What `/readyz` says; 0: nothing. */
export const readiness = async (httpPort: number): Promise<number> => {
  try {
    const url = `http://127.0.0.1:${httpPort}/readyz`;
    return (await fetch(url, { signal: AbortSignal.timeout(1_000) })).status;
  } catch {
    return 0;
  }
};

/** Waits until something is so, and tells how many milliseconds that took. */
export const until = async (is: () => Promise<boolean>, limitMs = 120_000): Promise<number> => {
  const start = performance.now();
  while (!(await is())) {
    if (performance.now() - start > limitMs) throw new Error(`not so after ${limitMs} ms: ${is}`);
    await delay(10);
  }
  return performance.now() - start;
};

/** A PostgreSQL with fsync, of its own. */
export class Database {
  readonly urls: Awaited<ReturnType<typeof provision>>;
  private readonly dataDir: string;
  private server: Embedded;

  private constructor(dataDir: string, server: Embedded, urls: Database["urls"]) {
    this.dataDir = dataDir;
    this.server = server;
    this.urls = urls;
  }

  static async start(name: string): Promise<Database> {
    const dataDir = join(inject("folder"), name);
    const server = await startEmbedded({ dataDir });
    const database = new Database(dataDir, server, await provision(server.adminUrl, "roster"));
    onTestFinished(() => database.stop());
    return database;
  }

  stop(): Promise<void> {
    return this.server.stop();
  }

  /** On the port that it had. */
  async restart(): Promise<void> {
    this.server = await startEmbedded({ dataDir: this.dataDir, port: this.server.port });
  }

  /** Kills the server and each of its processes. */
  kill(): void {
    const pid = Number.parseInt(
      readFileSync(join(this.dataDir, "pgdata", "postmaster.pid"), "utf8"),
      10,
    );
    const children = readdirSync("/proc").filter((entry) => {
      try {
        return /\) \S (\d+)/.exec(readFileSync(`/proc/${entry}/stat`, "utf8"))?.[1] === `${pid}`;
      } catch {
        return false;
      }
    });
    for (const process_ of [pid, ...children.map(Number)]) {
      try {
        process.kill(process_, "SIGKILL");
      } catch {
        // It ended with the first.
      }
    }
  }

  /** Runs one statement as the superuser, on a connection of its own. */
  async query<T = Record<string, unknown>>(text: string, values: unknown[] = []): Promise<T[]> {
    const client = new pg.Client({ connectionString: this.urls.admin });
    client.on("error", () => {});
    await client.connect();
    try {
      return (await client.query(text, values)).rows as T[];
    } finally {
      await client.end().catch(() => {});
    }
  }
}

/** A server process, which keeps its ports from one start to the next. */
export class ServerProcess {
  readonly port: number;
  readonly httpPort: number;
  private readonly env: NodeJS.ProcessEnv;
  private running: ReturnType<typeof launch> | undefined;

  private constructor(port: number, httpPort: number, env: NodeJS.ProcessEnv) {
    this.port = port;
    this.httpPort = httpPort;
    this.env = env;
  }

  static async on({ urls }: Database): Promise<ServerProcess> {
    const [port, httpPort] = [await freePort(), await freePort()];
    const file = join(inject("folder"), `jwks-${randomUUID()}.json`);
    const { d: _private, ...publicKey } = inject("signingKey");
    writeFileSync(file, JSON.stringify({ keys: [publicKey] }));
    return new ServerProcess(port, httpPort, {
      DATABASE_URL: urls.app,
      DIRECTORY_DATABASE_URL: urls.directory,
      WORKER_DATABASE_URL: urls.worker,
      JWKS_FILE: file,
      JWT_ISSUER: issuer,
      JWT_AUDIENCE: audience,
      TOKEN_SECRET: "a secret of at least thirty-two characters",
      GRPC_ADDR: `127.0.0.1:${port}`,
      HTTP_ADDR: `127.0.0.1:${httpPort}`,
      SHUTDOWN_NOTICE_SECONDS: "1",
      LOG_LEVEL: "warn",
    });
  }

  /** Starts it, and waits until it is ready. */
  async start(): Promise<void> {
    const running = launch(["serve"], this.env);
    this.running = running;
    await until(async () => {
      if (running.child.exitCode !== null)
        throw new Error(`the server has ended: ${running.said.stdout} ${running.said.stderr}`);
      return (await readiness(this.httpPort)) === 200;
    });
  }

  /** Sends a signal, and gives the exit code once it has ended. */
  async end(signal: NodeJS.Signals): Promise<number | null> {
    this.running?.child.kill(signal);
    return (await this.running?.ended)?.code ?? null;
  }
}

/** An org with its owner, whose clients call that server. */
export const tenantOn = async (port: number) => {
  const baseUrl = `http://127.0.0.1:${port}`;
  const day = { expires: "24h" };
  const operator = await tokenFor("service:ops", { scope: "roster.platform", ...day });
  const ops = callersOf(baseUrl, operator);
  const email = `${randomUUID()}@example.com`;
  const { user } = await ops.users.createUser({ user: { email, name: "Owner" } });
  const ownerId = user?.id ?? "";
  const { org } = await ops.orgs.createOrg({
    org: { name: "Org", slug: slug() },
    ownerUserId: ownerId,
  });
  const token = await tokenFor(ownerId, day);
  return { orgId: org?.id ?? "", ownerId, token, owner: callersOf(baseUrl, token) };
};

export type OwnTenant = Awaited<ReturnType<typeof tenantOn>>;
