/** `npm run bench`: Roster beside its floor and beside the naive composition, in one run. */
import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { measureAudited } from "./audited.ts";
import { load, usual } from "./data.ts";
import { deliveryName, measureDelivery } from "./delivery.ts";
import { exportName, measureExport, measureVerify, verifyName } from "./log.ts";
import {
  type Against,
  type Budget,
  type Operation,
  operationOf,
  operations,
} from "./operations.ts";
import { idleMb, median, type Served, type SystemOptions, timeToImport } from "./process.ts";
import { type Cost, openStand, type Stand } from "./stand.ts";

const help = `usage: npm run bench -- [--only A,B] [--seconds N] [--rounds R] [--json FILE]

Measures Roster, the floor and the naive composition on a database of its own, in turns.
  --only     operations, by name: ${operations.map(({ name }) => name).join(", ")},
             ${[deliveryName, exportName, verifyName].join(", ")}, Audit (all mutations against unaudited ones), Process
  --seconds  length of a run, for each operation, system and round (1)
  --rounds   rounds, of which the median counts (11)
  --json     writes the rows to this file
Exit codes: 0 all budgets met, 1 one is not, or the benchmark failed, 2 wrong usage.`;

const systems = ["floor", "roster", "naive"] as const;
type System = (typeof systems)[number];

/** One line of the result; null where a figure has no meaning. */
interface ResultRow {
  readonly system: System;
  /**
   * An RPC, or what a process costs by itself: `Start`, `IdleMemory`, `LoadedMemory`, or a mutation against the
   * same without audit: `Audited` and `AuditedWithRequestId` of CreateUser, `AuditedCreateOrg` and so on. Of
   * `ExportAuditEntries` entries are counted, of `VerifyAuditLog` rows, of `WatchChanges` changes, not calls.
   */
  readonly operation: string;
  readonly rps: number | null;
  readonly p50_ms: number | null;
  readonly p99_ms: number | null;
  readonly server_cpu_us: number | null;
  readonly postgres_cpu_us: number | null;
  /**
   * Server CPU against the floor's; of `Start`, the time until it serves against that of importing its packages; of
   * an audited mutation, server and PostgreSQL CPU against those of the unaudited one, and of what only Roster
   * answers against those of the calls that one call stands for; of an export or a verification, its time against
   * that of COPY.
   */
  readonly ratio: number | null;
  /** PostgreSQL CPU against the floor's. */
  readonly postgres_ratio: number | null;
  /** Server and PostgreSQL CPU of the naive composition against this system's. */
  readonly naive_ratio: number | null;
  readonly budget: string | null;
  readonly met: boolean | null;
}

type Costs = Readonly<Record<System | "echo" | "against", readonly Cost[]>>;

const total = ({ serverUs, postgresUs }: Cost): number => serverUs + postgresUs;

/** The median over the rounds, each of which compares runs that came right after each other. */
const over = (costs: Costs, of: (round: (system: keyof Costs) => Cost) => number): number =>
  median(costs.roster.map((_, i) => of((system) => costs[system][i] as Cost)));

const judge = (budget: Budget, costs: Costs): { budget: string; met: boolean } => {
  const { server, postgres, naive, echo } = budget;
  const ratio = over(costs, (of) => of("roster").serverUs / of("floor").serverUs);
  const postgresRatio = over(costs, (of) => of("roster").postgresUs / of("floor").postgresUs);
  const naiveRatio = over(costs, (of) => total(of("naive")) / total(of("roster")));
  const parts: (readonly [string, boolean])[] = [];
  if (server !== undefined) parts.push([`server ≤ ${server} F`, ratio <= server]);
  if (postgres !== undefined) parts.push([`PostgreSQL ≤ ${postgres} F`, postgresRatio <= postgres]);
  if (naive !== undefined) parts.push([`naive ≥ ${naive}`, naiveRatio >= naive]);
  if (echo !== undefined) {
    const echoRatio = over(costs, (of) => total(of("roster")) / of("echo").serverUs);
    parts.push([
      `${echoRatio.toFixed(2)} ≤ ${echo.toFixed(2)} × the floor's echo`,
      echoRatio <= echo,
    ]);
  }
  return {
    budget: parts.map(([text]) => text).join(", "),
    met: parts.every(([, met]) => met),
  };
};

