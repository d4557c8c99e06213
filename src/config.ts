/** Names of environment variables → zod → Config. Nothing else reads the environment. */
import { readFileSync } from "node:fs";
import { z } from "zod";

/** What the process runs by. */
export interface Config {
  /** True in development: own key, embedded database, reflection, loopback only. */
  readonly dev: boolean;
  readonly grpc: { readonly host: string; readonly port: number };
  /** Undefined: the embedded PostgreSQL under `dataDir`. */
  readonly database: DatabaseUrls | undefined;
  readonly migrationUrl: string | undefined;
  readonly poolSize: number;
  readonly pipeline: boolean;
  readonly identity: IdentityConfig | undefined;
  /** Signs page tokens; undefined in development, where one is made and kept under `dataDir`. */
  readonly tokenSecret: string | undefined;
  readonly purgeAfterDays: number;
  readonly dataDir: string;
  readonly logLevel: string;
}

export interface DatabaseUrls {
  /** Logs in as roster_app. */
  readonly app: string;
  /** Logs in as roster_directory. */
  readonly directory: string;
}

/** Whose tokens are accepted. */
export interface IdentityConfig {
  readonly jwks: { readonly url: string } | { readonly file: string };
  readonly issuer: string;
  readonly audience: string;
  /** The claim that pins a token to an org. */
  readonly orgClaim: string;
}

/** What is wrong with the environment, one line per fault. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
  readonly faults: readonly string[];

  constructor(faults: readonly string[]) {
    super(faults.join("\n"));
    this.faults = faults;
  }
}

const url = (...protocols: string[]) =>
  z
    .string()
    .refine(
      (text) => URL.canParse(text) && protocols.includes(new URL(text).protocol),
      `must be a URL that starts with ${protocols.map((p) => `${p}//`).join(" or ")}`,
    );
const postgresUrl = url("postgres:", "postgresql:");
const flag = z.enum(["0", "1"], "must be 0 or 1").transform((text) => text === "1");
const whole = (least: number, most: number) =>
  z
    .string()
    .regex(/^\d+$/, "must be a whole number")
    .transform(Number)
    .refine((n) => n >= least && n <= most, `must be from ${least} to ${most}`);
const address = z
  .string()
  .regex(/^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$/, "must be HOST:PORT, such as 127.0.0.1:50051")
  .transform((text) => {
    const at = text.lastIndexOf(":");
    return { host: text.slice(0, at).replace(/^\[|\]$/g, ""), port: Number(text.slice(at + 1)) };
  })
  .refine(({ port }) => port <= 65535, "the port must be at most 65535");

const variables = {
  ROSTER_DEV: flag.default(false),
  GRPC_ADDR: address.default({ host: "127.0.0.1", port: 50051 }),
  DATABASE_URL: postgresUrl.optional(),
  DIRECTORY_DATABASE_URL: postgresUrl.optional(),
  MIGRATION_DATABASE_URL: postgresUrl.optional(),
  POOL_SIZE: whole(1, 500).default(10),
  DATABASE_PIPELINE: z.enum(["on", "off"], "must be on or off").default("on"),
  JWKS_URL: url("https:", "http:").optional(),
  JWKS_FILE: z.string().min(1).optional(),
  JWT_ISSUER: z.string().min(1).optional(),
  JWT_AUDIENCE: z.string().min(1).optional(),
  JWT_ORG_CLAIM: z.string().min(1).default("org"),
  TOKEN_SECRET: z.string().min(32, "must be at least 32 characters").optional(),
  PURGE_AFTER_DAYS: whole(1, 3650).default(30),
  ALLOW_CLEARTEXT: flag.default(false),
  ROSTER_DATA_DIR: z.string().min(1).default(".roster"),
  LOG_LEVEL: z
    .enum(
      ["fatal", "error", "warn", "info", "debug", "silent"],
      "must be fatal, error, warn, info, debug or silent",
    )
    .default("info"),
};

/** Secrets may also be read from the file that `NAME_FILE` names. */
const secrets = [
  "DATABASE_URL",
  "DIRECTORY_DATABASE_URL",
  "MIGRATION_DATABASE_URL",
  "TOKEN_SECRET",
];

