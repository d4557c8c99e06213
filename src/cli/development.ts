/** What development has that production must not: a key of its own and an embedded database. */

import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { exportJWK, generateKeyPair, importJWK, type JWK, SignJWT } from "jose";
import { type Embedded, startEmbedded } from "../database/embedded.ts";
import { type Provisioned, provision, urlsOf } from "../database/provision.ts";

/** What the tokens of development say. */
export const developmentClaims = {
  issuer: "roster-development",
  audience: "roster",
  orgClaim: "org",
} as const;
const database = "roster";

interface Secrets {
  readonly key: JWK;
  readonly tokenSecret: string;
}

/** Whose tokens a development server accepts: its own key's. */
export interface DevelopmentTrust {
  readonly trust: {
    readonly jwks: { readonly file: string };
    readonly issuer: string;
    readonly audience: string;
    readonly orgClaim: string;
  };
  readonly tokenSecret: string;
}

/** Reads the secrets under `dataDir`, made at the first call. */
const secretsOf = async (dataDir: string): Promise<Secrets> => {
  const file = join(dataDir, "secrets.json");
  try {
    return JSON.parse(readFileSync(file, "utf8")) as Secrets;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  const { privateKey } = await generateKeyPair("ES256", { extractable: true });
  const key = { ...(await exportJWK(privateKey)), kid: "development", alg: "ES256", use: "sig" };
  const secrets: Secrets = { key, tokenSecret: randomBytes(32).toString("hex") };
  mkdirSync(dataDir, { recursive: true });
  try {
    // Another process may be making them at the same moment; the first one's count.
    writeFileSync(file, JSON.stringify(secrets), { mode: 0o600, flag: "wx" });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
    return JSON.parse(readFileSync(file, "utf8")) as Secrets;
  }
  return secrets;
};

/** The trust of a development server, with the public key in a file beside the secrets. */
export const developmentTrust = async (dataDir: string): Promise<DevelopmentTrust> => {
  const { key, tokenSecret } = await secretsOf(dataDir);
  const { d: _private, ...publicKey } = key;
  const file = join(dataDir, "jwks.json");
  writeFileSync(file, JSON.stringify({ keys: [publicKey] }));
  return { trust: { jwks: { file }, ...developmentClaims }, tokenSecret };
};

/** What a development token says. */
export interface TokenClaims {
  /** A user id, or `service:NAME`. */
  readonly subject: string;
  readonly orgId?: string | undefined;
  readonly scope?: readonly string[] | undefined;
  /** How long it is good for, such as `1h`. */
  readonly ttl: string;
}

/** Signs a token that the development server of this `dataDir` accepts. */
export const signToken = async (
  dataDir: string,
  { subject, orgId, scope, ttl }: TokenClaims,
): Promise<string> => {
  const { key } = await secretsOf(dataDir);
  const claims = {
    ...(orgId === undefined ? {} : { org: orgId }),
    ...(scope === undefined || scope.length === 0 ? {} : { scope: scope.join(" ") }),
  };
  return new SignJWT(claims)
    .setProtectedHeader({ alg: "ES256", kid: "development" })
    .setSubject(subject)
    .setIssuer(developmentClaims.issuer)
    .setAudience(developmentClaims.audience)
    .setIssuedAt()
    .setExpirationTime(ttl)
    .sign(await importJWK(key, "ES256"));
};

/** Starts or joins the embedded PostgreSQL and brings its schema up to this version. */
export const startDevelopmentDatabase = async (
  dataDir: string,
  log: (line: string) => void,
): Promise<{ readonly embedded: Embedded; readonly urls: Provisioned }> => {
  const embedded = await startEmbedded({ dataDir: join(dataDir, "postgres"), log });
  try {
    return { embedded, urls: await provision(embedded.adminUrl, database) };
  } catch (error) {
    await embedded.stop();
    throw error;
  }
};

/** Starts or joins the embedded PostgreSQL as it is; undefined when none was ever made there. */
export const joinDevelopmentDatabase = async (dataDir: string, log: (line: string) => void) => {
  const folder = join(dataDir, "postgres");
  if (!existsSync(join(folder, "pgdata"))) return undefined;
  const embedded = await startEmbedded({ dataDir: folder, log });
  return { embedded, urls: urlsOf(embedded.adminUrl, database) };
};
