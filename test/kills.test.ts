/**
 * `npm run test:faults`: FAULT_ROUNDS times, 100 unless set, the server is killed under load, and as often PostgreSQL
 * is. After each time what was acknowledged is there once, with one entry, and every other write whole or not at all.
 */
import { randomUUID } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { Database, type OwnTenant, ServerProcess, tenantOn, until } from "./processes.ts";
import { RawClient } from "./raw-client.ts";
import { Fold, tablesOf } from "./watching.ts";

const rounds = Number(process.env.FAULT_ROUNDS ?? 100);
const [orgs, writersPerOrg] = [3, 4];
const { createTeam, updateTeam } = TeamService.method;

/** A write, known by a word that only it puts into a row. */
interface Write {
  readonly word: string;
  readonly method: typeof createTeam | typeof updateTeam;
  readonly orgId: string;
  readonly teamId: string;
  /** Empty: it is not sent again. */
  readonly requestId: string;
  acknowledged: boolean;
}

/** Writes one thing after another, until a write is not acknowledged or it is told to stop. */
class Writer {
  readonly tenant: OwnTenant;
  readonly teamId: string;
  private readonly client: RawClient;

  constructor(tenant: OwnTenant, teamId: string, client: RawClient) {
    this.tenant = tenant;
    this.teamId = teamId;
    this.client = client;
  }

  async run(over: () => boolean): Promise<Write[]> {
    const writes: Write[] = [];
    while (!over()) {
      const write: Write = {
        word: randomUUID(),
        method: Math.random() < 0.3 ? createTeam : updateTeam,
        orgId: this.tenant.orgId,
        teamId: this.teamId,
        requestId: Math.random() < 0.5 ? randomUUID() : "",
        acknowledged: false,
      };
      writes.push(write);
      await this.send(write);
      if (!write.acknowledged) break;
    }
    return writes;
  }

  /** Once more the same, where it has a request_id. @returns the code */
  async send(write: Write): Promise<string> {
    const { word, requestId, orgId, teamId: id } = write;
    const options = { token: this.tenant.token, timeoutMs: 10_000 };
    const { code } =
      write.method === createTeam
        ? await this.client.call(createTeam, { team: { orgId, name: word }, requestId }, options)
        : await this.client.call(
            updateTeam,
            {
              team: { orgId, id, description: word },
              updateMask: { paths: ["description"] },
              requestId,
            },
            options,
          );
    write.acknowledged = code === "OK";
    return code;
  }
}

/** Follows an org's changes, and comes again from where it was whenever the stream breaks. */
const follow = async ({ orgId, owner }: OwnTenant, fold: Fold, over: () => boolean) => {
  let breaks = 0;
  while (!over()) {
    fold.reconnect();
    const from = fold.position === "" ? { snapshot: true } : { position: fold.position };
    const leaving = new AbortController();
    const watch = setInterval(() => over() && leaving.abort(), 50);
    try {
      for await (const message of owner.changes.watchChanges(
        { orgId, ...from },
        { signal: leaving.signal },
      ))
        fold.hear(message);
    } catch {
      breaks++;
    }
    clearInterval(watch);
    await delay(50);
  }
  return breaks;
};

/** The word that a change `c` of a team put into its row. */
const wordOf =
  "case c.kind when 'CREATED' then c.after ->> 'name' else c.after ->> 'description' end";

/** What the database has of each write: changes with their entry, and kept answers. */
const effectsOf = async (database: Database, writes: readonly Write[]) => {
  const rows = await database.query<{
    word: string;
    changes: number;
    entries: number;
    kept: number;
  }>(
    `select w.word,
       (select count(*)::int from roster.audit_changes c where c.org_id = w.org_id and c.resource_type = 'team'
          and w.word = ${wordOf}) as changes,
       (select count(*)::int from roster.audit_changes c join roster.audit_entries e on e.id = c.entry_id
        where c.org_id = w.org_id and c.resource_type = 'team' and e.outcome = 'SUCCEEDED' and e.org_id = w.org_id
          and w.word = ${wordOf}) as entries,
       (select count(*)::int from roster.idempotency_keys k
        where k.org_id = w.org_id and k.request_id::text = w.request and k.response is not null) as kept
     from unnest($1::text[], $2::uuid[], $3::text[]) as w (word, org_id, request)`,
    [writes.map((w) => w.word), writes.map((w) => w.orgId), writes.map((w) => w.requestId)],
  );
  return new Map(rows.map((row) => [row.word, row]));
};

/** Checks what came of a round, and sends again what may be sent again. */
const judge = async (database: Database, byWriter: ReadonlyMap<Writer, readonly Write[]>) => {
  const counts = { acknowledged: 0, present: 0, absent: 0, repeated: 0 };
  const writes = [...byWriter.values()].flat();
  const effects = await effectsOf(database, writes);
  for (const { word, acknowledged, requestId } of writes) {
    const { changes, entries, kept } = effects.get(word) ?? expect.fail("a write without a row");
    expect({ word, entries }).toEqual({ word, entries: changes });
    // The answer is kept in the transaction of the write, so it decides what became of it.
    if (requestId !== "") expect({ word, kept }).toEqual({ word, kept: changes });
    if (acknowledged) expect({ word, changes }).toEqual({ word, changes: 1 });
    else expect(changes).toBeLessThanOrEqual(1);
    if (acknowledged) counts.acknowledged++;
    else if (changes === 1) counts.present++;
    else counts.absent++;
  }
  const again: Write[] = [];
  for (const [writer, own] of byWriter)
    for (const write of own.filter((one) => !one.acknowledged && one.requestId !== "")) {
      await until(async () => (await writer.send(write)) === "OK", 30_000);
      again.push(write);
    }
  for (const { changes, entries, kept } of (await effectsOf(database, again)).values())
    expect({ changes, entries, kept }).toEqual({ changes: 1, entries: 1, kept: 1 });
  counts.repeated += again.length;
  return counts;
};

