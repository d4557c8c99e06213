import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import type { Interceptor } from "@connectrpc/connect";
import { v7 as uuid } from "uuid";
import { type Access, accessOf, type Caller, callerOf, correlationIdOf, keys } from "../context.ts";
import { fail } from "../errors.ts";

/** Whether operators must say why they call. */
export type OperatorReason = "optional" | "required";

const reasonHeader = "roster-reason";
/** As much of it as may be, of what gRPC allows in metadata. */
const sound = /^[\x20-\x7e]{1,200}$/;

/**
 * Whether the call is an operator's: a platform caller's whose credential no org owns, in any org or about anybody.
 * What it reads is then on record as well.
 */
export const isOperators = ({ platform, orgId: own }: Caller, { orgId, reach }: Access): boolean =>
  platform && own === undefined && (orgId !== undefined || reach);

/** Why an operator calls; empty when they do not say and need not. */
const reasonOf = (given: string | null, demand: OperatorReason): string => {
  const reason = given?.trim() ?? "";
  if (reason === "" && demand === "required")
    throw fail("OPERATOR_REASON_REQUIRED", { key: reasonHeader });
  if (reason !== "" && !sound.test(reason))
    throw fail("OPERATOR_REASON_INVALID", { key: reasonHeader });
  return reason;
};

/**
 * Names the audit entry of a mutation or of an operator's read, which `roster.enter` writes in the call's own
 * transaction together with the caller it judges. Without an entry the transaction is read-only, so nothing
 * changes unaudited.
 */
export const audit =
  (demand: OperatorReason): Interceptor =>
  (next) =>
  (request) => {
    const { contextValues: values, service, method, header } = request;
    const operates = isOperators(callerOf(values), accessOf(values));
    if (operates || method.idempotency !== Idempotency.NO_SIDE_EFFECTS) {
      values.set(keys.entry, {
        id: uuid(),
        method: `${service.typeName}/${method.name}`,
        correlationId: correlationIdOf(values),
        operatorReason: operates ? reasonOf(header.get(reasonHeader), demand) : undefined,
      });
    }
    return next(request);
  };
