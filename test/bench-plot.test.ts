import { describe, expect, test } from "vitest";
import { type Panel, plot } from "./bench/plot.ts";

const panels: readonly Panel[] = [
  {
    title: "tenants",
    unit: "tenants",
    budget: 1.3,
    lines: [
      { name: "GetUser", points: [1, 10, 100].map((size) => [size, 1]) },
      { name: "List <all> & more", points: [1, 10, 100].map((size) => [size, size]) },
    ],
  },
  { title: "depth", unit: "page", lines: [{ name: "ListTeams", points: [[1, 1]] }] },
];

/** The elements of a document in the order in which they open; fails on one that is not well-formed. */
const elementsOf = (document: string): { name: string; attributes: Record<string, string> }[] => {
  const open: string[] = [];
  const found: { name: string; attributes: Record<string, string> }[] = [];
  const rest = document.replace(
    /<(\/?)([a-z]+)((?:\s+[\w:-]+="[^"<&]*(?:&#\d+;[^"<&]*)*")*)\s*(\/?)>/gi,
    (_, closing, name, attributes, alone) => {
      if (closing) expect(open.pop()).toBe(name);
      else {
        const pairs = [...attributes.matchAll(/([\w:-]+)="([^"]*)"/g)].map(([, key, value]) => [
          key,
          value,
        ]);
        expect(new Set(pairs.map(([key]) => key)).size).toBe(pairs.length);
        found.push({ name, attributes: Object.fromEntries(pairs) });
        if (!alone) open.push(name);
      }
      return "";
    },
  );
  expect(open).toEqual([]);
  expect(rest.replace(/&#\d+;/g, "")).not.toMatch(/[<>&]/);
  return found;
};

describe("the plot of a benchmark", () => {
  const elements = elementsOf(plot("Cost & size", panels));
  const named = (name: string) => elements.filter((element) => element.name === name);

  test("is one well-formed document, whatever the names hold", () => {
    expect(elements[0]?.name).toBe("svg");
    expect(named("svg")).toHaveLength(1);
  });

  test("has a line for each series and a point for each size", () => {
    expect(named("polyline").map(({ attributes }) => attributes.points?.split(" ").length)).toEqual(
      [3, 3, 1],
    );
    expect(named("circle")).toHaveLength(7);
  });

  test("spaces powers of ten evenly and puts 1 at one height, the larger the higher", () => {
    const [flat = [], steep = []] = named("polyline").map(({ attributes }) =>
      (attributes.points ?? "").split(" ").map((point) => point.split(",").map(Number)),
    );
    const [[x1 = 0, y1 = 0] = [], [x2 = 0, y2 = 0] = [], [x3 = 0, y3 = 0] = []] = flat;
    expect(x2 - x1).toBeCloseTo(x3 - x2, 0);
    expect(x2).toBeGreaterThan(x1);
    expect([y2, y3]).toEqual([y1, y1]);
    const heights = steep.map(([, y = 0]) => y1 - y);
    expect(heights[0]).toBe(0);
    expect(heights[1]).toBeGreaterThan(0);
    expect(heights[2]).toBeCloseTo(2 * (heights[1] ?? 0), 0);
  });

  test("shades what the budget allows, where there is one", () => {
    expect(named("rect")).toHaveLength(1);
    expect(Number(named("rect")[0]?.attributes.height)).toBeGreaterThan(0);
  });

  test("stays within its own size", () => {
    const [, , width = 0, height = 0] = (elements[0]?.attributes.viewBox ?? "")
      .split(" ")
      .map(Number);
    const numbers = named("circle").map(({ attributes }) => attributes);
    for (const { cx, cy } of numbers) {
      expect(Number(cx)).toBeLessThan(width);
      expect(Number(cy)).toBeLessThan(height);
      expect(Number(cy)).toBeGreaterThan(0);
    }
  });
});
