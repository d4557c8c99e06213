import { ConnectError } from "@connectrpc/connect";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import { type Filter, parseFilter } from "../src/services/filters.ts";

/** A filter as it was understood, with every parenthesis. */
const understood = (filter: Filter | null): string => {
  if (filter === null) return "all";
  switch (filter.kind) {
    case "not":
      return `not ${understood(filter.part)}`;
    case "comparison": {
      const { field, operator, value } = filter.comparison;
      const [start, end] = [value.openStart ? "…" : "", value.openEnd ? "…" : ""];
      return `${field.token} ${operator} ${value.any ? "any" : `${start}${value.text}${end}`}`;
    }
    default:
      return `(${filter.parts.map(understood).join(` ${filter.kind} `)})`;
  }
};

describe("A filter", () => {
  test.each([
    ["", "all"],
    [" \n\t ", "all"],
    ["name=Grace", "name = Grace"],
    ["name = 'Grace Hopper'", "name = Grace Hopper"],
    ['name = "Grace \\"Amazing\\" Hopper"', 'name = Grace "Amazing" Hopper'],
    ['name = "a\\\\b"', "name = a\\b"],
    ["name = gra*", "name = gra…"],
    ['name: "*hop*"', "name : …hop…"],
    ['name = "\\*gra\\*"', "name = *gra*"],
    ["name:*", "name : any"],
    ['name = "*"', "name = any"],
    ['name = ""', "name = "],
    ["name != x", "name != x"],
    ["a<1 b<=2 c>3 d>=4", "(a < 1 and b <= 2 and c > 3 and d >= 4)"],
    ["create_time > 2026-01-31T09:30:00+01:00", "create_time > 2026-01-31T09:30:00+01:00"],
    ['labels."cost centre" = 7', 'labels."cost centre" = 7'],
    ["labels.a.b/c:*", "labels.a.b/c : any"],
    ["a=1 AND b=2 OR c=3", "(a = 1 and (b = 2 or c = 3))"],
    ["a=1 OR b=2 AND c=3 OR d=4", "((a = 1 or b = 2) and (c = 3 or d = 4))"],
    ["a=1 b=2 OR c=3", "(a = 1 and (b = 2 or c = 3))"],
    ["(a=1 AND b=2) OR c=3", "((a = 1 and b = 2) or c = 3)"],
    ["NOT a=1 OR b=2", "(not a = 1 or b = 2)"],
    ["-a=1 AND -(b=2 OR c=3)", "(not a = 1 and not (b = 2 or c = 3))"],
    ["NOT (NOT a=1)", "not not a = 1"],
    ["a = -5", "a = -5"],
    ["a = NOT", "a = NOT"],
    ["name = \"x' OR 'a'='a\"", "name = x' OR 'a'='a"],
    ['名前 = "𝒢*"', "名前 = 𝒢…"],
  ])("%j means %s", (text, meaning) => {
    expect(understood(parseFilter(text))).toBe(meaning);
  });

  const fault = (text: string): Record<string, string> => {
    try {
      parseFilter(text);
    } catch (error) {
      const [info] = (error as ConnectError).details as unknown as {
        desc: unknown;
        value: { reason: string; metadata: Record<string, string> };
      }[];
      expect(error).toBeInstanceOf(ConnectError);
      expect(info).toMatchObject({ desc: ErrorInfoSchema, value: { reason: "FILTER_INVALID" } });
      return info?.value.metadata ?? {};
    }
    return expect.fail(`${text} was understood`);
  };

  test.each([
    ["Hugo", "1", "Hugo", /name a field/],
    ['"Hugo"', "1", '"Hugo"', /name a field/],
    ["a=1 Hugo", "5", "Hugo", /name a field/],
    ["a=1 and b=2", "5", "and", /capitals/],
    ["a=1 AND", "8", "", /name a field/],
    ["AND a=1", "1", "AND", /capitals/],
    ["a=1 OR OR b=2", "8", "OR", /capitals/],
    ["NOT NOT a=1", "5", "NOT", /capitals/],
    ["a=", "3", "", /needs a value/],
    ["a = = 1", "5", "=", /needs a value/],
    ["a = (b OR c)", "5", "(", /needs a value/],
    ["(a=1", "1", "(", /never closed/],
    ["a=1)", "4", ")", /never opened/],
    ["()", "2", ")", /name a field/],
    ['a = "x', "5", '"', /never closed/],
    ['𝒢𝒢 = "x', "6", '"', /never closed/],
    ["a=1, b=2", "4", ",", /quote/],
    ["a!1", "2", "!", /quote/],
    ["a = x*y", "5", "x*y", /at an end/],
    ["size(a) = 1", "1", "size", /name a field/],
    ['a = "x\0"', "7", "", /control characters/],
    ["a=1; drop table users", "6", "drop", /name a field/],
    ["a=1 -- x", "6", "-", /name a field/],
  ])("%j is refused at character %s, %j", (text, position, token, rule) => {
    const metadata = fault(text);
    expect(metadata).toMatchObject({ field: "filter", position, token });
    expect(metadata.rule).toMatch(rule);
  });

  test("has at most 50 comparisons and 20 levels of parentheses", () => {
    const many = (count: number) => Array.from({ length: count }, () => "a=1").join(" OR ");
    const deep = (levels: number) => `${"(".repeat(levels)}a=1${")".repeat(levels)}`;
    expect(understood(parseFilter(deep(20)))).toBe("a = 1");
    expect(understood(parseFilter(many(50)))).toMatch(/^\(a = 1( or a = 1){49}\)$/);
    expect(fault(many(51))).toMatchObject({ position: "351", rule: expect.stringMatching(/50/) });
    expect(fault(deep(21))).toMatchObject({ position: "21", rule: expect.stringMatching(/20/) });
  });

  test("is understood or refused, whatever it says", () => {
    const letters = [..." ()\"'=<>!:,*\\-ab.ORNTAD𝒢é\n\0"];
    const noise = fc.array(fc.constantFrom(...letters), { maxLength: 60 });
    fc.assert(
      fc.property(noise, (text) => {
        try {
          parseFilter(text.join(""));
        } catch (error) {
          expect(error).toBeInstanceOf(ConnectError);
        }
      }),
      { numRuns: 3_000 },
    );
  });
});
