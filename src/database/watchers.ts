/** Who watches the change feed: one poll of the database serves them all. */
import { setTimeout as delay } from "node:timers/promises";
import { context, ROOT_CONTEXT } from "@opentelemetry/api";
import { type ChangeRow, type FeedState, feedState, pagesBehind } from "./feed.ts";
import { weigh } from "./page.ts";
import type { Snapshot } from "./positions.ts";
import type { UnitOfWork } from "./sql.ts";

/** How the feed is watched. */
export interface FeedLimits {
  /** Milliseconds from one poll to the next. */
  readonly pollMs: number;
  /** Milliseconds after which a stream says that it is alive, and its caller is judged anew. */
  readonly heartbeatMs: number;
  /** Changes that may wait for a slow reader, and what they may weigh in bytes. */
  readonly buffered: number;
  readonly bufferedBytes: number;
  /** Streams at once in this process, and of them in one org, or of all orgs. */
  readonly watchers: number;
  readonly watchersOfOrg: number;
}

/** As many watch as may. */
export class TooManyWatchers extends Error {
  override readonly name = "TooManyWatchers";
  readonly most: number;
  readonly where: "org" | "server";

  constructor(where: "org" | "server", most: number) {
    super(`${most} watch the ${where}`);
    this.where = where;
    this.most = most;
  }
}

/** The database has another history now, after a failover or a restore: of what was read before nothing follows. */
export class HistoryChanged extends Error {
  override readonly name = "HistoryChanged";
}

/** Changes that a watcher gets, and the snapshot that shows these and all before. */
export interface Batch {
  readonly rows: readonly ChangeRow[];
  readonly seen: Snapshot;
  /** What the rows weigh. */
  readonly bytes: number;
}

/** One who watches the feed of an org, or of all. */
export interface Watcher {
  /** Waits for the state from which on the watcher hears of everything. */
  begin(): Promise<FeedState>;
  /** The next batch; null when there was none for so many milliseconds, or the watcher was dismissed. */
  next(ms: number): Promise<Batch | null>;
  /** The snapshot up to which the watcher has had everything. */
  readonly seen: Snapshot;
  /** True when changes came faster than they were taken; nothing more comes then. */
  readonly overrun: boolean;
  leave(): void;
}

/** Callers who are judged anew at once: a changed role may concern all who watch an org. */
const judgesAtOnce = 2;
/** The longest pause between polls that fail, as a power of two of the usual one. */
const longestPause = 5;

/** By org, or all. */
type Groups = Map<string | undefined, Set<Subscription>>;

const enter = (groups: Groups, subscription: Subscription): void => {
  const { orgId } = subscription;
  groups.set(orgId, (groups.get(orgId) ?? new Set()).add(subscription));
};

const leave = (groups: Groups, subscription: Subscription): void => {
  const group = groups.get(subscription.orgId);
  group?.delete(subscription);
  if (group?.size === 0) groups.delete(subscription.orgId);
};

/** Polls for all watchers of this process, while there are any. */
export class Feed {
  readonly limits: FeedLimits;
  private readonly unit: UnitOfWork;
  /** Everyone who joined. */
  private readonly joined: Groups = new Map();
  /** Those of them who began. */
  private readonly listening: Groups = new Map();
  private count = 0;
  private running = false;
  /** When the last poll that has been handed out was asked for. */
  private seenMs = 0;
  private judging = 0;
  private readonly waiting: (() => void)[] = [];

  /** @param unit reads what every org may see and what none may */
  constructor(unit: UnitOfWork, limits: FeedLimits) {
    this.unit = unit;
    this.limits = limits;
  }

  /** How many watch. */
  get watchers(): number {
    return this.count;
  }

  /** How old what watchers were told last is; undefined while nobody watches. */
  get lagMs(): number | undefined {
    return this.running ? performance.now() - this.seenMs : undefined;
  }

  /**
   * Takes a place among the watchers.
   *
   * @param orgId undefined: everything but the copies that orgs got
   * @throws TooManyWatchers
   */
  join(orgId: string | undefined): Watcher {
    const { watchers, watchersOfOrg } = this.limits;
    if (this.count >= watchers) throw new TooManyWatchers("server", watchers);
    if ((this.joined.get(orgId)?.size ?? 0) >= watchersOfOrg)
      throw new TooManyWatchers("org", watchersOfOrg);
    const subscription = new Subscription(orgId, this.limits, {
      begin: () => this.listen(subscription),
      leave: () => this.remove(subscription),
    });
    enter(this.joined, subscription);
    this.count++;
    return subscription;
  }

  /** Judges a caller anew, when it is their turn. */
  async judge(judging: () => Promise<unknown>): Promise<void> {
    while (this.judging >= judgesAtOnce)
      await new Promise<void>((resolve) => this.waiting.push(resolve));
    this.judging++;
    try {
      await judging();
    } finally {
      this.judging--;
      this.waiting.shift()?.();
    }
  }

  private listen(subscription: Subscription): void {
    enter(this.listening, subscription);
    // It goes on when the call that began it is over, whose trace it is no part of.
    if (!this.running) void context.with(ROOT_CONTEXT, () => this.run());
  }

