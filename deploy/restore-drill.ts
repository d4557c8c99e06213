/**
 * Proves that a backup is one: takes a base backup of a database in use and archives its log, breaks something, loses
 * the server, restores another to the moment before, and looks whether all is there. Exits with 1 when it is not.
 */
import { execFile, execFileSync, spawnSync } from "node:child_process";
import {
  appendFileSync,
  chmodSync,
  chownSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { createClient, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import pg from "pg";
import pino from "pino";
import { developmentTrust, signToken } from "../src/cli/development.ts";
import { type Embedded, startEmbedded } from "../src/database/embedded.ts";
import { type Provisioned, provision, urlsOf } from "../src/database/provision.ts";
import { OrgService } from "../src/gen/roster/v1/org_service_pb.ts";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { seal } from "../src/jobs/seal.ts";
import { startServer } from "../src/main.ts";

type Urls = Omit<Provisioned, "applied">;

const root = fileURLToPath(new URL("..", import.meta.url));
const folder = mkdtempSync(join(tmpdir(), "roster-restore-"));
// As root, PostgreSQL runs as another account, which must be able to enter.
chmodSync(folder, 0o755);
const at = (name: string): string => join(folder, name);
const [first, second, archive] = [at("first"), at("second"), at("archive")];

const startMs = performance.now();
const step = (text: string): void =>
  console.log(`${((performance.now() - startMs) / 1000).toFixed(1).padStart(6)} s  ${text}`);

const check = (what: string, holds: boolean, more = ""): void => {
  step(`${holds ? "ok    " : "FAILED"} ${what}${holds || more === "" ? "" : `: ${more}`}`);
  if (!holds) process.exitCode = 1;
};

const connected = async (url: string): Promise<pg.Client> => {
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => {});
  await client.connect();
  return client;
};

const within = async (what: string, holds: () => Promise<boolean>): Promise<void> => {
  for (const until = Date.now() + 60_000; Date.now() < until; await sleep(100))
    if (await holds().catch(() => false)) return;
  throw new Error(`not within a minute: ${what}`);
};

/** Rows of each table, and a digest of them. */
const contentsOf = async (client: pg.Client): Promise<string> => {
  const { rows: tables } = await client.query<{ t: string }>(
    `select oid::regclass::text as t from pg_class
      where relnamespace = 'roster'::regnamespace and relkind in ('r', 'p') and not relispartition order by 1`,
  );
  const lines = tables.map(
    ({ t }) =>
      `select '${t}' as t, count(*), md5(string_agg(r::text, '' order by r::text)) from ${t} r`,
  );
  const { rows } = await client.query(lines.join(" union all "));
  return rows.map(({ t, count, md5 }) => `${t} ${count} ${md5}`).join("\n");
};

/** A command of this version, as an operator would run it. */
const roster = (
  urls: Urls,
  ...args: string[]
): { readonly code: number | null; readonly said: string } => {
  const env = {
    PATH: process.env.PATH,
    DATABASE_URL: urls.app,
    DIRECTORY_DATABASE_URL: urls.directory,
    WORKER_DATABASE_URL: urls.worker,
    JWKS_FILE: at("jwks.json"),
    JWT_ISSUER: "roster-development",
    JWT_AUDIENCE: "roster",
    TOKEN_SECRET: "a secret of at least thirty-two characters",
  };
  const { status, stdout, stderr } = spawnSync(process.execPath, ["src/cli/roster.js", ...args], {
    cwd: root,
    env,
    encoding: "utf8",
  });
  return { code: status, said: `${stdout}${stderr}`.trim() };
};

/** Lends a server on the database, as its operator. */
const serving = async <T>(urls: Urls, work: (transport: Transport) => Promise<T>): Promise<T> => {
  const { trust, tokenSecret } = await developmentTrust(folder);
  const server = await startServer({
    address: { host: "127.0.0.1", port: 0 },
    database: { ...urls, worker: undefined },
    poolSize: 4,
    pipeline: true,
    trust,
    tokenSecret,
    purgeAfterDays: 30,
    openReflection: false,
    log: pino({ level: "silent" }),
  });
  const ops = { subject: "service:ops", scope: ["roster.platform"], ttl: "1h" };
  const authorization = `Bearer ${await signToken(folder, ops)}`;
  const transport = createGrpcTransport({
    baseUrl: `http://127.0.0.1:${server.port}`,
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", authorization);
        return next(request);
      },
    ],
  });
  try {
    return await work(transport);
  } finally {
    await server.stop();
  }
};

/** Makes an org with an owner, members and teams. @returns the org's id */
const fill = async (transport: Transport, slug: string): Promise<string> => {
  const users = createClient(UserService, transport);
  const orgs = createClient(OrgService, transport);
  const teams = createClient(TeamService, transport);
  const person = async (name: string): Promise<string> => {
    const { user } = await users.createUser({ user: { email: `${name}@${slug}.example`, name } });
    return user?.id ?? "";
  };
  const { org } = await orgs.createOrg({
    org: { name: slug, slug },
    ownerUserId: await person("owner"),
  });
  const orgId = org?.id ?? "";
  for (let index = 0; index < 10; index++) {
    await orgs.addOrgMember({ orgId, userId: await person(`member${index}`), role: "member" });
    await teams.createTeam({ team: { orgId, name: `Team ${index}` } });
  }
  return orgId;
};

/** Copies the files of a running server between the two calls by which it knows of a backup. */
const backUp = async (client: pg.Client): Promise<void> => {
  await client.query("select pg_backup_start('restore drill', true)");
  await copy(first, second);
  const { rows } = await client.query("select labelfile from pg_backup_stop()");
  const data = join(second, "pgdata");
  rmSync(join(data, "postmaster.pid"));
  rmSync(join(second, "postgres.lock"), { force: true });
  // The log comes from the archive alone.
  execFileSync("find", [join(data, "pg_wal"), "-type", "f", "-delete"]);
  put(join(data, "backup_label"), rows[0].labelfile);
};

