import type { JsonObject } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { maybeOrgId, unitOfWork } from "../context.ts";
import type { Page } from "../database/page.ts";
import { type FragmentSqlToken, instant, maybeText, sql } from "../database/sql.ts";
import { fail } from "../errors.ts";
import { ActorKind, AuditOutcome, ChangeKind } from "../gen/roster/v1/audit_pb.ts";
import type { AuditService } from "../gen/roster/v1/audit_service_pb.ts";
import { conditionOf, type Fields, ofSome, oneOf, text, time } from "./conditions.ts";
import { parseFilter } from "./filters.ts";
import { firstId, pageOf } from "./requests.ts";
import { orderOf } from "./selections.ts";

/** Changes that one entry shows; `change_count` says how many there are. */
export const shownChanges = 100;

export const changeRow = z.object({
  org_id: maybeText,
  resource_type: z.string(),
  resource_id: z.string(),
  kind: z.enum(["CREATED", "UPDATED", "DELETED", "UNDELETED", "PURGED"]),
  before: z.custom<JsonObject>().nullable(),
  after: z.custom<JsonObject>().nullable(),
  changed_fields: z.array(z.string()),
});

export const toChange = (row: z.output<typeof changeRow>) => ({
  orgId: row.org_id,
  resourceType: row.resource_type,
  resourceId: row.resource_id,
  kind: ChangeKind[row.kind],
  ...(row.before ? { before: row.before } : {}),
  ...(row.after ? { after: row.after } : {}),
  changedFields: row.changed_fields,
});

/** An entry without its changes. */
export const bareEntryRow = z.object({
  id: z.string(),
  org_id: maybeText,
  subject: z.string(),
  kind: z.enum(["USER", "SERVICE"]),
  on_behalf_of: z.array(z.string()),
  method: z.string(),
  correlation_id: z.string(),
  outcome: z.enum(["SUCCEEDED", "DENIED"]),
  reason: z.string(),
  operator_reason: z.string(),
  create_time: instant,
  /** The time as PostgreSQL compares it, for the cursor. */
  position: z.string(),
  change_count: z.number(),
});
export const entryRow = z.object({
  ...bareEntryRow.shape,
  changes: z.array(changeRow.transform(toChange)),
});

export const toBareEntry = (row: z.output<typeof bareEntryRow>) => ({
  id: row.id,
  orgId: row.org_id,
  actor: { subject: row.subject, onBehalfOf: row.on_behalf_of, kind: ActorKind[row.kind] },
  method: row.method,
  correlationId: row.correlation_id,
  outcome: AuditOutcome[row.outcome],
  reason: row.reason,
  operatorReason: row.operator_reason,
  createTime: row.create_time,
  changeCount: row.change_count,
});

export const toEntry = (row: z.output<typeof entryRow>) => ({
  ...toBareEntry(row),
  changes: row.changes.slice(0, shownChanges),
});

/**
 * An entry of `audit_entries e` with its changes. Inside an org row-level security leaves that org's; outside,
 * the copies that organisations got of a user's change are left out. Changes are written in the transaction
 * of their entry, hence at its very time, which spares the search of all other months.
 */
export const entryColumns = sql.fragment`
  e.id, e.org_id, e.subject, e.kind, e.on_behalf_of, e.method, e.correlation_id, e.outcome, e.reason,
  e.operator_reason, e.create_time, e.create_time::text as position, c.change_count, c.changes`;
const visible = sql.fragment`
  a.entry_id = e.id and a.create_time = e.create_time
  and (not a.copied or (select roster.current_org()) is not null)`;
export const changesJoin = sql.fragment`
  cross join lateral (
    select coalesce(json_agg(shown), '[]') as changes,
      case
        when count(*) <= ${shownChanges} then count(*)::int
        else (select count(*)::int from roster.audit_changes a where ${visible})
      end as change_count
    from (
      select a.org_id, a.resource_type, a.resource_id, a.kind, a.before, a.after, a.changed_fields
      from roster.audit_changes a where ${visible}
      order by a.resource_type, a.resource_id limit ${shownChanges + 1}) shown) c`;

