/** A primary with a standby in streaming replication, both of their own, for tests of what is read where. */
import { execFileSync } from "node:child_process";
import { appendFileSync, chownSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import pg from "pg";
import { inject } from "vitest";
import { type Embedded, startEmbedded } from "../src/database/embedded.ts";
import { provision, urlsOf } from "../src/database/provision.ts";
import { weakenDatabase } from "./mutants/weakness.ts";

/** Both servers. */
export interface Pair {
  readonly urls: ReturnType<typeof urlsOf>;
  /** The app's login on the standby. */
  readonly replica: string;
  /** A superuser's connection to each. */
  readonly primary: pg.Client;
  standby: pg.Client;
  /** Stops the standby, and starts it on the port that it had. */
  stopStandby(): Promise<void>;
  startStandby(): Promise<void>;
  stop(): Promise<void>;
}

const database = "roster";

const connected = async (url: string): Promise<pg.Client> => {
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => {});
  await client.connect();
  return client;
};

/** Starts the pair in a folder of that name under the run's. */
export const startPair = async (name: string): Promise<Pair> => {
  const folder = join(inject("folder"), name);
  mkdirSync(folder);
  const [first, second] = [join(folder, "primary"), join(folder, "standby")];
  const options = { durable: false } as const;
  // A copy of a server that is shut down is a standby of it, as a backup would be.
  const made = await startEmbedded({ ...options, dataDir: first });
  await provision(made.adminUrl, database);
  await made.stop();
  execFileSync("cp", ["-a", first, second]);
  const primary = await startEmbedded({ ...options, dataDir: first });
  const { port, username, password } = new URL(primary.adminUrl);
  const signal = join(second, "pgdata", "standby.signal");
  writeFileSync(signal, "");
  const { uid, gid } = statSync(join(second, "pgdata"));
  chownSync(signal, uid, gid);
  const login = `host=127.0.0.1 port=${port} user=${username} password=${password}`;
  appendFileSync(
    join(second, "pgdata", "postgresql.auto.conf"),
    `primary_conninfo = '${login}'\nwal_retrieve_retry_interval = 100\n`,
  );
  let standby: Embedded = await startEmbedded({ ...options, dataDir: second });
  const urls = urlsOf(primary.adminUrl, database);
  const admin = await connected(urls.admin);
  // The log is sent once it is flushed, which without this is done now and then.
  await admin.query(`alter database ${database} set synchronous_commit = on`);
  await weakenDatabase(admin);
  const at = urlsOf(standby.adminUrl, database);
  const pair: Pair = {
    urls,
    replica: at.app,
    primary: admin,
    standby: await connected(at.admin),
    async stopStandby() {
      await pair.standby.end();
      await standby.stop();
    },
    async startStandby() {
      const { port: taken } = standby;
      standby = await startEmbedded({ ...options, dataDir: second, port: taken });
      pair.standby = await connected(at.admin);
    },
    async stop() {
      await Promise.all([admin.end(), pair.standby.end()]);
      await standby.stop();
      await primary.stop();
    },
  };
  return pair;
};
