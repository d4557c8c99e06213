import { readConfig } from "../config.ts";
import { migrate as apply } from "../database/migrate.ts";
import { startDevelopmentDatabase } from "./development.ts";

export const help = `usage: npx --no roster migrate

Applies the migrations that are missing, each in a transaction, on MIGRATION_DATABASE_URL. With ROSTER_DEV=1
and without DATABASE_URL it migrates the embedded PostgreSQL, which it starts for the call if need be.
Running it twice, or twice at once, is safe.
Exit codes: 0 up to date, 1 failed, 2 the configuration is wrong.`;

/** Brings the schema up to this version and says what was applied. */
export const migrate = async (): Promise<void> => {
  const config = readConfig({ ROSTER_DEV: "1", ...process.env });
  const show = (names: readonly string[]): void => {
    for (const name of names) console.log(`applied ${name}`);
    if (names.length === 0) console.log("up to date");
  };
  if (config.migrationUrl) {
    show(await apply(config.migrationUrl));
  } else if (config.database) {
    throw new Error("set MIGRATION_DATABASE_URL; it logs in as roster_migrator");
  } else {
    const { embedded, urls } = await startDevelopmentDatabase(config.dataDir, console.error);
    show(urls.applied);
    await embedded.stop();
  }
};
