/**
 * What the fields of a list can be compared with, and a filter as a condition of SQL. Columns come from the
 * lists' own allow-lists, values are bound.
 */
import { fromJson } from "@bufbuild/protobuf";
import { TimestampSchema } from "@bufbuild/protobuf/wkt";
import type { ConnectError } from "@connectrpc/connect";
import { type FragmentSqlToken, formatInstant, sql } from "../database/sql.ts";
import { type Comparison, type Fault, type Filter, faultIn, type Value } from "./filters.ts";
import { nfc } from "./requests.ts";

type Column = FragmentSqlToken;

/** A comparison with what it takes to judge it. */
interface Asked extends Comparison {
  /** The key behind a field of labels; empty without one. */
  readonly key: string;
  readonly fault: Fault;
  /** Whether the list stays inside one org, where reading all of it is no matter. */
  readonly inOrg: boolean;
}

/** Makes a comparison with a field a condition. */
export type Field = (asked: Asked) => FragmentSqlToken;

/** The fields of a list, by the names that filters call them. `labels` stands for `labels.KEY`. */
export type Fields = Readonly<Record<string, Field>>;

const compare: Readonly<Record<"<" | "<=" | ">" | ">=", FragmentSqlToken>> = {
  "<": sql.fragment`<`,
  "<=": sql.fragment`<=`,
  ">": sql.fragment`>`,
  ">=": sql.fragment`>=`,
};

const isOrder = (operator: string): operator is keyof typeof compare => operator in compare;

/** What does not hold is whatever is not true: a comparison with what is not set is not. */
const not = (condition: FragmentSqlToken): FragmentSqlToken =>
  sql.fragment`((${condition}) is not true)`;

/** The same for all kinds of fields: `!=` is what `=` is not. */
const unless = ({ operator }: Asked, equal: FragmentSqlToken): FragmentSqlToken =>
  operator === "!=" ? not(equal) : equal;

const orderRefused = ({ fault, operator, value }: Asked): ConnectError =>
  fault(value, `${operator} has no meaning for this field; it can be compared by =, != and :`);

const demandWhole = ({ fault, value }: Asked): void => {
  if ((value.openStart || value.openEnd) && !value.any)
    throw fault(value, "this field is compared as a whole; a * alone stands for any value");
};

/**
 * Text as open as its value is. A prefix is a range of the "C" order, which an index answers also under row-level
 * security: no text begins with another and goes on with so many of the last of all characters.
 */
const matches = (column: Column, value: Value, text: FragmentSqlToken): FragmentSqlToken => {
  if (value.openStart && value.openEnd) return sql.fragment`strpos(${column}, ${text}) > 0`;
  if (value.openStart) return sql.fragment`right(${column}, char_length(${text})) = ${text}`;
  return sql.fragment`(${column} collate "C" >= ${text}
    and ${column} collate "C" <= ${text} || repeat(chr(1114111), 256))`;
};

const textIn =
  (column: Column, textOf: (value: Value) => FragmentSqlToken): Field =>
  (asked) => {
    const { operator, value, fault, inOrg } = asked;
    const open = value.openStart || value.openEnd;
    if (isOrder(operator)) {
      if (open) throw fault(value, `${operator} compares with a whole text; \\* is a star itself`);
      return sql.fragment`${column} collate "C" ${compare[operator]} ${textOf(value)}`;
    }
    if (value.any) return unless(asked, sql.fragment`${column} <> ''`);
    if (value.openStart && !inOrg)
      throw fault(value, "a * before the text is for lists inside one org");
    if (open) return unless(asked, matches(column, value, textOf(value)));
    return unless(
      asked,
      value.text === ""
        ? sql.fragment`coalesce(${column}, '') = ''`
        : sql.fragment`${column} = ${textOf(value)}`,
    );
  };

const exactly = ({ text }: Value): FragmentSqlToken => sql.fragment`${nfc(text)}::text`;
const folded = ({ text }: Value): FragmentSqlToken =>
  sql.fragment`lower(normalize(${text}::text, nfc))`;

/** Text that is compared as it is written. */
export const text = (column: Column): Field => textIn(column, exactly);

/** Text that is compared without regard to case, by the column that keeps it so. */
export const foldedText = (column: Column): Field => textIn(column, folded);

/** One of a few names. */
export const oneOf =
  (column: Column, names: readonly string[]): Field =>
  (asked) => {
    const { operator, value, fault } = asked;
    if (isOrder(operator)) throw orderRefused(asked);
    demandWhole(asked);
    if (value.any) return unless(asked, sql.fragment`${column} is not null`);
    if (!names.includes(value.text)) throw fault(value, "no such value", names);
    return unless(asked, sql.fragment`${column} = ${value.text}`);
  };

