import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, describe, expect, onTestFinished, test } from "vitest";
import { type Trust, Verifier } from "../src/interceptors/identity.ts";
import { audience, callersOf, issuer, refusal, startHarness } from "./harness.ts";
import { type Key, keyOf, now, setOf, signedBy } from "./tokens.ts";

const folder = mkdtempSync(join(tmpdir(), "roster-keys-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** A server that trusts the given keys; `answer` tells what becomes of a token: OK or a reason. */
const serverTrusting = async (jwks: Trust["jwks"]) => {
  const own = await startHarness({ trust: { jwks, issuer, audience, orgClaim: "org" } });
  onTestFinished(() => own.stop());
  const answer = async (credential: string): Promise<string> => {
    try {
      await callersOf(own.baseUrl, credential).users.getCaller({});
      return "OK";
    } catch (error) {
      return (await refusal(Promise.reject(error))).reason;
    }
  };
  return { answer };
};

/** A file that holds the public keys. */
const fileOf = (name: string, ...keys: readonly Key[]): string => {
  const file = join(folder, name);
  writeFileSync(file, setOf(...keys));
  return file;
};

describe("a verified token", () => {
  test("is kept", async () => {
    const key = await keyOf("one");
    const jwks = { file: fileOf("kept.json", key) };
    const verifier = new Verifier({ jwks, issuer, audience, orgClaim: "org" });
    const kept = `Bearer ${await signedBy(key)}`;
    expect(await verifier.callerOf(kept)).toBe(await verifier.callerOf(kept));
  });

  test("expires on time all the same", async () => {
    const key = await keyOf("one");
    const { answer } = await serverTrusting({ file: fileOf("expires.json", key) });
    const end = now() + 2;
    const soon = await signedBy(key, { exp: end - 60 });
    expect(await answer(soon)).toBe("OK");
    await expect.poll(() => answer(soon), { timeout: 5_000 }).toBe("CREDENTIAL_EXPIRED");
    expect(now() - end).toBeLessThanOrEqual(2);
    expect(now() - end).toBeGreaterThanOrEqual(0);
  });
});

describe("signing keys in a file", () => {
  test("are replaced while the server runs: old tokens are refused, new ones accepted", async () => {
    const [old, next] = [await keyOf("old"), await keyOf("next")];
    const file = fileOf("jwks.json", old);
    const { answer } = await serverTrusting({ file });
    const [byOld, byNext] = [await signedBy(old), await signedBy(next)];
    expect([await answer(byOld), await answer(byNext)]).toEqual(["OK", "CREDENTIAL_INVALID"]);
    renameSync(fileOf("new.json", next), file);
    await expect
      .poll(() => answer(byOld), { timeout: 2_500, interval: 50 })
      .toBe("CREDENTIAL_INVALID");
    expect(await answer(byNext)).toBe("OK");
  });

  test("stay in force while the file is half written", async () => {
    const key = await keyOf("one");
    const file = fileOf("torn.json", key);
    const { answer } = await serverTrusting({ file });
    const good = await signedBy(key);
    expect(await answer(good)).toBe("OK");
    writeFileSync(file, setOf(key).slice(0, 40));
    // Longer than the second after which the file is looked at again.
    for (const end = Date.now() + 1_300; Date.now() < end; ) expect(await answer(good)).toBe("OK");
  });

  test("may be of RSA and Edwards curves as well", async () => {
    const keys = await Promise.all(
      ["ES256", "RS256", "EdDSA"].map((alg) => keyOf(alg.toLowerCase(), alg)),
    );
    const refusedKey = await keyOf("es384", "ES384");
    const { answer } = await serverTrusting({ file: fileOf("kinds.json", ...keys, refusedKey) });
    for (const key of keys) expect(await answer(await signedBy(key)), key.alg).toBe("OK");
    expect(await answer(await signedBy(refusedKey))).toBe("CREDENTIAL_INVALID");
  });
});

describe("signing keys by URL", () => {
  /** An issuer that publishes `body`, and nothing while it is undefined. */
  const startIssuer = async () => {
    const published: { body: string | undefined; asked: number } = { body: undefined, asked: 0 };
    const server = createServer((_request, response) => {
      published.asked++;
      response.writeHead(published.body === undefined ? 503 : 200).end(published.body);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    onTestFinished(() => void server.close());
    const { port } = server.address() as AddressInfo;
    return { published, url: `http://127.0.0.1:${port}/jwks.json` };
  };

  test("are fetched again for a key that is unknown; a key that is gone is void then", async () => {
    const [old, next] = [await keyOf("old"), await keyOf("next")];
    const { published, url } = await startIssuer();
    published.body = setOf(old);
    const { answer } = await serverTrusting({ url });
    const [byOld, byNext] = [await signedBy(old), await signedBy(next)];
    expect([await answer(byOld), await answer(byNext)]).toEqual(["OK", "CREDENTIAL_INVALID"]);
    published.body = setOf(next);
    await expect.poll(() => answer(byNext), { timeout: 5_000 }).toBe("OK");
    expect(await answer(byOld)).toBe("CREDENTIAL_INVALID");
  });

  test("are not fetched for each key id that somebody makes up", async () => {
    const key = await keyOf("one");
    const { published, url } = await startIssuer();
    published.body = setOf(key);
    const { answer } = await serverTrusting({ url });
    const other = await keyOf("two");
    const answers = await Promise.all(
      Array.from({ length: 30 }, async (_, index) =>
        answer(await signedBy({ ...other, kid: `made up ${index}` })),
      ),
    );
    expect(new Set(answers)).toEqual(new Set(["CREDENTIAL_INVALID"]));
    expect(published.asked).toBeLessThanOrEqual(2);
  });

  test("INTERNAL while they were never had, which says nothing of the token; later all is well", async () => {
    const key = await keyOf("one");
    const { published, url } = await startIssuer();
    const { answer } = await serverTrusting({ url });
    const good = await signedBy(key);
    expect(await answer(good)).toBe("INTERNAL");
    published.body = setOf(key);
    expect(await answer(good)).toBe("OK");
    published.body = undefined;
    expect(await answer(await signedBy(key, { jti: "another" }))).toBe("OK");
  });
});