/** Server and PostgreSQL CPU of a call against those of the calls that it stands for. */
const againstOf = ({ calls }: Against, costs: Costs): number =>
  over(costs, (of) => total(of("roster")) / (calls * total(of("against"))));

type Judgement = Pick<ResultRow, "budget" | "met">;

const judgementOf = ({ budget, against }: Operation, costs: Costs): Judgement => {
  if (budget) return judge(budget, costs);
  if (!against) return { budget: null, met: null };
  const { operation, calls, most } = against;
  const other = calls === 1 ? operation : `${calls} ${operation}`;
  const ratio = againstOf(against, costs);
  return {
    budget: `${ratio.toFixed(2)}${most === undefined ? "" : ` ≤ ${most}`} × ${other}`,
    met: most === undefined ? null : ratio <= most,
  };
};

type Ratios = Pick<ResultRow, "ratio" | "postgres_ratio" | "naive_ratio">;

const ratiosOf = ({ rosterOnly, against }: Operation, system: System, costs: Costs): Ratios =>
  rosterOnly
    ? { ratio: against ? againstOf(against, costs) : null, postgres_ratio: null, naive_ratio: null }
    : {
        ratio: over(costs, (of) => of(system).serverUs / of("floor").serverUs),
        postgres_ratio: over(costs, (of) => of(system).postgresUs / of("floor").postgresUs),
        naive_ratio: over(costs, (of) => total(of("naive")) / total(of(system))),
      };

const systemsOf = ({ rosterOnly }: Operation): readonly System[] =>
  rosterOnly ? ["roster"] : systems;

const rowsOf = (operation: Operation, costs: Costs): ResultRow[] =>
  systemsOf(operation).map((system) => {
    const middle = (of: (cost: Cost) => number): number => median(costs[system].map(of));
    return {
      system,
      operation: operation.name,
      rps: middle(({ rps }) => rps),
      p50_ms: middle(({ p50Ms }) => p50Ms),
      p99_ms: middle(({ p99Ms }) => p99Ms),
      server_cpu_us: middle(({ serverUs }) => serverUs),
      postgres_cpu_us: middle(({ postgresUs }) => postgresUs),
      ...ratiosOf(operation, system, costs),
      ...(system === "roster" ? judgementOf(operation, costs) : { budget: null, met: null }),
    };
  });

const say = (line: string): void => void process.stdout.write(`${line}\n`);

const columns = [
  "operation",
  "system",
  "RPC/s",
  "p50 ms",
  "p99 ms",
  "server µs",
  "PostgreSQL µs",
  "server / F",
  "PostgreSQL / F",
  "naive / it",
  "budget",
];

const shown = (value: number | null, digits: number): string => value?.toFixed(digits) ?? "";

const cellsOf = (row: ResultRow): string[] => [
  row.operation,
  row.system,
  shown(row.rps, 0),
  shown(row.p50_ms, 1),
  shown(row.p99_ms, 1),
  shown(row.server_cpu_us, 0),
  shown(row.postgres_cpu_us, 0),
  shown(row.ratio, 2),
  shown(row.postgres_ratio, 2),
  shown(row.naive_ratio, 2),
  row.met === null ? (row.budget ?? "") : `${row.budget}: ${row.met ? "met" : "NOT MET"}`,
];

const lineOf = (cells: readonly string[]): string => `| ${cells.join(" | ")} |`;

/** Until the compiler has seen enough calls: a server runs for days, not for seconds. */
const warmUpSeconds = 5;

