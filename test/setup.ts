/** One PostgreSQL server per run, with a migrated template of which each test file clones its own database. */
import { chmodSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { exportJWK, generateKeyPair, type JWK } from "jose";
import pg from "pg";
import type { TestProject } from "vitest/node";
import { startEmbedded } from "../src/database/embedded.ts";
import { provision } from "../src/database/provision.ts";

declare module "vitest" {
  export interface ProvidedContext {
    /** Where tests may keep what goes with the run. */
    folder: string;
    /** A superuser's URL of the run's server. */
    adminUrl: string;
    /** The migrated database to clone. */
    template: string;
    /** Signs the run's tokens. */
    signingKey: JWK;
  }
}

export const setup = async (project: TestProject): Promise<() => Promise<void>> => {
  const given = process.env.TEST_DATABASE_URL;
  const folder = mkdtempSync(join(tmpdir(), "roster-test-"));
  // As root, PostgreSQL runs as another account, which must be able to enter.
  chmodSync(folder, 0o755);
  const embedded = given
    ? undefined
    : await startEmbedded({ dataDir: join(folder, "postgres"), durable: false });
  const adminUrl = given ?? embedded?.adminUrl ?? "";
  const template = `roster_test_${process.pid}`;
  await provision(adminUrl, template);

  const { privateKey } = await generateKeyPair("ES256", { extractable: true });
  project.provide("folder", folder);
  project.provide("adminUrl", adminUrl);
  project.provide("template", template);
  project.provide("signingKey", { ...(await exportJWK(privateKey)), kid: "test", alg: "ES256" });

  return async () => {
    if (embedded) {
      await embedded.stop();
    } else {
      const client = new pg.Client({ connectionString: adminUrl });
      await client.connect();
      const { rows } = await client.query(
        "select datname from pg_database where starts_with(datname, $1)",
        [template],
      );
      for (const { datname } of rows) {
        await client.query(`drop database if exists ${pg.escapeIdentifier(datname)} with (force)`);
      }
      await client.end();
    }
    rmSync(folder, { recursive: true, force: true });
  };
};