  private remove(subscription: Subscription): void {
    if (this.joined.get(subscription.orgId)?.has(subscription)) this.count--;
    leave(this.joined, subscription);
    leave(this.listening, subscription);
  }

  private get listeners(): Subscription[] {
    return [...this.listening.values()].flatMap((group) => [...group]);
  }

  /** A poll that fails is done again until a heartbeat would be due. */
  private async run(): Promise<void> {
    const { pollMs, heartbeatMs } = this.limits;
    this.running = true;
    let last: FeedState | undefined;
    let failures = 0;
    this.seenMs = performance.now();
    while (this.listening.size > 0) {
      try {
        last = await this.poll(last);
        failures = 0;
      } catch (error) {
        failures++;
        const over =
          error instanceof HistoryChanged || performance.now() - this.seenMs >= heartbeatMs;
        for (const subscription of this.listeners) {
          // They come again from where they were.
          if (over) subscription.fail(error);
          else subscription.forget();
        }
        if (over) last = undefined;
      }
      await delay(pollMs * 2 ** Math.min(failures, longestPause));
    }
    this.running = false;
  }

  /** Hands out what is new since the state, and gives the next one. Who joined meanwhile begins there. */
  private async poll(last: FeedState | undefined): Promise<FeedState> {
    const askedMs = performance.now();
    const present = this.listeners;
    const state = last ? await this.handOut(last) : await feedState(this.unit);
    for (const subscription of present) subscription.reach(state);
    this.seenMs = askedMs;
    return state;
  }

  private async handOut(last: FeedState): Promise<FeedState> {
    let reached = last;
    for await (const { rows, of, ...state } of pagesBehind(this.unit, "all", { seen: last.now })) {
      if (state.epoch !== last.epoch) throw new HistoryChanged("the database has another history");
      reached = { ...state, now: of };
      for (const row of rows) this.tell(row);
    }
    return reached;
  }

  private tell(row: ChangeRow): void {
    const own = this.listening.get(row.org_id) ?? [];
    const all = row.copied ? [] : (this.listening.get(undefined) ?? []);
    const hearing = [...own, ...all];
    if (hearing.length === 0) return;
    const bytes = weigh(row);
    for (const subscription of hearing) subscription.hear(row, bytes);
  }
}

class Subscription implements Watcher {
  readonly orgId: string | undefined;
  overrun = false;
  private readonly limits: FeedLimits;
  private readonly calls: { readonly begin: () => void; readonly leave: () => void };
  private batches: Batch[] = [];
  /** Heard in a poll that is not over. */
  private rows: ChangeRow[] = [];
  private bytes = 0;
  /** In batches. */
  private readonly waiting = { rows: 0, bytes: 0 };
  private reached: FeedState | undefined;
  private taken: Snapshot | undefined;
  private failure: unknown;
  private gone = false;
  private wake = (): void => {};

  constructor(orgId: string | undefined, limits: FeedLimits, calls: Subscription["calls"]) {
    this.orgId = orgId;
    this.limits = limits;
    this.calls = calls;
  }

  async begin(): Promise<FeedState> {
    if (!this.gone) this.calls.begin();
    while (this.reached === undefined && !this.gone) await this.news();
    if (this.failure !== undefined) throw this.failure;
    if (!this.reached) throw new Error("the watcher left before it began");
    this.taken ??= this.reached.now;
    return this.reached;
  }

  get seen(): Snapshot {
    if (this.batches.length === 0 && this.reached && !this.overrun) this.taken = this.reached.now;
    if (!this.taken) throw new Error("the watcher left before it began");
    return this.taken;
  }

  async next(ms: number): Promise<Batch | null> {
    if (this.batches.length === 0 && !this.gone && !this.overrun) await this.news(ms);
    if (this.failure !== undefined) throw this.failure;
    const batch = this.overrun ? undefined : this.batches.shift();
    if (!batch) return null;
    this.waiting.rows -= batch.rows.length;
    this.waiting.bytes -= batch.bytes;
    this.taken = batch.seen;
    return batch;
  }

  leave(): void {
    this.gone = true;
    this.calls.leave();
    this.wake();
  }

  fail(error: unknown): void {
    this.failure = error;
    this.leave();
  }

  /** Who has not begun yet gets what is older from elsewhere. */
  hear(row: ChangeRow, bytes: number): void {
    if (this.reached === undefined || this.overrun) return;
    this.rows.push(row);
    this.bytes += bytes;
    const { rows, bytes: waiting } = this.waiting;
    const { buffered, bufferedBytes } = this.limits;
    if (rows + this.rows.length <= buffered && waiting + this.bytes <= bufferedBytes) return;
    this.overrun = true;
    this.batches = [];
    this.forget();
    this.wake();
  }

  /** The poll failed: what was heard in it is told again. */
  forget(): void {
    this.rows = [];
    this.bytes = 0;
  }

  /** All up to the state has been heard. */
  reach(state: FeedState): void {
    const begins = this.reached === undefined;
    this.reached = state;
    const { rows, bytes } = this;
    if (rows.length > 0) {
      this.batches.push({ rows, bytes, seen: state.now });
      this.waiting.rows += rows.length;
      this.waiting.bytes += bytes;
    } else if (!begins) return;
    this.forget();
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
