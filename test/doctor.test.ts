import { randomUUID } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import pg from "pg";
import { afterAll, describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { connect, type LoginRole } from "../src/database/check.ts";
import { startEmbedded } from "../src/database/embedded.ts";
import { examine, type Line, type Target } from "../src/database/examine.ts";
import { provision, urlsOf } from "../src/database/provision.ts";
import { folder } from "./command.ts";
import { asAdmin, bootstrapped, database, migrated, type Urls } from "./databases.ts";

// Clones databases and starts one of its own, which takes its time on a busy machine.
vi.setConfig({ testTimeout: 60_000 });

const undone: (() => Promise<unknown>)[] = [];
afterAll(async () => {
  for (const undo of undone.reverse()) await undo();
});

const target = (role: LoginRole, url: string, poolSize = 3): Target => ({
  name: role,
  url,
  role,
  poolSize,
});
const targets = (urls: Urls): readonly Target[] => [
  target("roster_app", urls.app),
  target("roster_directory", urls.directory, 2),
  target("roster_migrator", urls.migrator, 1),
];

/** All that is not fine. Each comes with what to do about it. */
const faultsOf = (lines: readonly Line[]): string[] => {
  const faults = lines.filter(({ level }) => level !== "ok");
  for (const { remedy } of faults) expect(remedy).toMatch(/\w+ \w+/);
  return faults.map(({ level, about, text }) => `${level} ${about}: ${text}`);
};

const faultsAfter = async (...faults: readonly string[]): Promise<string[]> => {
  const urls = await migrated();
  for (const fault of faults) await asAdmin(urls.admin, fault);
  return faultsOf(await examine(targets(urls)));
};

/** A login of its own, since what befalls a role befalls it in every database. */
const login = async (urls: Urls, options: string): Promise<string> => {
  const role = `test_${randomUUID().replaceAll("-", "")}`;
  await asAdmin(urls.admin, `create role ${role} login password 'x' ${options}`);
  undone.push(() => asAdmin(urls.admin, `drop role ${role}`));
  const url = new URL(urls.app);
  url.username = role;
  url.password = "x";
  return url.href;
};

/** The month of a partition, so many months from now. */
const month = (ahead: number): string => {
  const now = new Date();
  const then = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() + ahead));
  return then.toISOString().slice(0, 7).replace("-", "_");
};

describe("a sound deployment", () => {
  test("has no faults, and each check says what is fine", async () => {
    const lines = await examine(targets(await migrated()));
    // Other test files have connections of the same server.
    const own = lines.filter(({ text }) => !text.startsWith("the server"));
    expect(faultsOf(own)).toEqual([]);
    expect(own.map(({ text }) => text).join("\n")).toMatch(/PostgreSQL 1\d.*UTF8/);
    for (const word of ["schema", "forced on all", "clock", "partitions", "acts as", "writes"])
      expect(own.map(({ text }) => text).join("\n")).toContain(word);
  });

  test("is examined without a write, and once for what its logins share", async () => {
    const urls = await migrated();
    const { pathname } = new URL(urls.admin);
    const setting = `alter database ${pathname.slice(1)} set default_transaction_read_only = on`;
    await asAdmin(urls.admin, setting);
    const closed = "default_transaction_read_only is on, so every change is refused";
    expect(faultsOf(await examine(targets(urls)))).toEqual([
      `problem roster_app: ${closed}`,
      `problem roster_directory: ${closed}`,
      `problem roster_migrator: ${closed}`,
    ]);
  });
});

