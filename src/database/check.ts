/** What must hold before a server may serve: the wall stands, and its own role cannot climb it. */
import pg from "pg";
import { SchemaError, schemaFaults } from "./migrate.ts";

/** The database is set up in a way that would not keep tenants apart; one line per fault. */
export class UnsafeDatabase extends Error {
  override readonly name = "UnsafeDatabase";
}

/** Whom a connection URL must log in as. */
export type LoginRole = "roster_app" | "roster_directory" | "roster_worker" | "roster_migrator";

/** What a check found, in words for whoever runs the deployment. */
export interface Finding {
  readonly level: "ok" | "warning" | "problem";
  readonly text: string;
  /** How to mend it; absent where nothing is wrong. */
  readonly remedy?: string;
}

/** A connection to look at, and what is known about it beforehand. */
export interface Subject {
  readonly client: pg.Client;
  readonly role: LoginRole;
}

/** One question to a database. It reads and changes nothing. */
export type Check<S extends Subject = Subject> = (subject: S) => Promise<readonly Finding[]>;

/** What is wrong, or else that nothing is. */
export const verdict = (
  found: readonly (Finding | false | undefined)[],
  fine: string,
): readonly Finding[] => {
  const faults = found.filter((finding) => finding !== undefined && finding !== false);
  return faults.length > 0 ? faults : [{ level: "ok", text: fine }];
};

/** A problem unless `fault` is false. */
export const problemIf = (fault: boolean, text: string, remedy: string): Finding | false =>
  fault && { level: "problem", text, remedy };

interface RoleFacts {
  readonly superuser: boolean;
  readonly bypasses: boolean;
  readonly fits: boolean;
  readonly owned: string[];
  readonly owners: string[];
}

/** Whether row-level security binds the connection's role. */
const checkRole: Check = async ({ client, role }) => {
  const { rows } = await client.query<RoleFacts>(
    `select r.rolsuper as superuser, r.rolbypassrls as bypasses,
      exists (select from pg_roles where rolname = $1 and pg_has_role(current_user, oid, 'usage')) as fits,
      array(
        select c.relname::text from pg_class c
        where c.relnamespace = to_regnamespace('roster') and c.relkind in ('r', 'p')
          and not c.relispartition and pg_has_role(current_user, c.relowner, 'member') order by 1) as owned,
      array(
        select distinct o.rolname::text from pg_proc p join pg_roles o on o.oid = p.proowner
        where p.pronamespace = to_regnamespace('roster')
          and pg_has_role(current_user, p.proowner, 'member') order by 1) as owners
    from pg_roles r where r.rolname = current_user`,
    [role],
  );
  const [{ superuser, bypasses, fits, owned, owners }] = rows as [RoleFacts];
  const remedy = `log in as ${role}`;
  const found = [
    problemIf(
      superuser,
      "the login role is a superuser, whom row-level security does not bind",
      remedy,
    ),
    problemIf(bypasses, "the login role has BYPASSRLS", remedy),
    problemIf(!fits, `the login role is not ${role}`, remedy),
    problemIf(owned.length > 0, `the login role owns ${owned.join(", ")}`, remedy),
    problemIf(
      owned.length === 0 && owners.length > 0,
      `the login role may become ${owners.join(", ")}, and so do what only functions may`,
      remedy,
    ),
  ];
  return verdict(found, `acts as ${role}, and row-level security binds it`);
};

/** Whether the role of migrations can become the owner. That it is bound by nothing else harms no tenant. */
const checkMigrator: Check = async ({ client }) => {
  const { rows } = await client.query(`
    select exists (
      select from pg_roles where rolname = 'roster_owner' and pg_has_role(current_user, oid, 'member')) as fits`);
  const remedy = "log in as roster_migrator; sql/bootstrap.sql makes it a member of roster_owner";
  return verdict(
    [problemIf(!rows[0]?.fits, "the login role cannot become roster_owner", remedy)],
    "may migrate",
  );
};

/** What a role of one of the URLs must be, and must not be able to do. */
export const checkLogin: Check = (subject) =>
  subject.role === "roster_migrator" ? checkMigrator(subject) : checkRole(subject);

const checkSchema: Check = async ({ client }) =>
  verdict(
    (await schemaFaults(client)).map((fault) => ({ level: "problem", ...fault })),
    "the schema is this version's",
  );