const runOperation = async (
  stand: Stand,
  served: Readonly<Record<System, Served>>,
  operation: Operation,
  { seconds, rounds }: { seconds: number; rounds: number },
): Promise<Costs> => {
  const costs: Record<keyof Costs, Cost[]> = {
    floor: [],
    roster: [],
    naive: [],
    echo: [],
    against: [],
  };
  const { name, budget, against } = operation;
  const turns = systemsOf(operation);
  for (const system of turns) await stand.measure(served[system], name, warmUpSeconds);
  if (against) await stand.measure(served.roster, against.operation, warmUpSeconds);
  for (let round = 0; round < rounds; round++) {
    // Whoever comes first in one round comes last in another.
    const order = turns.map((_, i) => turns[(i + round) % turns.length] as System);
    for (const system of order)
      costs[system].push(await stand.measure(served[system], name, seconds));
    if (budget?.echo !== undefined)
      costs.echo.push(await stand.measure(served.floor, name, seconds, { echo: true }));
    if (against) costs.against.push(await stand.measure(served.roster, against.operation, seconds));
  }
  return costs;
};

const maximumIdleMb = 170;
const maximumStart = 2.5;

/** What has no meaning of what Roster alone does. */
const nothing = {
  system: "roster",
  rps: null,
  p50_ms: null,
  p99_ms: null,
  server_cpu_us: null,
  postgres_cpu_us: null,
  postgres_ratio: null,
  naive_ratio: null,
} as const;

/** What is measured of Roster alone, by name. */
const alone: Readonly<
  Record<
    string,
    (
      stand: Stand,
      roster: Served,
      runs: { seconds: number; rounds: number },
    ) => AsyncIterable<ResultRow>
  >
> = {
  /** How soon changes arrive. */
  [deliveryName]: async function* (stand, roster, { seconds, rounds }) {
    const measured = await measureDelivery(stand, roster, seconds * rounds);
    const { p50Ms: p50_ms, p99Ms: p99_ms, perSecond: rps, budget, met } = measured;
    yield { ...nothing, operation: deliveryName, rps, p50_ms, p99_ms, ratio: null, budget, met };
  },
  /** How fast a log is exported. */
  [exportName]: async function* (stand, roster, { rounds }) {
    const { perSecond: rps, ...row } = await measureExport(stand, roster, Math.min(rounds, 5));
    yield { ...nothing, operation: exportName, rps, ...row };
  },
  /** And verified. */
  [verifyName]: async function* (stand, _roster, { rounds }) {
    const { perSecond: rps, ...row } = await measureVerify(stand, Math.min(rounds, 5));
    yield { ...nothing, operation: verifyName, rps, ...row };
  },
  Audit: auditRows,
  Process: processRows,
};

/** What a process costs by itself: the time until it serves, and the memory it holds before any call and after all. */
async function* processRows(
  stand: Stand,
  roster: Served,
  { rounds: most }: { rounds: number },
): AsyncGenerator<ResultRow> {
  const rounds = Math.min(most, 5);
  const loadedMb = await idleMb(roster.pid);
  const memoryMb = await idleMb((await stand.serveRoster()).pid);
  const starts: (readonly [serve: number, imports: number])[] = [];
  for (let round = 0; round < rounds; round++)
    starts.push([await stand.timeToServe(), await timeToImport()]);
  const ratio = median(starts.map(([serve, imports]) => serve / imports));
  const [serveMs, importMs] = [0, 1].map((i) => median(starts.map((times) => times[i] as number)));
  const start = `${serveMs?.toFixed(0)} ms ≤ ${maximumStart} × ${importMs?.toFixed(0)} ms of imports`;
  const memory = `${memoryMb.toFixed(0)} MB ≤ ${maximumIdleMb} MB`;
  yield { ...nothing, operation: "Start", ratio, budget: start, met: ratio <= maximumStart };
  yield {
    ...nothing,
    operation: "IdleMemory",
    ratio: null,
    budget: memory,
    met: memoryMb <= maximumIdleMb,
  };
  yield {
    ...nothing,
    operation: "LoadedMemory",
    ratio: null,
    budget: `${loadedMb.toFixed(0)} MB after all calls above`,
    met: null,
  };
}

