/**
 * The change feed: which changes were committed since a snapshot, and one poll of the database for all who watch.
 *
 * What a reader has seen is told by a snapshot, so that nothing is left out, however late it commits, and no long
 * transaction holds the others back. Transactions come in the order of their last changes: who changes a row that
 * another transaction changed does so after that one's commit. Their numbers would tell the order in which they began.
 */
import { setTimeout as delay } from "node:timers/promises";
import { context, ROOT_CONTEXT } from "@opentelemetry/api";
import { z } from "zod";
import { formatSnapshot, type Place, parseSnapshot, type Snapshot } from "./positions.ts";
import { maybeText, sql, type UnitOfWork } from "./sql.ts";

/** What comes before every change. */
const firstId = "00000000-0000-0000-0000-000000000000";

/** Spares the planner the months to come, which are half of its work; clocks may differ by more than a little. */
const horizonMs = 32 * 24 * 3_600_000;

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

const sightOf = (sight: Whose) => {
  if (sight === "all") return sql.fragment`true`;
  if (sight === "originals") return sql.fragment`not c.copied`;
  return sql.fragment`c.org_id = ${sight.orgId}`;
};

/**
 * A page of the changes behind a place, of those that are committed now or, where the place is within a part, that
 * its snapshot shows.
 */
export const changesAfter = async (
  unit: UnitOfWork,
  sight: Whose,
  { seen, part }: Place,
  limit: number,
): Promise<FeedState & { readonly rows: readonly ChangeRow[] }> => {
  const shown = part
    ? sql.fragment`pg_visible_in_snapshot(c.xid, ${formatSnapshot(part.of)}::pg_snapshot)`
    : sql.fragment`true`;
  const horizon = new Date(Date.now() + horizonMs).toISOString();
  // Places first, rows then: to sort whole rows for each page is dear. Unprepared: a generic plan over partitions
  // would sort the whole log for one page.
  const found = await unit.many(
    sql.type(pageRow)`
      select s.*, p.id, p.last, c.org_id, c.copied, c.resource_type, c.resource_id, c.kind, c.after, c.entry_id,
        n.user_now, n.profile_now
      from (${state}) s
      left join lateral (
        select f.*
        from (
          select c.xid, c.id, max(c.id::text collate "C") over (partition by c.xid)::uuid as last
          from roster.audit_changes c
          where ${sightOf(sight)} and c.xid >= ${seen.xmin}::xid8 and c.create_time < ${horizon}::timestamptz
            and not pg_visible_in_snapshot(c.xid, ${formatSnapshot(seen)}::pg_snapshot) and ${shown}) f
        where (f.last, f.id) > (${part?.last ?? firstId}::uuid, ${part?.id ?? firstId}::uuid)
        order by f.last, f.id limit ${limit}) p on true
      left join lateral (
        select * from roster.audit_changes
        where xid = p.xid and id = p.id and create_time < ${horizon}::timestamptz limit 1) c on true
      left join lateral (
        select to_jsonb(u) - roster.unaudited_columns() - '{external_id, labels}'::text[] as user_now, (
          select to_jsonb(d) - roster.unaudited_columns() from roster.profiles d
          where d.user_id = u.id and d.org_id is null) as profile_now
        from roster.users u
        where c.resource_type = 'org_member' and c.kind = 'CREATED' and u.id = (c.after ->> 'user_id')::uuid) n
        on true
      order by p.last, p.id`,
    { prepare: false, primary: true },
  );
  const [first] = found;
  if (!first) throw never();
  const rows = found.filter(({ id }) => id !== null) as readonly ChangeRow[];
  return { ...toState(first), rows };
};

/** How the feed is watched. */
export interface FeedLimits {
  /** Milliseconds from one poll to the next. */
  readonly pollMs: number;
  /** Milliseconds after which a stream says that it is alive, and its caller is judged anew. */
  readonly heartbeatMs: number;
  /** Changes that may wait for a slow reader. */
  readonly buffered: number;
}

/** Changes that a watcher gets, and the snapshot that shows these and all before. */
export interface Batch {
  readonly rows: readonly ChangeRow[];
  readonly seen: Snapshot;
}

/** One who watches the feed of an org, or of all. */
export interface Watcher {
  /** Waits for the snapshot from which on the watcher hears of everything. */
  begin(): Promise<Snapshot>;
  /** The next batch; null when there was none for so many milliseconds, or the watcher was dismissed. */
  next(ms: number): Promise<Batch | null>;
  /** The snapshot up to which the watcher has had everything. */
  readonly seen: Snapshot;
  /** True when changes came faster than they were taken; nothing more comes then. */
  readonly overrun: boolean;
  leave(): void;
}

const pageRows = 2_000;

/** Polls for all watchers of this process, while there are any. */
export class Feed {
  readonly limits: FeedLimits;
  private readonly unit: UnitOfWork;
  private readonly watching = new Set<Subscription>();
  private readonly byOrg = new Map<string | undefined, Set<Subscription>>();
  private running = false;
  /** When the last poll that has been handed out was asked for. */
  private seenMs = 0;

