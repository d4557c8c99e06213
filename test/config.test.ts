import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { ConfigError, readConfig } from "../src/config.ts";
import { readAllowed } from "../src/spiffe.ts";

const folder = mkdtempSync(join(tmpdir(), "roster-config-"));
afterAll(() => rmSync(folder, { recursive: true }));

const fileOf = (name: string, text: string): string => {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
};

const production = {
  DATABASE_URL: "postgres://roster_app:a@db/roster",
  DIRECTORY_DATABASE_URL: "postgres://roster_directory:a@db/roster",
  JWKS_URL: "https://issuer.example/jwks.json",
  JWT_ISSUER: "https://issuer.example",
  JWT_AUDIENCE: "roster",
  TOKEN_SECRET: "x".repeat(32),
};

/** The names of the variables at fault, in order; all of them are told at once. */
const faultsOf = (environment: Record<string, string>): string[] => {
  try {
    readConfig(environment);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    expect(error.message).toBe(error.faults.join("\n"));
    return error.faults.map((fault) => fault.split(":")[0] ?? "").sort();
  }
  return [];
};

describe("readConfig in development", () => {
  test("needs nothing but ROSTER_DEV=1", () => {
    expect(readConfig({ ROSTER_DEV: "1" })).toEqual({
      dev: true,
      grpc: { host: "127.0.0.1", port: 50051 },
      http: { host: "127.0.0.1", port: 8080, origins: [] },
      tls: undefined,
      spiffeFile: undefined,
      database: undefined,
      databaseFiles: new Map(),
      migrationUrl: undefined,
      poolSize: 10,
      pipeline: true,
      identity: undefined,
      tokenSecret: undefined,
      purgeAfterDays: 30,
      auditRetentionDays: 0,
      operatorReason: "optional",
      shutdownNoticeSeconds: 0,
      dataDir: ".roster",
      logLevel: "info",
    });
  });

  test("takes an empty variable for an absent one", () => {
    expect(readConfig({ ROSTER_DEV: "1", GRPC_ADDR: "", DATABASE_URL: "", POOL_SIZE: "" })).toEqual(
      readConfig({ ROSTER_DEV: "1" }),
    );
  });

  test.each(["127.0.0.1:0", "127.8.9.10:1", "localhost:50051", "[::1]:50051"])(
    "listens on %s",
    (address) => {
      expect(faultsOf({ ROSTER_DEV: "1", GRPC_ADDR: address })).toEqual([]);
    },
  );

  test.each([
    "0.0.0.0:50051",
    "[::]:50051",
    "10.0.0.1:50051",
    "127.0.0.1.evil.example:50051",
    "localhost.example:1",
  ])("listens never on %s, not even with ALLOW_CLEARTEXT=1", (address) => {
    const environment = { ROSTER_DEV: "1", GRPC_ADDR: address, ALLOW_CLEARTEXT: "1" };
    expect(faultsOf(environment)).toEqual(["GRPC_ADDR"]);
  });

  test("takes a database and an issuer that are given, whole or not at all", () => {
    const config = readConfig({ ...production, ROSTER_DEV: "1" });
    expect(config).toMatchObject({ dev: true, tokenSecret: production.TOKEN_SECRET });
    expect(config.database?.app).toBe(production.DATABASE_URL);
    expect(config.identity?.issuer).toBe(production.JWT_ISSUER);
    const half = { ROSTER_DEV: "1", DATABASE_URL: production.DATABASE_URL, JWKS_URL: "https://x" };
    expect(faultsOf(half)).toEqual(["DIRECTORY_DATABASE_URL", "JWT_AUDIENCE", "JWT_ISSUER"]);
  });
});

