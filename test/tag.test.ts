import fc from "fast-check";
import { createSqlTag, type ValueExpression } from "slonik";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { sql } from "../src/database/tag.ts";

const slonik = createSqlTag();
const row = z.object({});

/** The strings of a template as the language hands them to a tag: the same object at each call. */
const template = (parts: number): TemplateStringsArray => {
  const strings = Array.from({ length: parts + 1 }, (_, index) => ` s${index} `);
  return Object.freeze(Object.assign([...strings], { raw: Object.freeze(strings) }));
};

/** What Slonik composes, with parameters as it sends them. */
const expected = (strings: TemplateStringsArray, parts: readonly ValueExpression[]) => {
  const { sql: text, values } = slonik.type(row)(strings, ...parts);
  return { sql: text.replaceAll("$slonik_", "$").trim(), values };
};

const text = fc.constantFrom("a", "b", "now()");
const value = fc.oneof(
  fc.constant(null),
  fc.boolean(),
  fc.integer(),
  fc.bigInt(),
  fc.string(),
  // Words that mean something to a composer of parameters.
  fc.constantFrom("$1", "$slonik_1", "now()"),
);

/** A fragment with values of its own, some of them in further fragments. */
const fragment = fc.letrec<{ node: ValueExpression }>((tie) => ({
  node: fc
    .array(fc.oneof({ maxDepth: 2 }, value, text.map(slonikText), tie("node")), { maxLength: 3 })
    .map((parts) => sql.fragment(templates[parts.length] as TemplateStringsArray, ...parts)),
})).node;

function slonikText(word: string): ValueExpression {
  return slonik.fragment(Object.freeze(Object.assign([word], { raw: Object.freeze([word]) })));
}

const templates = [0, 1, 2, 3].map(template);

const other = fc.oneof(
  fc.array(fc.string()).map((values) => sql.array(values, "text")),
  fc.uint8Array().map((bytes) => sql.binary(Buffer.from(bytes))),
  fc.string().map((word) => sql.identifier([word])),
  fc.string({ unit: "grapheme-ascii" }).map((word) => sql.literalValue(word)),
  fc.array(value, { minLength: 1 }).map((all) => sql.join(all, sql.fragment`, `)),
  fc.jsonValue().map((all) => sql.jsonb(all as never)),
  fc.array(fc.tuple(fc.string(), fc.integer())).map((rows) => sql.unnest(rows, ["text", "int4"])),
);

describe("a query", () => {
  test("is what Slonik composes, whatever stood in its places before", () => {
    const strings = template(3);
    const part = fc.oneof(value, fragment, other);
    fc.assert(
      fc.property(fc.tuple(part, part, part), (parts) => {
        const { sql: composed, values } = sql.type(row)(strings, ...parts);
        expect({ sql: composed, values }).toEqual(expected(strings, parts));
      }),
      { numRuns: 2_000 },
    );
  });

  test("is another one where a value and a fragment change places", () => {
    const compose = (...parts: [ValueExpression, ValueExpression]) =>
      sql.type(row)`select ${parts[0]}, ${parts[1]}`;
    const now = sql.fragment`now()`;
    expect(compose(now, 1)).toMatchObject({ sql: "select now(), $1", values: [1] });
    expect(compose(1, now)).toMatchObject({ sql: "select $1, now()", values: [1] });
    expect(compose(now, now)).toMatchObject({ sql: "select now(), now()", values: [] });
    expect(compose(now, 2)).toMatchObject({ sql: "select now(), $1", values: [2] });
  });

  test("is parsed by the schema of the call, not by that of the first one", () => {
    const [one, two] = [z.object({ n: z.number() }), z.object({ n: z.string() })];
    const compose = (schema: z.ZodType) => sql.type(schema)`select 1 as n`;
    expect(compose(one).parser).toBe(one);
    expect(compose(two).parser).toBe(two);
  });

  test("keeps its values to itself", () => {
    const compose = (n: number) => sql.type(row)`select ${n}`;
    const [first, second] = [compose(1), compose(2)];
    expect([first.values, second.values]).toEqual([[1], [2]]);
  });

  test.each<[string, unknown]>([
    ["undefined", undefined],
    ["an object", { a: 1 }],
    ["a list", [1]],
    ["a function", () => 1],
    ["a symbol", Symbol("a")],
    ["what looks like a fragment", { sql: "now()", values: [], type: "SLONIK_TOKEN_FRAGMENT" }],
    ["what looks like a fragment without a type", { sql: "now()", values: [] }],
  ])("takes no %s, also where something else stood before", (_, part) => {
    const compose = (...parts: unknown[]) =>
      sql.type(row)`select ${parts[0] as never}, ${parts[1] as never}`;
    compose(1, 2);
    compose(sql.fragment`now()`, 2);
    for (const parts of [
      [part, 2],
      [1, part],
    ]) {
      expect(() => compose(...parts)).toThrow();
      expect(() => sql.fragment`a ${parts[0] as never} ${parts[1] as never}`).toThrow();
    }
  });

  test("takes no other query, whose parameters have their names already", () => {
    const inner = sql.type(row)`select ${1}`;
    expect(() => sql.type(row)`select ${2} in (${inner})`).toThrow("make it a fragment");
  });

  test("is nothing but a template", () => {
    expect(() => sql.type(row)(["select 1"] as never)).toThrow("template literal");
    expect(() => sql.fragment("select 1" as never)).toThrow("template literal");
  });
});
