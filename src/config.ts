/** Names of environment variables → zod → Config. Nothing else reads the environment. */
import { readFileSync } from "node:fs";
import { z } from "zod";
import { AllowFaults, readAllowed } from "./spiffe.ts";

/** What the process runs by. */
export interface Config {
  /** True in development: own key, embedded database, reflection, loopback only. */
  readonly dev: boolean;
  readonly grpc: { readonly host: string; readonly port: number };
  /** Undefined: there is no HTTP port. */
  readonly http: HttpConfig | undefined;
  /** Undefined: both ports serve cleartext. */
  readonly tls: TlsConfig | undefined;
  /** The file of client certificates that may call; undefined: none makes a caller. */
  readonly spiffeFile: string | undefined;
  /** Undefined: the embedded PostgreSQL under `dataDir`. */
  readonly database: DatabaseUrls | undefined;
  /** The files from which URLs of `database` came, by URL: their passwords may be replaced there. */
  readonly databaseFiles: ReadonlyMap<string, string>;
  readonly migrationUrl: string | undefined;
  readonly poolSize: number;
  readonly pipeline: boolean;
  readonly identity: IdentityConfig | undefined;
  /** Of it come the keys of all tokens; undefined in development, where one is made and kept under `dataDir`. */
  readonly tokenSecret: string | undefined;
  readonly purgeAfterDays: number;
  /** How long the audit log that belongs to no org is kept; 0: for good. */
  readonly auditRetentionDays: number;
  /** Whether operators must say why they call. */
  readonly operatorReason: "optional" | "required";
  /** How long a server that stops still takes calls. */
  readonly shutdownNoticeSeconds: number;
  readonly dataDir: string;
  readonly logLevel: string;
}

export interface HttpConfig {
  readonly host: string;
  readonly port: number;
  /** Of the web pages that may call it, such as `https://admin.example`. */
  readonly origins: readonly string[];
}

/** PEM files. */
export interface TlsConfig {
  readonly certificate: string;
  readonly key: string;
  /** The CAs of clients; undefined: clients are not asked for a certificate. */
  readonly clientCa: string | undefined;
}

export interface DatabaseUrls {
  /** Logs in as roster_app. */
  readonly app: string;
  /** Logs in as roster_directory. */
  readonly directory: string;
  /** Logs in as roster_worker; undefined: this process leaves the background work to others. */
  readonly worker: string | undefined;
  /** A standby of the same cluster, as the same user as `app`; undefined: the primary answers every read. */
  readonly replica?: string | undefined;
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
const keysUrl = url("https:", "http:").refine((text) => {
  const { username, password } = URL.parse(text) ?? { username: "", password: "" };
  return username === "" && password === "";
}, "must hold no user and no password, which would not be sent");
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

const httpAddress = z.union(
  [z.literal("off").transform(() => undefined), address],
  "must be HOST:PORT, such as 127.0.0.1:8080, or off",
);
const isOrigin = (text: string): boolean =>
  /^https?:/.test(text) && URL.parse(text)?.origin === text;
const origins = z
  .string()
  .transform((text) => text.split(",").map((origin) => origin.trim()))
  .refine(
    (all) => all.every(isOrigin),
    "must be origins as browsers send them, such as https://admin.example, separated by commas",
  );

/** Whether a file can be read as a JSON Web Key Set: better told now than at the first call. */
/** The file's text; undefined, and a fault, where it cannot be read. */
const readable = (file: string, context: z.RefinementCtx): string | undefined => {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    const message = `cannot be read (${(error as NodeJS.ErrnoException).code})`;
    context.addIssue({ code: "custom", message });
    return undefined;
  }
};

const holdsKeys = (file: string, context: z.RefinementCtx): void => {
  const text = readable(file, context);
  if (text === undefined) return;
  let set: { keys?: unknown } | null = null;
  try {
    set = JSON.parse(text);
  } catch {
    // Told below: it is no set either.
  }
  if (!Array.isArray(set?.keys))
    context.addIssue({ code: "custom", message: "must be a JSON Web Key Set" });
};

/** Whether a file holds a list of SPIFFE ids, each of its faults told. */
const holdsAllowed = (file: string, context: z.RefinementCtx): void => {
  const text = readable(file, context);
  if (text === undefined) return;
  try {
    readAllowed(text);
  } catch (error) {
    if (!(error instanceof AllowFaults)) throw error;
    context.addIssue({ code: "custom", message: error.message });
  }
};

const pem = z.string().superRefine((file, context) => void readable(file, context));

