/** Whether the keys that a deployment trusts are there, as the server would read them. */
import { readFile } from "node:fs/promises";
import { createRemoteJWKSet, importJWK, type JSONWebKeySet, type JWK } from "jose";
import type { IdentityConfig } from "../config.ts";
import type { Finding } from "../database/check.ts";

/** The algorithm by which a key could sign a token that the server accepts. */
const algorithmOf = ({ kty, crv }: JWK): string | undefined =>
  kty === "RSA"
    ? "RS256"
    : kty === "EC" && crv === "P-256"
      ? "ES256"
      : kty === "OKP" && crv === "Ed25519"
        ? "EdDSA"
        : undefined;

const isUsable = async (key: JWK): Promise<boolean> => {
  const algorithm = algorithmOf(key);
  if (algorithm === undefined || key.use === "enc" || (key.alg ?? algorithm) !== algorithm)
    return false;
  try {
    const imported = await importJWK(key, algorithm);
    return !(imported instanceof Uint8Array) && imported.type === "public";
  } catch {
    return false;
  }
};

const read = async (jwks: IdentityConfig["jwks"]): Promise<JSONWebKeySet> => {
  if ("file" in jwks) return JSON.parse(await readFile(jwks.file, "utf8"));
  const remote = createRemoteJWKSet(new URL(jwks.url));
  await remote.reload();
  return remote.jwks() ?? { keys: [] };
};

/** Reads the keys once and tells how many could verify a token. */
export const examineKeys = async (jwks: IdentityConfig["jwks"]): Promise<Finding> => {
  const from = "file" in jwks ? jwks.file : new URL(jwks.url).host;
  let keys: JWK[];
  try {
    ({ keys } = await read(jwks));
  } catch (error) {
    const { message, cause } = error as Error;
    const why = cause instanceof Error ? `${message}: ${cause.message}` : message;
    const remedy =
      "file" in jwks
        ? "let JWKS_FILE name a file that this user may read and that holds a JSON Web Key Set"
        : "see that this machine reaches the issuer and that it answers with a JSON Web Key Set";
    return { level: "problem", text: `the keys cannot be read from ${from} (${why})`, remedy };
  }
  const usable = (await Promise.all(keys.map(isUsable))).filter(Boolean).length;
  if (usable > 0)
    return { level: "ok", text: `${from} has ${usable} of ${keys.length} keys usable` };
  return {
    level: "problem",
    text: `none of the ${keys.length} keys of ${from} can verify a token`,
    remedy: "publish a public key for signatures: RSA (RS256), EC P-256 (ES256) or Ed25519 (EdDSA)",
  };
};
