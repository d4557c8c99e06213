/** Slonik's tag, which composes the text of a query once for each place in the code instead of at each call. */
import {
  createSqlTag,
  type FragmentSqlToken,
  type QuerySqlToken,
  type ValueExpression,
} from "slonik";
import { z } from "zod";

const tag = createSqlTag({ typeAliases: { void: z.object({}).strict() } });

/** What Slonik made of a template, and what the fragments in it said at the time. */
interface Composed<Token> {
  readonly fragments: readonly string[];
  readonly token: Token;
}

type Tagged<Token> = (strings: TemplateStringsArray, ...parts: ValueExpression[]) => Token;

const isFragment = (part: ValueExpression): part is FragmentSqlToken =>
  typeof part === "object" && part !== null && "sql" in part && "values" in part;

/**
 * Remembers what Slonik composes. Values go into parameters, so the text depends on the template and on its
 * fragments' texts alone; parts of any other kind are Slonik's to judge, at each call.
 */
const remembering =
  <Token extends { readonly sql: string }>(
    composed: WeakMap<TemplateStringsArray, Composed<Token>>,
    make: Tagged<Token>,
  ): Tagged<Token> =>
  (strings, ...parts) => {
    const fragments: string[] = [];
    const values: unknown[] = [];
    for (const part of parts) {
      if (isFragment(part)) {
        fragments.push(part.sql);
        values.push(...part.values);
      } else if (part === undefined || (typeof part === "object" && part !== null)) {
        return make(strings, ...parts);
      } else {
        values.push(part);
      }
    }
    let known = composed.get(strings);
    if (!known || fragments.some((text, index) => text !== known?.fragments[index])) {
      known = { fragments, token: make(strings, ...parts) };
      composed.set(strings, known);
    }
    return { ...known.token, values };
  };

const queries = new WeakMap<TemplateStringsArray, Composed<QuerySqlToken>>();

/** Slonik writes parameters under a name of its own until it sends them; it is spared that here. */
const named = <Token extends { readonly sql: string }>(token: Token): Token => ({
  ...token,
  sql: token.sql.replaceAll("$slonik_", "$").trim(),
});

/** Slonik's tag. `sql.type(row)` makes a query whose rows are parsed by the zod schema `row`. */
export const sql = {
  ...tag,
  fragment: remembering<FragmentSqlToken>(new WeakMap(), tag.fragment),
  type: <Schema extends z.ZodType>(parser: Schema) => {
    const make = tag.type(parser as never);
    const query = remembering(queries, (strings, ...parts) => named(make(strings, ...parts)));
    return (strings: TemplateStringsArray, ...parts: ValueExpression[]) =>
      ({ ...query(strings, ...parts), parser }) as unknown as QuerySqlToken<Schema>;
  },
};