describe("readConfig in production", () => {
  test("reads what is given", () => {
    const more = {
      GRPC_ADDR: "0.0.0.0:443",
      HTTP_ADDR: "[::]:80",
      CORS_ORIGINS: "https://admin.example, http://localhost:3000",
      ALLOW_CLEARTEXT: "1",
      MIGRATION_DATABASE_URL: "postgresql://m@db/roster",
      POOL_SIZE: "25",
      DATABASE_PIPELINE: "off",
      JWT_ORG_CLAIM: "tenant",
      PURGE_AFTER_DAYS: "7",
      AUDIT_RETENTION_DAYS: "400",
      OPERATOR_REASON: "required",
      SHUTDOWN_NOTICE_SECONDS: "3",
      ROSTER_DATA_DIR: "/data",
      LOG_LEVEL: "warn",
    };
    expect(readConfig({ ...production, ...more })).toEqual({
      dev: false,
      grpc: { host: "0.0.0.0", port: 443 },
      http: {
        host: "::",
        port: 80,
        origins: ["https://admin.example", "http://localhost:3000"],
      },
      database: { app: production.DATABASE_URL, directory: production.DIRECTORY_DATABASE_URL },
      databaseFiles: new Map(),
      migrationUrl: more.MIGRATION_DATABASE_URL,
      poolSize: 25,
      pipeline: false,
      identity: {
        jwks: { url: production.JWKS_URL },
        issuer: production.JWT_ISSUER,
        audience: production.JWT_AUDIENCE,
        orgClaim: "tenant",
      },
      tokenSecret: production.TOKEN_SECRET,
      purgeAfterDays: 7,
      auditRetentionDays: 400,
      operatorReason: "required",
      shutdownNoticeSeconds: 3,
      dataDir: "/data",
      logLevel: "warn",
    });
  });

  test("takes a replica beside its primary, as the same user", () => {
    const { DATABASE_URL: _url, DIRECTORY_DATABASE_URL: _directory, ...rest } = production;
    const replica = "postgres://roster_app:b@replica/roster";
    const config = readConfig({ ...production, REPLICA_DATABASE_URL: replica });
    expect(config.database?.replica).toBe(replica);
    expect(faultsOf({ ...rest, ROSTER_DEV: "1", REPLICA_DATABASE_URL: replica })).toEqual([
      "DATABASE_URL",
    ]);
    const others = ["postgres://postgres@replica/roster", "postgres://replica/roster"];
    for (const other of [...others, `${replica}?user=postgres`])
      expect(faultsOf({ ...production, REPLICA_DATABASE_URL: other })).toEqual([
        "REPLICA_DATABASE_URL",
      ]);
  });

  test("demands databases, keys and a secret, and says so at once", () => {
    expect(faultsOf({})).toEqual(["DATABASE_URL", "JWKS_URL", "TOKEN_SECRET"]);
  });

  test.each(Object.keys(production))("demands %s", (name) => {
    const { [name as keyof typeof production]: _left, ...rest } = production;
    expect(faultsOf(rest)).toEqual([name]);
  });

  test.each([
    "*",
    "admin.example",
    "https://admin.example/",
    "https://a.example,",
    "null",
    "https://A.example",
  ])("lets no web pages of %j in", (CORS_ORIGINS) => {
    expect(faultsOf({ ...production, CORS_ORIGINS })).toEqual(["CORS_ORIGINS"]);
  });

  test("has no HTTP port where it is off, and none beyond loopback that nobody asked for", () => {
    expect(readConfig({ ...production, HTTP_ADDR: "off" }).http).toBe(undefined);
    expect(faultsOf({ ...production, HTTP_ADDR: "0.0.0.0:8080" })).toEqual(["HTTP_ADDR"]);
    expect(faultsOf({ ROSTER_DEV: "1", HTTP_ADDR: "0.0.0.0:1", ALLOW_CLEARTEXT: "1" })).toEqual([
      "HTTP_ADDR",
    ]);
    expect(faultsOf({ ...production, HTTP_ADDR: "8080" })).toEqual(["HTTP_ADDR"]);
  });

  test("serves beyond loopback, and fetches keys from there, only where cleartext is allowed", () => {
    const beyond = { ...production, GRPC_ADDR: "[::]:50051", JWKS_URL: "http://issuer.example/" };
    expect(faultsOf(beyond)).toEqual(["GRPC_ADDR", "JWKS_URL"]);
    expect(faultsOf({ ...beyond, ALLOW_CLEARTEXT: "1" })).toEqual([]);
    expect(faultsOf({ ...production, JWKS_URL: "http://[::1]:8080/" })).toEqual([]);
  });

  test("serves beyond loopback with a certificate, whose files go together and can be read", () => {
    const beyond = { ...production, GRPC_ADDR: "[::]:50051", HTTP_ADDR: "0.0.0.0:443" };
    const TLS_CERT_FILE = fileOf("server.pem", "");
    const TLS_KEY_FILE = fileOf("server.key", "");
    const tls = { TLS_CERT_FILE, TLS_KEY_FILE };
    const files = { certificate: TLS_CERT_FILE, key: TLS_KEY_FILE, clientCa: undefined };
    expect(readConfig({ ...beyond, ...tls }).tls).toEqual(files);
    expect(faultsOf({ ...production, TLS_CERT_FILE })).toEqual(["TLS_KEY_FILE"]);
    expect(faultsOf({ ...production, TLS_KEY_FILE })).toEqual(["TLS_CERT_FILE"]);
    const none = join(folder, "none.pem");
    expect(faultsOf({ ...production, ...tls, TLS_KEY_FILE: none })).toEqual(["TLS_KEY_FILE"]);
    expect(faultsOf({ ROSTER_DEV: "1", ...tls })).toEqual(["TLS_CERT_FILE"]);

    const TLS_CLIENT_CA_FILE = fileOf("clients.pem", "");
    const SPIFFE_ALLOW_FILE = fileOf("allowed.json", '{"identities":[]}');
    const both = { ...tls, TLS_CLIENT_CA_FILE, SPIFFE_ALLOW_FILE };
    expect(readConfig({ ...production, ...both })).toMatchObject({
      tls: { ...files, clientCa: TLS_CLIENT_CA_FILE },
      spiffeFile: SPIFFE_ALLOW_FILE,
    });
    const { SPIFFE_ALLOW_FILE: _list, ...unlisted } = both;
    const { TLS_CLIENT_CA_FILE: _ca, ...unasked } = both;
    expect(faultsOf({ ...production, ...unlisted })).toEqual(["SPIFFE_ALLOW_FILE"]);
    expect(faultsOf({ ...production, ...unasked })).toEqual(["TLS_CLIENT_CA_FILE"]);
    expect(faultsOf({ ...production, TLS_CLIENT_CA_FILE, SPIFFE_ALLOW_FILE })).toEqual([
      "TLS_CERT_FILE",
    ]);
  });

  test("tells every fault of the file of SPIFFE ids at once", () => {
    const good = { id: "spiffe://example.org/web", scope: ["teams.get"], orgs: "*" };
    const faulty = [
      { ...good, id: `${good.id}/a`, scope: ["everything"] },
      { ...good, id: "spiffe://example.org", orgs: [] },
      { ...good, id: `${good.id}/b`, more: true },
      good,
    ];
    const text = JSON.stringify({ identities: faulty });
    expect(() => readAllowed(text)).toThrow(
      expect.objectContaining({
        faults: [
          "identities.0.scope.0: must be a permission such as teams.get",
          expect.stringMatching(/^identities\.1\.id: must be a SPIFFE id/),
          expect.stringMatching(/^identities\.1\.orgs: /),
          expect.stringMatching(/^identities\.2: .*more/),
        ],
      }),
    );
    expect(() => readAllowed(JSON.stringify({ identities: [good, good] }))).toThrow(
      "identities.1.id: stands there twice",
    );
    expect(() => readAllowed("{")).toThrow("must be JSON");
    const SPIFFE_ALLOW_FILE = fileOf("faulty.json", text);
    // One variable has one line, which holds them all.
    expect(() => readConfig({ ...production, SPIFFE_ALLOW_FILE })).toThrow(
      /^SPIFFE_ALLOW_FILE: identities\.0\.scope.*; identities\.1\.id.*; identities\.2: .*more/m,
    );
    const names = new Set(faultsOf({ ...production, SPIFFE_ALLOW_FILE }));
    expect(names).toEqual(new Set(["SPIFFE_ALLOW_FILE", "TLS_CLIENT_CA_FILE"]));
  });

  test.each(["issuer.example", "https://u@issuer.example", "https://:p@issuer.example"])(
    "takes no keys from %s",
    (JWKS_URL) => {
      expect(new Set(faultsOf({ ...production, JWKS_URL }))).toEqual(new Set(["JWKS_URL"]));
    },
  );

  test("takes one source of keys, a file that holds some", () => {
    const { JWKS_URL: _url, ...rest } = production;
    const file = fileOf("jwks.json", '{"keys":[]}');
    expect(readConfig({ ...rest, JWKS_FILE: file }).identity?.jwks).toEqual({ file });
    expect(faultsOf({ ...production, JWKS_FILE: file })).toEqual(["JWKS_FILE"]);
    const others = [join(folder, "none"), folder, fileOf("no.json", "{"), fileOf("null", "null")];
    for (const other of others)
      expect(faultsOf({ ...rest, JWKS_FILE: other })).toEqual(["JWKS_FILE"]);
  });
});