const variables = {
  ROSTER_DEV: flag,
  GRPC_ADDR: address,
  HTTP_ADDR: httpAddress,
  CORS_ORIGINS: origins.optional(),
  TLS_CERT_FILE: pem.optional(),
  TLS_KEY_FILE: pem.optional(),
  TLS_CLIENT_CA_FILE: pem.optional(),
  SPIFFE_ALLOW_FILE: z.string().superRefine(holdsAllowed).optional(),
  DATABASE_URL: postgresUrl.optional(),
  DIRECTORY_DATABASE_URL: postgresUrl.optional(),
  WORKER_DATABASE_URL: postgresUrl.optional(),
  REPLICA_DATABASE_URL: postgresUrl.optional(),
  MIGRATION_DATABASE_URL: postgresUrl.optional(),
  POOL_SIZE: whole(1, 500),
  DATABASE_PIPELINE: z.enum(["on", "off"], "must be on or off"),
  JWKS_URL: keysUrl.optional(),
  JWKS_FILE: z.string().superRefine(holdsKeys).optional(),
  JWT_ISSUER: z.string().min(1).optional(),
  JWT_AUDIENCE: z.string().min(1).optional(),
  JWT_ORG_CLAIM: z.string().min(1),
  TOKEN_SECRET: z.string().min(32, "must be at least 32 characters").optional(),
  PURGE_AFTER_DAYS: whole(1, 3650),
  AUDIT_RETENTION_DAYS: whole(0, 36500),
  OPERATOR_REASON: z.enum(["optional", "required"], "must be optional or required"),
  SHUTDOWN_NOTICE_SECONDS: whole(0, 60),
  ALLOW_CLEARTEXT: flag,
  ROSTER_DATA_DIR: z.string().min(1),
  LOG_LEVEL: z.enum(
    ["fatal", "error", "warn", "info", "debug", "silent"],
    "must be fatal, error, warn, info, debug or silent",
  ),
};

/** As they would be written into the environment. */
const defaults: Readonly<Record<string, string>> = {
  ROSTER_DEV: "0",
  GRPC_ADDR: "127.0.0.1:50051",
  HTTP_ADDR: "127.0.0.1:8080",
  POOL_SIZE: "10",
  DATABASE_PIPELINE: "on",
  JWT_ORG_CLAIM: "org",
  PURGE_AFTER_DAYS: "30",
  AUDIT_RETENTION_DAYS: "0",
  OPERATOR_REASON: "optional",
  SHUTDOWN_NOTICE_SECONDS: "5",
  ALLOW_CLEARTEXT: "0",
  ROSTER_DATA_DIR: ".roster",
  LOG_LEVEL: "info",
};

/** Secrets may also be read from the file that `NAME_FILE` names. */
const secrets = [
  "DATABASE_URL",
  "DIRECTORY_DATABASE_URL",
  "WORKER_DATABASE_URL",
  "REPLICA_DATABASE_URL",
  "MIGRATION_DATABASE_URL",
  "TOKEN_SECRET",
];

/** Connections for calls outside any org, which are the rarer ones. */
export const directoryPoolSize = (poolSize: number): number => Math.max(2, Math.ceil(poolSize / 4));

/** True for an address that only this machine can reach. */
export const isLoopback = (host: string): boolean =>
  /^(localhost|::1|\[::1\])$/.test(host) || /^127(\.\d{1,3}){3}$/.test(host);

const schema = z.object(variables);
type Values = z.output<typeof schema>;
type Name = keyof typeof variables;
type Given = (name: Name) => boolean;

/** Whom a database URL logs in as. A parameter goes before the user that stands ahead of the host. */
const userOf = (text: string): string => {
  const { searchParams, username } = new URL(text);
  return searchParams.getAll("user").at(-1) || username;
};

