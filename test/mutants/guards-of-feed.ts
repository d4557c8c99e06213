/** What the change feed tells, in which order, and to whom. */
import { type Guard, inSource, sql } from "./guard.ts";

const inPoll = inSource("src/database/feed.ts");
const inPositions = inSource("src/database/positions.ts");
const inWatch = inSource("src/services/changes.ts");

export const feed: readonly Guard[] = [
  inPoll(
    "what commits late is told",
    "and not pg_visible_in_snapshot(c.xid, ",
    "and c.xid >= pg_snapshot_xmax(",
    "changes",
    "goes on behind a transaction that ends late",
  ),
  inPoll(
    "a page ends with what its snapshot shows",
    "fragment`pg_visible_in_snapshot(",
    "fragment`null is distinct from pg_visible_in_snapshot(",
    "watch-order",
    "leaves nothing out and doubles nothing",
  ),
  inPoll(
    "the later change comes later",
    'max(c.id::text collate "C") over (partition by c.xid)::uuid as last',
    "lpad(c.xid::text, 32, '0')::uuid as last",
    "watch-order",
    "whichever transaction began first",
  ),
  sql(
    "changes are numbered as they are made",
    "alter table roster.audit_changes alter column id set default gen_random_uuid()",
    "watch-order",
    "whichever transaction began first",
  ),
  inPoll(
    "an org is told of its own changes alone",
    "for (const subscription of this.byOrg.get(row.org_id) ?? []) subscription.hear(row);",
    "for (const subscription of this.watching) subscription.hear(row);",
    "watch",
    "tells one org nothing of another",
  ),
  inPoll(
    "operators hear of a user once",
    "if (!row.copied)",
    "if (true)",
    "watch",
    "tells one org nothing of another",
  ),
  inPoll(
    "what waits for a slow reader is bounded",
    "if (this.waiting <= this.most) return;",
    "if (true) return;",
    "watch",
    "when its reader is too slow",
  ),
  inWatch(
    "who is removed hears nothing more",
    "if (!batch || batch.rows.some((row) => this.mayEnd(row))) {",
    "if (!batch) {",
    "watch",
    "when its caller is removed",
  ),
  inWatch(
    "who may no longer is noticed at a heartbeat",
    "if (!batch || batch.rows.some((row) => this.mayEnd(row))) {",
    "if (batch?.rows.some((row) => this.mayEnd(row))) {",
    "watch",
    "of which no change tells",
  ),
  inPositions(
    "positions are sealed for one org",
    '{orgId ?? ""}',
    '{""}',
    "changes",
    "when it is made up, touched, or another org's",
  ),
  inSource("src/database/page.ts")(
    "what was touched does not open",
    'return text + opening.final("utf8");',
    "return text;",
    "changes",
    "when it is made up, touched, or another org's",
  ),
  inWatch(
    "nothing is told behind a gap",
    "seen.xmin <= state.removed",
    "false",
    "changes",
    "OUT_OF_RANGE when what lies behind it is kept no more",
  ),
  inWatch(
    "positions of another history are refused",
    "epoch !== state.epoch",
    "false",
    "changes",
    "OUT_OF_RANGE when what lies behind it is kept no more",
  ),
  inWatch(
    "who is gone is polled for no more",
    "forget();\n      watcher.leave();",
    "forget();",
    "watch",
    "when its caller is removed",
  ),
];
