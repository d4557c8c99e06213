/** The corridor: what every call passes, outermost first, each with the reason for its place. */
import type { Interceptor } from "@connectrpc/connect";
import type { Logger } from "pino";
import { keys, type Settings } from "../context.ts";
import type { ConsistencyTokens } from "../database/consistency.ts";
import type { Feed } from "../database/watchers.ts";
import { access } from "./access.ts";
import { audit, type OperatorReason } from "./audit.ts";
import { consistency } from "./consistency.ts";
import { type DeadlineLimits, deadline } from "./deadline.ts";
import { denials } from "./denials.ts";
import { errors } from "./errors.ts";
import { idempotency } from "./idempotency.ts";
import { identity, type Verifier } from "./identity.ts";
import { type CallMeter, telemetry } from "./telemetry.ts";
import { type Sessions, unitOfWork } from "./unit-of-work.ts";
import { validate } from "./validate.ts";

/** What the corridor is built from. */
export interface Corridor {
  readonly log: Logger;
  readonly meter: CallMeter;
  readonly deadlines: DeadlineLimits;
  readonly verifier: Verifier;
  readonly sessions: Sessions;
  readonly tokens: ConsistencyTokens;
  readonly operatorReason: OperatorReason;
  readonly settings: Settings;
  readonly feed: Feed;
}

/** The corridor in order. The unit of work opens lazily, so `audit` names the entry before it is written. */
export const corridor = ({
  log,
  meter,
  deadlines,
  verifier,
  sessions,
  tokens,
  operatorReason,
  settings,
  feed,
}: Corridor): Interceptor[] => [
  // Sees every outcome, also a rejection.
  telemetry(log, meter),
  // Nothing internal leaves, whoever threw it.
  errors(log),
  // Everything behind it, SQL included, inherits the time limit.
  deadline(deadlines),
  // No caller, no further step.
  identity(verifier),
  // Sees every refusal of a known caller, wherever behind it that comes from.
  denials(sessions, log),
  // Which permission, in which org; the database will judge.
  access(),
  // What the caller has seen before, which every session behind it must have seen too.
  consistency(sessions, tokens),
  // The shape of the message, before any SQL of the handler.
  validate(sessions),
  // Claims what may be sent again, and answers a replay once the session that met it is rolled back.
  idempotency(sessions),
  // One tenant-scoped session for the call.
  unitOfWork(sessions),
  // Names the entry of a mutation or of an operator's read, which is written when the session opens.
  audit(operatorReason),
  // Innermost, because only handlers read it.
  (next) => (request) => {
    request.contextValues.set(keys.settings, settings).set(keys.feed, feed);
    return next(request);
  },
];
