/** `npm run bench:scale`: how the cost of a call grows with what the database holds. */
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { write } from "./data.ts";
import {
  calls,
  type Family,
  type GrowingFamily,
  type SizedOperation,
  type StandingFamily,
} from "./families.ts";
import { audit, platformUsers, tenants } from "./growing.ts";
import type { GivenCalls } from "./load.ts";
import { bytesOf, type Operation, pathOf } from "./operations.ts";
import { plot } from "./plot.ts";
import { median, type Served } from "./process.ts";
import { type Cost, openStand, type Stand } from "./stand.ts";
import { depth, orgSize, teamSize } from "./standing.ts";

const families: readonly Family[] = [tenants, platformUsers, audit, depth, orgSize, teamSize];

const help = `usage: npm run bench:scale -- [--only A,B] [--max N] [--seconds N] [--rounds R] [--json FILE] [--svg FILE]

Measures what a call costs server and PostgreSQL while one thing grows, on databases of its own.
  --only     what grows, by name: ${families.map(({ name }) => name).join(", ")}
  --max      the largest size as a power of ten (7); the smallest size of each is always measured
  --seconds  length of a run, for each point and round (2)
  --rounds   rounds, of which the median counts (3)
  --json     writes the rows to this file
  --svg      writes the plot to this file
The full run takes a quarter of an hour and 5 GB in the folder for temporary files.
Exit codes: 0 all budgets met, 1 one is not, or the benchmark failed, 2 wrong usage.`;

/** One point of a line; null where it has no budget. */
export interface ScaleRow {
  /** What grows. */
  readonly family: string;
  readonly operation: string;
  readonly size: number;
  readonly rps: number;
  readonly p50_ms: number;
  readonly server_cpu_us: number;
  readonly postgres_cpu_us: number;
  /** Server and PostgreSQL for one call, in microseconds. */
  readonly cpu_us: number;
  /** That against the smallest size, measured in the same rounds. */
  readonly ratio: number;
  /** PostgreSQL alone against the smallest size. */
  readonly postgres_ratio: number;
  readonly budget: number | null;
  readonly met: boolean | null;
}

interface Length {
  readonly seconds: number;
  readonly rounds: number;
}

/** What is measured: an operation at a size, and the server that has it. */
interface Subject {
  readonly served: Served;
  readonly operation: SizedOperation;
}

const total = ({ serverUs, postgresUs }: Cost): number => serverUs + postgresUs;

const note = (line: string): void =>
  void process.stderr.write(`${(performance.now() / 1000).toFixed(0).padStart(4)} s  ${line}\n`);

const callsOf = ({ method, call }: Operation): GivenCalls => ({
  path: pathOf(method),
  calls: Array.from({ length: calls }, (_, n) => {
    const { sender, request } = call(n);
    const bytes = bytesOf(method, request).toString("base64");
    return { bytes, ...(sender !== undefined && { sender }) };
  }),
});

/** A call that answers with less than it should would look cheap. */
const demandItems = async (stand: Stand, { served, operation }: Subject): Promise<void> => {
  const answer = await stand.call(served, operation);
  const { items } = operation;
  const found = Object.values(answer).find(Array.isArray)?.length;
  if (found !== items) throw new Error(`${operation.name}: ${found} items instead of ${items}`);
};

/** Measures subjects in turns: what each cost, round by round. */
const takeTurns = async (
  stand: Stand,
  subjects: readonly Subject[],
  { seconds, rounds }: Length,
): Promise<Cost[][]> => {
  const taken = subjects.map((subject) => ({
    served: subject.served,
    given: callsOf(subject.operation),
    costs: [] as Cost[],
  }));
  for (const subject of subjects) await demandItems(stand, subject);
  for (const { served, given } of taken) await stand.measure(served, given, Math.min(seconds, 1));
  for (let round = 0; round < rounds; round++) {
    // Whoever comes first in one round comes last in another.
    for (let i = 0; i < taken.length; i++) {
      const { served, given, costs } = taken[(i + round) % taken.length] as (typeof taken)[number];
      costs.push(await stand.measure(served, given, seconds));
    }
  }
  return taken.map(({ costs }) => costs);
};

const rowOf = (
  { name: family, budget }: Family,
  operation: string,
  size: number,
  costs: readonly Cost[],
  smallest: readonly Cost[],
): ScaleRow => {
  const middle = (of: (cost: Cost) => number): number => median(costs.map(of));
  /** The rounds compare runs that came right after each other. */
  const against = (of: (cost: Cost) => number): number =>
    median(costs.map((cost, round) => of(cost) / of(smallest[round] as Cost)));
  const ratio = against(total);
  const held = budget?.size === size ? budget.ratio : null;
  return {
    family,
    operation,
    size,
    rps: middle(({ rps }) => rps),
    p50_ms: middle(({ p50Ms }) => p50Ms),
    server_cpu_us: middle(({ serverUs }) => serverUs),
    postgres_cpu_us: middle(({ postgresUs }) => postgresUs),
    cpu_us: middle(total),
    ratio,
    postgres_ratio: against(({ postgresUs }) => postgresUs),
    budget: held,
    met: held === null ? null : ratio <= held,
  };
};

type Show = (row: ScaleRow) => void;

