import { ConfigError, readConfig } from "../config.ts";
import { migrate as apply } from "../database/migrate.ts";
import { startDevelopmentDatabase } from "./development.ts";

export const help = `usage: npx --no roster migrate

Applies the migrations that are missing, each in a transaction, on MIGRATION_DATABASE_URL. Without it, and
without DATABASE_URL, it migrates the embedded PostgreSQL of development, which it starts for the call if
need be. Running it twice, or twice at once, is safe.
Exit codes: 0 up to date, 1 failed, 2 the configuration is wrong.`;

/** What a migration goes by. It listens nowhere and trusts nobody, so what is said of that is not judged. */
const variables = /^((MIGRATION_|DIRECTORY_)?DATABASE_URL(_FILE)?|ROSTER_DATA_DIR)$/;

/** Brings the schema up to this version and says what was applied. */
export const migrate = async (): Promise<void> => {
  const used = Object.entries(process.env).filter(([name]) => variables.test(name));
  const config = readConfig({ ...Object.fromEntries(used), ROSTER_DEV: "1" });
  const show = (names: readonly string[]): void => {
    for (const name of names) console.log(`applied ${name}`);
    if (names.length === 0) console.log("up to date");
  };
  if (config.migrationUrl) {
    show(await apply(config.migrationUrl));
  } else if (config.database) {
    throw new ConfigError([
      "MIGRATION_DATABASE_URL: must be set beside DATABASE_URL; it logs in as roster_migrator",
    ]);
  } else {
    const { embedded, urls } = await startDevelopmentDatabase(config.dataDir, console.error);
    show(urls.applied);
    await embedded.stop();
  }
};
