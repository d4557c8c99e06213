/** Databases of the run's server without a server of ours in front, for tests that spoil them. */
import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import pg from "pg";
import { inject } from "vitest";
import { urlsOf } from "../src/database/provision.ts";

const bootstrap = readFileSync(new URL("../sql/bootstrap.sql", import.meta.url), "utf8");

/** Where each role of a test's database logs in. */
export type Urls = ReturnType<typeof urlsOf>;

/** Runs one or more statements on a connection of their own and gives the rows of the last. */
export const asAdmin = async <T = Record<string, unknown>>(
  url: string,
  text: string,
): Promise<T[]> => {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  try {
    const result = await client.query(text);
    return [result].flat().at(-1)?.rows ?? [];
  } finally {
    await client.end();
  }
};

/** A database of its own, as `create database` makes it with these options. */
export const database = async (options: string): Promise<Urls> => {
  const name = `${inject("template")}_${randomUUID().replaceAll("-", "").slice(0, 12)}`;
  await asAdmin(inject("adminUrl"), `create database ${name} ${options}`);
  return urlsOf(inject("adminUrl"), name);
};

/** One with the schema of this version. */
export const migrated = (): Promise<Urls> => database(`template ${inject("template")}`);

/** One with the roles and an empty schema. */
export const bootstrapped = async (options = "template template0"): Promise<Urls> => {
  const urls = await database(options);
  await asAdmin(urls.admin, bootstrap);
  return urls;
};