/** Holds for an entry that changed something for which a condition on `audit_changes a` holds. */
const changing = (condition: FragmentSqlToken) => sql.fragment`
  exists (
    select from roster.audit_changes a
    where a.entry_id = e.id and a.create_time = e.create_time and ${condition})`;

/** What filters can ask of an entry of `audit_entries e`. */
export const fields: Fields = {
  "actor.subject": text(sql.fragment`e.subject`),
  "actor.kind": oneOf(sql.fragment`e.kind`, ["USER", "SERVICE"]),
  method: text(sql.fragment`e.method`),
  outcome: oneOf(sql.fragment`e.outcome`, ["SUCCEEDED", "DENIED"]),
  reason: text(sql.fragment`e.reason`),
  correlation_id: text(sql.fragment`e.correlation_id`),
  create_time: time(sql.fragment`e.create_time`),
  operator_reason: text(sql.fragment`e.operator_reason`),
  "changes.resource_type": ofSome(text(sql.fragment`a.resource_type`), changing),
  "changes.resource_id": ofSome(text(sql.fragment`a.resource_id`), changing),
};

type After = Page["after"];

/** Rows of a log, by `create_time`, `xid` and the column of their entry's id. */
export type Span = (id: FragmentSqlToken) => FragmentSqlToken;

/** Which way a log is read, and what lies behind a cursor on that way. The time alone picks the months to look at. */
export const directions = {
  newestFirst: {
    way: sql.fragment`desc`,
    behind:
      (after: After): Span =>
      (id) =>
        after === null
          ? sql.fragment`true`
          : sql.fragment`create_time <= ${after[0] ?? ""}::timestamptz
              and (create_time, ${id}) < (${after[0] ?? ""}::timestamptz, ${after[1] ?? ""}::uuid)`,
  },
  oldestFirst: {
    way: sql.fragment`asc`,
    behind:
      (after: After): Span =>
      (id) =>
        after === null
          ? sql.fragment`true`
          : sql.fragment`create_time >= ${after[0] ?? ""}::timestamptz
              and (create_time, ${id}) > (${after[0] ?? ""}::timestamptz, ${after[1] ?? ""}::uuid)`,
  },
};

/** What is asked of a log: whose, which entries, which way, and how many at most. */
interface Asked {
  readonly orgId: string | undefined;
  readonly holds: FragmentSqlToken;
  /** False when `holds` lets all through. */
  readonly filtered: boolean;
  readonly way: FragmentSqlToken;
  readonly limit: FragmentSqlToken;
}

const id = sql.fragment`id`;

/**
 * Rows of `audit_entries` as a log shows them. An org's holds its own entries and, of work across orgs, those that
 * changed something of it. The entry that this very call has just left is not in its answer.
 */
export const entriesIn = ({ orgId, holds, filtered, way, limit }: Asked, span: Span) =>
  orgId === undefined
    ? sql.fragment`
        select e.* from roster.audit_entries e
        where ${span(id)} and ${holds} and e.xid is distinct from pg_current_xact_id_if_assigned()
        order by create_time ${way}, id ${way} ${limit}`
    : sql.fragment`
        (select e.* from roster.audit_entries e
          where org_id = ${orgId} and ${span(id)} and ${holds}
            and e.xid is distinct from pg_current_xact_id_if_assigned()
          order by create_time ${way}, id ${way} ${limit})
        union all
        (select e.* from (
            select distinct create_time, entry_id from roster.audit_changes
            where org_id = ${orgId} and apart and ${span(sql.fragment`entry_id`)}
            order by create_time ${way}, entry_id ${way} ${filtered ? sql.fragment`` : limit}) c
          join roster.audit_entries e on e.create_time = c.create_time and e.id = c.entry_id
          where ${holds}
          order by e.create_time ${way}, e.id ${way} ${limit})
        order by create_time ${way}, id ${way} ${limit}`;

