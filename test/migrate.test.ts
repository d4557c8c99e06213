import { createHash, randomUUID } from "node:crypto";
import { afterAll, describe, expect, inject, test } from "vitest";
import { checkDatabase, UnsafeDatabase } from "../src/database/check.ts";
import { type Migration, migrate, readMigrations, SchemaError } from "../src/database/migrate.ts";
import { provision } from "../src/database/provision.ts";
import { asAdmin, bootstrapped, migrated, type Urls } from "./databases.ts";

const migrations = readMigrations();
const undone: (() => Promise<unknown>)[] = [];
afterAll(async () => {
  for (const undo of undone.reverse()) await undo();
});

/** The number after the last file's. */
const next = (migrations.at(-1)?.version ?? 0) + 1;
const migration = (text: string): Migration => {
  const name = `${String(next).padStart(3, "0")}_test.sql`;
  return { version: next, name, text, sha256: createHash("sha256").update(text).digest("hex") };
};
const versions = (urls: Urls) =>
  asAdmin<{ version: number }>(
    urls.admin,
    "select version from roster.schema_migrations order by 1",
  ).then((rows) => rows.map(({ version }) => version));

describe("migrate", () => {
  test("applies every file once, in order", async () => {
    const urls = await bootstrapped();
    expect(await migrate(urls.migrator)).toEqual(migrations.map(({ name }) => name));
    expect(await migrate(urls.migrator)).toEqual([]);
    expect(await versions(urls)).toEqual(migrations.map(({ version }) => version));
    await checkDatabase(urls.app, "roster_app");
  });

  test("makes the same schema in one go as file by file", async () => {
    const [whole, stepwise] = await Promise.all([bootstrapped(), bootstrapped()]);
    await migrate(whole.migrator);
    for (let count = 1; count <= migrations.length; count++)
      expect(await migrate(stepwise.migrator, migrations.slice(0, count))).toHaveLength(1);
    const shape = `
      select string_agg(line, e'\\n' order by line) as shape from (
        select format('%s.%s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
          a.attnotnull) as line
        from pg_attribute a join pg_class c on c.oid = a.attrelid
        where c.relnamespace = 'roster'::regnamespace and a.attnum > 0
        union all
        select pg_get_functiondef(oid) from pg_proc where pronamespace = 'roster'::regnamespace
        union all
        select format('%s %s %s', polname, pg_get_expr(polqual, polrelid),
          pg_get_expr(polwithcheck, polrelid)) from pg_policy
        union all
        select format('%s %s', conname, pg_get_constraintdef(oid)) from pg_constraint
        where connamespace = 'roster'::regnamespace) lines`;
    expect(await asAdmin(stepwise.admin, shape)).toEqual(await asAdmin(whole.admin, shape));
  });

  test("applies once when two run at once", async () => {
    const urls = await bootstrapped();
    const applied = await Promise.all([migrate(urls.migrator), migrate(urls.migrator)]);
    expect(applied.map((names) => names.length).sort()).toEqual([0, migrations.length]);
  });

  test("refuses a database whose applied file was edited", async () => {
    const urls = await migrated();
    const edited = migrations.map((file) => ({
      ...file,
      sha256: file.version === 3 ? "edited" : file.sha256,
    }));
    await expect(migrate(urls.migrator, edited)).rejects.toThrow(SchemaError);
    await expect(migrate(urls.migrator, edited)).rejects.toThrow(migrations[2]?.name);
  });

  test("refuses a database that has a file it does not know, and applies nothing to it", async () => {
    const urls = await migrated();
    const newer = migration("select");
    await migrate(urls.migrator, [...migrations, newer]);
    await expect(migrate(urls.migrator)).rejects.toThrow(newer.name);
    const other = migrations.map((file) => (file.version === 2 ? { ...file, version: 9 } : file));
    await expect(migrate(urls.migrator, other)).rejects.toThrow(migrations[1]?.name);
  });

  test.each([
    ["in itself", "create table roster.halves (id int); select 1 / 0", "22012"],
    [
      "when it is noted as applied",
      `create table roster.halves (id int);
        insert into roster.schema_migrations values (${next}, 'x', 'x')`,
      "23505",
    ],
  ])(
    "takes back the whole of a file that fails %s, and keeps those before it",
    async (_, text, code) => {
      const urls = await bootstrapped();
      const files = [...migrations, migration(text)];
      await expect(migrate(urls.migrator, files)).rejects.toMatchObject({ code });
      expect(await versions(urls)).toHaveLength(migrations.length);
      const [row] = await asAdmin(urls.admin, "select to_regclass('roster.halves') as halves");
      expect(row).toEqual({ halves: null });
      const mended = migration("create table roster.halves (id int)");
      expect(await migrate(urls.migrator, [...migrations, mended])).toEqual([mended.name]);
    },
  );

  test("changes the rows that a file backfills, and sees those that break a new constraint", async () => {
    const urls = await migrated();
    const entry = `select set_config('roster.entry_id', gen_random_uuid()::text, true),
      set_config('roster.subject', 'service:migration', true), set_config('roster.method', 'test', true),
      set_config('roster.correlation_id', 'test', true)`;
    await asAdmin(
      urls.admin,
      `begin; ${entry};
      insert into roster.users (id, email, name) select gen_random_uuid(), n || '@example.com', 'Old'
        from generate_series(1, 3) n;
      commit`,
    );
    const backfill = migration(`${entry}; update roster.users set name = 'New' where name = 'Old'`);
    await migrate(urls.migrator, [...migrations, backfill]);
    const names = await asAdmin(
      urls.admin,
      "select name, count(*)::int from roster.users group by name",
    );
    expect(names).toEqual([{ name: "New", count: 3 }]);
    const breaking = {
      ...migration("alter table roster.users add constraint t check (name = 'Old')"),
      version: backfill.version + 1,
    };
    await expect(migrate(urls.migrator, [...migrations, backfill, breaking])).rejects.toMatchObject(
      { code: "23514" },
    );
    const missing = {
      ...migration(
        "alter table roster.users add constraint t foreign key (id) references roster.orgs",
      ),
      version: backfill.version + 1,
    };
    await expect(migrate(urls.migrator, [...migrations, backfill, missing])).rejects.toMatchObject({
      code: "23503",
    });
  });
});

