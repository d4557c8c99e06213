import { seal as run } from "../jobs/seal.ts";
import { withWorkerUrl } from "./worker-url.ts";

export const help = `usage: npx --no roster seal

Seals what the audit log has got since the last seal, on WORKER_DATABASE_URL, as a server with that URL does by
itself every two seconds. Without it, and without DATABASE_URL, it works on the embedded PostgreSQL of development,
which it starts for the call if need be. What a transaction that is under way holds back is sealed later.
Exit codes: 0 done, 1 failed, 2 the configuration is wrong.`;

/** Seals once and says how many rows. */
export const seal = async (): Promise<void> => {
  const sealed = await withWorkerUrl((url) => run(url));
  console.log(`sealed ${sealed.toLocaleString("en")} row${sealed === 1 ? "" : "s"}`);
};
