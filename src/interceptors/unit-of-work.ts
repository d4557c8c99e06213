import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { Code, type ContextValues, type Interceptor } from "@connectrpc/connect";
import {
  type Access,
  accessOf,
  type Caller,
  callerOf,
  deadlineOf,
  type Entry,
  keys,
} from "../context.ts";
import type { Step } from "../database/exchange.ts";
import type { TenantPool } from "../database/pool.ts";
import { inTransaction, ReadSession } from "../database/unit-of-work.ts";
import { failureOf } from "../errors.ts";

/** The pools of the two roles that callers come through. */
export interface Sessions {
  readonly app: TenantPool;
  readonly directory: TenantPool;
}

const enterText =
  "select roster.enter($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
const enterDirectoryText =
  "select roster.enter_directory($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";

/** The statement that enters the call's tenant; with an entry it opens a mutation, without one a read. */
const entering = (
  caller: Caller,
  access: Access,
  entry: Entry | undefined,
  timeoutMs: number,
): Step => {
  const scope = caller.scope?.join(" ") ?? null;
  const told = [
    entry?.id ?? null,
    caller.subject,
    caller.onBehalfOf,
    entry?.method ?? null,
    entry?.correlationId ?? null,
  ];
  const { orgId, permission, self } = access;
  if (orgId === undefined) {
    const newOrgId = access.newOrgId ?? null;
    return {
      text: enterDirectoryText,
      values: [
        caller.userId ?? null,
        access.reach,
        scope,
        permission,
        self,
        newOrgId,
        timeoutMs,
        ...told,
      ],
    };
  }
  const pinned = caller.orgId !== undefined;
  return {
    text: enterText,
    values: [
      orgId,
      caller.userId ?? null,
      caller.platform,
      pinned,
      scope,
      permission,
      self,
      access.teamId ?? null,
      access.deletedOrg,
      timeoutMs,
      ...told,
    ],
  };
};

const poolOf = ({ app, directory }: Sessions, { orgId }: Access): TenantPool =>
  orgId === undefined ? directory : app;

/** Enters the call's tenant and does nothing there: throws what a caller who may not would get. */
export const enterAlone = async (sessions: Sessions, values: ContextValues): Promise<void> => {
  const access = accessOf(values);
  const step = (timeoutMs: number): Step =>
    entering(callerOf(values), access, undefined, timeoutMs);
  await new ReadSession(poolOf(sessions, access), step, deadlineOf(values)).enter();
};

/**
 * Gives the call one tenant-scoped session: read-only for reads, one transaction for mutations. It opens with
 * the first statement, in the same flush.
 */
export const unitOfWork =
  (sessions: Sessions): Interceptor =>
  (next) =>
  async (request) => {
    const { contextValues: values, method } = request;
    const caller = callerOf(values);
    const access = accessOf(values);
    const deadline = deadlineOf(values);
    const pool = poolOf(sessions, access);
    let entered = false;
    const step = (timeoutMs: number): Step => {
      entered = true;
      return entering(caller, access, values.get(keys.entry), timeoutMs);
    };
    const reads = method.idempotency === Idempotency.NO_SIDE_EFFECTS;
    try {
      if (reads) {
        values.set(keys.unitOfWork, new ReadSession(pool, step, deadline));
        return await next(request);
      }
      return await inTransaction(pool, step, deadline, (unit) => {
        values.set(keys.unitOfWork, unit);
        return next(request);
      });
    } catch (error) {
      const failure = failureOf(error);
      if (!entered && failure?.code === Code.InvalidArgument) await enterAlone(sessions, values);
      throw error;
    }
  };
