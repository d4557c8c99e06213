import { readdirSync } from "node:fs";
import fc from "fast-check";
import { afterAll, describe, expect, test, vi } from "vitest";
import { z } from "zod";
import { parseRow } from "../src/database/rows.ts";
import { etag, instant, maybeText } from "../src/database/sql.ts";

/** Every schema of an object that the services make when they are loaded. */
const made = vi.hoisted(() => [] as z.ZodObject[]);
vi.mock("zod", async (original) => {
  const zod = await original<typeof import("zod")>();
  const object: typeof zod.z.object = (shape, options) => {
    const schema = zod.z.object(shape, options);
    made.push(schema as unknown as z.ZodObject);
    return schema;
  };
  return { ...zod, z: { ...zod.z, object } };
});

// Test files of one worker share what they load, so the services may be there already; and they must not be left with
// this file's zod.
vi.resetModules();
afterAll(() => {
  vi.doUnmock("zod");
  vi.resetModules();
});
const services = new URL("../src/services/", import.meta.url);
for (const name of readdirSync(services)) await import(new URL(name, services).href);

type Row = Record<string, unknown>;

/** Values such as a row may hold, and such as none does. */
const values: readonly unknown[] = [
  ...["", "x", "ACTIVE", "SUSPENDED", "OPEN", "CLOSED", "MEMBER", "USER", "SERVICE", "SUCCEEDED"],
  ...["DENIED", "INSERT", "UPDATE", "DELETE", "VISIBLE", "member", "maintainer", "active"],
  ...[null, undefined, true, false, 0, 1.5, Number.NaN, 0n, 7n, 2n ** 63n - 1n],
  { seconds: 1n, nanos: 1000 },
  { a: { b: 1 } },
  JSON.parse('{"__proto__": "a"}'),
  ["a", "b"],
  [],
];

/** What comes of a row: the value, or what is wrong with it. */
const outcome = (work: () => unknown): unknown => {
  try {
    return { value: work() };
  } catch (error) {
    if (!(error instanceof z.ZodError)) throw error;
    return { issues: error.issues };
  }
};

const expectAsZod = (schema: z.ZodType, row: Row): void => {
  const width = Object.keys(row).length;
  const expected = outcome(() => schema.parse(row));
  expect(outcome(() => parseRow(schema, { ...row }, width))).toEqual(expected);
};

/** Rows that mostly fit, as far as the values above do. */
const rowsOf = (schema: z.ZodObject): fc.Arbitrary<Row> => {
  const columns = Object.entries(schema.shape).map(([name, type]) => {
    const fitting = values.filter((value) => (type as z.ZodType).safeParse(value).success);
    const any = fc.constantFrom(...values);
    const some = fitting.length > 0 ? fc.constantFrom(...fitting) : any;
    return [
      name,
      fc.oneof({ weight: 60, arbitrary: some }, { weight: 1, arbitrary: any }),
    ] as const;
  });
  return fc
    .tuple(
      fc.record(Object.fromEntries(columns)),
      fc.option(fc.constantFrom(...columns.map(([name]) => name), "more"), { freq: 8 }),
    )
    .map(([row, odd]) => {
      if (odd === null) return row;
      // A column is missing, or one is there that the schema does not name.
      if (odd === "more") return { ...row, more: 1 };
      const { [odd]: _left, ...rest } = row;
      return rest;
    });
};

describe("a row", () => {
  test("becomes what zod makes of it, or is refused as zod does, for every schema of the services", () => {
    expect(made.length).toBeGreaterThan(20);
    let fitted = 0;
    for (const schema of made) {
      fc.assert(
        fc.property(rowsOf(schema), (row) => {
          if (schema.safeParse(row).success) fitted++;
          expectAsZod(schema, row);
        }),
        { numRuns: 100 },
      );
    }
    // Or the test would say little.
    expect(fitted).toBeGreaterThan(made.length * 20);
  });

  test.each<[string, z.ZodType, Row]>([
    ["that has nothing", z.object({}), {}],
    ["that has nothing to show", z.object({}), { a: 1 }],
    ["of a version", z.object({ version: etag }), { version: 7n }],
    ["whose version is no bigint", z.object({ version: etag }), { version: 7 }],
    ["with a column more", z.object({ a: z.string() }), { a: "a", secret: "b" }],
    ["with a column less", z.object({ a: z.string(), b: maybeText }), { a: "a" }],
    ["with another column instead", z.object({ a: z.string() }), { b: "a" }],
    ["with a column where none may be", z.object({}).strict(), { a: 1 }],
    ["whose others are checked", z.object({}).catchall(z.string()), { a: 1 }],
    ["whose others are kept", z.looseObject({ a: z.string() }), { a: "a", b: 1 }],
    ["with text that is too short", z.object({ a: z.string().min(2) }), { a: "a" }],
    ["with text that is trimmed", z.object({ a: z.string().trim() }), { a: " a " }],
    ["with text that is no UUID", z.object({ a: z.uuid() }), { a: "a" }],
    ["with text of another kind", z.object({ a: z.coerce.string() }), { a: 1 }],
    [
      "with a boolean that must be true",
      z.object({ a: z.boolean().refine(Boolean) }),
      { a: false },
    ],
    ["with a word that is refused", z.object({ a: z.enum(["b"]).refine(() => false) }), { a: "b" }],
    ["with a time that is refused", z.object({ a: instant.refine(() => false) }), { a: {} }],
    ["that is refused as a whole", z.object({ a: z.string() }).refine(() => false), { a: "b" }],
    ["with a default", z.object({ a: z.string().default("b") }), {}],
    ["with an optional column", z.object({ a: z.string().optional() }), {}],
    ["that is transformed", z.object({ a: maybeText }).transform(({ a }) => a), { a: null }],
    ["that is no object", z.string(), { a: 1 }],
  ])("%s is as zod has it", (_, schema, row) => {
    expectAsZod(schema, row);
    // Once more by what was remembered.
    expectAsZod(schema, row);
  });
});
