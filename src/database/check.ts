/** What the server makes sure of before it serves: the wall stands, and its own role cannot climb it. */
import pg from "pg";
import { checkSchema, SchemaError } from "./migrate.ts";

/** The database is set up in a way that would not keep tenants apart; one line per fault. */
export class UnsafeDatabase extends Error {
  override readonly name = "UnsafeDatabase";
}

const facts = `
  select
    current_setting('server_version_num')::int as version,
    r.rolsuper as superuser,
    r.rolbypassrls as bypasses,
    lower('ÉI') = 'éi' as folds,
    pg_has_role(current_user, $1, 'usage') as fits,
    array(
      select c.relname::text from pg_class c
      where c.relnamespace = 'roster'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
        and pg_has_role(current_user, c.relowner, 'member') order by 1) as owned,
    array(
      select c.relname::text from pg_class c
      where c.relnamespace = 'roster'::regnamespace and c.relkind in ('r', 'p')
        and not (c.relrowsecurity and c.relforcerowsecurity) order by 1) as open
  from pg_roles r where r.rolname = current_user`;

interface Facts {
  readonly version: number;
  readonly superuser: boolean;
  readonly bypasses: boolean;
  readonly folds: boolean;
  readonly fits: boolean;
  readonly owned: string[];
  readonly open: string[];
}

/**
 * Checks one connection URL of the server.
 *
 * @param url the URL that a pool will use
 * @param role the role it must stand for
 * @throws UnsafeDatabase when row-level security would not bind it
 * @throws SchemaError when the schema is not this version's
 */
export const checkDatabase = async (
  url: string,
  role: "roster_app" | "roster_directory",
): Promise<void> => {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  await client.connect();
  try {
    const { rows: exists } = await client.query(
      "select to_regnamespace('roster') is not null as schema",
    );
    if (!exists[0]?.schema)
      throw new SchemaError(
        "there is no schema roster; run sql/bootstrap.sql, then: npm run migrate",
      );
    await checkSchema(client);
    const { rows } = await client.query<Facts>(facts, [role]);
    const [found] = rows;
    if (!found) throw new UnsafeDatabase("the login role has no row in pg_roles");
    const faults = [
      found.version < 150_000 && "PostgreSQL is older than 15",
      found.superuser &&
        `the login role is a superuser, whom row-level security does not bind; log in as ${role}`,
      found.bypasses && `the login role has BYPASSRLS; log in as ${role}`,
      !found.fits && `the login role is not ${role}`,
      found.owned.length > 0 && `the login role owns ${found.owned.join(", ")}; log in as ${role}`,
      found.open.length > 0 &&
        `row-level security is not enabled and forced on ${found.open.join(", ")}`,
      !found.folds &&
        "the database has a C or a Turkish locale, in which É and é or I and i differ; create it with C.UTF-8",
    ].filter((fault) => typeof fault === "string");
    if (faults.length > 0) throw new UnsafeDatabase(faults.join("\n"));
  } finally {
    await client.end();
  }
};
