import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { Code, type ConnectError, type Interceptor, type UnaryRequest } from "@connectrpc/connect";
import { v7 as uuid } from "uuid";
import { callerOf, correlationIdOf, deadlineOf, keys } from "../context.ts";
import { inTransaction } from "../database/unit-of-work.ts";
import { failureOf, reasonOf } from "../errors.ts";
import type { Mutation, Sessions } from "./unit-of-work.ts";

/**
 * Notes a mutation that was refused to a known caller in the log of the caller's own org: in a transaction of
 * its own, since the refused one was rolled back or never began.
 */
export const denials =
  (sessions: Sessions): Interceptor =>
  (next) =>
  (request) => {
    if (request.method.idempotency === Idempotency.NO_SIDE_EFFECTS) return next(request);
    return watching(sessions, request as UnaryRequest, () => next(request));
  };

const watching = async <T>(
  sessions: Sessions,
  request: UnaryRequest,
  work: () => Promise<T>,
): Promise<T> => {
  try {
    return await work();
  } catch (error) {
    const failure = failureOf(error);
    const { validateOnly } = request.message as Mutation;
    if (failure?.code === Code.PermissionDenied && !validateOnly)
      await record(sessions, request, failure);
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
