/**
 * Every RPC at both ports with every credential that makes no caller. What a good one may not, of another org or
 * without the permission, every-rpc.test.ts and access-table.test.ts judge for every RPC.
 */
import type { Message } from "@bufbuild/protobuf";
import { type JWTPayload, SignJWT, UnsecuredJWT } from "jose";
import { beforeAll, describe, expect, inject, test } from "vitest";
import { ports, startEncrypted } from "./encrypted.ts";
import { type Callers, callersOf, refusal, tokenFor, useHarness } from "./harness.ts";
import { makeWorld } from "./samples/world.ts";
import { contentsOf, methods, requestOf, send, ways } from "./samples.ts";
import { claimsOf, keyOf, now, signedBy } from "./tokens.ts";

const harness = useHarness();
const firsts = ways.filter(({ name }) => methods.has(name));

let uninvited: readonly (readonly [what: string, callers: Callers, reason: string])[];
const requests = new Map<string, Message>();
let before: unknown;

/** A token that takes the published key for a shared secret. */
const byPublicKey = (claims: JWTPayload): Promise<string> => {
  const { d: _private, ...publicKey } = inject("signingKey");
  return new SignJWT(claims)
    .setProtectedHeader({ alg: "HS256", kid: "test" })
    .sign(new TextEncoder().encode(JSON.stringify(publicKey)));
};

beforeAll(async () => {
  const { baseUrl, server, ops } = harness.current;
  const world = await makeWorld(harness.current);
  // An operator's, for whom nothing else would be refused.
  const claims = claimsOf({ sub: "service:ops", scope: "roster.platform" });
  const made = (options: Parameters<typeof tokenFor>[1]) =>
    tokenFor("service:ops", { scope: "roster.platform", ...options });
  const tokens = {
    nothing: ["", "CREDENTIAL_MISSING"],
    garbage: ["garbage", "CREDENTIAL_INVALID"],
    "another signature": [`${ops.token.slice(0, -4)}AAAA`, "CREDENTIAL_INVALID"],
    "another audience": [await made({ claims: { aud: "elsewhere" } }), "CREDENTIAL_INVALID"],
    "another issuer": [await made({ claims: { iss: "elsewhere" } }), "CREDENTIAL_INVALID"],
    "another key": [await signedBy(await keyOf("test"), claims), "CREDENTIAL_INVALID"],
    "another algorithm": [
      await signedBy(await keyOf("test", "ES384"), claims),
      "CREDENTIAL_INVALID",
    ],
    "the public key as a secret": [await byPublicKey(claims), "CREDENTIAL_INVALID"],
    "no algorithm": [new UnsecuredJWT(claims).encode(), "CREDENTIAL_INVALID"],
    expired: [await made({ expires: now() - 90 }), "CREDENTIAL_EXPIRED"],
  } as const;
  uninvited = [baseUrl, `http://127.0.0.1:${server.httpPort}`].flatMap((url) =>
    Object.entries(tokens).map(
      ([what, [token, reason]]) => [`${what} at ${url}`, callersOf(url, token), reason] as const,
    ),
  );
  for (const way of firsts) requests.set(way.name, await requestOf(way, world));
  before = await contentsOf(harness.current);
});

describe("UNAUTHENTICATED", () => {
  test.each(firsts.map((way) => [way.name, way] as const))(
    "without a valid token: %s",
    async (name, { method }) => {
      const request = requests.get(name) as Message;
      const judge = async ([what, callers, expected]: (typeof uninvited)[number]) => {
        const { code, reason } = await refusal(send(callers, method, request));
        expect({ what, code, reason }).toEqual({ what, code: "Unauthenticated", reason: expected });
      };
      await Promise.all(uninvited.map(judge));
    },
  );

  test("with a certificate that is not on the list, beside an operator's token too: every RPC", async () => {
    const encrypted = await startEncrypted(harness.current);
    const shown = encrypted.service("spiffe://example.org/stranger");
    const transports = ports.flatMap((port) =>
      [{}, { token: harness.current.ops.token }].map((more) =>
        encrypted.transport(port, { ...shown, ...more }),
      ),
    );
    for (const { name, method } of firsts) {
      const request = requests.get(name) as Message;
      const answers = transports.map((transport) => refusal(send({ transport }, method, request)));
      for (const { code, reason } of await Promise.all(answers))
        expect({ name, code, reason }).toEqual({
          name,
          code: "Unauthenticated",
          reason: "CERTIFICATE_UNKNOWN",
        });
    }
  });

  test("means that nothing was done, nor put on record", async () => {
    expect(await contentsOf(harness.current)).toEqual(before);
  });
});
