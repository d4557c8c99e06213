/** Keys and tokens as an issuer makes them, good and bad. */
import { type CryptoKey, exportJWK, generateKeyPair, importJWK, type JWK, SignJWT } from "jose";
import { inject } from "vitest";
import { audience, issuer } from "./harness.ts";

/** A signing key and what an issuer publishes of it. */
export interface Key {
  readonly kid: string;
  readonly alg: string;
  readonly privateKey: CryptoKey;
  readonly publicKey: JWK;
}

export const keyOf = async (kid: string, alg = "ES256"): Promise<Key> => {
  const pair = await generateKeyPair(alg, { extractable: true });
  const publicKey = { ...(await exportJWK(pair.publicKey)), kid, alg };
  return { kid, alg, privateKey: pair.privateKey, publicKey };
};

/** A JWK set as a file or an endpoint holds it. */
export const setOf = (...keys: readonly Key[]): string =>
  JSON.stringify({ keys: keys.map(({ publicKey }) => publicKey) });

/** Seconds, as tokens count. */
export const now = (): number => Math.floor(Date.now() / 1000);

/** What a good token says: a service, which needs no row to be known. A claim that is undefined is left out. */
export const claimsOf = (claims: object = {}) => ({
  sub: "service:some",
  iss: issuer,
  aud: audience,
  exp: now() + 600,
  ...claims,
});

export const signedBy = (
  key: Pick<Key, "kid" | "alg" | "privateKey">,
  claims?: object,
): Promise<string> =>
  new SignJWT(claimsOf(claims))
    .setProtectedHeader({ alg: key.alg, kid: key.kid })
    .sign(key.privateKey);

/** A token of the key that the run's servers trust. */
export const token = async (claims?: object): Promise<string> => {
  const privateKey = (await importJWK(inject("signingKey"), "ES256")) as CryptoKey;
  return signedBy({ kid: "test", alg: "ES256", privateKey }, claims);
};
