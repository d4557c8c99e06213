import { readFile, stat } from "node:fs/promises";
import type { Interceptor } from "@connectrpc/connect";
import { context, propagation } from "@opentelemetry/api";
import {
  createLocalJWKSet,
  createRemoteJWKSet,
  customFetch,
  errors,
  type FetchImplementation,
  type JSONWebKeySet,
  type JWTVerifyGetKey,
  jwtVerify,
} from "jose";
import { z } from "zod";
import type { Caller, Peer } from "../context.ts";
import { keys } from "../context.ts";
import { fail } from "../errors.ts";
import { type Allowed, spiffeId } from "../spiffe.ts";

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
/** An unknown key is looked for at most this often, so that invented key ids cannot flood the issuer. */
const remoteCooldownMs = 2_000;

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

/** A token that names no key of the set, or none that could sign it. */
const keyFaultsOfTokens = [
  errors.JWKSNoMatchingKey,
  errors.JWKSMultipleMatchingKeys,
  errors.JOSENotSupported,
];

/** The SPIFFE ids that may call, as their file says now. */
interface AllowedNow {
  readonly current: ReadonlyMap<string, Allowed>;
}

/**
 * Reads the caller out of a bearer token, a client certificate or both. Verifying a signature costs more than the
 * rest of a read, so callers are kept by token until it expires, and forgotten at once when the keys change.
 */
export class Verifier {
  private readonly trust: Trust;
  private readonly allowed: AllowedNow | undefined;
  private known = new Map<string, Caller>();
  private readonly keySource: KeySource;

  /** @param allowed undefined: client certificates make no callers */
  constructor(trust: Trust, allowed?: AllowedNow | undefined) {
    this.trust = trust;
    this.allowed = allowed;
    const forget = (): void => {
      this.known = new Map();
    };
    this.keySource =
      "url" in trust.jwks
        ? new RemoteKeys(trust.jwks.url, forget)
        : new FileKeys(trust.jwks.file, forget);
  }

  /**
   * A certificate must be on the list, with a token as without. With both the token says who calls and what they
   * may; the certificate's service acts for them, and only in the orgs that both may select.
   *
   * @param authorization the metadata of this name
   * @throws ConnectError CREDENTIAL_MISSING, CREDENTIAL_INVALID, CREDENTIAL_EXPIRED, CERTIFICATE_INVALID,
   *   CERTIFICATE_UNKNOWN, ORG_NOT_ALLOWED
   */
  callerOf(authorization: string | null, peer?: Peer | undefined): Caller | Promise<Caller> {
    if (peer === undefined || this.allowed === undefined) return this.bearerOf(authorization);
    const service = serviceOf(peer, this.allowed.current);
    if (authorization === null) return service;
    const bearer = this.bearerOf(authorization);
    return bearer instanceof Promise
      ? bearer.then((caller) => through(service, caller))
      : through(service, bearer);
  }

  private bearerOf(authorization: string | null): Caller | Promise<Caller> {
    if (authorization === null) throw fail("CREDENTIAL_MISSING");
    const refreshing = this.keySource.refresh();
    const found = refreshing ? undefined : this.known.get(authorization);
    return found && found.expiresMs > Date.now() ? found : this.learn(authorization, refreshing);
  }

  private async learn(
    authorization: string,
    refreshing: Promise<void> | undefined,
  ): Promise<Caller> {
    const token = /^Bearer ([^\s,]+)$/i.exec(authorization)?.[1];
    if (token === undefined) throw fail("CREDENTIAL_INVALID");
    if (refreshing) await refreshing;
    // Kept by hand: what is verified while the keys change goes into the map that was given up.
    const { known } = this;
    const found = known.get(authorization);
    if (found) {
      if (found.expiresMs > Date.now()) return found;
      known.delete(authorization);
    }
    const verified = await this.verify(token);
    if (known.size >= cacheSize) known.delete(known.keys().next().value as string);
    known.set(authorization, verified);
    return verified;
  }

  /** What goes wrong with the keys and not with the token must not read as a bad token. */
  private readonly key: JWTVerifyGetKey = async (header, token) => {
    try {
      return await this.keySource.key(header, token);
    } catch (error) {
      throw keyFaultsOfTokens.some((kind) => error instanceof kind)
        ? error
        : new KeysUnavailable(error);
    }
  };