describe("a login", () => {
  test.each([
    ["is a superuser", (urls: Urls) => urls.admin, "the login role is a superuser"],
    ["is another pool's", (urls: Urls) => urls.directory, "the login role is not roster_app"],
    ["may become the owner", (urls: Urls) => urls.migrator, "the login role owns audit_changes"],
    [
      "has BYPASSRLS",
      (urls: Urls) => login(urls, "bypassrls in role roster_app"),
      "the login role has BYPASSRLS",
    ],
    [
      "may become the judge of callers",
      (urls: Urls) => login(urls, "in role roster_app, roster_gate"),
      "the login role may become roster_gate",
    ],
  ])("is a problem when it %s", async (_, url, text) => {
    const urls = await migrated();
    const lines = await examine([target("roster_app", await url(urls))]);
    expect(faultsOf(lines).join("\n")).toContain(`problem roster_app: ${text}`);
  });

  test("is a problem for migrations when it cannot become the owner", async () => {
    const urls = await migrated();
    expect(faultsOf(await examine([target("roster_migrator", urls.app)]))).toEqual([
      "problem roster_migrator: the login role cannot become roster_owner",
    ]);
  });

  test("is a problem when it leads to another database than the others", async () => {
    const [one, other] = await Promise.all([migrated(), migrated()]);
    const two = [target("roster_app", one.app), target("roster_directory", other.directory)];
    expect(faultsOf(await examine(two))).toEqual([
      "problem database: roster_app and roster_directory lead to different databases",
    ]);
  });
});

describe("a database that cannot be reached", () => {
  const changed = (url: string, change: (url: URL) => void): string => {
    const to = new URL(url);
    change(to);
    return to.href;
  };

  test.each<[string, (url: URL) => void, RegExp]>([
    ["nothing listens", (url) => Object.assign(url, { port: "1" }), /start PostgreSQL/],
    ["its host has no address", (url) => Object.assign(url, { host: "no.invalid:1" }), /name/],
    ["it does not exist", (url) => Object.assign(url, { pathname: "/nowhere" }), /create it/],
    [
      "the role does not exist",
      (url) => Object.assign(url, { username: "roster_nobody" }),
      /password|bootstrap/,
    ],
    [
      "a certificate is not there",
      (url) => url.searchParams.set("sslrootcert", "/nowhere.pem"),
      /URL/,
    ],
  ])("is a finding when %s, and the rest is examined", async (_, change, remedy) => {
    const urls = await migrated();
    const url = changed(urls.app, change);
    const lines = await examine([target("roster_app", url), ...targets(urls).slice(1)]);
    const [first, ...others] = lines;
    expect(first).toMatchObject({ level: "problem", about: "roster_app" });
    expect(first?.text).toMatch(/ cannot be reached: \w/);
    expect(first?.remedy).toMatch(remedy);
    expect(JSON.stringify(first)).not.toContain(new URL(urls.app).password);
    expect(faultsOf(others)).toEqual([]);
    expect(others.some(({ about, text }) => about === "database" && /schema/.test(text))).toBe(
      true,
    );
  });

  test("is a finding when it takes no connections", async () => {
    const urls = await migrated();
    const name = new URL(urls.admin).pathname.slice(1);
    await asAdmin(inject("adminUrl"), `alter database ${name} allow_connections false`);
    const [line] = await examine(targets(urls).slice(0, 1));
    expect(line).toMatchObject({ level: "problem", remedy: expect.stringContaining("allow_conn") });
  });
});

describe("the wall", () => {
  test.each([
    [
      "row-level security is not forced",
      "alter table roster.teams no force row level security",
      "row-level security is not enabled and forced on teams",
    ],
    [
      "the guard of a table is gone",
      "drop policy teams_guard on roster.teams",
      "policies do not keep tenants apart on teams for roster_app",
    ],
    [
      "a guard lets everything pass",
      "alter policy org_slugs_guard on roster.org_slugs using (true)",
      "policies do not keep tenants apart on org_slugs for roster_app",
    ],
    [
      "a policy shows all users",
      "create policy stray on roster.users for select to roster_app using (true)",
      "policies do not keep tenants apart on users for roster_app",
    ],
    [
      "the directory shows everyone everything",
      "alter policy profiles_directory on roster.profiles using (true)",
      "policies do not keep tenants apart on profiles for roster_directory",
    ],
    [
      "calls see no row of a table",
      "drop policy orgs_app on roster.orgs",
      "no policy shows any row of orgs for roster_app",
    ],
    [
      "migrations see no row of a table",
      "drop policy roles_owner on roster.roles",
      "no policy shows any row of roles for roster_owner",
    ],
  ])("is a problem where %s", async (_, fault, text) => {
    expect(await faultsAfter(fault)).toEqual([`problem database: ${text}`]);
  });
});