describe("readConfig", () => {
  test("tells every malformed variable, and what is missing beside them, at once", () => {
    expect(
      faultsOf({
        ROSTER_DEV: "yes",
        GRPC_ADDR: "50051",
        DATABASE_URL: "mysql://db/roster",
        MIGRATION_DATABASE_URL: "db",
        POOL_SIZE: "0",
        DATABASE_PIPELINE: "maybe",
        JWKS_URL: "ftp://issuer.example",
        TOKEN_SECRET: "short",
        PURGE_AFTER_DAYS: "1.5",
        AUDIT_RETENTION_DAYS: "-1",
        ALLOW_CLEARTEXT: "true",
        LOG_LEVEL: "loud",
      }),
    ).toEqual([
      "ALLOW_CLEARTEXT",
      "AUDIT_RETENTION_DAYS",
      "DATABASE_PIPELINE",
      "DATABASE_URL",
      "DIRECTORY_DATABASE_URL",
      "GRPC_ADDR",
      "JWKS_URL",
      "JWT_AUDIENCE",
      "JWT_ISSUER",
      "LOG_LEVEL",
      "MIGRATION_DATABASE_URL",
      "POOL_SIZE",
      "PURGE_AFTER_DAYS",
      "ROSTER_DEV",
      "TOKEN_SECRET",
    ]);
  });

  test.each(["127.0.0.1", "127.0.0.1:", ":50051", "127.0.0.1:65536", "a b:1", "::1:50051", "x:1x"])(
    "refuses GRPC_ADDR %j",
    (address) => {
      expect(faultsOf({ ROSTER_DEV: "1", GRPC_ADDR: address })).toEqual(["GRPC_ADDR"]);
    },
  );

  test("reads secrets from files, without the line break at their end", () => {
    const { DATABASE_URL, DIRECTORY_DATABASE_URL, TOKEN_SECRET, ...rest } = production;
    const config = readConfig({
      ...rest,
      DATABASE_URL_FILE: fileOf("app", `${DATABASE_URL}\n`),
      DIRECTORY_DATABASE_URL_FILE: fileOf("directory", `${DIRECTORY_DATABASE_URL}\n`),
      MIGRATION_DATABASE_URL_FILE: fileOf("migrator", "postgres://m@db/roster\n"),
      TOKEN_SECRET_FILE: fileOf("secret", `${TOKEN_SECRET}\r\n`),
    });
    expect(config.database).toEqual({ app: DATABASE_URL, directory: DIRECTORY_DATABASE_URL });
    expect(config).toMatchObject({
      tokenSecret: TOKEN_SECRET,
      migrationUrl: "postgres://m@db/roster",
    });
    expect(config.databaseFiles.get(DATABASE_URL)).toBe(join(folder, "app"));
  });

  test("tells a secret's file that is missing, and one beside the variable itself", () => {
    const { TOKEN_SECRET: _secret, ...rest } = production;
    const missing = { ...rest, TOKEN_SECRET_FILE: join(folder, "none") };
    expect(faultsOf(missing)).toEqual(["TOKEN_SECRET_FILE"]);
    const file = fileOf("another", "y".repeat(32));
    expect(faultsOf({ ...production, TOKEN_SECRET_FILE: file })).toEqual(["TOKEN_SECRET"]);
  });

  test("never repeats a secret", () => {
    const secret = "hunter2-hunter2";
    const file = fileOf("bad", secret);
    const environments = [
      { TOKEN_SECRET: secret, DATABASE_URL: `mysql://u:${secret}@db/x` },
      { TOKEN_SECRET_FILE: file, DATABASE_URL_FILE: file },
    ];
    for (const environment of environments) {
      expect(() => readConfig(environment)).toThrow(ConfigError);
      expect(() => readConfig(environment)).not.toThrow(secret);
    }
  });
});