/** The tables, with whether row-level security is forced and, for each role, whether a policy lets it in. */
const wallFacts = `
  with tables as (
    select c.oid, c.relname::text as name, c.relrowsecurity and c.relforcerowsecurity as forced
    from pg_class c where c.relnamespace = to_regnamespace('roster') and c.relkind in ('r', 'p')),
  -- What each role's reads are tied to. Partitions are granted to nobody but the owner.
  readers (role, tie) as (values
    ('roster_app', 'current_org'), ('roster_directory', 'is_platform'), ('roster_owner', ''), ('roster_gate', ''),
    ('roster_audit', '')),
  access as (
    select t.name, r.role, r.tie,
      count(*) filter (where p.polpermissive) as permits,
      count(*) filter (
        where not p.polpermissive and p.polcmd = '*' and pg_get_expr(p.polqual, t.oid) ~ r.tie) as guards,
      count(*) filter (where p.polpermissive and pg_get_expr(p.polqual, t.oid) !~ r.tie) as gaps
    from tables t
    cross join readers r
    join pg_roles g on g.rolname = r.role
    left join pg_policy p on p.polrelid = t.oid and p.polroles && array[g.oid, 0::oid]
    where has_any_column_privilege(g.oid, t.oid, 'select') or has_any_column_privilege(g.oid, t.oid, 'insert')
    group by t.name, r.role, r.tie)
  select
    (select count(*)::int from tables) as tables,
    array(select name from tables where not forced order by 1) as open,
    array(select format('%s for %s', name, role) from access where permits = 0 order by 1) as shut,
    array(
      select format('%s for %s', name, role) from access
      where guards = 0 and gaps > 0 and name <> 'schema_migrations' order by 1) as breached`;

interface WallFacts {
  readonly tables: number;
  readonly open: string[];
  readonly shut: string[];
  readonly breached: string[];
}

const checkWall: Check = async ({ client }) => {
  const { rows } = await client.query<WallFacts>(wallFacts);
  const [{ tables, open, shut, breached }] = rows as [WallFacts];
  // checkSchema says so.
  if (tables === 0) return [];
  const restore = "restore them as sql/ has them, or restore the database from a backup";
  const found = [
    problemIf(
      open.length > 0,
      `row-level security is not enabled and forced on ${open.join(", ")}`,
      "as roster_owner: alter table … enable row level security, force row level security",
    ),
    problemIf(
      breached.length > 0,
      `policies do not keep tenants apart on ${breached.join(", ")}`,
      restore,
    ),
    problemIf(shut.length > 0, `no policy shows any row of ${shut.join(", ")}`, restore),
  ];
  return verdict(found, `row-level security is forced on all ${tables} tables, with its policies`);
};

const checkServer: Check = async ({ client }) => {
  const { rows } = await client.query(`
    select current_setting('server_version_num')::int as number, current_setting('server_version') as version,
      current_setting('server_encoding') as encoding, lower('ÉI') = 'éi' as folds`);
  const { number, version, encoding, folds } = rows[0];
  const found = [
    problemIf(
      number < 150_000,
      `PostgreSQL ${version} is older than 15`,
      "upgrade the server to PostgreSQL 15 or newer",
    ),
    problemIf(
      encoding !== "UTF8",
      `the database's encoding is ${encoding}, which cannot hold every name`,
      "create it with encoding 'UTF8' template template0",
    ),
    problemIf(
      !folds,
      "the database has a C or a Turkish locale, in which É and é or I and i differ",
      "create it with C.UTF-8",
    ),
  ];
  return verdict(found, `PostgreSQL ${version}, ${encoding}, with a locale that folds letters`);
};

/** What a database must be, whoever asks. Like a login with a problem, one with a problem here stops a start. */
export const safetyChecks: readonly Check[] = [checkServer, checkSchema, checkWall];

/** Opens a connection that gives up: on a silent address after 5 s, on a query after 10 s. */
export const connect = async (url: string): Promise<pg.Client> => {
  const limits = { connectionTimeoutMillis: 5_000, query_timeout: 10_000 };
  const client = new pg.Client({ connectionString: url, ...limits });
  // A connection that breaks between two queries tells the next one.
  client.on("error", () => {});
  await client.connect();
  return client;
};

/**
 * Checks one connection URL of the server.
 *
 * @param url the URL that a pool will use
 * @param role the role it must stand for
 * @throws SchemaError when the schema is not this version's
 * @throws UnsafeDatabase when row-level security would not bind the role
 */
export const checkDatabase = async (url: string, role: LoginRole): Promise<void> => {
  const client = await connect(url);
  try {
    const problems = async (...checks: readonly Check[]): Promise<string[]> => {
      const found: Finding[] = [];
      for (const check of checks) found.push(...(await check({ client, role })));
      return found
        .filter(({ level }) => level === "problem")
        .map(({ text, remedy }) => `${text}; ${remedy}`);
    };
    const outdated = await problems(checkSchema);
    const unsafe = await problems(checkLogin, checkServer, checkWall);
    if (outdated.length > 0) throw new SchemaError([...outdated, ...unsafe].join("\n"));
    if (unsafe.length > 0) throw new UnsafeDatabase(unsafe.join("\n"));
  } finally {
    await client.end();
  }
};
