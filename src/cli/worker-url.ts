import { ConfigError, inspectConfig } from "../config.ts";
import { startDevelopmentDatabase } from "./development.ts";

/**
 * Lends a command the URL at which it logs in as roster_worker: that of the environment or, where that names no
 * database, that of the embedded PostgreSQL of development, started for the call if need be.
 *
 * @throws ConfigError when the environment names a database and no such URL
 */
export const withWorkerUrl = async <T>(work: (url: string) => Promise<T>): Promise<T> => {
  // It listens nowhere and trusts nobody, so nothing else of the environment is judged.
  const { faults, values } = inspectConfig();
  const own = faults.filter((fault) => fault.startsWith("WORKER_DATABASE_URL"));
  if (own.length > 0) throw new ConfigError(own);
  if (values.WORKER_DATABASE_URL !== undefined) return work(values.WORKER_DATABASE_URL);
  if (values.DATABASE_URL !== undefined) {
    throw new ConfigError([
      "WORKER_DATABASE_URL: must be set beside DATABASE_URL; it logs in as roster_worker",
    ]);
  }
  const { embedded, urls } = await startDevelopmentDatabase(values.ROSTER_DATA_DIR, console.error);
  try {
    return await work(urls.worker);
  } finally {
    await embedded.stop();
  }
};
