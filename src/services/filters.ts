/**
 * Reads the `filter` of a list: a subset of the language of https://google.aip.dev/160. What it says is compiled
 * in conditions.ts; nothing of its text becomes SQL.
 */
import type { ConnectError } from "@connectrpc/connect";
import { fail } from "../errors.ts";

/** More than a person would write; each costs the database a comparison for each row. */
const mostComparisons = 50;
const mostLevels = 20;

export type Operator = "=" | "!=" | "<" | "<=" | ">" | ">=" | ":";

/** A place in the text: for telling what is wrong there. */
export interface Place {
  /** Where it begins, as JavaScript counts. */
  readonly at: number;
  /** What stands there. */
  readonly token: string;
}

/** What a field is compared with. */
export interface Value extends Place {
  /** Without quotes, escapes and the stars at its ends. */
  readonly text: string;
  /** A star stands before the text. */
  readonly openStart: boolean;
  /** A star stands behind the text. */
  readonly openEnd: boolean;
  /** A star alone: whatever is set. */
  readonly any: boolean;
}

/** A comparison as it is written. */
export interface Comparison {
  readonly field: Place;
  readonly operator: Operator;
  readonly value: Value;
}

/** What a filter says. */
export type Filter =
  | { readonly kind: "and" | "or"; readonly parts: readonly Filter[] }
  | { readonly kind: "not"; readonly part: Filter }
  | { readonly kind: "comparison"; readonly comparison: Comparison };

/** Makes the error for a place in a filter, or in an order. */
export type Fault = (place: Place, rule: string, allowed?: readonly string[]) => ConnectError;

/** Tells of a fault in one of a list's texts, where it is and what may stand there. */
export const faultIn =
  (reason: "FILTER_INVALID" | "ORDER_BY_INVALID", field: string, text: string): Fault =>
  ({ at, token }, rule, allowed = []) =>
    fail(
      reason,
      {
        field,
        position: String([...text.slice(0, at)].length + 1),
        token,
        rule,
        ...(allowed.length > 0 ? { allowed: allowed.join(", ") } : {}),
      },
      [{ field, rule: "" }],
    );

interface Token extends Place {
  readonly kind: "word" | "string" | "operator" | "open" | "close" | "end";
}

