import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import type { Interceptor } from "@connectrpc/connect";
import { v7 as uuid } from "uuid";
import { correlationIdOf, keys } from "../context.ts";

/**
 * Names the audit entry of a mutation, which `roster.enter` writes in the mutation's own transaction together
 * with the caller it judges. Without an entry the transaction is read-only, so nothing changes unaudited.
 */
export const audit = (): Interceptor => (next) => (request) => {
  const { contextValues: values, service, method } = request;
  if (method.idempotency !== Idempotency.NO_SIDE_EFFECTS) {
    values.set(keys.entry, {
      id: uuid(),
      method: `${service.typeName}/${method.name}`,
      correlationId: correlationIdOf(values),
    });
  }
  return next(request);
};
