/** Slonik's tag, which composes the text of a query once for each place in the code instead of at each call. */
import {
  createSqlTag,
  type FragmentSqlToken,
  type QuerySqlToken,
  type ValueExpression,
} from "slonik";
import { z } from "zod";

/** What the fragments of a query said, and the text that Slonik made of it with them. */
interface Composed {
  readonly fragments: readonly string[];
  readonly sql: string;
  readonly type: QuerySqlToken["type"];
}

const tag = createSqlTag({ typeAliases: { void: z.object({}).strict() } });
const composed = new WeakMap<TemplateStringsArray, Composed>();

const isFragment = (part: ValueExpression): part is FragmentSqlToken =>
  typeof part === "object" && part !== null && "sql" in part && "values" in part;

type Make<Schema extends z.ZodType> = (
  strings: TemplateStringsArray,
  ...parts: ValueExpression[]
) => QuerySqlToken<Schema>;

/** Values go into parameters, so the text depends on the template and on its fragments' texts alone. */
const type = <Schema extends z.ZodType>(parser: Schema): Make<Schema> => {
  const make = tag.type(parser) as unknown as Make<Schema>;
  return (strings, ...parts) => {
    const fragments: string[] = [];
    const values: unknown[] = [];
    for (const part of parts) {
      if (isFragment(part)) {
        fragments.push(part.sql);
        values.push(...part.values);
      } else if (part === undefined || (typeof part === "object" && part !== null)) {
        // Slonik knows what to make of it, or refuses it.
        return make(strings, ...parts);
      } else {
        values.push(part);
      }
    }
    let known = composed.get(strings);
    if (!known || fragments.some((text, index) => text !== known?.fragments[index])) {
      const query = make(strings, ...parts);
      // Slonik writes parameters under a name of its own until it sends them.
      known = { fragments, sql: query.sql.replaceAll("$slonik_", "$").trim(), type: query.type };
      composed.set(strings, known);
    }
    return { parser, sql: known.sql, type: known.type, values } as unknown as QuerySqlToken<Schema>;
  };
};

/** Slonik's tag. `sql.type(row)` makes a query whose rows are parsed by the zod schema `row`. */
export const sql = { ...tag, type };