/** True for an address that only this machine can reach. */
export const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);

/**
 * Reads the configuration.
 *
 * @throws ConfigError with every fault at once
 */
export const readConfig = (environment: NodeJS.ProcessEnv = process.env): Config => {
  const faults: string[] = [];
  const env: Record<string, string> = {};
  for (const [name, value] of Object.entries(environment)) {
    if (value !== undefined && value !== "") env[name] = value;
  }
  for (const name of secrets) {
    const file = env[`${name}_FILE`];
    if (file === undefined) continue;
    if (env[name] !== undefined) faults.push(`${name}: set it or ${name}_FILE, not both`);
    try {
      env[name] = readFileSync(file, "utf8").trim();
    } catch (error) {
      faults.push(`${name}_FILE: cannot be read (${(error as NodeJS.ErrnoException).code})`);
    }
  }

  const parsed = z.object(variables).safeParse(env);
  if (!parsed.success) {
    for (const issue of parsed.error.issues)
      faults.push(`${String(issue.path[0])}: ${issue.message}`);
    throw new ConfigError(faults);
  }
  const v = parsed.data;
  const demand = (name: keyof typeof variables, why: string): void => {
    if (v[name] === undefined) faults.push(`${name}: must be set ${why}`);
  };

  const jwks = v.JWKS_URL ? { url: v.JWKS_URL } : v.JWKS_FILE ? { file: v.JWKS_FILE } : undefined;
  if (v.JWKS_URL && v.JWKS_FILE) faults.push("JWKS_FILE: set it or JWKS_URL, not both");
  if (v.DATABASE_URL)
    demand("DIRECTORY_DATABASE_URL", "beside DATABASE_URL; it logs in as roster_directory");
  if (v.DIRECTORY_DATABASE_URL)
    demand("DATABASE_URL", "beside DIRECTORY_DATABASE_URL; it logs in as roster_app");
  if (jwks) {
    demand("JWT_ISSUER", "beside the keys, so that only its tokens are accepted");
    demand("JWT_AUDIENCE", "beside the keys, so that tokens for other services are refused");
  } else if (!v.ROSTER_DEV) {
    faults.push("JWKS_URL: set it or JWKS_FILE, or ROSTER_DEV=1 for development");
  }
  if (!v.ROSTER_DEV) {
    demand("DATABASE_URL", "unless ROSTER_DEV=1, which uses an embedded PostgreSQL");
    demand("TOKEN_SECRET", "unless ROSTER_DEV=1; all processes share it");
  }
  if (!isLoopback(v.GRPC_ADDR.host)) {
    if (v.ROSTER_DEV) faults.push("GRPC_ADDR: must be a loopback address while ROSTER_DEV=1");
    else if (!v.ALLOW_CLEARTEXT) {
      faults.push(
        "GRPC_ADDR: is not loopback; set ALLOW_CLEARTEXT=1 where the network encrypts by itself",
      );
    }
  }
  if (faults.length > 0) throw new ConfigError(faults);

  return {
    dev: v.ROSTER_DEV,
    grpc: v.GRPC_ADDR,
    database:
      v.DATABASE_URL && v.DIRECTORY_DATABASE_URL
        ? { app: v.DATABASE_URL, directory: v.DIRECTORY_DATABASE_URL }
        : undefined,
    migrationUrl: v.MIGRATION_DATABASE_URL,
    poolSize: v.POOL_SIZE,
    pipeline: v.DATABASE_PIPELINE === "on",
    identity:
      jwks && v.JWT_ISSUER && v.JWT_AUDIENCE
        ? { jwks, issuer: v.JWT_ISSUER, audience: v.JWT_AUDIENCE, orgClaim: v.JWT_ORG_CLAIM }
        : undefined,
    tokenSecret: v.TOKEN_SECRET,
    purgeAfterDays: v.PURGE_AFTER_DAYS,
    dataDir: v.ROSTER_DATA_DIR,
    logLevel: v.LOG_LEVEL,
  };
};