/** Copies a folder in which files may come and go meanwhile: the log brings what became of them. */
const copy = (from: string, to: string): Promise<void> =>
  promisify(execFile)("cp", ["-a", from, to], { env: { ...process.env, LC_ALL: "C" } }).then(
    () => {},
    (error: { stderr?: string }) => {
      const lines = (error.stderr ?? "").trim().split("\n");
      if (!lines.every((line) => line.endsWith("No such file or directory"))) throw error;
    },
  );

/** Writes a file as one of PostgreSQL's. */
const put = (path: string, text: string): void => {
  writeFileSync(path, text);
  const { uid, gid } = statSync(join(path, ".."));
  chownSync(path, uid, gid);
};

const archiving = async (embedded: Embedded): Promise<Embedded> => {
  mkdirSync(archive);
  const { uid, gid } = statSync(join(first, "pgdata"));
  chownSync(archive, uid, gid);
  const admin = await connected(embedded.adminUrl);
  await admin.query("alter system set archive_mode = on");
  // A file is there whole or not at all, also where the server ends in the middle of it.
  await admin.query(
    `alter system set archive_command = ${pg.escapeLiteral(`cp "%p" "${archive}/%f.part" && mv "${archive}/%f.part" "${archive}/%f"`)}`,
  );
  await admin.end();
  await embedded.stop();
  return startEmbedded({ dataDir: first });
};

const drill = async (): Promise<void> => {
  step("a database with an archive of its log");
  let embedded = await startEmbedded({ dataDir: first });
  const urls = await provision(embedded.adminUrl, "roster");
  embedded = await archiving(embedded);
  running = embedded;
  const before = urlsOf(embedded.adminUrl, "roster");
  check("the same address after its restart", before.app === urls.app);

  step("an org is made");
  const early = await serving(before, (transport) => fill(transport, "early"));
  const admin = await connected(before.admin);
  step("base backup, while another org is made");
  const [late] = await Promise.all([
    serving(before, (transport) => fill(transport, "late")),
    backUp(admin),
  ]);
  step("a third org is made behind the backup, so that the log alone has it");
  const last = await serving(before, (transport) => fill(transport, "last"));
  step(`sealed ${await seal(before.worker)} rows of the audit log; its root is kept elsewhere`);
  const kept = roster(before, "audit", "head").said.split("\n");
  const contents = await contentsOf(admin);
  const { rows } = await admin.query("select clock_timestamp()::text as now");
  const { now } = rows[0];
  await sleep(50);

  step(`the moment to return to: ${now}; then the mistake: an org is deleted`);
  await serving(before, (transport) =>
    createClient(OrgService, transport).deleteOrg({ orgId: last, force: true }),
  );
  const { rows: switched } = await admin.query("select pg_walfile_name(pg_switch_wal()) as file");
  await within("the log is archived", async () => existsSync(join(archive, switched[0].file)));
  step("the server is lost");
  const pid = Number.parseInt(readFileSync(join(first, "pgdata", "postmaster.pid"), "utf8"), 10);
  process.kill(pid, "SIGQUIT");
  await within("it has ended", async () => !existsSync(`/proc/${pid}`));
  rmSync(first, { recursive: true });

  step("the backup is started, with the archive, up to that moment");
  put(join(second, "pgdata", "recovery.signal"), "");
  appendFileSync(
    join(second, "pgdata", "postgresql.auto.conf"),
    [
      `restore_command = 'cp "${archive}/%f" "%p"'`,
      `recovery_target_time = '${now}'`,
      "recovery_target_action = promote",
      "archive_mode = off",
      "",
    ].join("\n"),
  );
  running = await startEmbedded({ dataDir: second });
  const after = urlsOf(running.adminUrl, "roster");
  const restored = await connected(after.admin);
  await within("it is promoted", async () => {
    const { rows: asked } = await restored.query("select pg_is_in_recovery() as recovers");
    return !asked[0].recovers;
  });

  const found = await contentsOf(restored);
  check(
    "every table has the rows of that moment",
    found === contents,
    `\n${contents}\n---\n${found}`,
  );
  await restored.end();
  const doctor = roster(after, "doctor");
  check("roster doctor finds no problem", doctor.code === 0, doctor.said);
  const verified = roster(after, "audit", "verify");
  check("roster audit verify", verified.code === 0, verified.said);
  for (const line of kept) {
    const [org = "", number, hex] = line.trim().split(/\s+/);
    const rooted = roster(after, "audit", "verify", "--org", org, "--root", `${number}:${hex}`);
    check(`the root that was kept of ${org}`, rooted.code === 0, rooted.said);
  }
  await serving(after, async (transport) => {
    const orgs = createClient(OrgService, transport);
    for (const orgId of [early, late, last]) {
      const { org } = await orgs.getOrg({ orgId });
      check(`a server answers for the org ${org?.name}`, org?.id === orgId && !org.deleteTime);
    }
    check("and writes", (await fill(transport, "anew")) !== "");
  });
  step(`sealed ${await seal(after.worker)} rows more`);
  const again = roster(after, "audit", "verify");
  check("roster audit verify, with what came since", again.code === 0, again.said);
};

let running: Embedded | undefined;
try {
  await drill();
  step(process.exitCode ? "the restore is NOT sound" : "restored");
} finally {
  await running?.stop().catch(() => {});
  rmSync(folder, { recursive: true, force: true });
}
