import { readFile, stat } from "node:fs/promises";
import type { Interceptor } from "@connectrpc/connect";
import {
  createLocalJWKSet,
  createRemoteJWKSet,
  errors,
  type JSONWebKeySet,
  type JWTVerifyGetKey,
  jwtVerify,
} from "jose";
import { z } from "zod";
import type { Caller } from "../context.ts";
import { keys } from "../context.ts";
import { fail } from "../errors.ts";

/** Where tokens are checked against. */
export interface Trust {
  readonly jwks: { readonly url: string } | { readonly file: string };
  readonly issuer: string;
  readonly audience: string;
  readonly orgClaim: string;
}

const skewSeconds = 60;
const cacheSize = 10_000;
const fileCheckMs = 1_000;
const remoteMaxAgeMs = 10 * 60_000;

interface Actor {
  readonly sub: string;
  readonly act?: Actor | undefined;
}
const actor: z.ZodType<Actor> = z.object({
  sub: z.string().min(1),
  act: z.lazy(() => actor).optional(),
});
const claims = z.object({
  sub: z.union([z.uuid(), z.string().regex(/^service:[\x21-\x7e]{1,128}$/)]),
  exp: z.number(),
  scope: z.string().optional(),
  act: actor.optional(),
});

const chainOf = (act: Actor | undefined): string[] => (act ? [act.sub, ...chainOf(act.act)] : []);

/**
 * Reads the caller out of a bearer token. Verifying a signature costs more than the rest of a read, so
 * callers are kept by token until it expires, and forgotten at once when the keys change.
 */
export class Verifier {
  private readonly trust: Trust;
  private readonly known = new Map<string, { caller: Caller; expiresMs: number }>();
  private readonly keySource: KeySource;

  constructor(trust: Trust) {
    this.trust = trust;
    const forget = (): void => this.known.clear();
    this.keySource =
      "url" in trust.jwks
        ? new RemoteKeys(trust.jwks.url, forget)
        : new FileKeys(trust.jwks.file, forget);
  }

  /** @throws ConnectError CREDENTIAL_INVALID, CREDENTIAL_EXPIRED */
  async callerOf(token: string): Promise<Caller> {
    const refreshing = this.keySource.refresh();
    if (refreshing) await refreshing;
    const found = this.known.get(token);
    if (found) {
      if (found.expiresMs > Date.now()) return found.caller;
      this.known.delete(token);
    }
    const verified = await this.verify(token);
    if (this.known.size >= cacheSize) this.known.delete(this.known.keys().next().value as string);
    this.known.set(token, verified);
    return verified.caller;
  }

  private async verify(token: string): Promise<{ caller: Caller; expiresMs: number }> {
    const { issuer, audience, orgClaim } = this.trust;
    try {
      const { payload } = await jwtVerify(token, this.keySource.key, {
        issuer,
        audience,
        algorithms: ["ES256", "RS256", "EdDSA"],
        clockTolerance: skewSeconds,
        requiredClaims: ["exp", "sub"],
      });
      const { sub, exp, scope, act } = claims.parse(payload);
      const service = sub.startsWith("service:");
      const permissions = scope?.split(" ").filter((permission) => permission !== "");
      const orgId = z.uuid().optional().parse(payload[orgClaim]);
      return {
        caller: {
          subject: service ? sub : sub.toLowerCase(),
          userId: service ? undefined : sub.toLowerCase(),
          onBehalfOf: chainOf(act),
          orgId: orgId?.toLowerCase(),
          scope: service ? (permissions ?? []) : permissions,
          platform: service && (permissions?.includes("roster.platform") ?? false),
        },
        expiresMs: (exp + skewSeconds) * 1000,
      };
    } catch (error) {
      if (error instanceof errors.JWTExpired) throw fail("CREDENTIAL_EXPIRED");
      if (error instanceof errors.JWKSTimeout || error instanceof KeysUnavailable) throw error;
      throw fail("CREDENTIAL_INVALID");
    }
  }
}

/** The signing keys cannot be read: an operator's fault, not the caller's. */
class KeysUnavailable extends Error {}

interface KeySource {
  readonly key: JWTVerifyGetKey;
  /** Looks for changed keys when it is time to; undefined when it is not. */
  refresh(): Promise<void> | undefined;
}

/** A JWKS file, read again when it changes. */
class FileKeys implements KeySource {
  private readonly file: string;
  private readonly forget: () => void;
  private checkedMs = 0;
  private version = "";
  private keys: JWTVerifyGetKey | undefined;

  constructor(file: string, forget: () => void) {
    this.file = file;
    this.forget = forget;
  }

  readonly key: JWTVerifyGetKey = (header, token) => {
    if (!this.keys) throw new KeysUnavailable("no signing keys");
    return this.keys(header, token);
  };

  refresh(): Promise<void> | undefined {
    const now = Date.now();
    if (this.keys && now - this.checkedMs < fileCheckMs) return undefined;
    this.checkedMs = now;
    return this.load();
  }

  private async load(): Promise<void> {
    const { mtimeMs, size, ino } = await stat(this.file);
    const version = `${mtimeMs} ${size} ${ino}`;
    if (version === this.version) return;
    const set = JSON.parse(await readFile(this.file, "utf8")) as JSONWebKeySet;
    this.keys = createLocalJWKSet(set);
    this.version = version;
    this.forget();
  }
}

/** A JWKS endpoint. jose fetches it when a key is unknown; a change of the set forgets all callers. */
class RemoteKeys implements KeySource {
  readonly key: ReturnType<typeof createRemoteJWKSet>;
  private readonly forget: () => void;
  private checkedMs = Date.now();
  private seen = "";

  constructor(url: string, forget: () => void) {
    this.key = createRemoteJWKSet(new URL(url), { cacheMaxAge: remoteMaxAgeMs });
    this.forget = forget;
  }

  refresh(): undefined {
    const now = Date.now();
    if (now - this.checkedMs < remoteMaxAgeMs) return;
    this.checkedMs = now;
    // Callers are served meanwhile; an endpoint that is away leaves the last keys in force.
    this.key.reload().then(
      () => this.compare(),
      () => {},
    );
  }

  private compare(): void {
    const now = JSON.stringify(this.key.jwks());
    if (now !== this.seen) this.forget();
    this.seen = now;
  }
}

/** Knows the caller by their bearer token; without one nothing further runs. */
export const identity =
  (verifier: Verifier): Interceptor =>
  (next) =>
  async (request) => {
    const header = request.header.get("authorization");
    if (header === null) throw fail("CREDENTIAL_MISSING");
    const token = /^Bearer ([^\s,]+)$/i.exec(header)?.[1];
    if (token === undefined) throw fail("CREDENTIAL_INVALID");
    request.contextValues.set(keys.caller, await verifier.callerOf(token));
    return next(request);
  };