  private async verify(token: string): Promise<Caller> {
    const { issuer, audience, orgClaim } = this.trust;
    try {
      const { payload } = await jwtVerify(token, this.key, {
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
        subject: service ? sub : sub.toLowerCase(),
        userId: service ? undefined : sub.toLowerCase(),
        onBehalfOf: chainOf(act),
        orgId: orgId?.toLowerCase(),
        scope: service ? (permissions ?? []) : permissions,
        platform: service && (permissions?.includes("roster.platform") ?? false),
        expiresMs: (exp + skewSeconds) * 1000,
      };
    } catch (error) {
      if (error instanceof errors.JWTExpired) throw fail("CREDENTIAL_EXPIRED");
      if (error instanceof KeysUnavailable) throw error;
      throw fail("CREDENTIAL_INVALID");
    }
  }
}

/** The service that a client certificate names. */
const serviceOf = (
  { uris, authority, expiresMs }: Peer,
  allowed: ReadonlyMap<string, Allowed>,
): Caller => {
  const [id, another] = uris;
  if (id === undefined || another !== undefined || authority || !spiffeId.test(id))
    throw fail("CERTIFICATE_INVALID");
  // The connection may be older than that.
  if (!(expiresMs > Date.now())) throw fail("CREDENTIAL_EXPIRED");
  const found = allowed.get(id);
  if (!found) throw fail("CERTIFICATE_UNKNOWN");
  const { scope, orgs } = found;
  const only = orgs?.size === 1 ? [...orgs][0] : undefined;
  return {
    subject: `service:${id}`,
    userId: undefined,
    onBehalfOf: [],
    orgId: only,
    orgs: only === undefined ? orgs : undefined,
    scope,
    platform: scope.includes("roster.platform"),
    expiresMs,
  };
};

/** The token's caller, for whom a service acts. */
const through = (service: Caller, caller: Caller): Caller => {
  const may = (orgId: string): boolean =>
    service.orgs?.has(orgId) ?? (service.orgId ?? orgId) === orgId;
  if (caller.orgId !== undefined && !may(caller.orgId)) throw fail("ORG_NOT_ALLOWED");
  return {
    ...caller,
    onBehalfOf: [service.subject, ...caller.onBehalfOf],
    orgId: caller.orgId ?? service.orgId,
    orgs: caller.orgId === undefined ? service.orgs : undefined,
    expiresMs: Math.min(caller.expiresMs, service.expiresMs),
  };
};

/** The signing keys cannot be read: an operator's fault, not the caller's. */
class KeysUnavailable extends Error {
  constructor(cause: unknown) {
    super(`the signing keys cannot be read: ${cause instanceof Error ? cause.message : cause}`);
  }
}

interface KeySource {
  readonly key: JWTVerifyGetKey;
  /** Looks for changed keys when it is time to; undefined when it is not. */
  refresh(): Promise<void> | undefined;
}

/** A JWKS file, read again when it changes. While it cannot be read the last keys stay in force. */
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
    if (!this.keys) throw new Error("none were read");
    return this.keys(header, token);
  };

  refresh(): Promise<void> | undefined {
    const now = Date.now();
    if (this.keys && now - this.checkedMs < fileCheckMs) return undefined;
    this.checkedMs = now;
    return this.load();
  }

  private async load(): Promise<void> {
    try {
      const { mtimeMs, size, ino } = await stat(this.file);
      const version = `${mtimeMs} ${size} ${ino}`;
      if (version === this.version) return;
      const set = JSON.parse(await readFile(this.file, "utf8")) as JSONWebKeySet;
      this.keys = createLocalJWKSet(set);
      this.version = version;
      this.forget();
    } catch (error) {
      // Somebody may be writing it; it is read again a second later.
      if (!this.keys) throw new KeysUnavailable(error);
    }
  }
}

/** Tells the endpoint which trace asks it, where somebody traces. */
const fetchInTrace: FetchImplementation = (url, options) => {
  propagation.inject(context.active(), options.headers, {
    set: (headers, name, value) => headers.set(name, value),
  });
  return fetch(url, options);
};

/** A JWKS endpoint, asked again when a key is unknown and from time to time. */
class RemoteKeys implements KeySource {
  private readonly remote: ReturnType<typeof createRemoteJWKSet>;
  private readonly forget: () => void;
  private checkedMs = Date.now();
  private seen: string | undefined;

  constructor(url: string, forget: () => void) {
    this.remote = createRemoteJWKSet(new URL(url), {
      cacheMaxAge: remoteMaxAgeMs,
      cooldownDuration: remoteCooldownMs,
      [customFetch]: fetchInTrace,
    });
    this.forget = forget;
  }

  readonly key: JWTVerifyGetKey = async (header, token) => {
    try {
      return await this.remote(header, token);
    } finally {
      this.compare();
    }
  };

  refresh(): undefined {
    const now = Date.now();
    if (now - this.checkedMs < remoteMaxAgeMs) return;
    this.checkedMs = now;
    // Callers are served meanwhile; an endpoint that is away leaves the last keys in force.
    this.remote.reload().then(
      () => this.compare(),
      () => {},
    );
  }

  private compare(): void {
    const now = JSON.stringify(this.remote.jwks());
    if (now !== this.seen) this.forget();
    this.seen = now;
  }
}

/** Knows the caller by their bearer token or client certificate; without either nothing further runs. */
export const identity =
  (verifier: Verifier): Interceptor =>
  (next) =>
  (request) => {
    const proceed = (caller: Caller) => {
      request.contextValues.set(keys.caller, caller);
      return next(request);
    };
    const peer = request.contextValues.get(keys.peer);
    const caller = verifier.callerOf(request.header.get("authorization"), peer);
    return caller instanceof Promise ? caller.then(proceed) : proceed(caller);
  };

/** Lets operators alone use what is served outside the corridor. */
export const operatorsOnly =
  (verifier: Verifier) =>
  async (authorization: string | null, peer: Peer | undefined): Promise<void> => {
    const { platform } = await verifier.callerOf(authorization, peer);
    if (!platform) throw fail("PERMISSION_MISSING", { permission: "roster.platform" });
  };
