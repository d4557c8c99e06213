/** Certificates as a CA makes them, good and bad, written out in DER: no tool and no package is needed for it. */
import { generateKeyPairSync, type KeyObject, randomBytes, sign } from "node:crypto";

const der = (tag: number, ...parts: readonly Buffer[]): Buffer => {
  const body = Buffer.concat(parts);
  const { length } = body;
  const size =
    length < 128 ? [length] : length < 256 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...size]), body]);
};
const sequence = (...parts: readonly Buffer[]) => der(0x30, ...parts);
const octets = (...parts: readonly Buffer[]) => der(0x04, ...parts);
const integer = (bytes: Buffer) => der(0x02, bytes);
const yes = der(0x01, Buffer.from([0xff]));
const bits = (bytes: Buffer) => der(0x03, Buffer.from([0]), bytes);
const text = (tag: number, value: string) => der(tag, Buffer.from(value));
const oid = (hex: string) => der(0x06, Buffer.from(hex, "hex"));
/** GeneralizedTime is for years from 2050 on, UTCTime for those before. */
const time = (date: Date) =>
  text(
    0x17,
    `${date
      .toISOString()
      .replaceAll(/[-:T]|\.\d+/g, "")
      .slice(2)}`,
  );
const named = (name: string) => sequence(der(0x31, sequence(oid("550403"), text(0x0c, name))));
const ecdsaWithSha256 = sequence(oid("2a8648ce3d040302"));

/** Who signs. */
export interface Authority {
  readonly name: string;
  readonly key: KeyObject;
  /** PEM. */
  readonly certificate: string;
}

export interface CertificateOptions {
  readonly name?: string;
  readonly uris?: readonly string[];
  /** Milliseconds from now, at most until 2049. */
  readonly expiresMs?: number;
  /** Whether it may sign others. */
  readonly authority?: boolean;
}

/** PEM texts. */
export interface Certified {
  readonly certificate: string;
  readonly key: string;
}

const extension = (id: string, value: Buffer, ...critical: readonly Buffer[]) =>
  sequence(oid(id), ...critical, octets(value));

const pem = (bytes: Buffer): string =>
  `-----BEGIN CERTIFICATE-----\n${bytes
    .toString("base64")
    .match(/.{1,64}/g)
    ?.join("\n")}\n-----END CERTIFICATE-----\n`;

const hourMs = 3_600_000;

const signed = (
  { name, key }: Pick<Authority, "name" | "key">,
  publicKey: KeyObject,
  {
    name: subject = "somebody",
    uris = [],
    expiresMs = hourMs,
    authority = false,
  }: CertificateOptions,
): string => {
  const local = Buffer.from([127, 0, 0, 1]);
  const names = [der(0x87, local), ...uris.map((uri) => text(0x86, uri))];
  const extensions = [
    extension("551d13", sequence(...(authority ? [yes] : [])), yes),
    ...(authority && uris.length === 0 ? [] : [extension("551d11", sequence(...names))]),
  ];
  const content = sequence(
    der(0xa0, integer(Buffer.from([2]))),
    integer(Buffer.concat([Buffer.from([1]), randomBytes(8)])),
    ecdsaWithSha256,
    named(name),
    sequence(time(new Date(Date.now() - 24 * hourMs)), time(new Date(Date.now() + expiresMs))),
    named(subject),
    publicKey.export({ format: "der", type: "spki" }),
    der(0xa3, sequence(...extensions)),
  );
  return pem(sequence(content, ecdsaWithSha256, bits(sign("sha256", content, key))));
};

export const makeAuthority = (name: string): Authority => {
  const { privateKey: key, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const certificate = signed({ name, key }, publicKey, { name, authority: true });
  return { name, key, certificate };
};

/** A certificate for 127.0.0.1 and, where they are given, URIs. */
export const certify = (by: Authority, options: CertificateOptions = {}): Certified => {
  const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  const key = privateKey.export({ format: "pem", type: "pkcs8" }).toString();
  return { certificate: signed(by, publicKey, options), key };
};
