/** Which rows a list shows and in which order: `filter` and `order_by` of a request, as pieces of its query. */
import type { ListRequest, Page } from "../database/page.ts";
import { type FragmentSqlToken, sql } from "../database/sql.ts";
import { conditionOf, type Fields } from "./conditions.ts";
import { type Filter, faultIn, parseFilter } from "./filters.ts";

/** A request that may choose rows and their order. */
export type ChoosingRequest = ListRequest & { readonly filter: string; readonly orderBy: string };

/** What a list can be ordered by beside its ids. An index has the column and then the id. */
export interface Key {
  readonly column: FragmentSqlToken;
  readonly type: "text" | "timestamptz";
  /** The id beside it, where it comes from another table than `Choices.id`. */
  readonly id?: FragmentSqlToken;
}

/** What a list lets its callers choose. */
export interface Choices {
  readonly fields: Fields;
  /** By the name that `order_by` calls it, which is also the name of its field in filters. */
  readonly keys: Readonly<Record<string, Key>>;
  /** What the order of the ids is called. */
  readonly idOrder: string;
  readonly id: FragmentSqlToken;
}

/** The pieces of a query that shows the chosen rows in the chosen order. */
export interface Selection {
  /** What orders the rows; undefined: their ids alone. */
  readonly key: Key | undefined;
  /** Holds for the rows that the filter lets through and that come behind the page before. */
  readonly where: FragmentSqlToken;
  readonly order: FragmentSqlToken;
  /** Columns that keep the order for a query around this one. */
  readonly places: FragmentSqlToken;
  /** The order of a query around this one. */
  readonly placeOrder: FragmentSqlToken;
  /** A row's place as text, for the cursor. */
  readonly position: FragmentSqlToken;
  readonly cursor: (position: string, id: string) => readonly string[];
}

interface Order {
  readonly key: Key | undefined;
  readonly descending: boolean;
}

/**
 * Reads `order_by`; undefined when it is empty.
 *
 * @throws ConnectError ORDER_BY_INVALID
 */
export const orderOf = (
  orderBy: string,
  { keys, idOrder }: Pick<Choices, "keys" | "idOrder">,
): Order | undefined => {
  const fault = faultIn("ORDER_BY_INVALID", "order_by", orderBy);
  const words = [...orderBy.matchAll(/[^\s,]+|,/gu)].map(({ 0: token, index: at }) => ({
    token,
    at,
  }));
  const [name, direction, more] = words;
  if (!name) return undefined;
  const isKey = Object.hasOwn(keys, name.token);
  if (!isKey && name.token !== idOrder)
    throw fault(name, "no such order", [idOrder, ...Object.keys(keys)]);
  if (direction?.token === ",") throw fault(direction, "one field only; ids settle what it leaves");
  if (direction && direction.token !== "desc" && direction.token !== "asc")
    throw fault(direction, "behind the field", ["desc", "asc"]);
  if (more) throw fault(more, "one field only; ids settle what it leaves");
  const key = isKey ? keys[name.token] : undefined;
  return { key, descending: direction?.token === "desc" };
};

/** The key whose text, or the beginning of it, every row has in common: in its order the rows lie together. */
const fixedKey = (filter: Filter | null, keys: Choices["keys"]): Key | undefined => {
  if (filter?.kind === "and") {
    for (const part of filter.parts) {
      const key = fixedKey(part, keys);
      if (key) return key;
    }
  }
  if (filter?.kind !== "comparison") return undefined;
  const { field, operator, value } = filter.comparison;
  const key = Object.hasOwn(keys, field.token) ? keys[field.token] : undefined;
  const fixes = (operator === "=" || operator === ":") && !value.openStart && !value.any;
  return fixes && key?.type === "text" ? key : undefined;
};

const types = { text: sql.fragment`text`, timestamptz: sql.fragment`timestamptz` };

const behind = (
  after: readonly string[] | null,
  id: FragmentSqlToken,
  { key, descending }: Order,
): FragmentSqlToken => {
  if (after === null) return sql.fragment`true`;
  const further = descending ? sql.fragment`<` : sql.fragment`>`;
  const [first = "", second = ""] = after;
  return key
    ? sql.fragment`(${key.column}, ${id}) ${further} (${first}::${types[key.type]}, ${second}::uuid)`
    : sql.fragment`${id} ${further} ${first}::uuid`;
};

/**
 * Reads what a request chooses; undefined for one that chooses nothing, whose query stays the prepared one.
 *
 * @throws ConnectError FILTER_INVALID, ORDER_BY_INVALID
 */
export const selectionOf = (
  request: ChoosingRequest,
  page: Page,
  inOrg: boolean,
  choices: Choices,
): Selection | undefined => {
  const filter = parseFilter(request.filter);
  const asked = orderOf(request.orderBy, choices);
  const { fields, keys } = choices;
  const holds = conditionOf(filter, request.filter, fields, inOrg);
  if (!filter && !asked) return undefined;
  const order = asked ?? { key: fixedKey(filter, keys), descending: false };
  const id = order.key?.id ?? choices.id;
  const column = order.key?.column ?? sql.fragment`''::text`;
  const way = order.descending ? sql.fragment`desc` : sql.fragment`asc`;
  return {
    key: order.key,
    where: sql.fragment`${holds} and ${behind(page.after, id, order)}`,
    order: order.key ? sql.fragment`${column} ${way}, ${id} ${way}` : sql.fragment`${id} ${way}`,
    places: sql.fragment`${column} as place, ${id} as place_id`,
    placeOrder: sql.fragment`place ${way}, place_id ${way}`,
    position: sql.fragment`${column}::text`,
    cursor: (position, rowId) => (order.key ? [position, rowId] : [rowId]),
  };
};
