/** TLS, and callers by client certificate. */
import { type Guard, inSource } from "./guard.ts";

const inIdentity = inSource("src/interceptors/identity.ts");
const inAccess = inSource("src/interceptors/access.ts");
const others = "UNAUTHENTICATED for everyone else";

export const certificates: readonly Guard[] = [
  inIdentity("one URI alone", "another !== undefined || ", "", "mtls", others),
  inIdentity("no CA is a caller", " || authority ||", " ||", "mtls", others),
  inIdentity("a SPIFFE id", " || !spiffeId.test(id)", "", "mtls", others),
  inIdentity(
    "an id of the list, also with a token",
    "const service = serviceOf(peer, this.allowed.current);\n    if (authorization === null)",
    "if (authorization !== null) return this.bearerOf(authorization);\n" +
      "    const service = serviceOf(peer, this.allowed.current);\n    if (authorization === null)",
    "mtls",
    others,
  ),
  inIdentity(
    "a pinned token's org is the certificate's",
    "if (caller.orgId !== undefined && !may(caller.orgId))",
    "if (false)",
    "mtls",
    "beside a token",
  ),
  inIdentity(
    "a token is narrowed to the certificate's org",
    "caller.orgId ?? service.orgId",
    "caller.orgId",
    "mtls",
    "beside a token",
  ),
  inIdentity(
    "the service is on record",
    "[service.subject, ...caller.onBehalfOf]",
    "caller.onBehalfOf",
    "mtls",
    "beside a token",
  ),
  inAccess(
    "an org of several",
    "orgId !== undefined && !caller.orgs.has(orgId)",
    "false",
    "mtls",
    "several orgs",
  ),
  inAccess(
    "nothing outside several orgs",
    "orgId === undefined && rule.scope !== Scope.NONE",
    "false",
    "mtls",
    "several orgs",
  ),
  inAccess(
    "pinned to the one of several that is selected",
    "caller = { ...caller, orgId, orgs: undefined };",
    "caller = { ...caller, orgs: undefined };",
    "mtls",
    "several orgs",
  ),
  inSource("src/transport/http.ts")(
    "HTTP: a CA vouches for the certificate",
    "&& socket.authorized)",
    ")",
    "mtls",
    others,
  ),
  inSource("src/database/passwords.ts")(
    "no user of a file that was not looked at",
    "then.password = now.password;",
    "if (then) return now.href;",
    "passwords",
    "is all that is taken",
  ),
  inSource("src/transport/certificates.ts")(
    "no TLS before 1.2",
    'minVersion: "TLSv1.2"',
    'minVersion: "TLSv1", ciphers: "ALL@SECLEVEL=0"',
    "tls",
    "over nothing else",
  ),
  inSource("src/config.ts")(
    "cleartext on loopback alone",
    "!(v.ROSTER_DEV || v.ALLOW_CLEARTEXT || encrypted)",
    "false",
    "config",
    "only where cleartext is allowed",
  ),
];
