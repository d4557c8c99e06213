/** That nobody reads at a standby what is older than they have seen, or what is not their primary's. */
import { type Guard, inRoutine, inSource } from "./guard.ts";

const inCheck = inRoutine("require_replay");
const never = "never answers somebody with less";
const stranger = "refuses to stand for";

export const freshness: readonly Guard[] = [
  inSource("src/database/page.ts")(
    "a token that was touched is none",
    'return text + opening.final("utf8");',
    "return text;",
    "consistency",
    "INVALID_ARGUMENT when it is made up",
  ),
  inCheck("what was seen is replayed", "pg_last_wal_replay_lsn() >= lsn", "true", "replica", never),
  inCheck("a standby", "pg_is_in_recovery()", "true", "replica", "once it is promoted"),
  inCheck(
    "of this primary's history",
    "roster.wal_history() = history",
    "true",
    "replica",
    stranger,
  ),
  inCheck(
    "which is looked at anew",
    "current_setting('transaction_isolation') = 'read committed'",
    "true",
    "replica",
    stranger,
  ),
  inSource("src/database/consistency.ts")(
    "what the token says was seen",
    "(this.seen ?? this.asked)",
    "this.seen",
    "replica",
    never,
  ),
  inSource("src/database/consistency.ts")(
    "numbers of two histories are not compared",
    "one.history !== other.history",
    "false",
    "consistency",
    "lies behind another",
  ),
  inSource("src/database/replica.ts")(
    "nothing older than a second",
    "performance.now() - floor.sinceMs < oldestMs",
    "true",
    "replica",
    "shows nobody what is older",
  ),
  inSource("src/interceptors/unit-of-work.ts")(
    "operators read at the primary",
    "!caller.platform",
    "true",
    "replica",
    "is not asked by operators",
  ),
  inSource("src/config.ts")(
    "the standby's login is one whose rights were looked at",
    "userOf(v.REPLICA_DATABASE_URL) !== userOf(v.DATABASE_URL)",
    "false",
    "config",
    "takes a replica beside its primary",
  ),
];