const space = /\s*/y;
const operators = /<=|>=|!=|[=<>:]/y;
const quoted = /"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'/suy;
const word = /[^\s()"'=<>!:,]+/uy;
/** Behind an operator a colon has no meaning, so that times need no quotes. */
const bareValue = /[^\s()"'=<>!:,][^\s()"'=<>!,]*/uy;

const match = (pattern: RegExp, text: string, at: number): string | undefined => {
  pattern.lastIndex = at;
  return pattern.exec(text)?.[0];
};

const nextToken = (text: string, from: number, before: Token | undefined, fault: Fault): Token => {
  const at = from + (match(space, text, from)?.length ?? 0);
  const first = text[at];
  if (first === undefined) return { kind: "end", at, token: "" };
  if (first === "(") return { kind: "open", at, token: first };
  if (first === ")") return { kind: "close", at, token: first };
  const operator = match(operators, text, at);
  if (operator) return { kind: "operator", at, token: operator };
  if (first === '"' || first === "'") {
    const string = match(quoted, text, at);
    if (!string) throw fault({ at, token: first }, "this quote is never closed");
    return { kind: "string", at, token: string };
  }
  const found = match(before?.kind === "operator" ? bareValue : word, text, at);
  if (!found) throw fault({ at, token: first }, "quote text that has this character");
  return { kind: "word", at, token: found };
};

const tokensOf = (text: string, fault: Fault): readonly Token[] => {
  const strange = /(?![\t\n\r])\p{Cc}/u.exec(text);
  if (strange) throw fault({ at: strange.index, token: "" }, "control characters have no meaning");
  const tokens: Token[] = [];
  for (;;) {
    const last = tokens.at(-1);
    if (last?.kind === "end") return tokens;
    tokens.push(nextToken(text, last ? last.at + last.token.length : 0, last, fault));
  }
};

/** The text of a value with its open ends. In a string a backslash takes the meaning from what follows it. */
const readValue = ({ kind, at, token }: Token, fault: Fault): Value => {
  const inner = kind === "string" ? token.slice(1, -1) : token;
  const letters = kind === "string" ? (inner.match(/\\.|[^\\]/gsu) ?? []) : [...inner];
  const stars = letters.flatMap((letter, index) => (letter === "*" ? [index] : []));
  const last = letters.length - 1;
  if (stars.some((index) => index > 0 && index < last)) {
    throw fault(
      { at, token },
      "a * stands at an end of the text; in a string \\* is a star itself",
    );
  }
  const openStart = letters[0] === "*";
  const openEnd = letters[last] === "*";
  const text = letters
    .filter((letter) => letter !== "*")
    .map((letter) => (kind === "string" && letter.startsWith("\\") ? letter.slice(1) : letter))
    .join("");
  return { at, token, text, openStart, openEnd, any: stars.length > 0 && text === "" };
};

/** The field's path; its last part may be quoted, as in `labels."cost centre"`. */
const fieldOf = (first: Token, second: Token | undefined): Place => {
  const joined = second?.kind === "string" && first.token.endsWith(".");
  const adjacent = joined && second.at === first.at + first.token.length;
  return { at: first.at, token: adjacent ? first.token + second.token : first.token };
};

const keywords = new Set(["AND", "OR", "NOT"]);

const nameField = (place: Place): string =>
  /^(and|or|not)$/i.test(place.token)
    ? "AND, OR and NOT stand in capitals between comparisons"
    : 'name a field and compare it, such as name = "gra*"';

/**
 * Parses a filter; null for one that says nothing.
 *
 * @throws ConnectError FILTER_INVALID
 */
export const parseFilter = (text: string): Filter | null => {
  const fault = faultIn("FILTER_INVALID", "filter", text);
  const tokens = [...tokensOf(text, fault)];
  let next = 0;
  let comparisons = 0;
  const peek = (): Token => tokens[next] as Token;
  const take = (): Token => tokens[next++] as Token;
  const isWord = (token: string): boolean => peek().kind === "word" && peek().token === token;
  const ends = (): boolean => peek().kind === "end" || peek().kind === "close";

  const comparison = (): Filter => {
    const first = take();
    const field = fieldOf(first, peek());
    if (field.token !== first.token) next++;
    if (first.kind !== "word" || keywords.has(first.token)) throw fault(first, nameField(first));
    const operator = peek();
    if (operator.kind !== "operator") throw fault(first, nameField(first));
    next++;
    const value = take();
    if (value.kind !== "word" && value.kind !== "string")
      throw fault(value, `${operator.token} needs a value behind it`);
    comparisons++;
    if (comparisons > mostComparisons)
      throw fault(first, `a filter has at most ${mostComparisons} comparisons`);
    const compared = {
      field,
      operator: operator.token as Operator,
      value: readValue(value, fault),
    };
    return { kind: "comparison", comparison: compared };
  };

  const simple = (level: number): Filter => {
    if (peek().kind !== "open") return comparison();
    const opening = take();
    if (level >= mostLevels) throw fault(opening, `parentheses nest at most ${mostLevels} deep`);
    const inner = expression(level + 1);
    if (peek().kind !== "close") throw fault(opening, "this parenthesis is never closed");
    next++;
    return inner;
  };

  const term = (level: number): Filter => {
    const { kind, at, token } = peek();
    if (isWord("NOT")) {
      next++;
    } else if (kind === "word" && token.startsWith("-")) {
      // A minus stands before what it negates, without a space.
      if (token === "-") next++;
      else tokens[next] = { kind, at: at + 1, token: token.slice(1) };
    } else {
      return simple(level);
    }
    return { kind: "not", part: simple(level) };
  };

  const chain = (kind: "and" | "or", part: () => Filter, more: () => boolean): Filter => {
    const first = part();
    const parts = [first];
    while (more()) parts.push(part());
    return parts.length === 1 ? first : { kind, parts };
  };
  const skip = (keyword: string): boolean => {
    const found = isWord(keyword);
    if (found) next++;
    return found;
  };

  // OR binds tighter than AND, and what stands side by side is joined by AND.
  const factor = (level: number): Filter =>
    chain(
      "or",
      () => term(level),
      () => skip("OR"),
    );
  const expression = (level: number): Filter =>
    chain(
      "and",
      () => factor(level),
      () => skip("AND") || !ends(),
    );

  if (peek().kind === "end") return null;
  const filter = expression(0);
  if (peek().kind !== "end") throw fault(peek(), "this parenthesis was never opened");
  return filter;
};
