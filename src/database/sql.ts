/** The query vocabulary of the services: Slonik's tag, zod pieces of rows, and what a statement runs on. */
import type { JsonObject } from "@bufbuild/protobuf";
import type { FragmentSqlToken, QuerySqlToken } from "slonik";
import type { z } from "zod";
import { becoming, column } from "./rows.ts";
import type { Instant } from "./types.ts";

export { sql } from "./tag.ts";
export { formatInstant, type Instant, parseInstant } from "./types.ts";
export type { FragmentSqlToken };

/** A query with the schema of its rows. */
export type Query<Row extends z.ZodType = z.ZodType> = QuerySqlToken<Row>;

const isObject = (value: unknown): value is object => typeof value === "object" && value !== null;
const isInstant = (value: unknown): value is Instant => isObject(value);

/** A timestamptz, exact to the microsecond. */
export const instant = column(isInstant);

/** A timestamptz that may be null: left out of the message. */
export const maybeInstant = becoming(
  (value): value is Instant | null => value === null || isInstant(value),
  (value) => value ?? undefined,
);

/** Text that may be null: empty in the message. */
export const maybeText = becoming(
  (value): value is string | null => value === null || typeof value === "string",
  (value) => value ?? "",
);

/** A uuid[] column. */
export const ids = column((value): value is string[] => Array.isArray(value));

/** A text[] column without nulls. */
export const texts = ids;

/** A jsonb column that holds an object. */
export const jsonObject = column((value): value is JsonObject => isObject(value));

/** A jsonb column of string values. Not a zod record, which would drop a label named `__proto__`. */
export const labels = column((value): value is Record<string, string> => isObject(value));

/** A row's version as its etag, a quoted string as RFC 7232 has it. */
export const etag = becoming(
  (value) => typeof value === "bigint",
  (version) => `"${version}"`,
);

/** Others changed what a unit of work had looked at. It is done again, as after a serialization failure. */
export class Overtaken extends Error {
  readonly code = "40001";
}

/** What an RPC's statements run on, already in its tenant. */
export interface UnitOfWork {
  /** All rows of a query. */
  many<Row extends z.ZodType>(
    query: Query<Row>,
    options?: QueryOptions,
  ): Promise<readonly z.output<Row>[]>;
  /** The row of a query, or null. */
  maybeOne<Row extends z.ZodType>(
    query: Query<Row>,
    options?: QueryOptions,
  ): Promise<z.output<Row> | null>;
  /** The row of a query; without one it throws what `missing` makes. */
  one<Row extends z.ZodType>(
    query: Query<Row>,
    missing: () => Error,
    options?: QueryOptions,
  ): Promise<z.output<Row>>;
}

export interface QueryOptions {
  /** False keeps a statement unprepared, where a generic plan would be bad: pages of a partitioned table. */
  readonly prepare?: boolean;
  /** True keeps a read away from replicas, where transactions become visible in another order. */
  readonly primary?: boolean;
}