/** Of an entry, if the org that is asked may see it. */
const seen = (auditEntryId: string, orgId: string | undefined) => sql.fragment`
  e.id = ${auditEntryId}
  and (${orgId ?? null}::uuid is null or e.org_id is null or e.org_id = ${orgId ?? null}::uuid)`;

const noEntry = (auditEntryId: string) => () =>
  fail("AUDIT_ENTRY_NOT_FOUND", { audit_entry_id: auditEntryId });

const placedChangeRow = changeRow.extend({ id: z.string() });

/**
 * Changes of an entry that was made at a time, behind one of them, by the key of the table: each page costs the same,
 * however many there are. By equality with the entry PostgreSQL would take the index of entries, and sort all of its
 * changes for one page.
 */
export const changesBehind = (
  auditEntryId: string,
  time: string,
  after: string,
  limit: FragmentSqlToken | number,
) => sql.type(placedChangeRow)`
  select a.id, a.org_id, a.resource_type, a.resource_id, a.kind, a.before, a.after, a.changed_fields
  from roster.audit_changes a
  where a.create_time = ${time}::timestamptz and a.id > ${after}::uuid
    and a.entry_id is not distinct from ${auditEntryId}::uuid
    and (not a.copied or (select roster.current_org()) is not null)
  order by a.id limit ${limit}`;

/** When an entry was made, as PostgreSQL compares it. @throws AUDIT_ENTRY_NOT_FOUND */
const timeOf = async (auditEntryId: string, context: HandlerContext): Promise<string> => {
  const { position } = await unitOfWork(context).one(
    sql.type(z.object({ position: z.string() }))`
      select e.create_time::text as position from roster.audit_entries e
      where ${seen(auditEntryId, maybeOrgId(context))}`,
    noEntry(auditEntryId),
    { prepare: false },
  );
  return position;
};

type AuditLog = Omit<ServiceImpl<typeof AuditService>, "exportAuditEntries" | "verifyAuditLog">;

export const auditLog = {
  async getAuditEntry({ auditEntryId }, context) {
    const row = await unitOfWork(context).one(
      sql.type(entryRow)`
        select ${entryColumns} from roster.audit_entries e ${changesJoin}
        where ${seen(auditEntryId, maybeOrgId(context))}`,
      noEntry(auditEntryId),
      { prepare: false },
    );
    return { auditEntry: toEntry(row) };
  },

  async listAuditEntries(request, context) {
    const page = pageOf(context, request);
    const orgId = maybeOrgId(context);
    const filter = parseFilter(request.filter);
    const asked = orderOf(request.orderBy, { keys: {}, idOrder: "create_time" });
    const { way, behind } = directions[asked && !asked.descending ? "oldestFirst" : "newestFirst"];
    const limit = sql.fragment`limit ${page.limit}`;
    const holds = conditionOf(filter, request.filter, fields, orgId !== undefined);
    const entries = entriesIn(
      { orgId, holds, filtered: filter !== null, way, limit },
      behind(page.after),
    );
    // Unprepared: a generic plan over partitions would sort the whole log for one page.
    const rows = await unitOfWork(context).many(
      sql.type(entryRow)`
        select ${entryColumns}
        from (${entries}) e ${changesJoin}
        order by e.create_time ${way}, e.id ${way}`,
      { prepare: false },
    );
    const { items, nextPageToken } = page.finish(rows, (row) => [row.position, row.id], toEntry);
    return { auditEntries: items, nextPageToken };
  },

  async listAuditChanges(request, context) {
    const { auditEntryId } = request;
    const page = pageOf(context, request);
    const [time, after] = page.after ?? [await timeOf(auditEntryId, context), firstId];
    const rows = await unitOfWork(context).many(
      changesBehind(auditEntryId, time ?? "", after ?? "", page.limit),
      { prepare: false },
    );
    const cursor = ({ id }: { id: string }) => [time ?? "", id];
    const { items, nextPageToken } = page.finish(rows, cursor, toChange);
    return { auditChanges: items, nextPageToken };
  },
} satisfies AuditLog;
