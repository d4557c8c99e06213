/** How fast a long log is exported, sealed and verified, against COPY of the same rows, and what memory that takes. */
import { readFileSync } from "node:fs";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import grpc from "@grpc/grpc-js";
import { AuditService } from "../../src/gen/roster/v1/audit_service_pb.ts";
import { seal } from "../../src/jobs/seal.ts";
import { verifyAudit } from "../../src/jobs/verify-audit.ts";
import { median, type Served } from "./process.ts";
import type { Stand } from "./stand.ts";

const { exportAuditEntries: method } = AuditService.method;
export const exportName = method.name;
export const verifyName = AuditService.method.verifyAuditLog.name;
const count = 200_000;
const orgId = "00000000-0000-7000-8000-00000000e4b0";

/** An org's log of entries with a change each, as an update of a team leaves them, over a few days. */
const logSql = `
  begin;
  set local session_replication_role = replica;
  insert into roster.orgs (id, name, slug) values ('${orgId}', 'Exported', 'exported');
  create temporary table made on commit drop as
    select n, gen_random_uuid() as id, now() - make_interval(secs => (${count} - n) * 2) as create_time
    from generate_series(1, ${count}) n;
  insert into roster.audit_entries (id, org_id, subject, kind, method, correlation_id, create_time)
    select id, '${orgId}', gen_random_uuid(), 'USER', 'roster.v1.TeamService/UpdateTeam', gen_random_uuid(),
      create_time from made;
  insert into roster.audit_changes (org_id, entry_id, subject, method, correlation_id, resource_type, resource_id,
      kind, before, after, changed_fields, create_time)
    select '${orgId}', id, 'someone', 'roster.v1.TeamService/UpdateTeam', 'some call', 'team', id::text, 'UPDATED',
      team || jsonb_build_object('name', 'Team ' || n), team || jsonb_build_object('name', 'Crew ' || n), '{name}',
      create_time
    from made, lateral (
      select jsonb_build_object('id', id, 'org_id', '${orgId}', 'parent_team_id', null, 'type', 'team',
        'description', 'Those who carry on', 'visibility', 'VISIBLE', 'labels', '{"plan": "pro"}'::jsonb,
        'create_time', create_time, 'update_time', create_time, 'delete_time', null, 'purge_time', null) as team) t;
  commit;
  vacuum analyze roster.audit_entries;
  vacuum analyze roster.audit_changes`;

const copy = `
  copy (
    select e.*, c.* from roster.audit_entries e
    left join roster.audit_changes c on c.create_time = e.create_time and c.entry_id = e.id
    where e.org_id = '${orgId}'
    order by e.create_time, e.id) to stdout`;

const rssMb = ({ pid }: Served): number =>
  Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]) / 1024;

interface Run {
  readonly seconds: number;
  readonly entries: number;
  /** The most memory that the server held in the second half of the run above the most in its first. */
  readonly growthMb: number;
}

