/**
 * The change feed: which changes were committed since a snapshot.
 *
 * What a reader has seen is told by a snapshot, so that nothing is left out, however late it commits, and no long
 * transaction holds the others back. Transactions come in the order of their last changes: who changes a row that
 * another transaction changed does so after that one's commit. Their numbers would tell the order in which they began.
 */
import { NIL as firstId } from "uuid";
import { z } from "zod";
import { firstSize, sizeAfter } from "./page.ts";
import { formatSnapshot, type Place, parseSnapshot, type Snapshot } from "./positions.ts";
import { maybeText, sql, type UnitOfWork } from "./sql.ts";

/** A row of a table as the log keeps it. */
export type Image = Readonly<Record<string, unknown>>;

const image = z.custom<Image>().nullable();
const changeShape = {
  id: z.string(),
  last: z.string(),
  org_id: maybeText,
  copied: z.boolean(),
  resource_type: z.string(),
  resource_id: z.string(),
  kind: z.enum(["CREATED", "UPDATED", "DELETED", "UNDELETED", "PURGED"]),
  after: image,
  entry_id: z.string(),
  user_now: image,
  profile_now: image,
};
export type ChangeRow = z.output<z.ZodObject<typeof changeShape>>;

const stateShape = { snapshot: z.string(), epoch: z.string(), removed: z.string() };
const stateRow = z.object(stateShape);
const pageRow = z.object({
  ...stateShape,
  ...changeShape,
  id: z.string().nullable(),
  last: z.string().nullable(),
  copied: z.boolean().nullable(),
  resource_type: z.string().nullable(),
  resource_id: z.string().nullable(),
  kind: changeShape.kind.nullable(),
  entry_id: z.string().nullable(),
});

/** What the database says of the feed as a whole. */
export interface FeedState {
  readonly now: Snapshot;
  /** Another epoch is another history, of whose positions nothing is known. */
  readonly epoch: string;
  /** Changes of transactions up to this one may be gone. */
  readonly removed: bigint;
}

const state = sql.fragment`
  select pg_current_snapshot()::text as snapshot, epoch, removed::text as removed from roster.feed_state()`;

const toState = ({ snapshot, epoch, removed }: z.output<typeof stateRow>): FeedState => ({
  now: parseSnapshot(snapshot),
  epoch,
  removed: BigInt(removed),
});

const never = (): Error => new Error("the feed has no state");

/** Reads the state of the feed; like every statement it enters anew, so it judges the caller too. */
export const feedState = async (unit: UnitOfWork): Promise<FeedState> =>
  toState(await unit.one(sql.type(stateRow)`${state}`, never, { primary: true }));

/** Whose changes are read: an org's as it may see them, all but the copies that orgs got, or all. */
export type Whose = { readonly orgId: string } | "originals" | "all";

/** The organisation, and whether copies are left out. */
const sightOf = (sight: Whose): readonly [orgId: string | null, originals: boolean] =>
  typeof sight === "string" ? [null, sight === "originals"] : [sight.orgId, false];

const pageBehind = (sight: Whose, { seen, part }: Place, limit: number) => {
  const [orgId, originals] = sightOf(sight);
  const shown = part ? formatSnapshot(part.of) : null;
  // Of a new member the user and the default profile, each looked up by itself: joined they might be read whole.
  return sql.type(pageRow)`
    select s.*, c.*,
      case when c.resource_type = 'org_member' and c.kind = 'CREATED' then (
        select to_jsonb(u) - roster.unaudited_columns() - '{external_id, labels}'::text[]
        from roster.users u where u.id = (c.after ->> 'user_id')::uuid) end as user_now,
      case when c.resource_type = 'org_member' and c.kind = 'CREATED' then (
        select to_jsonb(d) - roster.unaudited_columns()
        from roster.profiles d where d.user_id = (c.after ->> 'user_id')::uuid and d.org_id is null) end as profile_now
    from (${state}) s
    left join lateral roster.feed_page(
      ${orgId}::uuid, ${originals}, ${formatSnapshot(seen)}::pg_snapshot, ${shown}::pg_snapshot,
      ${part?.last ?? firstId}::uuid, ${part?.id ?? firstId}::uuid, ${limit}) c on true
    order by c.last, c.id`;
};

/** A part of what lies behind a place. */
export interface FeedPage extends FeedState {
  readonly rows: readonly ChangeRow[];
  /** The snapshot that shows this page and those that come with it. */
  readonly of: Snapshot;
  /** Behind the page; whole when no other comes. */
  readonly place: Place;
}

/**
 * The changes behind a place in pages that are bounded by what they weigh: those that are committed when the first is
 * read or, where the place is within a part, that its snapshot shows. Each costs what it returns.
 *
 * @param most changes in all
 */
export async function* pagesBehind(
  unit: UnitOfWork,
  sight: Whose,
  start: Place,
  most = Number.POSITIVE_INFINITY,
): AsyncGenerator<FeedPage> {
  let [place, size, left] = [start, firstSize, most];
  while (left > 0) {
    const limit = Math.min(size, left);
    const found = await unit.many(pageBehind(sight, place, limit), { primary: true });
    const [first] = found;
    if (!first) throw never();
    const now = toState(first);
    const of = place.part?.of ?? now.now;
    const rows = found.filter(({ id }) => id !== null) as readonly ChangeRow[];
    const end = rows.length === limit ? rows.at(-1) : undefined;
    place = end ? { seen: start.seen, part: { of, last: end.last, id: end.id } } : { seen: of };
    yield { ...now, rows, of, place };
    if (!end) return;
    size = sizeAfter(size, found);
    left -= rows.length;
  }
}
