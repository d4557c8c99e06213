/** What a server can start on and a person should hear of before it hurts. */
import type { Check, Finding, Subject } from "./check.ts";
import { problemIf, verdict } from "./check.ts";

/** A connection whose login serves calls, or migrates. */
export interface PooledSubject extends Subject {
  /** The connections that one process opens by this URL. */
  readonly poolSize: number;
  /** The connections that one process opens to this database by all URLs. */
  readonly poolSizes: number;
  /** From how many seconds on a transaction is long. */
  readonly longSeconds: number;
}

const warningIf = (fault: boolean, text: string, remedy: string): Finding | false =>
  fault && { level: "warning", text, remedy };

/** Whether writes are taken: not by a standby, nor where a default makes transactions read-only. */
const checkWritable: Check = async ({ client }) => {
  const { rows } = await client.query(`
    select pg_is_in_recovery() as standby, current_setting('default_transaction_read_only') = 'on' as closed`);
  const { standby, closed } = rows[0];
  const found = [
    problemIf(
      standby,
      "the server is a standby, which takes no writes",
      "name the primary in the URL, or promote this one",
    ),
    problemIf(
      closed,
      "default_transaction_read_only is on, so every change is refused",
      "find who set it in pg_db_role_setting (psql: \\drds) or postgresql.conf, and reset it",
    ),
  ];
  return verdict(found, "takes writes");
};

/** Whether a role's own limit leaves room for its pool. */
const checkRoleLimit: Check<PooledSubject> = async ({ client, poolSize }) => {
  const { rows } = await client.query(`
    select rolname as name, rolconnlimit as most,
      (select count(*)::int from pg_stat_activity where usesysid = r.oid and pid <> pg_backend_pid()) as used
    from pg_roles r where rolname = session_user`);
  const { name, most, used } = rows[0];
  if (most < 0) return [];
  return room(
    `the role ${name}`,
    { most, used, wanted: poolSize },
    `alter role ${name} connection limit …`,
  );
};

interface Room {
  readonly most: number;
  readonly used: number;
  readonly wanted: number;
}

const room = (place: string, { most, used, wanted }: Room, raise: string): readonly Finding[] => {
  const remedy = `raise it (${raise}) or lower POOL_SIZE`;
  const need = `one process of Roster opens up to ${wanted}`;
  const found = [
    problemIf(wanted > most, `${place} may have ${most} connections, and ${need}`, remedy),
    warningIf(
      wanted <= most && used + wanted > most,
      `${place} may have ${most} connections and has ${used}, so one more process will not get its ${wanted}`,
      remedy,
    ),
  ];
  return verdict(found, `${place} has ${used} of ${most} connections; ${need}`);
};

/** Whether server and database leave room for all pools of a process. */
const checkConnections: Check<PooledSubject> = async ({ client, poolSizes: wanted }) => {
  const { rows } = await client.query(`
    select datname as name, datconnlimit as of_database, numbackends - 1 as used,
      (select sum(numbackends)::int - 1 from pg_stat_database) as used_of_server,
      current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
        - coalesce(current_setting('reserved_connections', true), '0')::int as of_server
    from pg_database join pg_stat_database using (datname) where datname = current_database()`);
  const { name, of_database, used, used_of_server, of_server } = rows[0];
  const server = { most: of_server, used: used_of_server, wanted };
  const database = { most: of_database, used, wanted };
  return [
    ...room("the server", server, "max_connections"),
    ...(of_database < 0
      ? []
      : room(`the database ${name}`, database, `alter database ${name} connection limit …`)),
  ];
};

const skewWarningMs = 1_000;
const skewProblemMs = 60_000;

/** Whether this machine and the database agree on the time. The shortest of three looks is the surest. */
const checkClock: Check = async ({ client }) => {
  let tripMs = Number.POSITIVE_INFINITY;
  let skewMs = 0;
  for (let look = 0; look < 3; look++) {
    const before = Date.now();
    const start = performance.now();
    const { rows } = await client.query(
      "select (extract(epoch from clock_timestamp()) * 1000)::float8 as now",
    );
    const thisTripMs = performance.now() - start;
    if (thisTripMs >= tripMs) continue;
    tripMs = thisTripMs;
    skewMs = before + tripMs / 2 - rows[0].now;
  }
  // The answer was given at some moment of the trip, nobody knows which.
  const sureMs = Math.abs(skewMs) - tripMs / 2;
  const trip = `a round trip takes ${tripMs.toFixed(1)} ms`;
  const by = `${(Math.abs(skewMs) / 1000).toFixed(1)} s ${skewMs > 0 ? "ahead of" : "behind"}`;
  const text = `this machine's clock is ${by} the database's`;
  const remedy = "set both by NTP; a token is judged by this machine's clock, which forgives 60 s";
  const found = [
    problemIf(sureMs > skewProblemMs, text, remedy),
    warningIf(sureMs > skewWarningMs && sureMs <= skewProblemMs, text, remedy),
  ];
  return verdict(found, `this machine's clock agrees with the database's; ${trip}`);
};