/** Reads the whole log. Only when it is to count does it look into the messages, which would slow the server. */
const run = async (served: Served, token: string, counting: boolean): Promise<Run> => {
  const client = new grpc.Client(`127.0.0.1:${served.port}`, grpc.credentials.createInsecure());
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${token}`);
  const begin = performance.now();
  const stream = client.makeServerStreamRequest(
    `/${method.parent.typeName}/${method.name}`,
    (bytes: Buffer) => bytes,
    (bytes: Buffer) => bytes,
    Buffer.from(toBinary(method.input, create(method.input, { orgId }))),
    metadata,
  );
  let entries = 0;
  const samples: number[] = [];
  const sampler = setInterval(() => samples.push(rssMb(served)), 50);
  for await (const bytes of stream)
    if (counting) entries += fromBinary(method.output, bytes as Buffer).auditEntries.length;
  clearInterval(sampler);
  client.close();
  const half = Math.ceil(samples.length / 2);
  return {
    seconds: (performance.now() - begin) / 1000,
    entries,
    growthMb: Math.max(...samples.slice(half)) - Math.max(...samples.slice(0, half)),
  };
};

/** What was measured, and whether it is enough. */
export interface Measured {
  readonly perSecond: number;
  /** Seconds of the work against those of COPY. */
  readonly ratio: number;
  readonly budget: string;
  /** Null where no figure is held to. */
  readonly met: boolean | null;
}

const leastPerSecond = 10_000;
const mostGrowthMb = 32;

/** Writes the log, once. */
const loaded = new WeakSet<Stand>();
const loadLog = async (stand: Stand): Promise<void> => {
  if (loaded.has(stand)) return;
  loaded.add(stand);
  for (const statement of logSql.split(";\n")) await stand.admin.query(statement);
};

const secondsOf = async (work: () => Promise<unknown>): Promise<number> => {
  const begin = performance.now();
  await work();
  return (performance.now() - begin) / 1000;
};

const copySeconds = (stand: Stand): Promise<number> => secondsOf(() => stand.admin.query(copy));

/** Exports a log of 200,000 entries and copies it out of PostgreSQL, in turns. */
export const measureExport = async (
  stand: Stand,
  served: Served,
  rounds: number,
): Promise<Measured> => {
  const token = await stand.tokenOf(undefined);
  await loadLog(stand);
  const { entries } = await run(served, token, true);
  // The entry of this very export is in the log as well.
  if (entries < count + 1) throw new Error(`${entries} entries came, not ${count + 1}`);
  const runs: Run[] = [];
  const copies: number[] = [];
  for (let round = 0; round < rounds; round++) {
    runs.push(await run(served, token, false));
    copies.push(await copySeconds(stand));
  }
  const perSecond = count / median(runs.map(({ seconds }) => seconds));
  const growthMb = median(runs.map((one) => one.growthMb));
  const ratio = median(runs.map(({ seconds }, i) => seconds / (copies[i] as number)));
  return {
    perSecond,
    ratio,
    budget: [
      `${perSecond.toFixed(0)} entries/s ≥ ${leastPerSecond}`,
      `${ratio.toFixed(2)} × COPY`,
      `${growthMb.toFixed(0)} MB ≤ ${mostGrowthMb} MB more in the second half than in the first`,
    ].join(", "),
    met: perSecond >= leastPerSecond && growthMb <= mostGrowthMb,
  };
};

/** Seals the log of 200,000 entries, and verifies it and copies it out of PostgreSQL, in turns. */
export const measureVerify = async (stand: Stand, rounds: number): Promise<Measured> => {
  await loadLog(stand);
  const { worker } = stand.urls;
  const before = await sealedRows(stand);
  const sealing = await secondsOf(() => seal(worker));
  const sealedPerSecond = ((await sealedRows(stand)) - before) / sealing;
  const times: number[] = [];
  const copies: number[] = [];
  let verified = 0;
  for (let round = 0; round < rounds; round++) {
    const fault = (found: object): never => {
      throw new Error(`the log is at fault: ${JSON.stringify(found)}`);
    };
    times.push(
      await secondsOf(async () => {
        verified = (await verifyAudit(worker, orgId, [], fault)).rows;
      }),
    );
    copies.push(await copySeconds(stand));
  }
  if (verified < 2 * count) throw new Error(`${verified} rows were verified, not ${2 * count}`);
  const ratio = median(times.map((seconds, i) => seconds / (copies[i] as number)));
  const perSecond = verified / median(times);
  return {
    perSecond,
    ratio,
    budget: [
      `${perSecond.toFixed(0)} rows/s`,
      `${ratio.toFixed(2)} × COPY`,
      `sealed at ${sealedPerSecond.toFixed(0)} rows/s`,
    ].join(", "),
    met: null,
  };
};

const sealedRows = async ({ admin }: Stand): Promise<number> => {
  const { rows } = await admin.query(
    "select coalesce(sum(size), 0)::int as n from roster.audit_seals",
  );
  return rows[0].n;
};
