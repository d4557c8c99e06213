import pino, { type Logger } from "pino";
import { type Config, readConfig } from "../config.ts";
import { rereadPassword } from "../database/passwords.ts";
import { startServer } from "../main.ts";
import { developmentTrust, signToken, startDevelopmentDatabase } from "./development.ts";

export const help = `usage: npx --no roster serve

Serves gRPC on GRPC_ADDR, and Connect, gRPC-Web, JSON, probes and metrics on HTTP_ADDR, until SIGTERM or
SIGINT. With ROSTER_DEV=1 and without DATABASE_URL it runs an embedded PostgreSQL under ROSTER_DATA_DIR,
applies migrations and makes a demo org.
Exit codes: 0 stopped, 1 cannot start, 2 the configuration is wrong.`;

/** Serves until a signal, then stops in order. A signal that comes during the start stops what was started. */
export const serve = async (): Promise<void> => {
  const config = readConfig();
  const log = logOf(config);
  const signal = firstSignal();
  const stop = await start(config, log);
  log.info(`${await signal}: stopping`);
  await stop();
  log.info("stopped");
};

/** npm hands on a Ctrl-C that this process heard already; a person who means it presses again later. */
const sameSignalMs = 1_000;

/** The signal that asks to stop. One that comes a second later or more ends the process at once. */
const firstSignal = (): Promise<string> =>
  new Promise((resolve) => {
    let firstMs: number | undefined;
    const hear = (name: string): void => {
      const now = performance.now();
      firstMs ??= now;
      if (now - firstMs >= sameSignalMs) process.exit(1);
      resolve(name);
    };
    for (const name of ["SIGTERM", "SIGINT", "SIGHUP"]) process.on(name, () => hear(name));
  });

const start = async (config: Config, log: Logger): Promise<() => Promise<void>> => {
  const own = config.dev ? await developmentTrust(config.dataDir) : undefined;
  const trust = config.identity ?? own?.trust;
  const tokenSecret = config.tokenSecret ?? own?.tokenSecret;
  // readConfig refuses to leave these out unless ROSTER_DEV=1.
  if (!trust || !tokenSecret) throw new Error("no keys to trust");
  const development = config.database
    ? undefined
    : await startDevelopmentDatabase(config.dataDir, (line) => log.info(line));
  const database = config.database ?? development?.urls;
  if (!database) throw new Error("no database");

  for (const [url, file] of config.databaseFiles) rereadPassword(url, file);

  const toStop: (() => Promise<void>)[] = [];
  // The database goes last, when nothing uses it any more.
  if (development) toStop.unshift(() => development.embedded.stop());
  const stop = async (): Promise<void> => {
    for (const part of toStop) await part();
  };
  try {
    const server = await startServer({
      address: config.grpc,
      http: config.http,
      tls: config.tls,
      spiffeFile: config.spiffeFile,
      database,
      poolSize: config.poolSize,
      pipeline: config.pipeline,
      trust,
      tokenSecret,
      purgeAfterDays: config.purgeAfterDays,
      auditRetentionDays: config.auditRetentionDays,
      operatorReason: config.operatorReason,
      noticeMs: config.shutdownNoticeSeconds * 1_000,
      openReflection: config.dev,
      log,
    });
    toStop.unshift(() => server.stop());
    const address = addressOf(config.grpc.host, server.port);
    const http = config.http && addressOf(config.http.host, server.httpPort);
    const shown =
      development && !config.identity && (await introduction(config, { address, http }, log));
    if (http) log.info(`HTTP on ${http}`);
    log.info(`listening on ${address}`);
    log.flush();
    if (shown) process.stdout.write(shown);
  } catch (error) {
    await stop();
    throw error;
  }
  return stop;
};

const addressOf = (host: string, port: number | undefined): string =>
  `${host.includes(":") ? `[${host}]` : host}:${port}`;

