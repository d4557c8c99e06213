/** Lines on log-log axes as SVG, with colours that can be told from a white and from a black page. */

/** One line. */
export interface Line {
  readonly name: string;
  readonly points: readonly (readonly [x: number, y: number])[];
}

/** One pair of axes. */
export interface Panel {
  readonly title: string;
  /** What the horizontal axis counts. */
  readonly unit: string;
  /** The most that a line should reach. */
  readonly budget?: number;
  readonly lines: readonly Line[];
}

const columns = 2;
const width = 430;
const height = 290;
/** Where the axes stand in a panel. */
const area = { left: 52, right: 414, top: 74, bottom: 246 };
const headline = 46;

const text = "#767c85";
const colours = ["#3584e4", "#d9730d", "#2a9d5c", "#a35fd6"];

/** The range of the vertical axis when all lines are flat. */
const least = 0.5;
const most = 2;

const escaped = (value: string): string =>
  value.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);

const round = (value: number): string => String(Math.round(value * 10) / 10);

/** Maps a range on a scale of logarithms to pixels. */
const scaleOf = (low: number, high: number, from: number, to: number) => {
  const span = Math.log(high / low) || 1;
  return (value: number): number => from + (Math.log(value / low) / span) * (to - from);
};

type Scale = ReturnType<typeof scaleOf>;

const countOf = (value: number): string =>
  value >= 1e6 ? `${value / 1e6}M` : value >= 1e3 ? `${value / 1e3}k` : `${value}`;

/** Round numbers of a range, few enough to stand apart. */
const ticks = (low: number, high: number): number[] => {
  const found: number[] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
    for (const step of high / low > 10 ? [1, 2, 5] : [1, 1.5, 2, 3, 5, 7]) {
      const tick = Number(`${step}e${power}`);
      if (tick >= low && tick <= high) found.push(tick);
    }
  return found;
};

const textAt = (x: number, y: number, content: string, attributes = ""): string =>
  `<text x="${round(x)}" y="${round(y)}" ${attributes}>${escaped(content)}</text>`;

const lineFrom = (x1: number, y1: number, x2: number, y2: number, attributes: string): string =>
  `<line x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}" ${attributes}/>`;

const axes = (panel: Panel, x: Scale, y: Scale, sizes: readonly number[], yTicks: number[]) => [
  ...yTicks.flatMap((tick) => [
    lineFrom(area.left, y(tick), area.right, y(tick), `opacity="${tick === 1 ? 0.9 : 0.25}"`),
    textAt(area.left - 8, y(tick) + 4, `${tick}`, 'text-anchor="end"'),
  ]),
  ...sizes.flatMap((size) => [
    lineFrom(x(size), area.bottom, x(size), area.bottom + 5, ""),
    textAt(x(size), area.bottom + 19, countOf(size), 'text-anchor="middle"'),
  ]),
  lineFrom(area.left, area.bottom, area.right, area.bottom, ""),
  textAt((area.left + area.right) / 2, area.bottom + 37, panel.unit, 'text-anchor="middle"'),
];

const budgetOf = (budget: number, y: Scale): string[] => [
  `<rect x="${area.left}" y="${round(y(budget))}" width="${area.right - area.left}" ` +
    `height="${round(y(1) - y(budget))}" fill="${colours[2]}" stroke="none" opacity="0.16"/>`,
  lineFrom(area.left, y(budget), area.right, y(budget), 'stroke-dasharray="5 4"'),
  lineFrom(
    area.right - 98,
    area.top - 46,
    area.right - 74,
    area.top - 46,
    'stroke-dasharray="5 4"',
  ),
  textAt(area.right, area.top - 42, `budget ${budget}`, 'text-anchor="end"'),
];

const curveOf = ({ name, points }: Line, index: number, x: Scale, y: Scale): string[] => {
  const colour = colours[index % colours.length];
  const path = points.map(([size, ratio]) => `${round(x(size))},${round(y(ratio))}`).join(" ");
  return [
    `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"/>`,
    ...points.map(
      ([size, ratio]) =>
        `<circle cx="${round(x(size))}" cy="${round(y(ratio))}" r="3.5" fill="${colour}" stroke="none">` +
        `<title>${escaped(name)} at ${size}: ${ratio.toFixed(2)}</title></circle>`,
    ),
  ];
};

/** The names of the lines, in one row from left to right. */
const legendOf = (lines: readonly Line[]): string[] => {
  let left = area.left;
  return lines.flatMap(({ name }, index) => {
    const colour = colours[index % colours.length];
    const at = left;
    left += 36 + name.length * 7.1;
    return [
      lineFrom(at, area.top - 24, at + 18, area.top - 24, `stroke="${colour}" stroke-width="3"`),
      textAt(at + 24, area.top - 20, name),
    ];
  });
};

const panelOf = (panel: Panel, index: number, low: number, high: number): string => {
  const sizes = [...new Set(panel.lines.flatMap(({ points }) => points.map(([size]) => size)))];
  sizes.sort((a, b) => a - b);
  const x = scaleOf(sizes[0] ?? 1, sizes.at(-1) ?? 1, area.left + 12, area.right - 12);
  const y = scaleOf(low, high, area.bottom, area.top);
  const place = `${(index % columns) * width} ${headline + Math.floor(index / columns) * height}`;
  return [
    `<g transform="translate(${place})">`,
    textAt(area.left, area.top - 42, panel.title, 'font-size="14" font-weight="600"'),
    ...legendOf(panel.lines),
    ...axes(panel, x, y, sizes, ticks(low, high)),
    ...(panel.budget === undefined ? [] : budgetOf(panel.budget, y)),
    ...panel.lines.flatMap((line, number) => curveOf(line, number, x, y)),
    "</g>",
  ].join("\n");
};

/** Draws panels, all on one vertical scale. The ratios and sizes must be above zero. */
export const plot = (title: string, panels: readonly Panel[]): string => {
  const ratios = panels.flatMap(({ lines }) =>
    lines.flatMap(({ points }) => points.map(([, ratio]) => ratio)),
  );
  const low = Math.min(least, ...ratios.map((ratio) => ratio / 1.1));
  const high = Math.max(most, ...ratios.map((ratio) => ratio * 1.1));
  const size = {
    width: width * Math.min(columns, panels.length),
    height: headline + height * Math.ceil(panels.length / columns),
  };
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${size.width} ${size.height}" ` +
      `width="${size.width}" height="${size.height}" role="img" stroke="${text}" ` +
      'font-family="system-ui, sans-serif" font-size="12">',
    `<title>${escaped(title)}</title>`,
    `<style>text { fill: ${text}; stroke: none }</style>`,
    textAt(16, 26, title, 'font-size="16" font-weight="600"'),
    ...panels.map((panel, index) => panelOf(panel, index, low, high)),
    "</svg>",
    "",
  ].join("\n");
};
