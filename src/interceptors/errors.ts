import type { Interceptor, StreamRequest, UnaryRequest } from "@connectrpc/connect";
import type { Logger } from "pino";
import { v7 as uuid } from "uuid";
import { correlationIdOf, keys } from "../context.ts";
import { fail, failureOf } from "../errors.ts";
import { rethrowing, through } from "./streams.ts";

/**
 * Turns whatever was thrown into one ConnectError with details. What nobody foresaw goes to the log under
 * an incident id, and the caller gets the id alone.
 */
export const errors =
  (log: Logger): Interceptor =>
  (next) =>
  async (request) => {
    try {
      const response = await next(request);
      if (!response.stream) return response;
      return through(response, (messages) =>
        rethrowing(messages, (error) => rethrow(log, request, error)),
      );
    } catch (error) {
      return rethrow(log, request, error);
    }
  };

const rethrow = (
  log: Logger,
  { contextValues: values, service, method }: UnaryRequest | StreamRequest,
  error: unknown,
): never => {
  const failure = failureOf(error);
  if (failure) throw failure;
  const incidentId = uuid();
  log.error(
    {
      incident_id: incidentId,
      correlation_id: correlationIdOf(values),
      ...values.get(keys.trace),
      method: `${service.typeName}/${method.name}`,
      ...describe(error),
    },
    "unforeseen error",
  );
  throw fail("INTERNAL", { incident_id: incidentId });
};

/** Errors of PostgreSQL that speak of our statements, never of a row's values. */
const aboutStatements = /^(0A|26|42|XX)/;

/** What a log may keep of an error: PostgreSQL's message can quote the values of a row, so mostly it stays out. */
const describe = (error: unknown): Record<string, unknown> => {
  if (!(error instanceof Error)) return { error: typeof error };
  const { name, stack, code, constraint, table } = error as Error & Record<string, unknown>;
  const frames = stack?.slice(stack.indexOf("\n    at "));
  const harmless = code === undefined ? name !== "ZodError" : aboutStatements.test(String(code));
  const message = harmless ? error.message : undefined;
  return { error: name, message, sqlstate: code, constraint, table, stack: frames };
};
