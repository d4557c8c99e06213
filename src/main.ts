/** The whole process on one screen: database → corridor → ports, and how it stops. */
import { readFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import type { Logger } from "pino";
import { type DatabaseUrls, directoryPoolSize, type HttpConfig, type TlsConfig } from "./config.ts";
import { checkDatabase } from "./database/check.ts";
import { ConsistencyTokens } from "./database/consistency.ts";
import { tokenKey } from "./database/page.ts";
import { openPool } from "./database/pool.ts";
import { Readiness } from "./database/readiness.ts";
import { Replica } from "./database/replica.ts";
import { Feed, type FeedLimits } from "./database/watchers.ts";
import type { OperatorReason } from "./interceptors/audit.ts";
import type { DeadlineLimits } from "./interceptors/deadline.ts";
import { operatorsOnly, type Trust, Verifier } from "./interceptors/identity.ts";
import { corridor } from "./interceptors/index.ts";
import { readingAll } from "./interceptors/unit-of-work.ts";
import { startJobs } from "./jobs/index.ts";
import { Renewed } from "./renewed.ts";
import { routes } from "./routes.ts";
import { readAllowed } from "./spiffe.ts";
import { readCertificates } from "./transport/certificates.ts";
import { serveGrpc } from "./transport/grpc.ts";
import { serveHttp } from "./transport/http.ts";
import { Metrics } from "./transport/metrics.ts";

/** What a server is made of. */
export interface ServerOptions {
  readonly address: { readonly host: string; readonly port: number };
  /** Undefined: no HTTP port. */
  readonly http?: HttpConfig | undefined;
  /** Undefined: both ports serve cleartext. */
  readonly tls?: TlsConfig | undefined;
  /** The file of SPIFFE ids; undefined: no client certificate makes a caller. */
  readonly spiffeFile?: string | undefined;
  readonly database: DatabaseUrls;
  readonly poolSize: number;
  readonly pipeline: boolean;
  readonly trust: Trust;
  /** Of it come the keys of all tokens; every process of a deployment has the same. */
  readonly tokenSecret: string;
  readonly purgeAfterDays: number;
  /** How long the audit log that belongs to no org is kept; 0, as without it: for good. */
  readonly auditRetentionDays?: number;
  /** Whether operators must say why they call; by default they need not. */
  readonly operatorReason?: OperatorReason;
  /** Whether anyone who reaches the port may read the protos from it, or operators alone. */
  readonly openReflection: boolean;
  /** How long an RPC may take: by default 10 s, and a minute at most; a stream half an hour. */
  readonly deadlines?: DeadlineLimits;
  /** Milliseconds for which a server that stops says so and still takes calls: none unless set. */
  readonly noticeMs?: number;
  /** How the change feed is watched: by default polled every 50 ms, with a heartbeat each 15 s. */
  readonly feed?: Partial<FeedLimits>;
  readonly log: Logger;
}

/** A server that answers. */
export interface RunningServer {
  /** The port it listens on, also when 0 was asked. */
  readonly port: number;
  /** The HTTP port, where there is one. */
  readonly httpPort: number | undefined;
  /** Flushes sent to the database since the start: reads cost one each. */
  roundTrips(): number;
  /** Streams of changes that are open. */
  watchers(): number;
  /** Stops taking calls, lets running ones end, closes the database. */
  stop(): Promise<void>;
}

const usualDeadlines = { defaultMs: 10_000, maximumMs: 60_000, streamMs: 30 * 60_000 };
const usualFeed = {
  pollMs: 50,
  heartbeatMs: 15_000,
  buffered: 10_000,
  bufferedBytes: 16 * 1024 * 1024,
  watchers: 2_000,
  watchersOfOrg: 100,
};
const graceMs = 10_000;

/**
 * Starts a server: refuses a database that would not keep tenants apart, then opens the port.
 *
 * @throws UnsafeDatabase, SchemaError, or what the network says
 */
export const startServer = async (options: ServerOptions): Promise<RunningServer> => {
  const { address, database, poolSize, pipeline, trust, tokenSecret, purgeAfterDays, log } =
    options;
  const { auditRetentionDays, noticeMs = 0 } = options;
  let stopping = false;
  await Promise.all([
    checkDatabase(database.app, "roster_app"),
    checkDatabase(database.directory, "roster_directory"),
  ]);
  const metrics = new Metrics({
    isReady: () => readiness.ready && !stopping,
    watchers: () => feed.watchers,
    feedLagMs: () => feed.lagMs,
    sealLagMs: () => jobs?.sealLagMs,
  });
  const open = async (name: string, url: string, size: number) => {
    const pool = await openPool(url, { size, pipeline, meter: metrics.meterOf(name) });
    metrics.watch(name, pool);
    return pool;
  };
  const [app, directory, polling, standby] = await Promise.all([
    open("roster_app", database.app, poolSize),
    open("roster_directory", database.directory, directoryPoolSize(poolSize)),
    open("feed", database.directory, 1),
    // Nobody looks at it now: it may be down, and is safe as the primary is while it follows that.
    database.replica === undefined ? undefined : open("replica", database.replica, poolSize),
  ]);
  const renewing: { stop(): void }[] = [];
  /** Files that are read anew when they change. */
  const renewed = <T>(files: readonly string[], read: () => T): Renewed<T> => {
    const found = new Renewed(files, read, (error) =>
      log.error(`${error.message}; what it replaces stays in force`),
    );
    found.onChange(() => log.info({ files }, "read anew"));
    renewing.push(found);
    return found;
  };
  const { tls, spiffeFile } = options;
  const certificates =
    tls &&
    renewed([tls.certificate, tls.key, ...(tls.clientCa ? [tls.clientCa] : [])], () =>
      readCertificates(tls),
    );
  const allowed =
    spiffeFile === undefined
      ? undefined
      : renewed([spiffeFile], () => readAllowed(readFileSync(spiffeFile, "utf8")));
  const verifier = new Verifier(trust, allowed);
  const sessions = { app, directory, replica: standby && new Replica(standby) };
  const feed = new Feed(readingAll(polling), { ...usualFeed, ...options.feed });
  const interceptors = corridor({
    log,
    meter: metrics,
    deadlines: options.deadlines ?? usualDeadlines,
    verifier,
    sessions,
    tokens: new ConsistencyTokens(tokenKey(tokenSecret, "consistency")),
    feed,
    operatorReason: options.operatorReason ?? "optional",
    settings: {
      pageKey: tokenKey(tokenSecret, "page"),
      positionKey: tokenKey(tokenSecret, "position"),
      invitationKey: tokenKey(tokenSecret, "invitation"),
      purgeAfterDays,
    },
  });
  const server = await serveGrpc({
    ...address,
    certificates,
    routes,
    interceptors,
    mayReflect: options.openReflection ? undefined : operatorsOnly(verifier),
  });
  const readiness = new Readiness(database.app, (ready) => {
    log.warn(ready ? "the database is usable again" : "the database cannot be used: not ready");
    server.setServing(ready);
  });
  const http =
    options.http &&
    (await serveHttp({
      ...options.http,
      certificates,
      routes,
      interceptors,
      unready: () => (stopping ? "draining" : readiness.ready ? undefined : "no database"),
      metrics: () => metrics.text(),
    }).catch(async (error: unknown) => {
      for (const files of renewing) files.stop();
      await Promise.all([readiness.stop(), server.stop(0)]);
      throw error;
    }));
  const jobs =
    database.worker === undefined
      ? undefined
      : startJobs(database.worker, log, { auditRetentionDays });
  return {
    port: server.port,
    httpPort: http?.port,
    roundTrips: () =>
      [app, directory, polling, standby].reduce(
        (sum, pool) => sum + (pool?.roundTrips.count ?? 0),
        0,
      ),
    watchers: () => feed.watchers,
    stop: async () => {
      stopping = true;
      server.setServing(false);
      await readiness.stop();
      // Who sends calls here may look only now and then whether they are welcome.
      await delay(noticeMs);
      await Promise.all([server.stop(graceMs), http?.drain(graceMs)]);
      // Until here it says that it is not ready.
      await http?.close();
      for (const files of renewing) files.stop();
      await Promise.all([app.end(), directory.end(), polling.end(), standby?.end(), jobs?.stop()]);
    },
  };
};