  /** @param unit reads what every org may see and what none may */
  constructor(unit: UnitOfWork, limits: FeedLimits) {
    this.unit = unit;
    this.limits = limits;
  }

  /** How many watch. */
  get watchers(): number {
    return this.watching.size;
  }

  /** How old what watchers were told last is; undefined while nobody watches. */
  get lagMs(): number | undefined {
    return this.running ? performance.now() - this.seenMs : undefined;
  }

  /** @param orgId undefined: everything but the copies that orgs got */
  join(orgId: string | undefined): Watcher {
    const subscription = new Subscription(this.limits.buffered, () => this.remove(subscription));
    this.watching.add(subscription);
    const peers = this.byOrg.get(orgId) ?? new Set();
    this.byOrg.set(orgId, peers.add(subscription));
    subscription.orgId = orgId;
    // It goes on when the call that began it is over, whose trace it is no part of.
    if (!this.running) void context.with(ROOT_CONTEXT, () => this.run());
    return subscription;
  }

  private remove(subscription: Subscription): void {
    this.watching.delete(subscription);
    const peers = this.byOrg.get(subscription.orgId);
    peers?.delete(subscription);
    if (peers?.size === 0) this.byOrg.delete(subscription.orgId);
  }

  private async run(): Promise<void> {
    this.running = true;
    this.seenMs = performance.now();
    let seen: Snapshot | undefined;
    while (this.watching.size > 0) {
      try {
        seen = await this.poll(seen);
      } catch (error) {
        // They come again from where they were.
        for (const subscription of this.watching) subscription.fail(error);
        seen = undefined;
      }
      await delay(this.limits.pollMs);
    }
    this.running = false;
  }

  /** Hands out what is new since the snapshot, and gives the next one. Who joined meanwhile begins there. */
  private async poll(seen: Snapshot | undefined): Promise<Snapshot> {
    const askedMs = performance.now();
    const present = [...this.watching];
    const now = seen ? await this.handOut(seen) : (await feedState(this.unit)).now;
    for (const subscription of present) subscription.reach(now);
    this.seenMs = askedMs;
    return now;
  }

  private async handOut(seen: Snapshot): Promise<Snapshot> {
    let place: Place = { seen };
    for (;;) {
      const { rows, now } = await changesAfter(this.unit, "all", place, pageRows);
      const of = place.part?.of ?? now;
      for (const row of rows) {
        for (const subscription of this.byOrg.get(row.org_id) ?? []) subscription.hear(row);
        if (!row.copied)
          for (const subscription of this.byOrg.get(undefined) ?? []) subscription.hear(row);
      }
      const end = rows.at(-1);
      if (end === undefined || rows.length < pageRows) return of;
      place = { seen, part: { of, last: end.last, id: end.id } };
    }
  }
}

class Subscription implements Watcher {
  orgId: string | undefined;
  overrun = false;
  private readonly most: number;
  private readonly leaving: () => void;
  private batches: Batch[] = [];
  private rows: ChangeRow[] = [];
  private waiting = 0;
  private reached: Snapshot | undefined;
  private taken: Snapshot | undefined;
  private failure: unknown;
  private gone = false;
  private wake = (): void => {};

  constructor(most: number, leaving: () => void) {
    this.most = most;
    this.leaving = leaving;
  }

  async begin(): Promise<Snapshot> {
    while (this.reached === undefined && !this.gone) await this.news();
    if (this.failure !== undefined) throw this.failure;
    this.taken ??= this.reached;
    return this.seen;
  }

  get seen(): Snapshot {
    if (this.batches.length === 0 && this.reached && !this.overrun) this.taken = this.reached;
    if (!this.taken) throw new Error("the watcher left before it began");
    return this.taken;
  }

  async next(ms: number): Promise<Batch | null> {
    if (this.batches.length === 0 && !this.gone && !this.overrun) await this.news(ms);
    if (this.failure !== undefined) throw this.failure;
    const batch = this.overrun ? undefined : this.batches.shift();
    if (!batch) return null;
    this.waiting -= batch.rows.length;
    this.taken = batch.seen;
    return batch;
  }

  leave(): void {
    this.gone = true;
    this.leaving();
    this.wake();
  }

  fail(error: unknown): void {
    this.failure = error;
    this.leave();
  }

  /** Who has not begun yet gets what is older from elsewhere. */
  hear(row: ChangeRow): void {
    if (this.reached === undefined || this.overrun) return;
    this.rows.push(row);
    this.waiting++;
    if (this.waiting <= this.most) return;
    this.overrun = true;
    this.batches = [];
    this.rows = [];
    this.wake();
  }

  /** All up to the snapshot has been heard. */
  reach(now: Snapshot): void {
    const begins = this.reached === undefined;
    this.reached = now;
    if (this.rows.length > 0) this.batches.push({ rows: this.rows, seen: now });
    else if (!begins) return;
    this.rows = [];
    this.wake();
  }

  private news(ms?: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = ms === undefined ? undefined : setTimeout(resolve, ms);
      this.wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}