describe("the schema", () => {
  test("is a problem for each migration that is missing, skipped, edited or unknown, all at once", async () => {
    const faults = await faultsAfter(
      "update roster.schema_migrations set sha256 = 'x' where version = 2",
      "delete from roster.schema_migrations where version in (3, 5, 6)",
      "insert into roster.schema_migrations values (99, '099_later.sql', 'x')",
    );
    expect(faults).toEqual([
      "problem database: sql/002_audit.sql was edited after it was applied",
      expect.stringContaining("has migration 099_later.sql, which this version"),
      expect.stringContaining("lacks migration 003_users.sql, though"),
      expect.stringContaining("lacks migration 005_teams.sql, though"),
      expect.stringContaining("lacks migration 006_enter.sql, though"),
    ]);
    const behind = await faultsAfter("delete from roster.schema_migrations where version > 4");
    expect(behind).toEqual([expect.stringContaining("migrations are missing: 005_teams.sql, ")]);
  });

  test("is a problem when it was never made, when it may not be read, and in another encoding", async () => {
    expect(await faultsAfter("drop schema roster cascade")).toEqual([
      "problem database: there is no schema roster",
    ]);
    expect(await faultsAfter("revoke usage on schema roster from roster_app")).toEqual([
      expect.stringContaining("cannot be examined: permission denied"),
    ]);
    const urls = await database("template template0 encoding 'LATIN1' locale 'C'");
    expect(faultsOf(await examine(targets(urls).slice(0, 1)))).toEqual([
      "problem database: the database's encoding is LATIN1, which cannot hold every name",
      expect.stringContaining("É and é"),
      "problem database: there is no schema roster",
    ]);
    const fresh = await bootstrapped();
    expect(faultsOf(await examine(targets(fresh)))).toEqual([
      expect.stringContaining("migrations are missing: 001_foundation.sql, "),
    ]);
  });
});

describe("connections", () => {
  test("are a problem when a pool is larger than the server", async () => {
    const urls = await migrated();
    const large = target("roster_app", urls.app, 500);
    expect(faultsOf(await examine([large]))).toEqual([
      expect.stringMatching(/^problem database: the server may have \d+ connections, and .* 500$/),
    ]);
  });

  test("are a problem when a pool is larger than the database, a warning when others leave too few", async () => {
    const urls = await migrated();
    const name = new URL(urls.admin).pathname.slice(1);
    await asAdmin(urls.admin, `alter database ${name} connection limit 4`);
    expect(faultsOf(await examine(targets(urls)))).toEqual([
      `problem database: the database ${name} may have 4 connections, and one process of Roster opens up to 5`,
    ]);
    await asAdmin(urls.admin, `alter database ${name} connection limit 7`);
    await Promise.all([1, 2, 3].map(() => idle(urls.directory)));
    expect(faultsOf(await examine(targets(urls)))).toEqual([
      expect.stringMatching(/^warning database: the database .* 7 connections and has [3-5], /),
    ]);
  });

  test("are a problem when a pool is larger than its role's limit, a warning when few are left", async () => {
    const urls = await migrated();
    const url = await login(urls, "in role roster_app connection limit 4");
    expect(faultsOf(await examine([target("roster_app", url, 5)]))).toEqual([
      expect.stringMatching(/^problem roster_app: the role test_.* 4 connections, and .* up to 5$/),
    ]);
    await idle(url);
    expect(faultsOf(await examine([target("roster_app", url, 4)]))).toEqual([
      expect.stringMatching(/^warning roster_app: the role test_.* 4 connections and has 1, /),
    ]);
  });
});

/** A connection that does nothing, until the test ends. */
const idle = async (url: string): Promise<pg.Client> => {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  onTestFinished(() => client.end());
  return client;
};

