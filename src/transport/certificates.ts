/** TLS of both ports: what the files hold, and what a client's certificate says. */
import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import tls, { type PeerCertificate, type SecureContextOptions } from "node:tls";
import grpc from "@grpc/grpc-js";
import type { Peer } from "../context.ts";

/** PEM files. */
export interface TlsFiles {
  /** The server's certificate, with those between it and the root. */
  readonly certificate: string;
  readonly key: string;
  /** The CAs of clients; undefined: clients are not asked for a certificate. */
  readonly clientCa: string | undefined;
}

/** What the files hold now, and who wants to hear when that changes. */
export interface Certificates {
  readonly current: SecureContextOptions;
  onChange(listener: (context: SecureContextOptions) => void): void;
}

const certificatesIn = (file: string): X509Certificate[] => {
  const found = readFileSync(file, "utf8").match(
    /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g,
  );
  if (!found) throw new Error("holds no certificate in PEM form");
  return found.map((pem) => new X509Certificate(pem));
};

const inFile = <T>(file: string, work: () => T): T => {
  try {
    return work();
  } catch (error) {
    throw new Error(`${file}: ${(error as Error).message}`, { cause: error });
  }
};

/** Reads what a port needs. @throws Error that names the file that will not do */
export const readCertificates = ({
  certificate,
  key,
  clientCa,
}: TlsFiles): SecureContextOptions => {
  const [own] = inFile(certificate, () => certificatesIn(certificate));
  if (own && own.validToDate.getTime() <= Date.now())
    throw new Error(`${certificate}: expired on ${own.validTo}`);
  if (clientCa !== undefined) inFile(clientCa, () => certificatesIn(clientCa));
  const context: SecureContextOptions = {
    cert: readFileSync(certificate),
    key: inFile(key, () => readFileSync(key)),
    ...(clientCa === undefined ? {} : { ca: readFileSync(clientCa) }),
    minVersion: "TLSv1.2",
  };
  inFile(key, () => tls.createSecureContext(context));
  return context;
};

/** How long a client may take to agree on encryption. */
const handshakeTimeout = 10_000;

/** How both ports ask for certificates: who has none may still bring a token. */
export const askingFor = ({ current: { ca } }: Certificates) => ({
  requestCert: ca !== undefined,
  rejectUnauthorized: false,
  handshakeTimeout,
});

/** The same for grpc-js, which hears of new files through its own kind of credentials. */
export class RenewedCredentials extends grpc.ServerCredentials {
  constructor(certificates: Certificates) {
    super(askingFor(certificates), certificates.current);
    certificates.onChange((context) => this.updateSecureContextOptions(context));
  }

  _equals(other: grpc.ServerCredentials): boolean {
    return other === this;
  }
}

/** What a client's certificate says, once a CA of clients is known to have signed it. */
export const peerOf = ({ subjectaltname = "", valid_to, ca }: PeerCertificate): Peer => ({
  // Node puts what holds a comma into quotes.
  uris: subjectaltname
    .split(", ")
    .filter((name) => name.startsWith("URI:"))
    .map((name) => name.slice("URI:".length)),
  authority: ca === true,
  expiresMs: Date.parse(valid_to),
});
