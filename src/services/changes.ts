import type { MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { caller, deadlineOf, feed, maybeOrgId, settings, unitOfWork } from "../context.ts";
import {
  type ChangeRow,
  type FeedPage,
  type FeedState,
  feedState,
  pagesBehind,
  type Whose,
} from "../database/feed.ts";
import { weigh } from "../database/page.ts";
import { covers, openPosition, type Place, sealPosition } from "../database/positions.ts";
import { fail } from "../errors.ts";
import type {
  ChangeService,
  ListChangesRequest,
  WatchChangesRequest,
  WatchChangesResponseSchema,
} from "../gen/roster/v1/change_service_pb.ts";
import { type ChangeInit, changesOfRow } from "./change-images.ts";
import { snapshotOf } from "./change-snapshots.ts";
import { firstId } from "./requests.ts";

type Watcher = ReturnType<ReturnType<typeof feed>["join"]>;
type Message = MessageInitShape<typeof WatchChangesResponseSchema>;

const [usualSize, maximumSize] = [50, 1_000];
/** What one message holds at most, far below what the transport sends. */
const [messageChanges, messageBytes] = [200, 1024 * 1024];

const sightOf = (context: HandlerContext): Whose => {
  const orgId = maybeOrgId(context);
  return orgId === undefined ? "originals" : { orgId };
};

/** Where a request begins, and in which history; null without a position. */
const placeOf = (context: HandlerContext, position: string) => {
  if (position === "") return null;
  const opened = openPosition(settings(context).positionKey, maybeOrgId(context), position);
  if (!opened) throw fail("POSITION_INVALID", { field: "position" });
  return opened;
};

/** Refuses a place behind which changes may be missing. */
const demandKept = (
  { epoch, place: { seen } }: NonNullable<ReturnType<typeof placeOf>>,
  state: FeedState,
): void => {
  if (epoch !== state.epoch || seen.xmin <= state.removed || seen.xmin > state.now.xmax)
    throw fail("POSITION_OUT_OF_RANGE");
};

/** Holds for the changes that a request wants. */
const wanted = ({ resourceTypes, teamId }: WatchChangesRequest | ListChangesRequest) => {
  const types = new Set(resourceTypes);
  const team = teamId.toLowerCase();
  const ofTeam = ({ resourceType, resourceId = "" }: ChangeInit): boolean =>
    (resourceType === "team" && resourceId === team) ||
    (resourceType === "team_member" && resourceId.startsWith(`${team}/`));
  return (change: ChangeInit): boolean =>
    (types.size === 0 || types.has(change.resourceType ?? "")) && (team === "" || ofTeam(change));
};

/** Messages that hold the changes; the last one has the position. */
function* inMessages(
  changes: readonly ChangeInit[],
  position: string,
  snapshot: boolean,
): Generator<Message> {
  let held: ChangeInit[] = [];
  let bytes = 0;
  for (const change of changes) {
    const weight = weigh(change);
    if (held.length > 0 && (held.length === messageChanges || bytes + weight > messageBytes)) {
      yield { changes: held, snapshot };
      held = [];
      bytes = 0;
    }
    held.push(change);
    bytes += weight;
  }
  const last = held.at(-1);
  if (last) yield { changes: [...held.slice(0, -1), { ...last, position }], position, snapshot };
}

/** A watcher's way through the feed, and what is asked on the way. */
class Watch {
  private readonly context: HandlerContext;
  private readonly wants: ReturnType<typeof wanted>;
  private epoch = "";
  private place: Place | undefined;

  constructor(request: WatchChangesRequest, context: HandlerContext) {
    this.context = context;
    this.wants = wanted(request);
  }

  /** Everything of the stream. */
  async *messages({ position, snapshot }: WatchChangesRequest): AsyncGenerator<Message> {
    const { context } = this;
    const given = placeOf(context, position);
    if (snapshot && given)
      throw fail("FIELD_INVALID", { field: "snapshot", rule: "must be without a position" });
    if (snapshot && maybeOrgId(context) === undefined) throw fail("ORG_REQUIRED");
    const state = await feedState(unitOfWork(context));
    this.epoch = state.epoch;
    if (given) demandKept(given, state);
    this.place = given?.place;
    const watcher = feed(context).join(maybeOrgId(context));
    const forget = deadlineOf(context.values).onOver(() => watcher.leave());
    try {
      if (snapshot) {
        this.place = { seen: state.now };
        for await (const changes of snapshotOf(context))
          yield* inMessages(changes.filter(this.wants), "", true);
      }
      yield* this.catchUp(await watcher.begin(), snapshot);
      if (snapshot) yield { position: this.position(), snapshot };
      else yield { position: this.position(), heartbeat: true };
      yield* this.follow(watcher);
    } finally {
      forget();
      watcher.leave();
    }
  }

  /** What was committed between the watcher's place and a snapshot, which is theirs then. */
  private async *catchUp(begin: FeedState, snapshot: boolean): AsyncGenerator<Message> {
    this.place ??= { seen: begin.now };
    const { seen, part } = this.place;
    // Another process may have seen more than this one; but it began to look again after it was asked.
    if (begin.epoch !== this.epoch || !covers(begin.now, part?.of ?? seen))
      throw fail("POSITION_OUT_OF_RANGE");
    if (part) yield* this.readUp(this.place, snapshot);
    if (!covers(this.place.seen, begin.now)) {
      const { seen: from } = this.place;
      const place = { seen: from, part: { of: begin.now, last: firstId, id: firstId } };
      yield* this.readUp(place, snapshot);
    }
  }

  /** The rest of a part. */
  private async *readUp(start: Place, snapshot: boolean): AsyncGenerator<Message> {
    for await (const page of pagesBehind(unitOfWork(this.context), sightOf(this.context), start)) {
      demandKept({ epoch: this.epoch, place: start }, page);
      const { rows, of, place } = page;
      const whole = rows.findLastIndex(({ id, last }) => id === last) + 1;
      yield* this.part(rows.slice(0, whole), snapshot, (row) =>
        place.part ? { seen: start.seen, part: { of, last: row.last, id: row.id } } : place,
      );
      yield* inMessages(this.told(rows.slice(whole)), "", snapshot);
      this.place = place;
    }
  }

  /** Sends whole transactions, with the place behind them. Within a snapshot there is none yet. */
  private *part(
    rows: readonly ChangeRow[],
    snapshot: boolean,
    placeBehind: (row: ChangeRow) => Place,
  ): Generator<Message> {
    const end = rows.at(-1);
    if (!end) return;
    const position = snapshot ? "" : this.position(placeBehind(end));
    yield* inMessages(this.told(rows), position, snapshot);
  }

  /** What is committed from now on. */
  private async *follow(watcher: Watcher): AsyncGenerator<Message> {
    const { heartbeatMs } = feed(this.context).limits;
    let [sentMs, judgedMs] = [performance.now(), performance.now()];
    for (;;) {
      const nowMs = performance.now();
      const dueMs = Math.min(sentMs, judgedMs) + heartbeatMs - nowMs;
      const batch = dueMs > 0 ? await watcher.next(dueMs) : null;
      if (deadlineOf(this.context.values).over) return;
      if (watcher.overrun) throw fail("WATCH_TOO_SLOW", { position: this.position() });
      if (!batch || batch.rows.some((row) => this.mayEnd(row))) {
        await this.judge();
        judgedMs = performance.now();
      }
      if (batch) {
        const changes = this.told(batch.rows);
        const place: Place = { seen: batch.seen };
        for (const message of inMessages(changes, this.position(place), false)) {
          yield message;
          sentMs = performance.now();
        }
        this.place = place;
      } else if (performance.now() - sentMs >= heartbeatMs) {
        this.place = { seen: watcher.seen };
        yield { position: this.position(), heartbeat: true };
        sentMs = performance.now();
      }
    }
  }

  /** True for a change after which the caller may have lost the right to hear of it. */
  private mayEnd({ resource_type: type, resource_id: id }: ChangeRow): boolean {
    if (type === "org" || type === "role") return true;
    return (type === "org_member" || type === "user") && id === caller(this.context).userId;
  }

  /** What rows tell of what was asked. */
  private told(rows: readonly ChangeRow[]): ChangeInit[] {
    const toOrg = maybeOrgId(this.context) !== undefined;
    return rows.flatMap((row) => changesOfRow(row, toOrg)).filter(this.wants);
  }

  /** Has the database judge the caller again. */
  private async judge(): Promise<void> {
    await feed(this.context).judge(() => feedState(unitOfWork(this.context)));
  }

  private position(place = this.place): string {
    if (!place) throw new Error("the watch has not begun");
    const { positionKey } = settings(this.context);
    return sealPosition(positionKey, maybeOrgId(this.context), this.epoch, place);
  }
}

/** What lies behind a place, of at most so many rows and of what one message carries; and the place behind it. */
const listed = async (
  request: ListChangesRequest,
  context: HandlerContext,
  given: NonNullable<ReturnType<typeof placeOf>>,
  size: number,
): Promise<{ changes: ChangeInit[]; place: Place; page: FeedPage }> => {
  const wants = wanted(request);
  const sight = sightOf(context);
  const { seen } = given.place;
  const changes: ChangeInit[] = [];
  let [taken, bytes] = [0, 0];
  let last: ChangeRow | undefined;
  let page: FeedPage | undefined;
  for await (page of pagesBehind(unitOfWork(context), sight, given.place, size + 1)) {
    demandKept(given, page);
    for (const row of page.rows) {
      const told = changesOfRow(row, maybeOrgId(context) !== undefined).filter(wants);
      bytes += weigh(told);
      if (last && (taken === size || bytes > 2 * messageBytes)) {
        const part = { of: page.of, last: last.last, id: last.id };
        return { changes, place: { seen, part }, page };
      }
      changes.push(...told);
      last = row;
      taken++;
    }
  }
  if (!page) throw new Error("a place has a page behind it");
  return { changes, place: page.place, page };
};

export const changeService = {
  watchChanges: (request, context) => new Watch(request, context).messages(request),

  async listChanges(request, context) {
    const orgId = maybeOrgId(context);
    const given = placeOf(context, request.position);
    const { positionKey } = settings(context);
    const unit = unitOfWork(context);
    if (!given) {
      const { epoch, now } = await feedState(unit);
      return { position: sealPosition(positionKey, orgId, epoch, { seen: now }) };
    }
    const size = Math.min(request.pageSize || usualSize, maximumSize);
    const { changes, place, page } = await listed(request, context, given, size);
    const position = sealPosition(positionKey, orgId, page.epoch, place);
    const more = place.part !== undefined || !covers(place.seen, page.now);
    return { changes, position, more };
  },
} satisfies ServiceImpl<typeof ChangeService>;
