import { parseArgs } from "node:util";
import { ConfigError } from "../config.ts";
import {
  type Fault,
  type Head,
  heads,
  type KeptRoot,
  noOrg,
  verifyAudit,
} from "../jobs/verify-audit.ts";
import { messageOf } from "./message.ts";
import { UsageError } from "./usage.ts";
import { withWorkerUrl } from "./worker-url.ts";

export const help = `usage: npx --no roster audit verify [--org ID] [--root NUMBER:HEX]…
       npx --no roster audit head [--json]

verify proves that the audit log is as it was written, up to the last seal: it digests each row anew and follows the
seals from the first to the last, of each org and of the log that belongs to none. A line for each fault goes to the
output, progress to the errors.
  --org ID           of this org alone; ${noOrg}: of the log that belongs to none
  --root NUMBER:HEX  with --org: the org's seal of this number must still have this root, as "audit head" printed it;
                     any number of them. Whoever owns the tables can write all seals anew, but not what was kept
                     elsewhere
Exit codes: 0 verified, 1 a fault was found, 2 it could not run.

head prints the last seal of each log, one a line: org, number, root. Keep them where whoever owns the database cannot
write.
  --json  as a list of { orgId, number, root }
Exit codes: 0 printed, 2 it could not run.

Both read WORKER_DATABASE_URL. Without it, and without DATABASE_URL, they read the embedded PostgreSQL of development,
which they start for the call if need be.`;

const options = {
  org: { type: "string" },
  root: { type: "string", multiple: true },
  json: { type: "boolean", default: false },
} as const;

/** Verifies the log, or prints its heads. @returns the exit code */
export const audit = async (args: readonly string[]): Promise<number> => {
  const { values, positionals } = parse(args);
  const [action, ...more] = positionals;
  const { org, root = [], json } = values;
  if (more.length > 0 || (action !== "verify" && action !== "head")) throw new UsageError(help);
  const stray = action === "head" ? org !== undefined || root.length > 0 : json;
  if (stray) throw new UsageError(`audit ${action} takes no such option\n\n${help}`);
  if (root.length > 0 && org === undefined)
    throw new UsageError("--root needs --org: each org has roots of its own");
  if (org !== undefined && !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(org))
    throw new UsageError(`--org must be an id, not ${org}`);
  const kept = root.map(keptRoot);
  try {
    return await withWorkerUrl((url) =>
      action === "head" ? printHeads(url, json) : verify(url, org?.toLowerCase(), kept),
    );
  } catch (error) {
    if (error instanceof ConfigError) throw error;
    // Not 1, which says that somebody has been at the log.
    console.error(messageOf(error));
    return 2;
  }
};

const parse = (args: readonly string[]) => {
  try {
    return parseArgs({ args: [...args], options, allowPositionals: true });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
};

const keptRoot = (text: string): KeptRoot => {
  const [, number, root] = /^([1-9]\d*):([0-9a-f]{64})$/i.exec(text) ?? [];
  if (number === undefined || root === undefined)
    throw new UsageError(`--root must be NUMBER:HEX, as "audit head" prints them, not ${text}`);
  return { number: Number(number), root: root.toLowerCase() };
};

const printHeads = async (url: string, json: boolean): Promise<number> => {
  const sealed = (await heads(url)).filter(({ number }) => number > 0);
  const shown = sealed.map(({ orgId, number, root }) => ({ orgId, number, root }));
  if (json) console.log(JSON.stringify(shown, undefined, 2));
  else for (const { orgId, number, root } of shown) console.log(`${orgId} ${number} ${root}`);
  return 0;
};

const progressMs = 1_000;

const verify = async (
  url: string,
  org: string | undefined,
  kept: readonly KeptRoot[],
): Promise<number> => {
  const all = await heads(url);
  const asked: Pick<Head, "orgId" | "keptFrom">[] = all.filter(
    ({ orgId }) => org === undefined || orgId === org,
  );
  // One without a log is told as such, and of its roots that they are gone.
  if (org !== undefined && asked.length === 0) asked.push({ orgId: org, keptFrom: undefined });
  let [faults, seals, rows] = [0, 0, 0];
  let toldMs = performance.now();
  for (const { orgId, keptFrom } of asked) {
    const tellFault = (fault: Fault): void => {
      faults++;
      console.log(described(orgId, fault));
    };
    const done = await verifyAudit(url, orgId, kept, tellFault, (progress) => {
      const now = performance.now();
      if (now - toldMs < progressMs) return;
      toldMs = now;
      console.error(
        `${nameOf(orgId)}: seal ${progress.seals}, ${counted(rows + progress.rows, "row")} so far`,
      );
    });
    seals += done.seals;
    rows += done.rows;
    if (keptFrom)
      console.error(`${nameOf(orgId)}: retention has removed rows up to ${keptFrom.toISOString()}`);
  }
  const what = [
    counted(rows, "row"),
    "under",
    counted(seals, "seal"),
    "of",
    counted(asked.length, "log"),
  ];
  console.log(faults === 0 ? "verified" : `found ${counted(faults, "fault")} in`, ...what);
  return faults === 0 ? 0 : 1;
};

const counted = (count: number, noun: string): string =>
  `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

const nameOf = (orgId: string): string => (orgId === noOrg ? "no org" : `org ${orgId}`);

const meanings: Readonly<Record<Fault["kind"], string>> = {
  EDITED: "was edited",
  DELETED: "is gone",
  INSERTED: "was inserted",
  SEAL_BROKEN: "does not fit its content or the seal before it",
  SEAL_MISSING: "is gone",
  ROOT_DIFFERS: "has another root than the one kept",
};

const described = (orgId: string, { kind, number, row }: Fault): string => {
  const seal = `${nameOf(orgId)}: seal ${number}`;
  return row ? `${seal}: ${row.table} ${row.id} ${meanings[kind]}` : `${seal} ${meanings[kind]}`;
};
