/** Applies sql/NNN_name.sql once each, in order, and knows whether a database is at this version. */
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import pg from "pg";

const folder = new URL("../../sql/", import.meta.url);
/** Any number, as long as every runner takes the same. */
const lockKey = 7_230_417_553;

/** One migration file. */
export interface Migration {
  readonly version: number;
  readonly name: string;
  readonly text: string;
  readonly sha256: string;
}

/** The schema is not the one that this version of Roster knows; the message says how to mend it. */
export class SchemaError extends Error {
  override readonly name = "SchemaError";
}

/** The migrations that come with this version, in order. */
export const readMigrations = (from: URL = folder): readonly Migration[] =>
  readdirSync(from)
    .filter((name) => /^\d{3}_[a-z0-9_]+\.sql$/.test(name))
    .sort()
    .map((name) => {
      const text = readFileSync(new URL(name, from), "utf8");
      const sha256 = createHash("sha256").update(text).digest("hex");
      return { version: Number(name.slice(0, 3)), name, text, sha256 };
    });

const ledger = `
  create table roster.schema_migrations (
    version int constraint schema_migrations_pkey primary key,
    name text not null,
    sha256 text not null,
    apply_time timestamptz not null default now()
  );
  alter table roster.schema_migrations enable row level security;
  alter table roster.schema_migrations force row level security;
  create policy schema_migrations_owner on roster.schema_migrations to roster_owner
    using (true) with check (true);
  create policy schema_migrations_read on roster.schema_migrations for select
    to roster_app, roster_directory, roster_worker using (true);
  grant select on roster.schema_migrations to roster_app, roster_directory, roster_worker;`;

type Applied = Pick<Migration, "version" | "name" | "sha256">;

const readApplied = async (client: pg.Client): Promise<readonly Applied[]> =>
  (
    await client.query<Applied>(
      "select version, name, sha256 from roster.schema_migrations order by version",
    )
  ).rows;

/** What is wrong with a schema, and how to mend it. */
export interface SchemaFault {
  readonly text: string;
  readonly remedy: string;
}

/** What no migration can mend: applied files that are edited, unknown, or stand behind a gap. */
const compare = (
  applied: readonly Applied[],
  known: readonly Migration[],
): readonly SchemaFault[] => {
  const last = applied.at(-1)?.version ?? 0;
  const unlike = applied.flatMap((row): SchemaFault[] => {
    const file = known.find(({ version }) => version === row.version);
    if (!file) {
      const text = `the database has migration ${row.name}, which this version of Roster does not know`;
      return [{ text, remedy: "run the version that brought it, or a newer one" }];
    }
    if (file.sha256 === row.sha256) return [];
    const text = `sql/${file.name} was edited after it was applied`;
    return [{ text, remedy: "restore it and add a new file instead" }];
  });
  const skipped = known
    .filter(({ version }) => version < last && !applied.some((row) => row.version === version))
    .map(({ name }) => ({
      text: `the database lacks migration ${name}, though it has later ones`,
      remedy: "restore the table roster.schema_migrations from a backup",
    }));
  return [...unlike, ...skipped];
};

/**
 * Brings the schema up to this version, each file in a transaction of its own. Runners at the same time wait
 * for one another; a lock that a busy table does not give within 10 s fails the file, which may be run again.
 *
 * @param url logs in as roster_migrator, or as anyone who may become roster_owner
 * @returns the names of the files that were applied
 * @throws SchemaError for an edited or unknown migration
 */
export const migrate = async (
  url: string,
  migrations: readonly Migration[] = readMigrations(),
): Promise<readonly string[]> => {
  const client = new pg.Client({ connectionString: url, connectionTimeoutMillis: 5_000 });
  await client.connect();
  const inTransaction = async (...texts: readonly string[]): Promise<void> => {
    await client.query("begin; set local role roster_owner; set local lock_timeout = '10s'");
    try {
      for (const text of texts) await client.query(text);
      await client.query("commit");
    } catch (error) {
      await client.query("rollback");
      throw error;
    }
  };
  try {
    await client.query("select pg_advisory_lock($1)", [lockKey]);
    await client.query("set role roster_owner");
    const { rows } = await client.query(
      "select to_regclass('roster.schema_migrations') is null as fresh",
    );
    if (rows[0]?.fresh) await inTransaction(ledger);
    const applied = await readApplied(client);
    const faults = compare(applied, migrations);
    if (faults.length > 0)
      throw new SchemaError(faults.map(({ text, remedy }) => `${text}; ${remedy}`).join("\n"));
    const pending = migrations.slice(applied.length);
    for (const { version, name, text, sha256 } of pending) {
      await inTransaction(
        text,
        `insert into roster.schema_migrations (version, name, sha256) values (${version}, '${name}', '${sha256}')`,
      );
    }
    return pending.map(({ name }) => name);
  } finally {
    await client.end();
  }
};

/** What keeps the schema from being exactly this version's; nothing when it is. */
export const schemaFaults = async (client: pg.Client): Promise<readonly SchemaFault[]> => {
  const { rows } = await client.query(`
    select to_regnamespace('roster') is null as absent,
      to_regclass('roster.schema_migrations') is null as fresh`);
  if (rows[0]?.absent) {
    const remedy = "run sql/bootstrap.sql, then: npm run migrate";
    return [{ text: "there is no schema roster", remedy }];
  }
  const known = readMigrations();
  const applied = rows[0]?.fresh ? [] : await readApplied(client);
  const last = applied.at(-1)?.version ?? 0;
  const pending = known.filter(({ version }) => version > last).map(({ name }) => name);
  const faults = compare(applied, known);
  if (pending.length === 0) return faults;
  const text = `migrations are missing: ${pending.join(", ")}`;
  return [...faults, { text, remedy: "run: npm run migrate" }];
};
