/** Slonik's tag, which composes the text of a query once for each place in the code instead of at each call. */
import {
  createSqlTag,
  type FragmentSqlToken,
  type QuerySqlToken,
  type ValueExpression,
} from "slonik";
import { z } from "zod";

const tag = createSqlTag({ typeAliases: { void: z.object({}).strict() } });

/** What Slonik made of a template, and what stood in each of its places: a fragment's text, or a value. */
interface Composed<Token> {
  readonly places: readonly (string | undefined)[];
  readonly token: Token;
}

type Tagged<Token> = (strings: TemplateStringsArray, ...parts: ValueExpression[]) => Token;

const fragmentType = tag.fragment``.type;
const queryType = tag.typeAlias("void")``.type;

/** Told by its symbol, which no value from a request can have. */
const isToken = <Token>(part: ValueExpression, type: symbol): part is ValueExpression & Token =>
  typeof part === "object" && part !== null && "type" in part && part.type === type;

const isValue = (part: ValueExpression): boolean => {
  const kind = typeof part;
  return (
    kind === "string" ||
    part === null ||
    kind === "number" ||
    kind === "boolean" ||
    kind === "bigint"
  );
};

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
    const places: (string | undefined)[] = [];
    const values: unknown[] = [];
    for (const part of parts) {
      if (isToken<FragmentSqlToken>(part, fragmentType)) {
        places.push(part.sql);
        values.push(...part.values);
      } else if (isValue(part)) {
        places.push(undefined);
        values.push(part);
      } else if (isToken(part, queryType)) {
        // Its parameters have their final names, so that Slonik would not count them on.
        throw new Error("a query cannot stand in another; make it a fragment");
      } else {
        return make(strings, ...parts);
      }
    }
    let known = composed.get(strings);
    if (!known || places.some((text, index) => text !== known?.places[index])) {
      known = { places, token: make(strings, ...parts) };
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
