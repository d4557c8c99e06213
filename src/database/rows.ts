/**
 * Rows through their zod schemas, at the price of a look at each column. Zod makes a payload and a result for each
 * column of each row, which for a page costs more than all else. Here a row of plain columns is checked first and
 * then transformed in place; a schema with other columns, and a row that does not fit, go to zod itself, which
 * then says what is wrong.
 */
import { z } from "zod";

/** What zod would find and do, for one kind of column. */
interface Column {
  readonly fits: (value: unknown) => boolean;
  readonly become?: (value: never) => unknown;
}

/** Columns of our own vocabulary, by schema. */
const columns = new WeakMap<z.ZodType, Column>();

/** Makes the schema of a column that holds what `fits` says. */
export const column = <T>(fits: (value: unknown) => value is T): z.ZodType<T> => {
  const schema = z.custom<T>(fits);
  columns.set(schema, { fits });
  return schema;
};

/** Makes the schema of a column whose values become others. */
export const becoming = <In, Out>(
  fits: (value: unknown) => value is In,
  become: (value: In) => Out,
): z.ZodType<Out> => {
  const schema = z.custom<In>(fits).transform(become);
  columns.set(schema, { fits, become });
  return schema;
};

const isRefined = ({ def }: z.ZodType): boolean => !!def.checks?.length;

const columnOf = (schema: z.ZodType): Column | undefined => {
  const own = columns.get(schema);
  if (own) return own;
  if (isRefined(schema)) return undefined;
  if (schema instanceof z.ZodString) return { fits: (value) => typeof value === "string" };
  if (schema instanceof z.ZodBoolean) return { fits: (value) => typeof value === "boolean" };
  if (schema instanceof z.ZodEnum) {
    const options = new Set<unknown>(schema.options);
    return { fits: (value) => options.has(value) };
  }
  return undefined;
};

type Row = Record<string, unknown>;
type Parser = (row: Row, width: number) => unknown;

const parsers = new WeakMap<z.ZodType, Parser>();

const parserOf = (schema: z.ZodType): Parser => {
  const slow: Parser = (row) => schema.parse(row);
  if (!(schema instanceof z.ZodObject) || schema.def.catchall || isRefined(schema)) return slow;
  const checks: (readonly [string, Column["fits"]])[] = [];
  const changes: (readonly [string, (value: unknown) => unknown])[] = [];
  for (const [name, type] of Object.entries(schema.shape as Record<string, z.ZodType>)) {
    const found = columnOf(type);
    if (!found) return slow;
    checks.push([name, found.fits]);
    if (found.become) changes.push([name, found.become as (value: unknown) => unknown]);
  }
  return (row, width) => {
    // Zod leaves out what a schema does not name.
    if (width !== checks.length) return slow(row, width);
    for (const [name, fits] of checks) if (!fits(row[name])) return slow(row, width);
    for (const [name, become] of changes) row[name] = become(row[name]);
    return row;
  };
};

/**
 * What a schema makes of a row, which is the caller's no more.
 *
 * @param width how many columns the row has
 * @throws ZodError for a row that does not fit
 */
export const parseRow = (schema: z.ZodType, row: Row, width: number): unknown => {
  let parser = parsers.get(schema);
  if (!parser) {
    parser = parserOf(schema);
    parsers.set(schema, parser);
  }
  return parser(row, width);
};