/** What is wrong between variables, each of which may be right by itself. */
const faultsBetween = (v: Values, given: Given, production: boolean): string[] => {
  const keys = given("JWKS_URL") || given("JWKS_FILE");
  const ports = [
    ["GRPC_ADDR", v.GRPC_ADDR],
    ["HTTP_ADDR", v.HTTP_ADDR],
  ] as const;
  const beyond = ports.filter(([, at]) => at !== undefined && !isLoopback(at.host));
  const encrypted = given("TLS_CERT_FILE");
  const keyUrl = v.JWKS_URL === undefined ? undefined : new URL(v.JWKS_URL);
  const openKeys = keyUrl?.protocol === "http:" && !isLoopback(keyUrl.hostname);
  const rules: readonly (readonly [wrong: boolean, name: Name, fault: string])[] = [
    [given("JWKS_URL") && given("JWKS_FILE"), "JWKS_FILE", "set it or JWKS_URL, not both"],
    [
      given("DATABASE_URL") && !given("DIRECTORY_DATABASE_URL"),
      "DIRECTORY_DATABASE_URL",
      "must be set beside DATABASE_URL; it logs in as roster_directory",
    ],
    [
      given("DIRECTORY_DATABASE_URL") && !given("DATABASE_URL"),
      "DATABASE_URL",
      "must be set beside DIRECTORY_DATABASE_URL; it logs in as roster_app",
    ],
    [
      given("WORKER_DATABASE_URL") && !given("DATABASE_URL"),
      "DATABASE_URL",
      "must be set beside WORKER_DATABASE_URL; it logs in as roster_app",
    ],
    [
      given("REPLICA_DATABASE_URL") && !given("DATABASE_URL"),
      "DATABASE_URL",
      "must be set beside REPLICA_DATABASE_URL, which names a standby of it",
    ],
    [
      // The start looks at the rights of DATABASE_URL's user alone.
      v.REPLICA_DATABASE_URL !== undefined &&
        v.DATABASE_URL !== undefined &&
        userOf(v.REPLICA_DATABASE_URL) !== userOf(v.DATABASE_URL),
      "REPLICA_DATABASE_URL",
      "must log in as the user of DATABASE_URL",
    ],
    [
      keys && !given("JWT_ISSUER"),
      "JWT_ISSUER",
      "must be set beside the keys, so that only its tokens are accepted",
    ],
    [
      keys && !given("JWT_AUDIENCE"),
      "JWT_AUDIENCE",
      "must be set beside the keys, so that tokens for other services are refused",
    ],
    [
      production && !keys,
      "JWKS_URL",
      "must be set, or JWKS_FILE, unless ROSTER_DEV=1, which makes a key of its own",
    ],
    [
      production && !given("DATABASE_URL") && !given("DIRECTORY_DATABASE_URL"),
      "DATABASE_URL",
      "must be set unless ROSTER_DEV=1, which uses an embedded PostgreSQL",
    ],
    [
      production && !given("TOKEN_SECRET"),
      "TOKEN_SECRET",
      "must be set unless ROSTER_DEV=1; all processes share it",
    ],
    ...beyond.map(
      ([name]) => [v.ROSTER_DEV, name, "must be a loopback address while ROSTER_DEV=1"] as const,
    ),
    ...beyond.map(
      ([name]) =>
        [
          !(v.ROSTER_DEV || v.ALLOW_CLEARTEXT || encrypted),
          name,
          "is not loopback; set TLS_CERT_FILE, or ALLOW_CLEARTEXT=1 where the network encrypts by itself",
        ] as const,
    ),
    [
      encrypted && v.ROSTER_DEV,
      "TLS_CERT_FILE",
      "cannot be set while ROSTER_DEV=1, which serves cleartext to this machine alone",
    ],
    [encrypted && !given("TLS_KEY_FILE"), "TLS_KEY_FILE", "must be set beside TLS_CERT_FILE"],
    [!encrypted && given("TLS_KEY_FILE"), "TLS_CERT_FILE", "must be set beside TLS_KEY_FILE"],
    [
      !encrypted && given("TLS_CLIENT_CA_FILE"),
      "TLS_CERT_FILE",
      "must be set beside TLS_CLIENT_CA_FILE",
    ],
    [
      given("TLS_CLIENT_CA_FILE") && !given("SPIFFE_ALLOW_FILE"),
      "SPIFFE_ALLOW_FILE",
      "must be set beside TLS_CLIENT_CA_FILE; it says which certificates may call",
    ],
    [
      given("SPIFFE_ALLOW_FILE") && !given("TLS_CLIENT_CA_FILE"),
      "TLS_CLIENT_CA_FILE",
      "must be set beside SPIFFE_ALLOW_FILE; without it no client shows a certificate",
    ],
    [
      openKeys && !v.ALLOW_CLEARTEXT,
      "JWKS_URL",
      "must be https; set ALLOW_CLEARTEXT=1 where the network encrypts by itself",
    ],
  ];
  return rules.filter(([wrong]) => wrong).map(([, name, fault]) => `${name}: ${fault}`);
};

/** What one variable comes to, as text, and where that was found. */
export interface Setting {
  readonly name: Name;
  /** Undefined: neither set nor with a default. Never to be shown where it is secret. */
  readonly text: string | undefined;
  readonly source: "set" | "default" | "not set" | { readonly file: string };
}

/** An environment seen through, whether or not it will do. */
export interface Inspection {
  /** One line each, naming the variable. */
  readonly faults: readonly string[];
  /** A variable with a fault counts as absent here. */
  readonly values: Values;
  readonly settings: readonly Setting[];
}