/** That no change lacks its entry, no entry of a write its change, and no row its change. */
const judgeLog = async (database: Database): Promise<void> => {
  const [found] = await database.query(`
    select
      (select count(*)::int from roster.audit_changes c
       where not exists (select from roster.audit_entries e where e.id = c.entry_id)) as changes_alone,
      (select count(*)::int from roster.audit_entries e
       where e.outcome = 'SUCCEEDED' and e.method ~ '(Create|Update)Team$'
         and not exists (select from roster.audit_changes c where c.entry_id = e.id)) as entries_alone,
      (select count(*)::int from (select id from roster.audit_entries group by id having count(*) > 1) d) as twice,
      (select count(*)::int from roster.teams t
       where (select count(*) from roster.audit_changes c
              where c.resource_type = 'team' and c.resource_id = t.id::text and c.kind = 'CREATED') <> 1) as rows_alone,
      (select count(*)::int from roster.teams t join lateral (
         select c.after ->> 'description' as said from roster.audit_changes c
         where c.resource_type = 'team' and c.resource_id = t.id::text order by c.id desc limit 1) l on true
       where l.said <> t.description) as rows_otherwise`);
  expect(found).toEqual({
    changes_alone: 0,
    entries_alone: 0,
    twice: 0,
    rows_alone: 0,
    rows_otherwise: 0,
  });
};

test(`${rounds} kills of the server and of PostgreSQL lose nothing and double nothing`, async () => {
  const database = await Database.start("kills");
  const server = await ServerProcess.on(database);
  await server.start();
  const tenants = await Promise.all(Array.from({ length: orgs }, () => tenantOn(server.port)));
  const writers: Writer[] = [];
  for (const tenant of tenants)
    for (let i = 0; i < writersPerOrg; i++) {
      const { team } = await tenant.owner.teams.createTeam({
        team: { orgId: tenant.orgId, name: `Of writer ${i}` },
      });
      const client = new RawClient(server.port, {
        "grpc.enable_retries": 0,
        "grpc.initial_reconnect_backoff_ms": 20,
        "grpc.max_reconnect_backoff_ms": 200,
        "grpc.use_local_subchannel_pool": 1,
      });
      writers.push(new Writer(tenant, team?.id ?? "", client));
    }
  let ended = false;
  const folds = tenants.map(() => new Fold());
  const following = tenants.map((tenant, i) => follow(tenant, folds[i] as Fold, () => ended));
  const totals = { acknowledged: 0, present: 0, absent: 0, repeated: 0 };
  const backMs: Record<string, number[]> = { server: [], database: [] };

  for (let round = 0; round < 2 * rounds; round++) {
    const victim = round % 2 === 0 ? "server" : "database";
    let over = false;
    const working = writers.map((writer) => writer.run(() => over));
    await delay(50 + Math.random() * 700);
    const start = performance.now();
    if (victim === "server") {
      await server.end("SIGKILL");
      over = true;
      await server.start();
    } else {
      database.kill();
      await delay(20);
      over = true;
      await database.restart();
    }
    const done = await Promise.all(working);
    // The server is not started anew for its database.
    const { orgId, owner } = tenants[0] as OwnTenant;
    await until(
      () =>
        owner.orgs.getOrg({ orgId }).then(
          () => true,
          () => false,
        ),
      30_000,
    );
    backMs[victim]?.push(performance.now() - start);
    const counts = await judge(database, new Map(writers.map((w, i) => [w, done[i] ?? []])));
    for (const [name, count] of Object.entries(counts))
      totals[name as keyof typeof totals] += count;
    if (round % 20 === 19) await judgeLog(database);
  }

  await judgeLog(database);
  for (const [i, { orgId, owner }] of tenants.entries()) {
    const tables = JSON.stringify(await tablesOf(owner, orgId));
    await until(async () => JSON.stringify(folds[i]?.shown()) === tables, 30_000);
    const applied = folds[i]?.applied ?? [];
    expect(new Set(applied).size).toBe(applied.length);
  }
  for (const { orgId, owner } of tenants) {
    // What was written last is sealed within seconds.
    await until(async () => {
      const [open] = await database.query<{ n: number }>(
        `select count(*)::int as n from roster.audit_entries e where org_id = $1 and create_time >
           coalesce((select max(s.newest_time) from roster.audit_seals s where s.org_id = $1), '-infinity')`,
        [orgId],
      );
      return open?.n === 0;
    }, 60_000);
    const { verified, firstFault } = await owner.audit.verifyAuditLog(
      { orgId },
      { timeoutMs: 60_000 },
    );
    expect({ verified, firstFault }).toEqual({ verified: true, firstFault: undefined });
  }
  ended = true;
  const breaks = (await Promise.all(following)).reduce((sum, n) => sum + n, 0);
  const most = (ms: readonly number[] = []) => `${Math.round(Math.max(0, ...ms))} ms`;
  console.log(
    `${rounds} kills each: ${totals.acknowledged} writes acknowledged, all there once; of the unknown ` +
      `${totals.present} there and ${totals.absent} not, ${totals.repeated} sent again; watchers came back ` +
      `${breaks} times; served again after at most ` +
      `${most(backMs.server)} (server), ${most(backMs.database)} (PostgreSQL)`,
  );
  await server.end("SIGTERM");
}, 7_200_000);
