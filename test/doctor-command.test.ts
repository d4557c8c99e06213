import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { writeFileSync } from "node:fs";
import { createServer, type RequestListener } from "node:http";
import type { AddressInfo } from "node:net";
import { createServer as createSilent } from "node:net";
import { join } from "node:path";
import { exportJWK, generateKeyPair, type JWK } from "jose";
import { beforeAll, describe, expect, inject, onTestFinished, test, vi } from "vitest";
import { examineKeys } from "../src/cli/keys.ts";
import { folder, roster } from "./command.ts";
import { asAdmin, migrated, type Urls } from "./databases.ts";

// Each starts several processes, which takes its time on a busy machine.
vi.setConfig({ testTimeout: 60_000 });

const written = (name: string, content: unknown): string => {
  const path = join(folder, name);
  writeFileSync(path, JSON.stringify(content));
  return path;
};

const secret = `canary-${randomBytes(16).toString("hex")}`;
let urls: Urls;
let production: Record<string, string>;

beforeAll(async () => {
  urls = await migrated();
  const { d: _private, ...publicKey } = inject("signingKey");
  production = {
    DATABASE_URL: urls.app,
    DIRECTORY_DATABASE_URL: urls.directory,
    MIGRATION_DATABASE_URL: urls.migrator,
    // Other test files have connections of the same server.
    POOL_SIZE: "2",
    JWKS_FILE: written("jwks.json", { keys: [publicKey] }),
    JWT_ISSUER: "https://issuer.example",
    JWT_AUDIENCE: "roster",
    TOKEN_SECRET: secret,
  };
});

/** The report, line by line, without what is fine. */
const faultsIn = (stdout: string): string[] =>
  stdout.split("\n").filter((line) => /^(problem|warning) /.test(line));