const measureGrowing = async (
  stand: Stand,
  family: GrowingFamily,
  sizes: readonly number[],
  length: Length,
  show: Show,
): Promise<void> => {
  const [first = 1] = sizes;
  const small = await stand.addDatabase("roster_small");
  await write(small.admin, family.grow([0, first]));
  const servers = [await stand.serveRoster(small.urls), await stand.serveRoster()] as const;
  const smallest = await family.operations(first, (operation) => stand.call(servers[0], operation));
  let from = 0;
  for (const size of sizes) {
    note(`${family.name}: growing to ${size}`);
    await write(stand.admin, family.grow([from, size]));
    from = size;
    const operations = await family.operations(size, (op) => stand.call(servers[1], op));
    for (const [i, operation] of operations.entries()) {
      note(`${family.name}: ${operation.name} at ${size}`);
      const reference = { served: servers[0], operation: smallest[i] as SizedOperation };
      const subjects = [reference, { served: servers[1], operation }];
      const [before = [], costs = []] = await takeTurns(stand, subjects, length);
      show(rowOf(family, operation.name, size, costs, before));
    }
  }
};

const measureStanding = async (
  stand: Stand,
  family: StandingFamily,
  sizes: readonly number[],
  length: Length,
  show: Show,
): Promise<void> => {
  note(`${family.name}: loading`);
  await write(stand.admin, family.load(sizes));
  const served = await stand.serveRoster();
  const bySize = [];
  for (const size of sizes)
    bySize.push(await family.operations(size, (operation) => stand.call(served, operation)));
  for (const [i, { name }] of (bySize[0] ?? []).entries()) {
    note(`${family.name}: ${name} at ${sizes.join(", ")}`);
    const subjects = bySize.map((operations) => ({
      served,
      operation: operations[i] as SizedOperation,
    }));
    const costs = await takeTurns(stand, subjects, length);
    for (const [k, size] of sizes.entries())
      show(rowOf(family, name, size, costs[k] ?? [], costs[0] ?? []));
  }
};

const say = (cells: readonly string[]): void =>
  void process.stdout.write(`| ${cells.join(" | ")} |\n`);

const columns = [
  "grows",
  "operation",
  "size",
  "RPC/s",
  "p50 ms",
  "server µs",
  "PostgreSQL µs",
  "CPU / smallest",
  "PostgreSQL / smallest",
  "budget",
];

const cellsOf = (row: ScaleRow): string[] => [
  row.family,
  row.operation,
  row.size.toLocaleString("en-GB"),
  row.rps.toFixed(0),
  row.p50_ms.toFixed(1),
  row.server_cpu_us.toFixed(0),
  row.postgres_cpu_us.toFixed(0),
  row.ratio.toFixed(2),
  row.postgres_ratio.toFixed(2),
  row.budget === null ? "" : `≤ ${row.budget}: ${row.met ? "met" : "NOT MET"}`,
];

const plotOf = (rows: readonly ScaleRow[]): string =>
  plot(
    "CPU for a call, server and PostgreSQL, against the smallest size",
    families
      .filter(({ name }) => rows.some(({ family }) => family === name))
      .map(({ name, unit, budget }) => {
        const own = rows.filter(({ family }) => family === name);
        return {
          title: name,
          unit,
          ...(budget && { budget: budget.ratio }),
          lines: [...new Set(own.map(({ operation }) => operation))].map((operation) => ({
            name: operation,
            points: own
              .filter((row) => row.operation === operation)
              .map(({ size, ratio }) => [size, ratio] as const),
          })),
        };
      }),
  );

const usage = (fault: string): never => {
  process.stderr.write(`${fault}\n\n${help}\n`);
  process.exit(2);
};

const familyOf = (name: string): Family => {
  const found = families.find((family) => family.name === name);
  if (!found) throw new Error(`nothing named ${name}: ${families.map((f) => f.name).join(", ")}`);
  return found;
};

const optionsOf = () => {
  try {
    const { values } = parseArgs({
      options: {
        only: { type: "string" },
        max: { type: "string", default: "7" },
        seconds: { type: "string", default: "2" },
        rounds: { type: "string", default: "3" },
        json: { type: "string" },
        svg: { type: "string" },
        help: { type: "boolean", short: "h" },
      },
    });
    if (values.help) {
      process.stdout.write(`${help}\n`);
      process.exit(0);
    }
    const [seconds, rounds, max] = [values.seconds, values.rounds, values.max].map(Number) as [
      number,
      number,
      number,
    ];
    if (!(seconds > 0)) throw new Error("--seconds must be a number above 0");
    if (!(Number.isInteger(rounds) && rounds > 0))
      throw new Error("--rounds must be a whole number above 0");
    if (!(Number.isInteger(max) && max >= 0))
      throw new Error("--max must be a whole number, the exponent of a power of ten");
    const chosen = values.only?.split(",").map(familyOf) ?? families;
    return { chosen, max, length: { seconds, rounds }, json: values.json, svg: values.svg };
  } catch (error) {
    return usage((error as Error).message);
  }
};

const { chosen, max, length, json, svg } = optionsOf();
const rows: ScaleRow[] = [];
const show = (row: ScaleRow): void => {
  rows.push(row);
  say(cellsOf(row));
};
say(columns);
say(columns.map(() => "---"));
for (const family of chosen) {
  const sizes = family.sizes.filter((size, i) => i === 0 || size <= 10 ** max);
  const stand = await openStand({ durable: false });
  try {
    if ("grow" in family) await measureGrowing(stand, family, sizes, length, show);
    else await measureStanding(stand, family, sizes, length, show);
  } finally {
    await stand.stop();
  }
}
if (json) writeFileSync(json, `${JSON.stringify(rows, null, 2)}\n`);
if (svg) writeFileSync(svg, plotOf(rows));
process.exitCode = rows.some(({ met }) => met === false) ? 1 : 0;
