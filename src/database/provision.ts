/** Sets up a database from nothing, as an administrator would by hand: for development and tests. */
import { createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import pg from "pg";
import { migrate } from "./migrate.ts";

/** Where each role of a provisioned database logs in. */
export interface Provisioned {
  readonly app: string;
  readonly directory: string;
  readonly worker: string;
  readonly migrator: string;
  readonly admin: string;
  /** Migrations that were applied just now. */
  readonly applied: readonly string[];
}

/** Any number, as long as every process takes the same. */
const lockKey = 2_904_117_386;

const logins = ["roster_app", "roster_directory", "roster_migrator", "roster_worker"] as const;

const at = (url: string, database: string, user?: string, password?: string): string => {
  const to = new URL(url);
  to.pathname = `/${database}`;
  if (user !== undefined && password !== undefined) {
    to.username = user;
    to.password = password;
  }
  return to.href;
};

/** Roles belong to the whole cluster, so their passwords follow from the administrator's. */
const passwordOf = (adminUrl: string, role: string): string =>
  createHmac("sha256", `${new URL(adminUrl).password}`)
    .update(role)
    .digest("hex");

/** The URLs of a database that was provisioned before. */
export const urlsOf = (adminUrl: string, database: string): Omit<Provisioned, "applied"> => {
  const login = (role: (typeof logins)[number]): string =>
    at(adminUrl, database, role, passwordOf(adminUrl, role));
  return {
    app: login("roster_app"),
    directory: login("roster_directory"),
    worker: login("roster_worker"),
    migrator: login("roster_migrator"),
    admin: at(adminUrl, database),
  };
};

/**
 * Makes the database when it is missing, its roles with passwords, and the schema at this version. Doing it
 * again changes nothing but the migrations that are new.
 *
 * @param adminUrl a superuser's
 * @returns the URLs, and the migrations that were applied
 */
export const provision = async (adminUrl: string, database: string): Promise<Provisioned> => {
  const urls = urlsOf(adminUrl, database);
  const server = new pg.Client({ connectionString: adminUrl, connectionTimeoutMillis: 5_000 });
  await server.connect();
  try {
    // One at a time: processes may share a server, and its roles are those of all its databases.
    await server.query("select pg_advisory_lock($1)", [lockKey]);
    const { rowCount } = await server.query("select from pg_database where datname = $1", [
      database,
    ]);
    if (rowCount === 0) await server.query(`create database ${pg.escapeIdentifier(database)}`);
    const client = new pg.Client({ connectionString: urls.admin, connectionTimeoutMillis: 5_000 });
    await client.connect();
    try {
      await client.query(readFileSync(new URL("../../sql/bootstrap.sql", import.meta.url), "utf8"));
      for (const role of logins) {
        const password = pg.escapeLiteral(passwordOf(adminUrl, role));
        await client.query(`alter role ${role} password ${password}`);
      }
    } finally {
      await client.end();
    }
  } finally {
    await server.end();
  }
  return { ...urls, applied: await migrate(urls.migrator) };
};