describe("the audit log", () => {
  test("is a problem without this month's partition, a warning without the next, or with rows in neither", async () => {
    const faults = await faultsAfter(
      `drop table roster.audit_entries_${month(0)}`,
      `alter table roster.audit_changes detach partition roster.audit_changes_${month(1)}`,
      `insert into roster.audit_changes (entry_id, subject, method, correlation_id, resource_type, resource_id,
        kind, changed_fields, create_time)
        values (gen_random_uuid(), 's', 'm', 'c', 't', 'r', 'CREATED', '{}', '1999-01-01')`,
    );
    expect(faults).toEqual([
      `problem database: this month has no partition: audit_entries_${month(0)}`,
      `warning database: next month has no partition: audit_changes_${month(1)}`,
      "warning database: entries of a month without a partition have landed in audit_changes_default",
    ]);
  });
});

describe("a long transaction", () => {
  test("is a warning for as long as it holds vacuum back", async () => {
    const urls = await migrated();
    const client = await idle(urls.app);
    await client.query("begin isolation level repeatable read; select 1");
    const { rows } = await client.query("select pg_backend_pid() as pid");
    const of = async (longSeconds: number) =>
      faultsOf(await examine([target("roster_app", urls.app)], longSeconds)).filter((fault) =>
        fault.includes(` ${rows[0].pid} `),
      );
    expect(await of(0)).toEqual([
      expect.stringMatching(
        /^warning roster_app: process \d+ of roster_app \(idle in transaction\)/,
      ),
    ]);
    expect(await of(300)).toEqual([]);
    await client.query("commit");
    expect(await of(0)).toEqual([]);
  });

  test("of another role is a warning to members of pg_read_all_stats, and unseen by others", async () => {
    const urls = await migrated();
    const client = await idle(urls.admin);
    await client.query("begin isolation level repeatable read; select 1");
    const curious = await login(urls, "in role roster_app, pg_read_all_stats");
    expect(faultsOf(await examine([target("roster_app", curious)], 0))).toEqual([
      expect.stringMatching(
        /^warning database: process \d+ of \w+ \(idle in transaction\) has kept/,
      ),
    ]);
    expect(faultsOf(await examine([target("roster_app", urls.app)], 0))).toEqual([]);
  });
});

describe("a cluster of its own", () => {
  const dataDir = join(folder, "cluster");
  const start = async (): Promise<Urls> => {
    const server = await startEmbedded({ dataDir, durable: false });
    stop = server.stop;
    return urlsOf(server.adminUrl, "roster");
  };
  let stop = async (): Promise<void> => {};
  afterAll(() => stop());

  // In this order: what is prepared needs a setting, and a standby prepares nothing.
  test("a prepared transaction that nobody ended is a warning", async () => {
    const { adminUrl, stop: end } = await startEmbedded({ dataDir, durable: false });
    await provision(adminUrl, "roster");
    await asAdmin(adminUrl, "alter system set max_prepared_transactions = 2");
    await end();
    const urls = await start();
    const [app] = targets(urls) as [Target];
    expect(faultsOf(await examine([app], 0))).toEqual([]);
    const client = await connect(urls.admin);
    await client.query("begin");
    await client.query("create table public.t ()");
    await client.query("prepare transaction 'forgotten'");
    await client.end();
    expect(faultsOf(await examine([app], 300))).toEqual([]);
    const lines = await examine([app], 0);
    expect(faultsOf(lines)).toEqual([
      expect.stringMatching(/^warning database: postgres \(prepared as 'forgotten'\) has kept/),
    ]);
    const remedy = lines.find(({ level }) => level === "warning")?.remedy ?? "";
    await asAdmin(urls.admin, remedy.split(": ")[1] ?? "");
    expect(faultsOf(await examine([app], 0))).toEqual([]);
  });

  test("a standby is a problem, and takes questions all the same", async () => {
    await stop();
    writeFileSync(join(dataDir, "pgdata", "standby.signal"), "");
    const standby = "the server is a standby, which takes no writes";
    expect(faultsOf(await examine(targets(await start())))).toEqual([
      `problem roster_app: ${standby}`,
      `problem roster_directory: ${standby}`,
      `problem roster_migrator: ${standby}`,
    ]);
  });
});
