/** Examines databases as each of their logins sees them: every check is made, whatever another one found. */
import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import {
  type Check,
  checkLogin,
  connect,
  type Finding,
  type LoginRole,
  problemIf,
  safetyChecks,
  verdict,
} from "./check.ts";
import { operationChecks, type PooledSubject } from "./check-operation.ts";

/** A URL to examine. */
export interface Target {
  /** What it is called in the report. */
  readonly name: string;
  readonly url: string;
  readonly role: LoginRole;
  readonly poolSize: number;
}

/** A finding and what it is about. */
export interface Line extends Finding {
  readonly about: string;
}

const fiveMinutes = 300;

const asksNothing = "see that host, port and name in the URL are right and that the server runs";

/** What to do when a connection fails, by the code of the system or of PostgreSQL. */
const connectRemedies: Readonly<Record<string, string>> = {
  ECONNREFUSED: "start PostgreSQL there, or correct host and port in the URL",
  ENOTFOUND: "correct the host's name in the URL",
  EAI_AGAIN: "see that this machine's name service answers",
  ETIMEDOUT: "see that a firewall lets this machine through to it",
  "28P01": "correct the password in the URL, or as an administrator: alter role … password '…'",
  "28000":
    "let the role in from this machine in pg_hba.conf; sql/bootstrap.sql makes the roles, with login",
  "3D000":
    "correct the database's name in the URL, or create it, then: sql/bootstrap.sql, npm run migrate",
  "42501": "as an administrator: grant connect on database … to the role",
  "53300": "raise max_connections, or the limit of the role or database, or lower POOL_SIZE",
  "55000": "as an administrator: alter database … allow_connections true",
  "57P03": "wait until PostgreSQL has started or recovered, and run this again",
};

const reasonOf = (error: unknown): { readonly code: string; readonly message: string } => {
  // Node tries every address of a host and then says nothing but that all failed.
  if (error instanceof AggregateError) return reasonOf(error.errors[0]);
  const { code, message } = error as NodeJS.ErrnoException;
  return { code: /timeout/.test(message) ? "ETIMEDOUT" : (code ?? ""), message };
};

const unreachable = (error: unknown, { url }: Target): Finding => {
  const { code, message } = reasonOf(error);
  const { host, pathname } = new URL(url);
  const text = `${host}${pathname} cannot be reached: ${message}`;
  return { level: "problem", text, remedy: connectRemedies[code] ?? asksNothing };
};

/** Tells servers and databases apart, also behind a pooler. */
const placeOf = async (client: pg.Client): Promise<string> => {
  const { rows } = await client.query(`
    select pg_postmaster_start_time() || ' ' || oid as place from pg_database where datname = current_database()`);
  return rows[0].place;
};

const run = async (
  checks: readonly Check<PooledSubject>[],
  subject: PooledSubject,
): Promise<readonly Finding[]> => {
  const found: Finding[] = [];
  for (const check of checks) {
    try {
      found.push(...(await check(subject)));
    } catch (error) {
      // Anything else means that the connection is gone, and with it the checks to come.
      if (!(error instanceof pg.DatabaseError)) throw error;
      const remedy = "run sql/bootstrap.sql again as an administrator, then: npm run migrate";
      found.push({ level: "problem", text: `cannot be examined: ${error.message}`, remedy });
    }
  }
  return found;
};

/** How long a standby may take to replay what the primary has when it is looked at. */
const replayMs = 1_000;

/** Whether the server may answer for the primary, whose log stands at this position; null when that is not known. */
const checkStandby =
  (position: string | null): Check =>
  async ({ client }) => {
    const behind = async (): Promise<boolean> => {
      const text = "select pg_last_wal_replay_lsn() < $1 as behind";
      return (await client.query(text, [position?.split(" ")[1] ?? "0/0"])).rows[0].behind;
    };
    const { rows } = await client.query(
      "select pg_is_in_recovery() as standby, roster.wal_history() as history",
    );
    const { standby, history } = rows[0];
    const follows = position === null || position.startsWith(`${history} `);
    for (const until = performance.now() + replayMs; performance.now() < until; ) {
      if (!standby || !follows || !(await behind())) break;
      await delay(50);
    }
    const found = [
      problemIf(
        !standby,
        "the server is no standby, so nothing is read there",
        "name a standby of the primary in the URL, or none",
      ),
      problemIf(
        standby && !follows,
        "the server follows another cluster or timeline than the primary's, so nothing is read there",
        "have it follow the primary; after a failover it takes a checkpoint until it knows its timeline",
      ),
      standby &&
        follows &&
        (await behind()) && {
          level: "warning" as const,
          text: "the standby is more than a second behind the primary, which answers in its place",
          remedy:
            "see pg_stat_replication at the primary, and whether replay is paused or waits for a query",
        },
    ];
    return verdict(found, "follows the primary, and may answer for it");
  };

/** Examines a standby of the primary behind another URL. */
export const examineReplica = async (
  target: Target,
  primaryUrl: string,
): Promise<readonly Line[]> => {
  const { name: about, url, role, poolSize } = target;
  const clients: pg.Client[] = [];
  const open = async (to: string): Promise<pg.Client> => {
    const client = await connect(to);
    clients.push(client);
    return client;
  };
  try {
    const client = await open(url);
    const position = await open(primaryUrl)
      .then((primary) => primary.query("select roster.wal_position() as position"))
      // What is wrong there is told of that URL.
      .then(
        ({ rows }): string | null => rows[0].position,
        () => null,
      );
    const subject = { client, role, poolSize, poolSizes: poolSize, longSeconds: fiveMinutes };
    const found = await run([checkLogin, checkStandby(position)], subject);
    return found.map((finding) => ({ about, ...finding }));
  } catch (error) {
    return [{ about, ...unreachable(error, target) }];
  } finally {
    await Promise.all(clients.map((client) => client.end()));
  }
};

/**
 * Examines the databases behind some URLs, one after the other: each login, and each database once.
 *
 * @param longSeconds from when on a transaction is long
 */
export const examine = async (
  targets: readonly Target[],
  longSeconds = fiveMinutes,
): Promise<readonly Line[]> => {
  const lines: Line[] = [];
  const poolSizes = targets
    .filter(({ role }) => role !== "roster_migrator")
    .reduce((sum, { poolSize }) => sum + poolSize, 0);
  const places = new Map<string, string>();
  for (const target of targets) {
    const { name, role, poolSize } = target;
    const note = (about: string, found: readonly Finding[]): void => {
      for (const finding of found) lines.push({ about, ...finding });
    };
    let client: pg.Client | undefined;
    try {
      client = await connect(target.url);
      const place = await placeOf(client);
      const subject: PooledSubject = { client, role, poolSize, poolSizes, longSeconds };
      note(name, await run([checkLogin, ...operationChecks.login], subject));
      if (places.has(place)) continue;
      places.set(place, name);
      const about = places.size === 1 ? "database" : `database of ${name}`;
      note(about, await run([...safetyChecks, ...operationChecks.database], subject));
    } catch (error) {
      note(name, [unreachable(error, target)]);
    } finally {
      await client?.end();
    }
  }
  if (places.size > 1) {
    const text = `${[...places.values()].join(" and ")} lead to different databases`;
    lines.push({ level: "problem", about: "database", text, remedy: "let all name the same one" });
  }
  return lines;
};
