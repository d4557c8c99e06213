import { parseArgs } from "node:util";
import { type Purgeable, type PurgeStep, purgeable, purge as run } from "../jobs/purge.ts";
import { UsageError } from "./usage.ts";
import { withWorkerUrl } from "./worker-url.ts";

export const help = `usage: npx --no roster purge [--dry-run]

Removes for good what was deleted and whose purge_time has come, on WORKER_DATABASE_URL: at once, as a server with
that URL does by itself every minute. Without it, and without DATABASE_URL, it works on the embedded PostgreSQL of
development, which it starts for the call if need be. It may be broken off at any time, and run again.
  --dry-run  says what would go, and changes nothing
Exit codes: 0 done, 1 failed, 2 the call or the configuration is wrong.`;

const options = { "dry-run": { type: "boolean", default: false } } as const;

/** Purges and says what went; with --dry-run, what would go. */
export const purge = async (args: readonly string[]): Promise<void> => {
  const dry = parse(args).values["dry-run"];
  await withWorkerUrl(dry ? show : remove);
};

const parse = (args: readonly string[]) => {
  try {
    return parseArgs({ args: [...args], options, allowPositionals: false });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
};

const counted = (count: number, noun: string): string =>
  `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

const show = async (url: string): Promise<void> => {
  const found = await purgeable(url);
  for (const line of found.map(described)) console.log(line);
  if (found.length === 0) console.log("nothing is due");
};

const described = ({ resourceType, resourceId, dueTime, items, rows }: Purgeable): string => {
  const what = resourceId === null ? counted(items, resourceType) : `${resourceType} ${resourceId}`;
  const on = items === 1 && resourceId !== null ? "it" : "them";
  const since = dueTime.toISOString();
  return `would purge ${what}, due since ${since}, with ${counted(rows, "row")} that hang on ${on}`;
};

const progressMs = 1_000;

/** Tells of each org that is gone, and about once a second how far it is with a large one. */
const remove = async (url: string): Promise<void> => {
  const rows = new Map<string | null, number>();
  let toldMs = performance.now();
  const tell = ({ resourceType, resourceId, items, rows: removed }: PurgeStep): void => {
    const sofar = (rows.get(resourceId) ?? 0) + removed;
    rows.set(resourceId, sofar);
    const done = resourceType === "org" && items > 0;
    const now = performance.now();
    if (!done && now - toldMs < progressMs) return;
    toldMs = now;
    const where = resourceId === null ? "users" : `org ${resourceId}`;
    console.log(`${done ? "purged" : "purging"} ${where}: ${counted(sofar, "row")}`);
  };
  const { orgs, users, teams } = await run(url, {}, tell);
  console.log(
    `purged ${counted(orgs, "org")}, ${counted(users, "user")}, ${counted(teams, "team")}`,
  );
};