/** The variables that say something, with secrets read from the files that stand for them. */
const gather = (environment: NodeJS.ProcessEnv) => {
  const env: Record<string, string> = {};
  for (const [name, value] of Object.entries(environment)) {
    if (value !== undefined && value !== "") env[name] = value;
  }
  const faults: string[] = [];
  const broken = new Set<string>();
  const files = new Map<string, string>();
  for (const name of secrets) {
    const file = env[`${name}_FILE`];
    if (file === undefined) continue;
    files.set(name, file);
    if (env[name] !== undefined) faults.push(`${name}: set it or ${name}_FILE, not both`);
    try {
      env[name] = readFileSync(file, "utf8").trim();
    } catch (error) {
      faults.push(`${name}_FILE: cannot be read (${(error as NodeJS.ErrnoException).code})`);
      broken.add(name);
    }
  }
  return { env, faults, broken, files };
};

/** Reads an environment and finds every fault in it at once. */
export const inspectConfig = (environment: NodeJS.ProcessEnv = process.env): Inspection => {
  const { env, faults, broken, files } = gather(environment);
  // A variable with a fault is set aside, so that what is wrong beside it shows at once too.
  for (const { path, message } of schema.safeParse({ ...defaults, ...env }).error?.issues ?? []) {
    const name = String(path[0]);
    if (!broken.has(name)) faults.push(`${name}: ${message}`);
    broken.add(name);
  }
  const sound = Object.entries(env).filter(([name]) => !broken.has(name));
  const values = schema.parse({ ...defaults, ...Object.fromEntries(sound) });
  const production = !values.ROSTER_DEV && !broken.has("ROSTER_DEV");
  const given: Given = (name) => env[name] !== undefined || broken.has(name);
  faults.push(...faultsBetween(values, given, production));
  const settings = (Object.keys(variables) as Name[]).map((name): Setting => {
    const text = env[name] ?? defaults[name];
    const file = files.get(name);
    if (file !== undefined) return { name, text, source: { file } };
    return { name, text, source: env[name] ? "set" : text ? "default" : "not set" };
  });
  return { faults, values, settings };
};

/**
 * Reads the configuration.
 *
 * @throws ConfigError with every fault at once
 */
export const readConfig = (environment: NodeJS.ProcessEnv = process.env): Config => {
  const { faults, values: v, settings } = inspectConfig(environment);
  if (faults.length > 0) throw new ConfigError(faults);

  const jwks = v.JWKS_URL ? { url: v.JWKS_URL } : v.JWKS_FILE ? { file: v.JWKS_FILE } : undefined;
  return {
    dev: v.ROSTER_DEV,
    grpc: v.GRPC_ADDR,
    http: v.HTTP_ADDR && { ...v.HTTP_ADDR, origins: v.CORS_ORIGINS ?? [] },
    tls:
      v.TLS_CERT_FILE && v.TLS_KEY_FILE
        ? {
            certificate: v.TLS_CERT_FILE,
            key: v.TLS_KEY_FILE,
            clientCa: v.TLS_CLIENT_CA_FILE,
          }
        : undefined,
    spiffeFile: v.SPIFFE_ALLOW_FILE,
    database:
      v.DATABASE_URL && v.DIRECTORY_DATABASE_URL
        ? {
            app: v.DATABASE_URL,
            directory: v.DIRECTORY_DATABASE_URL,
            worker: v.WORKER_DATABASE_URL,
            replica: v.REPLICA_DATABASE_URL,
          }
        : undefined,
    databaseFiles: new Map(
      settings.flatMap(({ name, text, source }) =>
        name.endsWith("DATABASE_URL") && text !== undefined && typeof source === "object"
          ? [[text, source.file] as const]
          : [],
      ),
    ),
    migrationUrl: v.MIGRATION_DATABASE_URL,
    poolSize: v.POOL_SIZE,
    pipeline: v.DATABASE_PIPELINE === "on",
    identity:
      jwks && v.JWT_ISSUER && v.JWT_AUDIENCE
        ? { jwks, issuer: v.JWT_ISSUER, audience: v.JWT_AUDIENCE, orgClaim: v.JWT_ORG_CLAIM }
        : undefined,
    tokenSecret: v.TOKEN_SECRET,
    purgeAfterDays: v.PURGE_AFTER_DAYS,
    auditRetentionDays: v.AUDIT_RETENTION_DAYS,
    operatorReason: v.OPERATOR_REASON,
    // A developer waits for the prompt.
    shutdownNoticeSeconds: v.ROSTER_DEV ? 0 : v.SHUTDOWN_NOTICE_SECONDS,
    dataDir: v.ROSTER_DATA_DIR,
    logLevel: v.LOG_LEVEL,
  };
};
