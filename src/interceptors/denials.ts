import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { Code, type ConnectError, type Interceptor, type UnaryRequest } from "@connectrpc/connect";
import type { Logger } from "pino";
import { v7 as uuid } from "uuid";
import { callerOf, correlationIdOf, deadlineOf, keys } from "../context.ts";
import { inTransaction } from "../database/unit-of-work.ts";
import { failureOf, reasonOf } from "../errors.ts";
import type { Mutation, Sessions } from "./unit-of-work.ts";

/** How many refusals of one caller are recorded at once, and how long it takes until one more is. */
const burst = 10;
const refillMs = 1_000;
/** Callers that are remembered, those refused last. */
const mostCallers = 10_000;

/**
 * Judges which refusals are recorded, so that who is refused all the time fills no log and keeps no connection: a
 * bucket for each caller, which holds so many and fills up again by one a second.
 */
export class Allowance {
  private readonly callers = new Map<string, { left: number; atMs: number; passedOver: number }>();

  /** Undefined: this one is passed over. Else how many of this caller were since the last that was not. */
  take(subject: string, nowMs: number): number | undefined {
    const known = this.callers.get(subject) ?? { left: burst, atMs: nowMs, passedOver: 0 };
    const refilled = Math.min(burst, known.left + (nowMs - known.atMs) / refillMs);
    const taken = refilled >= 1;
    const passedOver = taken ? 0 : known.passedOver + 1;
    // The last of the map is who came last.
    this.callers.delete(subject);
    this.callers.set(subject, { left: refilled - (taken ? 1 : 0), atMs: nowMs, passedOver });
    if (this.callers.size > mostCallers)
      for (const oldest of this.callers.keys()) {
        this.callers.delete(oldest);
        break;
      }
    return taken ? known.passedOver : undefined;
  }
}

/**
 * Notes a mutation that was refused to a known caller in the log of the caller's own org: in a transaction of
 * its own, since the refused one was rolled back or never began. Of a caller who is refused all the time it notes some,
 * and the process's log says how many it passed over.
 */
export const denials = (sessions: Sessions, log: Logger): Interceptor => {
  const allowance = new Allowance();
  const note = async (request: UnaryRequest, failure: ConnectError): Promise<void> => {
    const { subject } = callerOf(request.contextValues);
    const passedOver = allowance.take(subject, performance.now());
    if (passedOver === undefined) return;
    if (passedOver > 0)
      log.warn({ caller: subject, passed_over: passedOver }, "refusals were not audited, too many");
    await record(sessions, request, failure);
  };
  return (next) => (request) =>
    request.method.idempotency === Idempotency.NO_SIDE_EFFECTS
      ? next(request)
      : watching(note, request as UnaryRequest, () => next(request));
};

const watching = async <T>(
  note: (request: UnaryRequest, failure: ConnectError) => Promise<void>,
  request: UnaryRequest,
  work: () => Promise<T>,
): Promise<T> => {
  try {
    return await work();
  } catch (error) {
    const failure = failureOf(error);
    const { validateOnly } = request.message as Mutation;
    if (failure?.code === Code.PermissionDenied && !validateOnly) await note(request, failure);
    throw error;
  }
};

const record = async (
  { directory }: Sessions,
  { contextValues: values, service, method }: UnaryRequest,
  failure: ConnectError,
): Promise<void> => {
  const caller = callerOf(values);
  const recording = () => ({
    text: "select roster.record_denial($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    values: [
      values.get(keys.access)?.orgId ?? null,
      caller.orgId ?? null,
      caller.userId ?? null,
      uuid(),
      caller.subject,
      caller.onBehalfOf,
      `${service.typeName}/${method.name}`,
      correlationIdOf(values),
      reasonOf(failure) ?? "",
    ],
  });
  await inTransaction(directory, recording, deadlineOf(values), async () => {});
};