/** JSON lines for machines; in development, for a person at a terminal, lines to read. */
const logOf = ({ dev, logLevel: level }: Config): Logger => {
  if (dev && process.stdout.isTTY)
    return pino({ level }, { write: (line: string) => void process.stdout.write(readable(line)) });
  // In development written at once, so that what is shown beside the log comes in its order.
  if (dev) return pino({ level }, pino.destination({ dest: 1, sync: true }));
  return pino({ level }, new Batches());
};

/** Lines of the log that are written together: a write for each would cost a call more than its query does. */
class Batches {
  private readonly sink: ReturnType<typeof pino.destination>;
  private lines = "";

  constructor() {
    setInterval(() => this.flush(), 200).unref();
    // Before the sink, which closes itself at the exit, so that it still takes the last lines.
    for (const event of ["beforeExit", "exit"]) process.on(event, () => this.flush());
    this.sink = pino.destination({ dest: 1, sync: true });
  }

  write(line: string): void {
    this.lines += line;
    if (this.lines.length > 16 * 1024) this.flush();
  }

  flush(): void {
    if (this.lines === "") return;
    this.sink.write(this.lines);
    this.lines = "";
  }
}

/** A line of the log as a person reads it. */
const readable = (line: string): string => {
  const { level, time, pid: _pid, hostname: _hostname, msg, ...told } = JSON.parse(line);
  const { method, code, reason, duration_ms, ...rest } = told;
  const rpc = method &&
    code && [method.replace(/^roster\.v1\./, ""), code, reason, `${duration_ms} ms`];
  const words = [
    new Date(time).toTimeString().slice(0, 8),
    level > 30 && pino.levels.labels[level]?.toUpperCase(),
    msg,
    ...(rpc || []),
    ...Object.entries(rpc ? rest : told).map(([name, value]) => `${name}=${value}`),
  ];
  return `${words.filter(Boolean).join(" ")}\n`;
};

/** Makes the demo and tells how to call the service: every line works when pasted. */
const introduction = async (
  config: Config,
  { address, http }: { readonly address: string; readonly http: string | undefined },
  log: Logger,
): Promise<string> => {
  const { dataDir } = config;
  const ops = { subject: "service:ops", scope: ["roster.platform"] };
  const seeding = await signToken(dataDir, { ...ops, ttl: "5m" });
  // The calls that make the demo would bury what a newcomer looks for.
  const { level } = log;
  log.level = "warn";
  // A server has no use for a client but this once.
  const { seedDemo } = await import("./demo.ts");
  const { orgId, ownerId } = await seedDemo(dataDir, `http://${address}`, seeding);
  log.level = level;

  const token = await signToken(dataDir, { ...ops, ttl: "12h" });
  const header = '-H "authorization: Bearer $TOKEN"';
  const body = `-d '{"orgId":"${orgId}"}'`;
  const curl = "npx --no buf curl --protocol grpc --http2-prior-knowledge";
  const json = `curl ${header} -H "content-type: application/json" ${body}`;
  const byHttp = http ? `\n  ${json} http://${http}/roster.v1.OrgService/GetOrg` : "";
  const elsewhere = dataDir === ".roster" ? "" : `ROSTER_DATA_DIR='${dataDir}' `;
  return `
Roster is up, for this machine alone: gRPC on ${address}${http ? `, JSON on ${http}` : ""}, data in ${dataDir}.
The demo org Acme:  ${orgId}
Ada, who owns it:   ${ownerId}

Paste into another terminal, in this folder:

  export TOKEN=${token}
  ${curl} ${header} ${body} http://${address}/roster.v1.OrgService/ListOrgMembers
  grpcurl -plaintext ${header} ${body} ${address} roster.v1.TeamService/ListTeams${byHttp}

That token is an operator's and lasts 12 hours. One for Ada, in her org:

  ${elsewhere}npx --no roster token --user ${ownerId} --org ${orgId}

Ctrl-C stops the server.

`;
};