/** Whether the month has the day: the 31st of February would be taken for the 3rd of March. */
const isDay = (text: string): boolean => {
  const [year = 0, month = 0, day = 0] = text.slice(0, 10).split("-").map(Number);
  return day <= new Date(Date.UTC(year, month, 0)).getUTCDate();
};

const instantOf = ({ fault, value }: Asked): string => {
  const refused = fault(value, "must be a time such as 2026-01-31T09:30:00Z");
  if (!isDay(value.text)) throw refused;
  try {
    return formatInstant(fromJson(TimestampSchema, value.text));
  } catch {
    throw refused;
  }
};

/** A time, to be written as RFC 3339 has it. */
export const time =
  (column: Column): Field =>
  (asked) => {
    const { operator } = asked;
    demandWhole(asked);
    if (asked.value.any && !isOrder(operator))
      return unless(asked, sql.fragment`${column} is not null`);
    const instant = sql.fragment`${instantOf(asked)}::timestamptz`;
    return isOrder(operator)
      ? sql.fragment`${column} ${compare[operator]} ${instant}`
      : unless(asked, sql.fragment`${column} = ${instant}`);
  };

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;

/** An id; empty: none is set. */
export const id =
  (column: Column): Field =>
  (asked) => {
    const { operator, value, fault } = asked;
    if (isOrder(operator)) throw orderRefused(asked);
    demandWhole(asked);
    if (value.any) return unless(asked, sql.fragment`${column} is not null`);
    if (value.text === "") return unless(asked, sql.fragment`${column} is null`);
    if (!uuid.test(value.text)) throw fault(value, "must be a UUID, or empty for none");
    return unless(asked, sql.fragment`${column} = ${value.text}::uuid`);
  };

/** Labels: `labels.KEY` is compared as text, `labels:KEY` asks whether there is one. */
export const labelsIn =
  (column: Column): Field =>
  (asked) => {
    const { key, field, fault, operator, value } = asked;
    const valueAt = (name: string) => sql.fragment`(${column} ->> ${name}::text)`;
    if (key !== "") return text(valueAt(key))(asked);
    if (operator !== ":") throw fault(field, "name a label, such as labels.plan");
    demandWhole(asked);
    return value.any
      ? sql.fragment`${column} <> '{}'`
      : sql.fragment`${valueAt(value.text)} is not null`;
  };

/**
 * A field of things of which there are many: some of them must have the value.
 *
 * @param some makes a condition on one of them a condition on their whole
 */
export const ofSome =
  (of: Field, some: (condition: FragmentSqlToken) => FragmentSqlToken): Field =>
  (asked) => {
    if (isOrder(asked.operator)) throw orderRefused(asked);
    return unless(asked, some(of({ ...asked, operator: "=" })));
  };

/** A field's name, and the key of a label behind it. */
const nameAndKey = (token: string): readonly [name: string, key: string] => {
  const [, name, key = ""] = /^(labels)\.(.+)$/su.exec(token) ?? [undefined, token];
  const quoted = /^(["'])(.*)\1$/su.exec(key)?.[2];
  return [name ?? token, quoted === undefined ? key : quoted.replace(/\\(.)/gsu, "$1")];
};

const shown = (fields: Fields): string[] =>
  Object.keys(fields).map((name) => (name === "labels" ? "labels.KEY" : name));

const holding = (conditions: readonly FragmentSqlToken[], word: FragmentSqlToken) =>
  sql.fragment`(${sql.join(conditions, word)})`;

/**
 * The condition that a filter puts on the rows of a list; without one it always holds.
 *
 * @throws ConnectError FILTER_INVALID for a field that the list lacks, or a value that the field cannot have
 */
export const conditionOf = (
  filter: Filter | null,
  filterText: string,
  fields: Fields,
  inOrg: boolean,
): FragmentSqlToken => {
  const fault = faultIn("FILTER_INVALID", "filter", filterText);
  const compile = (part: Filter): FragmentSqlToken => {
    switch (part.kind) {
      case "and":
        return holding(part.parts.map(compile), sql.fragment` and `);
      case "or":
        return holding(part.parts.map(compile), sql.fragment` or `);
      case "not":
        return not(compile(part.part));
      case "comparison": {
        const [name, key] = nameAndKey(part.comparison.field.token);
        const field = Object.hasOwn(fields, name) ? fields[name] : undefined;
        if (!field) throw fault(part.comparison.field, "no such field", shown(fields));
        return field({ ...part.comparison, key, fault, inOrg });
      }
    }
  };
  return filter ? compile(filter) : sql.fragment`true`;
};
