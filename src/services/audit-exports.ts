import type { MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { maybeOrgId, settings, unitOfWork } from "../context.ts";
import { heavy, opened, sealed, weigh } from "../database/page.ts";
import { type FragmentSqlToken, sql } from "../database/sql.ts";
import { fail } from "../errors.ts";
import type {
  AuditService,
  ExportAuditEntriesResponseSchema,
} from "../gen/roster/v1/audit_service_pb.ts";
import {
  changesBehind,
  changesJoin,
  directions,
  entriesIn,
  entryColumns,
  entryRow,
  fields,
  type Span,
  shownChanges,
  toChange,
  toEntry,
} from "./audit.ts";
import { conditionOf } from "./conditions.ts";
import { parseFilter } from "./filters.ts";
import { firstId } from "./requests.ts";

type Message = MessageInitShape<typeof ExportAuditEntriesResponseSchema>;
type Entry = ReturnType<typeof toEntry>;

const pageSize = 250;
const limit = sql.fragment`limit ${sql.literalValue(`${pageSize}`)}`;
/** What the entries of one message may weigh, but for a single one that is heavier. Of messages a slow reader has many on the way. */
const messageWeight = 256 * 1024;

/**
 * How far an export has come: the last entry that was sent, and which transactions had ended by then; that is empty
 * where the entry is so old that none of its time can have been open. Undefined before the first entry.
 */
type Place = readonly [createTime: string, id: string, snapshot: string] | undefined;

const exportedRow = entryRow.extend({
  /** What had ended when this was read; empty where all of that time had. */
  snapshot: z.string(),
  late: z.boolean(),
});

/** Longer than any call's transaction lives: its deadline is at most a minute. */
const settled = sql.fragment`interval '3 minutes'`;

/** Up to a place, what committed only after that place was sent. There is hardly ever anything. */
const overtaken =
  ([createTime, entryId, snapshot]: NonNullable<Place>): Span =>
  (id: FragmentSqlToken) =>
    sql.fragment`
    create_time >= ${createTime}::timestamptz - ${settled} and create_time <= ${createTime}::timestamptz
    and (create_time, ${id}) <= (${createTime}::timestamptz, ${entryId}::uuid)
    and not pg_visible_in_snapshot(xid, ${snapshot}::pg_snapshot)`;

const { way, behind } = directions.oldestFirst;

/** The next entries behind a place, those that were overtaken first. */
const pageBehind = (place: Place, orgId: string | undefined, filterText: string) => {
  const filter = parseFilter(filterText);
  const holds = conditionOf(filter, filterText, fields, orgId !== undefined);
  const asked = { orgId, holds, filtered: filter !== null, way, limit };
  const next = sql.fragment`
    select e.*, false as late from (${entriesIn(asked, behind(place ?? null))}) e`;
  const entries = place?.[2]
    ? sql.fragment`
        select e.*, true as late
        from (${entriesIn({ ...asked, limit: sql.fragment`` }, overtaken(place))}) e
        union all (${next})`
    : next;
  return sql.type(exportedRow)`
    select ${entryColumns}, e.late,
      case when e.late or e.create_time > now() - ${settled} then pg_current_snapshot()::text else '' end as snapshot
    from (${entries}) e ${changesJoin}
    order by e.create_time, e.id`;
};

/** An entry as often as it takes to send all its changes. */
async function* piecesOf(entry: Entry, context: HandlerContext): AsyncGenerator<Entry> {
  const orgId = maybeOrgId(context);
  let after: string = firstId;
  let changes: Entry["changes"] = [];
  let weight = 0;
  for (;;) {
    const query = changesBehind(entry.id, orgId, after, sql.literalValue(`${pageSize}`));
    const rows = await unitOfWork(context).many(query, { prepare: false });
    for (const row of rows) {
      const change = toChange(row);
      const more = weigh(change);
      if (changes.length > 0 && weight + more > messageWeight) {
        yield { ...entry, changes };
        [changes, weight] = [[], 0];
      }
      changes.push(change);
      weight += more;
    }
    const last = rows.at(-1);
    if (last === undefined || rows.length < pageSize) break;
    after = last.id;
  }
  yield { ...entry, changes };
}

type AuditExports = Pick<ServiceImpl<typeof AuditService>, "exportAuditEntries">;

export const auditExports = {
  async *exportAuditEntries({ filter, position }, context) {
    const orgId = maybeOrgId(context);
    const { pageKey } = settings(context);
    const binding = `${context.method.name}\n${orgId ?? ""}`;
    let place = position === "" ? undefined : (opened(pageKey, binding, position) as Place);
    if (position !== "" && !place) throw fail("EXPORT_POSITION_INVALID", { field: "position" });
    const message = (auditEntries: Entry[]): Message => ({
      auditEntries,
      position: place ? sealed(pageKey, binding, place) : "",
    });
    let more = true;
    for (let first = true; more; first = false) {
      const query = pageBehind(place, orgId, filter);
      const rows = await unitOfWork(context).many(query, { prepare: false });
      const weighing = heavy.has(rows);
      let entries: Entry[] = [];
      let weight = 0;
      for (const row of rows) {
        const entry = toEntry(row);
        const own = weighing ? weigh(entry) : 0;
        const whole = entry.changeCount <= shownChanges && own <= messageWeight;
        if (entries.length > 0 && (!whole || weight + own > messageWeight)) {
          yield message(entries);
          [entries, weight] = [[], 0];
        }
        if (whole) {
          entries.push(entry);
          weight += own;
        } else {
          for await (const piece of piecesOf(entry, context)) yield message([piece]);
        }
        if (!row.late) place = [row.position, row.id, row.snapshot];
      }
      // Nothing that was overtaken is left before the place.
      const last = rows.at(-1);
      if (place && last?.late) place = [place[0], place[1], last.snapshot];
      more = rows.filter(({ late }) => !late).length === pageSize;
      if (rows.length > 0 || first) yield message(entries);
    }
  },
} satisfies AuditExports;
