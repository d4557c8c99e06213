import { directoryPoolSize, type Inspection, inspectConfig } from "../config.ts";
import type { Finding } from "../database/check.ts";
import { EmbeddedError } from "../database/embedded-files.ts";
import { examine, examineReplica, type Line, type Target } from "../database/examine.ts";
import { joinDevelopmentDatabase } from "./development.ts";
import { examineKeys } from "./keys.ts";

export const help = `usage: npx --no roster doctor

Says what is wrong with this deployment and how to mend it: configuration, databases and keys, one line for
each check. It reads and changes nothing, logs in by the URLs of the environment, and goes on after a fault.
Without DATABASE_URL it examines the embedded PostgreSQL of development, which it starts for the call if
need be. It sees the transactions of its own roles; to see all, make them members of pg_read_all_stats.
Exit codes: 0 nothing worse than warnings, 1 problems, 2 the configuration is wrong.`;

/** Prints what it finds. @returns the exit code */
export const doctor = async (): Promise<number> => {
  const { env } = process;
  const named = ["DATABASE_URL", "DIRECTORY_DATABASE_URL"].some(
    (name) => env[name] || env[`${name}_FILE`],
  );
  // As with the other commands, who names no database means that of development.
  const inspection = inspectConfig(named || env.ROSTER_DEV ? env : { ...env, ROSTER_DEV: "1" });
  const { faults, values } = inspection;
  const lines: readonly Line[] = [
    ...configurationLines(inspection, named),
    ...(!named && values.ROSTER_DEV
      ? await developmentLines(inspection)
      : await examine(targetsOf(inspection))),
    ...(await replicaLines(inspection)),
    ...(await keyLines(inspection)),
  ];
  for (const line of lines) console.log(shown(line));
  const count = (level: Finding["level"]) => lines.filter((line) => line.level === level).length;
  console.log(`\nproblems: ${count("problem")}, warnings: ${count("warning")}, ok: ${count("ok")}`);
  if (faults.length > 0) return 2;
  return count("problem") > 0 ? 1 : 0;
};

const shown = ({ level, about, text, remedy }: Line): string =>
  `${level.padEnd(8)} ${about}: ${text}${remedy === undefined ? "" : `\n         → ${remedy}`}`;

const configurationLines = ({ faults, values }: Inspection, named: boolean): readonly Line[] => {
  const about = "configuration";
  if (faults.length > 0) return faults.map((text) => ({ level: "problem", about, text }));
  const without = named ? "" : " and without DATABASE_URL";
  const text = values.ROSTER_DEV ? `complete, for development${without}` : "complete";
  return [{ level: "ok", about, text }];
};

/** The databases that the variables name, of which some may be missing. */
const targetsOf = ({ values: v }: Inspection): readonly Target[] => {
  const { DATABASE_URL, DIRECTORY_DATABASE_URL, WORKER_DATABASE_URL, MIGRATION_DATABASE_URL } = v;
  const { POOL_SIZE } = v;
  // One of them polls the change feed.
  const directorySize = directoryPoolSize(POOL_SIZE) + 1;
  const named = [
    // One more looks whether the database is there.
    ["DATABASE_URL", DATABASE_URL, "roster_app", POOL_SIZE + 1],
    ["DIRECTORY_DATABASE_URL", DIRECTORY_DATABASE_URL, "roster_directory", directorySize],
    // One for seals, one for all other background work.
    ["WORKER_DATABASE_URL", WORKER_DATABASE_URL, "roster_worker", 2],
    ["MIGRATION_DATABASE_URL", MIGRATION_DATABASE_URL, "roster_migrator", 1],
  ] as const;
  return named.flatMap(([name, url, role, poolSize]) =>
    url === undefined ? [] : [{ name, url, role, poolSize }],
  );
};

const replicaLines = async ({ values: v }: Inspection): Promise<readonly Line[]> => {
  const { DATABASE_URL, REPLICA_DATABASE_URL: url, POOL_SIZE: poolSize } = v;
  if (url === undefined || DATABASE_URL === undefined) return [];
  const target = { name: "REPLICA_DATABASE_URL", url, role: "roster_app", poolSize } as const;
  return examineReplica(target, DATABASE_URL);
};

const developmentLines = async (inspection: Inspection): Promise<readonly Line[]> => {
  const { values } = inspection;
  const problem = { level: "problem", about: "development database" } as const;
  let joined: Awaited<ReturnType<typeof joinDevelopmentDatabase>>;
  try {
    joined = await joinDevelopmentDatabase(values.ROSTER_DATA_DIR, console.error);
  } catch (error) {
    if (!(error instanceof EmbeddedError)) throw error;
    return [{ ...problem, text: error.message }];
  }
  if (!joined) {
    const text = `there is none in ${values.ROSTER_DATA_DIR} yet`;
    return [
      { ...problem, text, remedy: "npm start makes it, and so does: npx --no roster migrate" },
    ];
  }
  const { embedded, urls } = joined;
  const { app, directory, worker, migrator } = urls;
  const embeddedUrls = {
    DATABASE_URL: app,
    DIRECTORY_DATABASE_URL: directory,
    WORKER_DATABASE_URL: worker,
    MIGRATION_DATABASE_URL: values.MIGRATION_DATABASE_URL ?? migrator,
  };
  const targets = targetsOf({ ...inspection, values: { ...values, ...embeddedUrls } });
  try {
    return await examine(targets.map((target) => ({ ...target, name: target.role })));
  } finally {
    await embedded.stop();
  }
};

const keyLines = async ({ values }: Inspection): Promise<readonly Line[]> => {
  const { JWKS_URL, JWKS_FILE, ROSTER_DEV, ROSTER_DATA_DIR } = values;
  const jwks = JWKS_URL ? { url: JWKS_URL } : JWKS_FILE ? { file: JWKS_FILE } : undefined;
  if (jwks) return [{ about: "keys", ...(await examineKeys(jwks)) }];
  const text = `those that development makes for itself in ${ROSTER_DATA_DIR}`;
  return ROSTER_DEV ? [{ level: "ok", about: "keys", text }] : [];
};