/** What audit adds to mutations, each against the same on a database that keeps no log. */
async function* auditRows(
  stand: Stand,
  roster: Served,
  runs: { seconds: number; rounds: number },
): AsyncGenerator<ResultRow> {
  for await (const audited of measureAudited(stand, roster, { ...runs, warmUpSeconds })) {
    const { name, own, bare, most } = audited;
    const middle = (of: (cost: Cost) => number): number => median(own.map(of));
    const ratio = median(own.map((cost, i) => total(cost) / total(bare[i] as Cost)));
    const unauditedUs = median(bare.map(total));
    yield {
      ...nothing,
      operation: name,
      rps: middle(({ rps }) => rps),
      p50_ms: middle(({ p50Ms }) => p50Ms),
      p99_ms: middle(({ p99Ms }) => p99Ms),
      server_cpu_us: middle(({ serverUs }) => serverUs),
      postgres_cpu_us: middle(({ postgresUs }) => postgresUs),
      ratio,
      budget: `${ratio.toFixed(2)}${most === undefined ? "" : ` ≤ ${most}`} × ${unauditedUs.toFixed(0)} µs unaudited`,
      met: most === undefined ? null : ratio <= most,
    };
  }
}

const usage = (fault: string): never => {
  process.stderr.write(`${fault}\n\n${help}\n`);
  process.exit(2);
};

const optionsOf = () => {
  try {
    const { values } = parseArgs({
      options: {
        only: { type: "string" },
        seconds: { type: "string", default: "1" },
        rounds: { type: "string", default: "11" },
        json: { type: "string" },
        help: { type: "boolean", short: "h" },
      },
    });
    if (values.help) {
      say(help);
      process.exit(0);
    }
    const [seconds, rounds] = [Number(values.seconds), Number(values.rounds)];
    if (!(seconds > 0)) throw new Error("--seconds must be a number above 0");
    if (!(Number.isInteger(rounds) && rounds > 0))
      throw new Error("--rounds must be a whole number above 0");
    const names = values.only?.split(",") ?? [
      ...operations.map(({ name }) => name),
      ...Object.keys(alone),
    ];
    return {
      chosen: names.filter((name) => !Object.hasOwn(alone, name)).map(operationOf),
      further: names.filter((name) => Object.hasOwn(alone, name)),
      seconds,
      rounds,
      json: values.json,
    };
  } catch (error) {
    return usage((error as Error).message);
  }
};

const { chosen, further, seconds, rounds, json } = optionsOf();
const stand = await openStand();
try {
  await load(stand.admin, usual);
  const statements = await stand.listen(chosen.filter(({ rosterOnly }) => !rosterOnly));
  const options: SystemOptions = { urls: stand.urls, poolSize: 10, statements };
  const served = {
    floor: await stand.serve("floor.ts", options),
    roster: await stand.serveRoster(),
    naive: await stand.serve("naive.ts", options),
  };
  say(lineOf(columns));
  say(lineOf(columns.map(() => "---")));
  const rows: ResultRow[] = [];
  for (const operation of chosen) {
    const costs = await runOperation(stand, served, operation, { seconds, rounds });
    const made = rowsOf(operation, costs);
    rows.push(...made);
    for (const row of made) say(lineOf(cellsOf(row)));
  }
  for (const name of further)
    for await (const row of alone[name]?.(stand, served.roster, { seconds, rounds }) ?? []) {
      rows.push(row);
      say(lineOf(cellsOf(row)));
    }
  if (json) writeFileSync(json, `${JSON.stringify(rows, null, 2)}\n`);
  process.exitCode = rows.some(({ met }) => met === false) ? 1 : 0;
} finally {
  await stand.stop();
}