describe("provision", () => {
  test("makes one database, its roles and its schema, when several processes start at once", async () => {
    const name = `${inject("template")}_${randomUUID().replaceAll("-", "").slice(0, 12)}`;
    const provisioned = await Promise.all([1, 2, 3].map(() => provision(inject("adminUrl"), name)));
    const applied = provisioned.map((urls) => urls.applied.length);
    expect(applied.sort()).toEqual([0, 0, migrations.length]);
    for (const { app, directory } of provisioned) {
      await checkDatabase(app, "roster_app");
      await checkDatabase(directory, "roster_directory");
    }
  });
});

describe("checkDatabase", () => {
  const check = (urls: Urls, url = urls.app) => checkDatabase(url, "roster_app");

  test("passes the roles of the server on a migrated database", async () => {
    const urls = await migrated();
    await check(urls);
    await checkDatabase(urls.directory, "roster_directory");
  });

  test("refuses a superuser", async () => {
    const urls = await migrated();
    await expect(check(urls, urls.admin)).rejects.toThrow(/superuser/);
  });

  test("refuses the schema's owner, and whoever may become it", async () => {
    const urls = await migrated();
    const refused = check(urls, urls.migrator);
    await expect(refused).rejects.toThrow(UnsafeDatabase);
    await expect(refused).rejects.toThrow(/owns .*\bteams\b/);
  });

  test("refuses a role that could become the schema's owner without inheriting from it", async () => {
    const urls = await migrated();
    const role = `test_${randomUUID().replaceAll("-", "")}`;
    // Before 16 a membership always follows its role, which inherits; it is refused all the same.
    await asAdmin(
      urls.admin,
      `create role ${role} login password 'x' in role roster_app;
       do $$ begin
         execute 'grant roster_owner to ${role}'
           || case when current_setting('server_version_num')::int >= 160000 then ' with inherit false' else '' end;
       end $$`,
    );
    undone.push(() => asAdmin(urls.admin, `drop role ${role}`));
    const url = new URL(urls.app);
    url.username = role;
    url.password = "x";
    await expect(checkDatabase(url.href, "roster_app")).rejects.toThrow(/owns .*\bteams\b/);
  });

  test("refuses the role of the other pool", async () => {
    const urls = await migrated();
    await expect(check(urls, urls.directory)).rejects.toThrow(/not roster_app/);
    await expect(checkDatabase(urls.app, "roster_directory")).rejects.toThrow(
      /not roster_directory/,
    );
  });

  test("refuses a role with BYPASSRLS", async () => {
    const urls = await migrated();
    const role = `test_${randomUUID().replaceAll("-", "")}`;
    await asAdmin(
      urls.admin,
      `create role ${role} login bypassrls password 'x' in role roster_app`,
    );
    undone.push(() => asAdmin(urls.admin, `drop role ${role}`));
    const url = new URL(urls.app);
    url.username = role;
    url.password = "x";
    await expect(check(urls, url.href)).rejects.toThrow(/BYPASSRLS/);
  });

  test.each([
    ["not enabled", "alter table roster.teams disable row level security"],
    ["not forced", "alter table roster.teams no force row level security"],
    [
      "not forced on a partition",
      "alter table roster.audit_changes_default no force row level security",
    ],
    ["not there for a new table", "create table roster.strays (id int)"],
  ])("refuses a database where row-level security is %s", async (_, fault) => {
    const urls = await migrated();
    await asAdmin(urls.admin, fault);
    await expect(check(urls)).rejects.toThrow(
      /row-level security is not enabled and forced on (teams|audit_changes_default|strays)/,
    );
  });

  test.each([
    ["a guard is gone", "drop policy teams_guard on roster.teams", /apart on teams for roster_app/],
    ["a policy shows all", "alter policy users_app on roster.users using (true)", /apart on users/],
    [
      "a role sees no row",
      "drop policy orgs_app on roster.orgs",
      /no policy .* orgs for roster_app/,
    ],
  ])("refuses a database where %s", async (_, fault, message) => {
    const urls = await migrated();
    await asAdmin(urls.admin, fault);
    await expect(check(urls)).rejects.toThrow(UnsafeDatabase);
    await expect(check(urls)).rejects.toThrow(message);
  });

  test.each([
    ["has no schema", "drop schema roster cascade", /no schema roster/],
    [
      "has a gap",
      "delete from roster.schema_migrations where version = 3",
      /003_users.sql, though/,
    ],
    ["lacks migrations", `delete from roster.schema_migrations where version > 2`, /are missing/],
    ["was never migrated", "drop table roster.schema_migrations", /are missing/],
    [
      "has an edited one",
      "update roster.schema_migrations set sha256 = 'x' where version = 2",
      /was edited/,
    ],
    [
      "has an unknown one",
      "insert into roster.schema_migrations values (99, '099_later.sql', 'x')",
      /099_later/,
    ],
  ])("refuses a database that %s", async (_, fault, message) => {
    const urls = await migrated();
    await asAdmin(urls.admin, fault);
    const refused = check(urls);
    await expect(refused).rejects.toThrow(SchemaError);
    await expect(refused).rejects.toThrow(message);
  });

  test.each([
    ["C", "É and é", "locale_provider libc locale 'C'"],
    ["Turkish", "I and i", "locale_provider icu icu_locale 'tr'"],
  ])("refuses a database in a %s locale, where %s differ", async (_, __, locale) => {
    const urls = await bootstrapped(`template template0 encoding 'UTF8' ${locale}`);
    await migrate(urls.migrator);
    await expect(check(urls)).rejects.toThrow(/É and é or I and i/);
  });
});
