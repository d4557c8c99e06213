import type { KeyObject } from "node:crypto";
import { create, type JsonObject, type JsonValue, type MessageInitShape } from "@bufbuild/protobuf";
import { BinaryWriter, WireType } from "@bufbuild/protobuf/wire";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { maybeOrgId, settings, unitOfWork } from "../context.ts";
import { firstSize, heavy, seal, sizeAfter, unseal, weigh } from "../database/page.ts";
import { type FragmentSqlToken, maybeInstant, sql } from "../database/sql.ts";
import { fail } from "../errors.ts";
import { AuditChangeSchema } from "../gen/roster/v1/audit_pb.ts";
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
type Change = Entry["changes"][number];

/** Changes that are read at once of an entry with many. */
const piecesSize = 500;
/**
 * What the entries of one message may weigh, but for a single one that is heavier. Of messages a slow reader has many
 * on the way.
 */
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

type ExportedRow = z.output<typeof exportedRow>;

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
const pageBehind = (place: Place, size: number, orgId: string | undefined, filterText: string) => {
  const filter = parseFilter(filterText);
  const holds = conditionOf(filter, filterText, fields, orgId !== undefined);
  const limit = sql.fragment`limit ${size}`;
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

const placeOf = ({ position, id, snapshot }: ExportedRow): Place => [position, id, snapshot];

/** The place that a position stands for. */
const placeAt = (position: string, key: KeyObject, binding: string): Place => {
  if (position === "") return undefined;
  const text = unseal(key, position, binding);
  if (text === undefined) throw fail("EXPORT_POSITION_INVALID", { field: "position" });
  return JSON.parse(text);
};

/** Refuses a place behind which retention may have removed what nobody was sent. */
const demandKept = async (
  [time]: NonNullable<Place>,
  orgId: string | undefined,
  context: HandlerContext,
): Promise<void> => {
  const ofOrg = orgId === undefined ? sql.fragment`` : sql.fragment`and org_id = ${orgId}`;
  const removed = await unitOfWork(context).many(sql.type(z.object({ kept_from: maybeInstant }))`
    select kept_from from roster.audit_removals where kept_from > ${time}::timestamptz ${ofOrg} limit 1`);
  if (removed.length > 0) throw fail("EXPORT_POSITION_OUT_OF_RANGE");
};

/** The place behind a whole page: nothing that was overtaken is left before it. */
const placeAfter = (place: Place, rows: readonly ExportedRow[]): Place => {
  const last = rows.at(-1);
  if (!last) return place;
  return place && last.late ? [place[0], place[1], last.snapshot] : placeOf(last);
};

/** An entry as often as it takes to send all its changes. */
async function* piecesOf(
  entry: Entry,
  time: string,
  context: HandlerContext,
): AsyncGenerator<Entry> {
  let after: string = firstId;
  let changes: Entry["changes"] = [];
  let weight = 0;
  for (;;) {
    const query = changesBehind(entry.id, time, after, piecesSize);
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
    if (last === undefined || rows.length < piecesSize) break;
    after = last.id;
  }
  yield { ...entry, changes };
}

const lengthDelimited = WireType.LengthDelimited;

/** A value as google.protobuf.Value has it, written behind its tag. */
const writeValue = (writer: BinaryWriter, value: JsonValue): void => {
  switch (typeof value) {
    case "number":
      writer.tag(2, WireType.Bit64).double(value);
      return;
    case "string":
      writer.tag(3, lengthDelimited).string(value);
      return;
    case "boolean":
      writer.tag(4, WireType.Varint).bool(value);
      return;
  }
  if (value === null) {
    writer.tag(1, WireType.Varint).int32(0);
  } else if (Array.isArray(value)) {
    writer.tag(6, lengthDelimited).fork();
    for (const inner of value) {
      writer.tag(1, lengthDelimited).fork();
      writeValue(writer, inner);
      writer.join();
    }
    writer.join();
  } else {
    writer.tag(5, lengthDelimited);
    writeStruct(writer, value);
  }
};

const writeStruct = (writer: BinaryWriter, value: JsonObject): void => {
  writer.fork();
  for (const [name, inner] of Object.entries(value)) {
    writer.tag(1, lengthDelimited).fork();
    writer.tag(1, lengthDelimited).string(name);
    writer.tag(2, lengthDelimited).fork();
    writeValue(writer, inner);
    writer.join().join();
  }
  writer.join();
};

/** A field that is a google.protobuf.Struct, as bytes. */
const structField = (no: number, value: JsonObject) => {
  const writer = new BinaryWriter();
  writeStruct(writer, value);
  return { no, wireType: lengthDelimited, data: writer.finish() };
};

/** A change whose `before` and `after` are bytes already: the generated code takes several times as long for them. */
const changeInWire = ({ before, after, ...rest }: Change) => {
  const change = create(AuditChangeSchema, rest);
  change.$unknown = [
    ...(before ? [structField(AuditChangeSchema.field.before.number, before)] : []),
    ...(after ? [structField(AuditChangeSchema.field.after.number, after)] : []),
  ];
  return change;
};

const inWire = (entry: Entry) => ({ ...entry, changes: entry.changes.map(changeInWire) });

type AuditExports = Pick<ServiceImpl<typeof AuditService>, "exportAuditEntries">;

export const auditExports = {
  async *exportAuditEntries({ filter, position }, context) {
    const orgId = maybeOrgId(context);
    const { pageKey } = settings(context);
    const binding = `${context.method.name}\n${orgId ?? ""}`;
    let place = placeAt(position, pageKey, binding);
    if (place) await demandKept(place, orgId, context);
    const message = (entries: Entry[]): Message => ({
      auditEntries: entries.map(inWire),
      position: place ? seal(pageKey, JSON.stringify(place), binding) : "",
    });
    const read = (from: Place, size: number) =>
      unitOfWork(context).many(pageBehind(from, size, orgId, filter), { prepare: false });
    let size = firstSize;
    let reading: ReturnType<typeof read> | undefined = read(place, size);
    for (let first = true; reading; first = false) {
      const rows: readonly ExportedRow[] = await reading;
      const behindAll = placeAfter(place, rows);
      const full = rows.filter(({ late }) => !late).length === size;
      size = sizeAfter(size, rows);
      // The next page is read while this one is sent; what goes wrong is told when it is its turn.
      reading = full ? read(behindAll, size) : undefined;
      reading?.catch(() => {});
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
          for await (const piece of piecesOf(entry, row.position, context)) yield message([piece]);
        }
        if (!row.late) place = placeOf(row);
      }
      place = behindAll;
      if (rows.length > 0 || first) yield message(entries);
    }
  },
} satisfies AuditExports;