describe("doctor", () => {
  test("exits with 0 and a line for each check of a sound deployment, none with a secret", async () => {
    const { code, stdout, stderr } = await roster(["doctor"], production);
    expect(faultsIn(stdout)).toEqual([]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    const abouts = stdout.split("\n").map((line) => /^ok +([A-Za-z_]+): /.exec(line)?.[1]);
    expect([...new Set(abouts.filter(Boolean))]).toEqual([
      "configuration",
      "DATABASE_URL",
      "database",
      "DIRECTORY_DATABASE_URL",
      "MIGRATION_DATABASE_URL",
      "keys",
    ]);
    expect(stdout).toMatch(/\nproblems: 0, warnings: 0, ok: \d+\n$/);
    for (const hidden of [secret, ...[urls.app, urls.migrator].map((url) => new URL(url).password)])
      expect(stdout).not.toContain(hidden);
  });

  test("exits with 1, every problem and its remedy, whatever else cannot be reached", async () => {
    const spoilt = await migrated();
    await asAdmin(spoilt.admin, "alter table roster.teams no force row level security");
    const { code, stdout, stderr } = await roster(["doctor"], {
      ...production,
      DATABASE_URL: `postgres://roster_app:${secret}@127.0.0.1:1/roster`,
      DIRECTORY_DATABASE_URL: spoilt.directory,
      MIGRATION_DATABASE_URL: spoilt.migrator,
      JWKS_FILE: written("none.json", { keys: [] }),
    });
    expect({ code, stderr }).toEqual({ code: 1, stderr: "" });
    expect(faultsIn(stdout)).toEqual([
      "problem  DATABASE_URL: 127.0.0.1:1/roster cannot be reached: connect ECONNREFUSED 127.0.0.1:1",
      "problem  database: row-level security is not enabled and forced on teams",
      expect.stringMatching(/^problem {2}keys: none of the 0 keys of .*none.json/),
    ]);
    expect(stdout.match(/\n {9}→ \w/g)).toHaveLength(3);
    expect(stdout).toContain("\nproblems: 3, warnings: 0, ");
    expect(stdout).not.toContain(secret);
  });

  test("exits with 2 and all faults of the configuration, and examines what is there", async () => {
    const { JWKS_FILE: _file, TOKEN_SECRET: _secret, ...rest } = production;
    const env = { ...rest, TOKEN_SECRET: "canary-short", LOG_LEVEL: "loud" };
    const { code, stdout } = await roster(["doctor"], env);
    expect(code).toBe(2);
    const names = faultsIn(stdout).map(
      (line) => /^problem {2}configuration: (\w+):/.exec(line)?.[1],
    );
    expect(names.sort()).toEqual(["JWKS_URL", "LOG_LEVEL", "TOKEN_SECRET"]);
    expect(stdout).toContain("ok       database: the schema is this version's");
    expect(stdout).not.toContain("canary-short");
    const { TOKEN_SECRET: _none, ...without } = production;
    expect((await roster(["doctor"], without)).stdout).toContain("TOKEN_SECRET: must be set");
  });

  test.each([
    [5, 0, /^warning {2}database: this machine's clock is (4\.9|5\.\d) s ahead of/],
    [-90, 1, /^problem {2}database: this machine's clock is (90\.\d|89\.9) s behind/],
  ])("tells a clock that is %i s off, and exits with %i", async (seconds, exit, line) => {
    const clock = `const now = Date.now; Date.now = () => now() + ${seconds * 1000}`;
    const NODE_OPTIONS = `--import=data:text/javascript,${encodeURIComponent(clock)}`;
    const { code, stdout } = await roster(["doctor"], { ...production, NODE_OPTIONS });
    expect(faultsIn(stdout)).toEqual([expect.stringMatching(line)]);
    expect(code).toBe(exit);
  });

  test("gives up on an address that is silent, and goes on", async () => {
    const silent = createSilent(() => {}).listen(0, "127.0.0.1");
    await once(silent, "listening");
    onTestFinished(() => void silent.close());
    const { port } = silent.address() as AddressInfo;
    const DATABASE_URL = `postgres://roster_app@127.0.0.1:${port}/roster`;
    const { code, stdout } = await roster(["doctor"], { ...production, DATABASE_URL });
    expect(code).toBe(1);
    expect(faultsIn(stdout)).toEqual([expect.stringMatching(/DATABASE_URL: .*time/)]);
    expect(stdout).toContain("→ see that a firewall");
  });
});

describe("doctor without a database of its own", () => {
  const ROSTER_DATA_DIR = join(folder, "development");

  test("makes none, and says what would", async () => {
    const { code, stdout, stderr } = await roster(["doctor"], { ROSTER_DATA_DIR });
    expect({ code, stderr }).toEqual({ code: 1, stderr: "" });
    expect(faultsIn(stdout)).toEqual([
      `problem  development database: there is none in ${ROSTER_DATA_DIR} yet`,
    ]);
    expect(stdout).toContain("→ npm start");
  });

  test("examines that of development, and leaves it as it was", async () => {
    expect(await roster(["migrate"], { ROSTER_DATA_DIR })).toMatchObject({ code: 0 });
    for (const ROSTER_DEV of ["", "1"]) {
      const { code, stdout } = await roster(["doctor"], { ROSTER_DATA_DIR, ROSTER_DEV });
      expect(faultsIn(stdout)).toEqual([]);
      expect(code).toBe(0);
      expect(stdout).toContain("ok       roster_directory: acts as roster_directory");
    }
  });

  test("exits with 2 where it is production that names no database", async () => {
    const { code, stdout } = await roster(["doctor"], { ROSTER_DATA_DIR, ROSTER_DEV: "0" });
    expect(code).toBe(2);
    expect(faultsIn(stdout).join()).toContain("DATABASE_URL: must be set");
  });
});

describe("keys", () => {
  const publicOf = async (alg: string): Promise<JWK> =>
    exportJWK((await generateKeyPair(alg, { extractable: true })).publicKey);

  /** The URL of an endpoint, until the test ends. */
  const endpoint = async (answer: RequestListener): Promise<{ url: string }> => {
    const server = createServer(answer).listen(0, "127.0.0.1");
    await once(server, "listening");
    onTestFinished(() => {
      server.closeAllConnections();
      server.close();
    });
    return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/?key=${secret}` };
  };
  const serving = (keys: readonly JWK[]) =>
    endpoint((_, response) => response.end(JSON.stringify({ keys })));

  test.each(["ES256", "RS256", "EdDSA"])("are fine with one for %s", async (alg) => {
    const other = await publicOf("ES384");
    const found = await examineKeys(await serving([other, await publicOf(alg)]));
    expect(found).toMatchObject({ level: "ok", text: expect.stringContaining("1 of 2 keys") });
  });

  test("are a problem when none can verify a token: another curve or use, half a key, a private one", async () => {
    const { d: _private, ...publicKey } = inject("signingKey");
    const { x: _half, ...half } = publicKey;
    const unusable = [
      await publicOf("ES384"),
      { ...publicKey, use: "enc" },
      { ...publicKey, alg: "ES512" },
      half,
      inject("signingKey"),
    ];
    for (const keys of [...unusable.map((key) => [key]), unusable, []])
      expect(await examineKeys(await serving(keys))).toMatchObject({ level: "problem" });
    const file = written("unusable.json", { keys: unusable });
    expect(await examineKeys({ file })).toMatchObject({
      text: `none of the 5 keys of ${file} can verify a token`,
    });
  });

  test.each<[string, RequestListener]>([
    ["answers with an error", (_, response) => response.writeHead(503).end()],
    ["answers with something else", (_, response) => response.end("<html>")],
    ["hangs up", (request) => void request.socket.destroy()],
  ])("are a problem when the issuer %s", async (_, answer) => {
    const found = await examineKeys(await endpoint(answer));
    expect(found).toMatchObject({ level: "problem", remedy: expect.stringContaining("issuer") });
    expect(found.text).toMatch(/cannot be read from 127\.0\.0\.1:\d+ \(.+\)/);
    expect(JSON.stringify(found)).not.toContain(secret);
  });

  test("are a problem when nothing listens, or the file is gone", async () => {
    const closed = createSilent().listen(0, "127.0.0.1");
    await once(closed, "listening");
    const { port } = closed.address() as AddressInfo;
    await new Promise((resolve) => closed.close(resolve));
    const away = await examineKeys({ url: `http://127.0.0.1:${port}/jwks.json` });
    expect(away).toMatchObject({ level: "problem", text: expect.stringContaining("ECONNREFUSED") });
    const gone = await examineKeys({ file: join(folder, "gone.json") });
    expect(gone).toMatchObject({ level: "problem", text: expect.stringContaining("ENOENT") });
    expect(gone.remedy).toContain("file");
  });
});