/** Whether the audit log's months have partitions, and nothing has landed outside them. */
const checkPartitions: Check = async ({ client }) => {
  const { rows } = await client.query<{ ahead: number; missing: string[]; spilt: string[] }>(`
    with logs as (
      select c.oid, c.relname as name from pg_class c
      where c.relnamespace = to_regnamespace('roster') and c.relname in ('audit_entries', 'audit_changes')),
    months as (
      select ahead, to_char((now() at time zone 'UTC') + make_interval(months => ahead), 'YYYY_MM') as month
      from generate_series(0, 1) ahead),
    parts as (
      select i.inhparent, c.oid, c.relname as name from pg_inherits i join pg_class c on c.oid = i.inhrelid)
    select ahead,
      array(
        select l.name || '_' || month from logs l
        where not exists (select from parts p where p.inhparent = l.oid and p.name = l.name || '_' || month)
        order by 1) as missing,
      array(
        select p.name::text from logs l join parts p on p.inhparent = l.oid
        where p.name = l.name || '_default' and pg_relation_size(p.oid) > 0 order by 1) as spilt
    from months where exists (select from logs) order by ahead`);
  const [now, next] = rows;
  // Without a log there is no schema, which is told elsewhere.
  if (!now || !next) return [];
  const make = "as roster_worker: select roster.make_partitions(12)";
  const found = [
    problemIf(
      now.missing.length > 0,
      `this month has no partition: ${now.missing.join(", ")}`,
      make,
    ),
    warningIf(
      next.missing.length > 0,
      `next month has no partition: ${next.missing.join(", ")}`,
      make,
    ),
    warningIf(
      now.spilt.length > 0,
      `entries of a month without a partition have landed in ${now.spilt.join(", ")}`,
      `${make}, which moves them`,
    ),
  ];
  return verdict(found, "the audit log has partitions for this month and the next");
};

interface LongTransaction {
  readonly id: string;
  readonly who: string;
  readonly minutes: number;
}

const heldBack = (found: readonly LongTransaction[], end: (id: string) => string) =>
  found.map(({ id, who, minutes }): Finding => {
    const text = `${who} has kept a transaction open for ${minutes.toFixed(0)} minutes, which holds vacuum back`;
    return { level: "warning", text, remedy: `unless it is needed, end it: ${end(id)}` };
  });

/** Sessions whose transaction keeps vacuum from removing what died since it began. */
const longSessions = async (
  { client, longSeconds }: PooledSubject,
  whose: "own" | "others",
): Promise<readonly LongTransaction[]> => {
  const { rows } = await client.query<LongTransaction>(
    `select pid::text as id, format('process %s of %s (%s)', pid, usename, state) as who,
      (extract(epoch from clock_timestamp() - xact_start) / 60)::float8 as minutes
     from pg_stat_activity
     where pid <> pg_backend_pid() and datname = current_database()
       and (backend_xmin is not null or backend_xid is not null)
       and clock_timestamp() - xact_start > make_interval(secs => $1)
       and case $2 when 'own' then usename = session_user
         else usename <> all (array[session_user, 'roster_app', 'roster_directory', 'roster_migrator']) end
     order by xact_start`,
    [longSeconds, whose],
  );
  return rows;
};

const ended = (pid: string): string => `select pg_terminate_backend(${pid})`;

const checkOwnTransactions: Check<PooledSubject> = async (subject) =>
  verdict(
    heldBack(await longSessions(subject, "own"), ended),
    "no session of this role holds vacuum back",
  );

/**
 * Transactions that were prepared and never ended, which everyone may see, and those of other roles' sessions,
 * which PostgreSQL shows to members of pg_read_all_stats.
 */
const checkOtherTransactions: Check<PooledSubject> = async (subject) => {
  const { rows } = await subject.client.query<LongTransaction>(
    `select quote_literal(gid) as id, format('%s (prepared as %L)', owner, gid) as who,
      (extract(epoch from clock_timestamp() - prepared) / 60)::float8 as minutes
     from pg_prepared_xacts
     where database = current_database() and clock_timestamp() - prepared > make_interval(secs => $1)
     order by prepared`,
    [subject.longSeconds],
  );
  return [
    ...heldBack(await longSessions(subject, "others"), ended),
    ...heldBack(rows, (gid) => `rollback prepared ${gid}`),
  ];
};

/** What is asked of each login, and what of the database, once. */
export const operationChecks = {
  login: [checkWritable, checkRoleLimit, checkOwnTransactions],
  database: [checkConnections, checkClock, checkPartitions, checkOtherTransactions],
} as const satisfies Record<string, readonly Check<PooledSubject>[]>;
