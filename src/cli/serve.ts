import pino from "pino";
import { type Config, readConfig } from "../config.ts";
import { type RunningServer, startServer } from "../main.ts";
import { seedDemo } from "./demo.ts";
import { developmentTrust, signToken, startDevelopmentDatabase } from "./development.ts";

export const help = `usage: npx --no roster serve

Serves gRPC on GRPC_ADDR until SIGTERM or SIGINT. With ROSTER_DEV=1 and without DATABASE_URL it runs an
embedded PostgreSQL under ROSTER_DATA_DIR, applies migrations and makes a demo org.
Exit codes: 0 stopped, 1 cannot start, 2 the configuration is wrong.`;

/** Serves until a signal, then stops in order. */
export const serve = async (): Promise<void> => {
  const config = readConfig();
  const log = pino({ level: config.logLevel }, pino.destination({ dest: 1, sync: false }));
  const say = (line: string): void => log.info(line);

  const own = config.dev ? await developmentTrust(config.dataDir) : undefined;
  const trust = config.identity ?? own?.trust;
  const tokenSecret = config.tokenSecret ?? own?.tokenSecret;
  // readConfig refuses to leave these out unless ROSTER_DEV=1.
  if (!trust || !tokenSecret) throw new Error("no keys to trust");
  const development = config.database
    ? undefined
    : await startDevelopmentDatabase(config.dataDir, say);
  const database = config.database ?? development?.urls;
  if (!database) throw new Error("no database");

  let server: RunningServer | undefined;
  const stop = async (): Promise<void> => {
    await server?.stop();
    // The database goes last, when nothing uses it any more.
    await development?.embedded.stop();
  };
  try {
    server = await startServer({
      address: config.grpc,
      database,
      poolSize: config.poolSize,
      pipeline: config.pipeline,
      trust,
      tokenSecret,
      purgeAfterDays: config.purgeAfterDays,
      reflection: config.dev,
      log,
    });
    if (development && config.identity === undefined) await introduce(config, server.port);
  } catch (error) {
    await stop();
    throw error;
  }
  log.info(`listening on ${config.grpc.host}:${server.port}`);

  const signal = await new Promise<string>((resolve) => {
    for (const name of ["SIGTERM", "SIGINT"]) process.once(name, () => resolve(name));
  });
  log.info(`${signal}: stopping`);
  await stop();
  log.info("stopped");
};

/** Makes the demo and shows how to call the service: every line works when pasted. */
const introduce = async (config: Config, port: number): Promise<void> => {
  const { dataDir } = config;
  const ops = { subject: "service:ops", scope: ["roster.platform"] };
  const { orgId, ownerId } = await seedDemo(
    dataDir,
    port,
    await signToken(dataDir, { ...ops, ttl: "5m" }),
  );
  const token = await signToken(dataDir, { ...ops, ttl: "12h" });
  const address = `127.0.0.1:${port}`;
  const body = `{"orgId":"${orgId}"}`;
  process.stdout.write(`
Roster listens on ${address} (gRPC, development key, data in ${dataDir}).
Demo org Acme ${orgId}, its owner Ada ${ownerId}.

Paste into another terminal in this folder:

export TOKEN=${token}
npx buf curl --protocol grpc --http2-prior-knowledge -H "authorization: Bearer $TOKEN" -d '${body}' http://${address}/roster.v1.OrgService/ListOrgMembers
grpcurl -plaintext -H "authorization: Bearer $TOKEN" -d '${body}' ${address} roster.v1.TeamService/ListTeams

The token above is the operator's. One for Ada: npx --no roster token --user ${ownerId} --org ${orgId}

`);
};
