import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { folder, roster } from "./command.ts";

// Each starts several processes, which takes its time on a busy machine.
vi.setConfig({ testTimeout: 60_000 });

const canary = (): string => `canary${randomBytes(12).toString("hex")}`;
const canaries = Array.from({ length: 8 }, canary);
const [app, directory, query, migrator, tokenSecret, keyParameter, fragment, replica] = canaries;
const fileOf = (name: string, text: string): string => {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
};

const env = {
  DATABASE_URL: `postgres://roster_app:${app}@db/roster?sslmode=require&password=${query}`,
  DIRECTORY_DATABASE_URL: `postgres://roster_directory:%41${directory}@db/roster`,
  MIGRATION_DATABASE_URL_FILE: fileOf("url", `postgres://m:${migrator}@db/roster\n`),
  REPLICA_DATABASE_URL_FILE: fileOf("replica", `postgres://roster_app:${replica}@replica/roster\n`),
  TOKEN_SECRET_FILE: fileOf("secret", `${tokenSecret}${tokenSecret}\n`),
  JWKS_URL: `https://issuer.example/keys?code=${keyParameter}#${fragment}`,
  JWT_ISSUER: "https://issuer.example",
  JWT_AUDIENCE: "roster",
  POOL_SIZE: "25",
  GRPC_ADDR: "[::1]:4444",
};

/** Name, value and source of each line. */
const linesOf = (stdout: string): Record<string, readonly string[]> =>
  Object.fromEntries(
    stdout
      .trimEnd()
      .split("\n")
      .map((line) => line.split(/ {2,}/))
      .map(([name = "", ...rest]) => [name, rest]),
  );

describe("config", () => {
  test("prints every variable with its value and source, and no password or secret", async () => {
    const { code, stdout, stderr } = await roster(["config"], env);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(linesOf(stdout)).toEqual({
      ROSTER_DEV: ["0", "default"],
      GRPC_ADDR: ["[::1]:4444", "set"],
      HTTP_ADDR: ["127.0.0.1:0", "set"],
      CORS_ORIGINS: ["–", "not set"],
      TLS_CERT_FILE: ["–", "not set"],
      TLS_KEY_FILE: ["–", "not set"],
      TLS_CLIENT_CA_FILE: ["–", "not set"],
      SPIFFE_ALLOW_FILE: ["–", "not set"],
      DATABASE_URL: ["postgres://roster_app:***@db/roster?sslmode=require&password=***", "set"],
      DIRECTORY_DATABASE_URL: ["postgres://roster_directory:***@db/roster", "set"],
      WORKER_DATABASE_URL: ["–", "not set"],
      REPLICA_DATABASE_URL: [
        `postgres://roster_app:***@replica/roster`,
        `file ${env.REPLICA_DATABASE_URL_FILE}`,
      ],
      MIGRATION_DATABASE_URL: [
        "postgres://m:***@db/roster",
        `file ${env.MIGRATION_DATABASE_URL_FILE}`,
      ],
      POOL_SIZE: ["25", "set"],
      DATABASE_PIPELINE: ["on", "default"],
      JWKS_URL: ["https://issuer.example/keys?code=***#***", "set"],
      JWKS_FILE: ["–", "not set"],
      JWT_ISSUER: ["https://issuer.example", "set"],
      JWT_AUDIENCE: ["roster", "set"],
      JWT_ORG_CLAIM: ["org", "default"],
      TOKEN_SECRET: ["***", `file ${env.TOKEN_SECRET_FILE}`],
      PURGE_AFTER_DAYS: ["30", "default"],
      AUDIT_RETENTION_DAYS: ["0", "default"],
      OPERATOR_REASON: ["optional", "default"],
      SHUTDOWN_NOTICE_SECONDS: ["5", "default"],
      ALLOW_CLEARTEXT: ["0", "default"],
      ROSTER_DATA_DIR: [join(folder, "data"), "set"],
      LOG_LEVEL: ["info", "default"],
    });
    const columns = stdout.trimEnd().split("\n");
    expect(
      new Set(columns.map((line) => line.search(/ (set|not set|default|file .*)$/))).size,
    ).toBe(1);
    for (const secret of canaries) expect(stdout).not.toContain(secret);
  });

  test("prints the same as JSON", async () => {
    const { code, stdout } = await roster(["config", "--json"], env);
    expect(code).toBe(0);
    const shown = JSON.parse(stdout) as { name: string; value: string | null; source: string }[];
    const table = linesOf((await roster(["config"], env)).stdout);
    expect(
      Object.fromEntries(shown.map(({ name, value, source }) => [name, [value ?? "–", source]])),
    ).toEqual(table);
    for (const secret of canaries) expect(stdout).not.toContain(secret);
  });

  test("says what development makes for itself, also where something is set to no effect", async () => {
    const { code, stdout } = await roster(["config"], { ROSTER_DEV: "1", JWT_ISSUER: "ignored" });
    expect(code).toBe(0);
    const data = join(folder, "data");
    expect(linesOf(stdout)).toMatchObject({
      ROSTER_DEV: ["1", "set"],
      DATABASE_URL: [`embedded PostgreSQL in ${data}/postgres`, "development"],
      JWKS_FILE: [`${data}/jwks.json`, "development"],
      JWT_ISSUER: ["roster-development", "development"],
      TOKEN_SECRET: [`kept in ${data}/secrets.json`, "development"],
    });
    const given = await roster(["config"], { ...env, ROSTER_DEV: "1" });
    expect(given.stdout).not.toContain("development\n");
  });

  test("exits with 2 and all faults at once, without what is secret", async () => {
    const bad = {
      ...env,
      DATABASE_URL: `mysql://u:${app}@db/x`,
      TOKEN_SECRET: tokenSecret,
      POOL_SIZE: "many",
      JWKS_URL: `https://u:${keyParameter}@issuer.example/keys`,
    };
    const { code, stdout, stderr } = await roster(["config"], bad);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    const names = stderr.split("\n").map((line) => /^ {2}([A-Z_]+): /.exec(line)?.[1]);
    expect(names.filter(Boolean).sort()).toEqual([
      "DATABASE_URL",
      "JWKS_URL",
      "POOL_SIZE",
      "TOKEN_SECRET",
    ]);
    for (const secret of canaries) expect(stderr).not.toContain(secret);
  });

  test("exits with 2 for an argument it does not take", async () => {
    const { code, stdout } = await roster(["config", "--yaml"], env);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
  });
});
