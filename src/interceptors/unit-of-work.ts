import { create, type DescMessage, type Message } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import {
  Code,
  ConnectError,
  type ContextValues,
  type Interceptor,
  type UnaryRequest,
  type UnaryResponse,
} from "@connectrpc/connect";
import { v7 as uuid } from "uuid";
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
import type { Replica } from "../database/replica.ts";
import type { UnitOfWork } from "../database/sql.ts";
import {
  inTransaction,
  notingPrimary,
  ReadSession,
  type Replicated,
} from "../database/unit-of-work.ts";
import { failureOf } from "../errors.ts";
import { isOperators } from "./audit.ts";
import { rethrowing, through } from "./streams.ts";

/** The pools of the two roles that callers come through. */
export interface Sessions {
  readonly app: TenantPool;
  readonly directory: TenantPool;
  /** A standby for reads in an org, as the app's role. */
  readonly replica: Replica | undefined;
}

/** What a statement of the server's own work may take. */
const ownWorkMs = 5_000;

const enterText =
  "select roster.enter($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)";
const enterDirectoryText =
  "select roster.enter_directory($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
const enterInvitationText =
  "select roster.enter_invitation($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";

/** What enters for an operator: before it their reason is set, for the entry, and behind it a read is made one. */
const operatorsText = (text: string, reasonAt: number, reads: boolean): string => {
  const entered = text.replace(
    "select ",
    `select set_config('roster.operator_reason', $${reasonAt}, true), `,
  );
  return reads ? `${entered}, set_config('transaction_read_only', 'on', true)` : entered;
};

/**
 * The statement that enters the call's tenant. With an entry it opens a mutation, or an operator's read, which
 * writes that entry and nothing else; without one a read.
 */
const entering = (
  caller: Caller,
  access: Access,
  entry: Entry | undefined,
  timeoutMs: number,
  reads: boolean,
): Step => {
  const { text, values } = enteringAs(caller, access, entry, timeoutMs);
  const reason = entry?.operatorReason;
  if (reason === undefined) return { text, values };
  return { text: operatorsText(text, values.length + 1, reads), values: [...values, reason] };
};

const enteringAs = (
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
  const { orgId, permission, self, reach, invitingOrgId } = access;
  const userId = caller.userId ?? null;
  if (invitingOrgId !== undefined) {
    return {
      text: enterInvitationText,
      values: [invitingOrgId, userId, reach, scope, permission, self, timeoutMs, ...told],
    };
  }
  if (orgId === undefined) {
    const newOrgId = access.newOrgId ?? null;
    return {
      text: enterDirectoryText,
      values: [userId, reach, scope, permission, self, newOrgId, timeoutMs, ...told],
    };
  }
  const pinned = caller.orgId !== undefined;
  return {
    text: enterText,
    values: [
      orgId,
      userId,
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

const replicatedOf = (
  { replica }: Sessions,
  values: ContextValues,
  anywhere: boolean,
): Replicated | undefined => {
  const sight = values.get(keys.sight);
  return replica && sight && { replica, sight, anywhere };
};

/** A session that reads with the rights and in the place of this call, at the primary. */
export const reading = (sessions: Sessions, values: ContextValues): ReadSession => {
  const access = accessOf(values);
  const step = (timeoutMs: number): Step =>
    entering(callerOf(values), access, undefined, timeoutMs, true);
  return new ReadSession(
    poolOf(sessions, access),
    step,
    deadlineOf(values),
    replicatedOf(sessions, values, false),
  );
};

/** A session that reads what there is in all orgs, for the server's own work, as roster_directory. */
export const readingAll = (pool: TenantPool): ReadSession => {
  const permission = "roster.platform";
  const step = (timeoutMs: number): Step => ({
    text: enterDirectoryText,
    values: [null, true, permission, permission, false, null, timeoutMs, null, "", [], null, null],
  });
  return new ReadSession(pool, step, {
    remainingMs: () => ownWorkMs,
    over: false,
    onOver: () => () => {},
  });
};

/** An answer that no handler made. */
export const answer = (
  { service, method }: UnaryRequest,
  message: Message = create(method.output as DescMessage),
): UnaryResponse => ({
  stream: false,
  service,
  method,
  header: new Headers(),
  trailer: new Headers(),
  message,
});

/** What the requests of mutations have in common; a field that an RPC lacks reads as undefined. */
export interface Mutation {
  readonly requestId?: string;
  readonly validateOnly?: boolean;
  readonly allowMissing?: boolean;
}

/**
 * Gives the call one tenant-scoped session: read-only for reads, one transaction for mutations. It opens with
 * the first statement, in the same flush. Of an operator's read that statement leaves an entry.
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
    const reads = method.idempotency === Idempotency.NO_SIDE_EFFECTS;
    let entered = false;
    const enter = (timeoutMs: number, entry: Entry | undefined): Step => {
      entered = true;
      return entering(caller, access, entry, timeoutMs, reads);
    };
    const step = (timeoutMs: number): Step =>
      enter(timeoutMs, reads ? undefined : values.get(keys.entry));
    // A try whose answer was lost may have left its entry, so that the next one takes another id.
    const recording = (timeoutMs: number): Step => {
      const named = values.get(keys.entry);
      return enter(timeoutMs, named && { ...named, id: uuid() });
    };
    // Before the caller is told what is wrong with the request, they are judged.
    const refuse = async (error: unknown): Promise<never> => {
      const failure = failureOf(error);
      if (!entered && failure?.code === Code.InvalidArgument)
        await reading(sessions, values).enter();
      throw error;
    };
    try {
      // An operator's read may be recorded, and a stream follows what happens.
      const anywhere =
        access.orgId !== undefined && !caller.platform && method.methodKind === "unary";
      const replicated = replicatedOf(sessions, values, anywhere);
      if (!reads)
        return await mutate(request as UnaryRequest, pool, step, next as Next, replicated);
      const recorded = isOperators(caller, access) ? recording : undefined;
      values.set(keys.unitOfWork, new ReadSession(pool, step, deadline, replicated, recorded));
      const response = await next(request);
      if (!response.stream) return response;
      return through(response, (messages) => rethrowing(messages, refuse));
    } catch (error) {
      return refuse(error);
    }
  };

/** What lies behind an interceptor, for the calls that have one request and one answer. */
export type Next = (request: UnaryRequest) => Promise<UnaryResponse>;

/** Runs a mutation. Where it may miss what it is to take away, that this is not there is an answer. */
const mutate = async (
  request: UnaryRequest,
  pool: TenantPool,
  step: (timeoutMs: number) => Step,
  next: Next,
  replicated: Replicated | undefined,
): Promise<UnaryResponse> => {
  const { contextValues: values } = request;
  const { validateOnly, allowMissing } = request.message as Mutation;
  const claim = values.get(keys.claim);
  const mayMiss = (failure: ConnectError | null): boolean =>
    allowMissing === true && failure?.code === Code.NotFound;
  const work = async (unit: UnitOfWork): Promise<UnaryResponse> => {
    values.set(keys.unitOfWork, unit);
    try {
      return await next(request);
    } catch (error) {
      // What the database raised has ended the transaction; what a handler found missing has not.
      if (error instanceof ConnectError && mayMiss(error)) return answer(request);
      throw error;
    }
  };
  try {
    return await inTransaction(pool, step, deadlineOf(values), work, {
      first: claim?.claiming,
      last: claim && (({ message }) => claim.storing(message)),
      rehearsal: validateOnly === true,
      located: replicated && notingPrimary(replicated),
    });
  } catch (error) {
    if (mayMiss(failureOf(error))) return answer(request);
    throw error;
  }
};
