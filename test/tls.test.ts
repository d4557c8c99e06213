/** TLS on both ports: what is spoken, and certificates that are replaced while the server runs. */
import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import http2 from "node:http2";
import https from "node:https";
import tls from "node:tls";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { describe, expect, onTestFinished, test } from "vitest";
import { UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { certify, makeAuthority } from "./certificates.ts";
import { type Encrypted, type Port, ports, startEncrypted } from "./encrypted.ts";
import { callersOf, refusal, useHarness } from "./harness.ts";

const data = useHarness();

/** What a plain TLS client gets to see. */
const handshake = async (
  encrypted: Encrypted,
  port: Port,
  options: tls.ConnectionOptions = {},
): Promise<{
  readonly protocol: string | null;
  readonly serial: string;
  readonly alpn: unknown;
}> => {
  const socket = tls.connect({
    host: "127.0.0.1",
    port: encrypted.portOf(port),
    ca: encrypted.root.certificate,
    ...options,
  });
  onTestFinished(() => void socket.destroy());
  await once(socket, "secureConnect");
  const serial = socket.getPeerCertificate().serialNumber;
  const seen = { protocol: socket.getProtocol(), serial, alpn: socket.alpnProtocol };
  socket.destroy();
  return seen;
};

describe.each(ports)("the %s port", (port) => {
  test("answers over TLS 1.2 and newer, and over nothing else", async () => {
    const encrypted = await startEncrypted(data.current);
    const { users } = encrypted.as(port, { token: data.current.ops.token });
    expect((await users.getCaller({})).subject).toBe("service:ops");
    expect((await handshake(encrypted, port)).protocol).toBe("TLSv1.3");
    expect((await handshake(encrypted, port, { maxVersion: "TLSv1.2" })).protocol).toBe("TLSv1.2");
    const old = { minVersion: "TLSv1", maxVersion: "TLSv1.1", ciphers: "ALL@SECLEVEL=0" } as const;
    await expect(handshake(encrypted, port, old)).rejects.toThrow(/protocol version/);
    const cleartext = callersOf(`http://127.0.0.1:${encrypted.portOf(port)}`, "");
    expect((await refusal(cleartext.users.getCaller({}))).reason).toBe("");
  });
});

test("both ports show new certificates without a restart, and keep the last that would do", async () => {
  const encrypted = await startEncrypted(data.current);
  const { users } = encrypted.as("gRPC", { token: data.current.ops.token });
  await users.getCaller({});
  const shown = async (): Promise<string> => {
    const serials = await Promise.all(
      ports.map(async (port) => (await handshake(encrypted, port)).serial),
    );
    return serials[0] === serials[1] ? String(serials[0]) : "different";
  };
  const first = await shown();
  const next = certify(encrypted.root);
  encrypted.write("server.pem", next.certificate);
  await expect.poll(() => encrypted.complaints()).toHaveLength(1);
  expect(encrypted.complaints()[0]).toMatch(/server\.key: .*mismatch.*stays in force/);
  expect(await shown()).toBe(first);

  encrypted.write("server.key", next.key);
  await expect.poll(shown).toBe(new X509Certificate(next.certificate).serialNumber);
  const second = await shown();
  for (const [broken, complaint] of [
    ["-----BEGIN CERTIFICATE-----", /server\.pem: holds no certificate/],
    [certify(encrypted.root, { expiresMs: -1_000 }).certificate, /server\.pem: expired on/],
  ] as const) {
    encrypted.write("server.pem", broken);
    await expect.poll(() => encrypted.complaints().at(-1)).toMatch(complaint);
    expect(await shown()).toBe(second);
  }
  // The connection that was there before all of this.
  expect((await users.getCaller({})).subject).toBe("service:ops");
});

describe("the HTTP port", () => {
  test("speaks HTTP/2 and HTTP/1.1, as the client chooses by ALPN", async () => {
    const encrypted = await startEncrypted(data.current);
    const alpn = (ALPNProtocols: string[]) => handshake(encrypted, "HTTP", { ALPNProtocols });
    expect((await alpn(["h2", "http/1.1"])).alpn).toBe("h2");
    expect((await alpn(["http/1.1"])).alpn).toBe("http/1.1");
    const ca = encrypted.root.certificate;
    const baseUrl = `https://127.0.0.1:${encrypted.portOf("HTTP")}`;
    const transport = createConnectTransport({ baseUrl, httpVersion: "2", nodeOptions: { ca } });
    const headers = { authorization: `Bearer ${data.current.ops.token}` };
    const { subject } = await createClient(UserService, transport).getCaller({}, { headers });
    expect(subject).toBe("service:ops");
    // Kubernetes probes so: HTTP/1.1 without ALPN, whatever the certificate.
    const probe = https.get(`${baseUrl}/livez`, { rejectUnauthorized: false });
    const [{ statusCode }] = await once(probe, "response");
    expect(statusCode).toBe(200);
  });

  test("is closed at once by a stop, connections that never said a word included", async () => {
    const encrypted = await startEncrypted(data.current);
    const silent = tls.connect({ host: "127.0.0.1", port: encrypted.portOf("HTTP") });
    silent.on("error", () => {});
    const session = http2.connect(`https://127.0.0.1:${encrypted.portOf("HTTP")}`, {
      ca: encrypted.root.certificate,
    });
    session.on("error", () => {});
    await once(session, "connect");
    // However it is told: `once` would take a reset for a failure.
    const closed = new Promise<void>((resolve) => session.once("close", () => resolve()));
    await encrypted.harness.server.stop();
    await closed;
    silent.destroy();
  });
});

describe("a server", () => {
  test("does not start with files that will not do, and names the one", async () => {
    const encrypted = await startEncrypted(data.current);
    const { readCertificates } = await import("../src/transport/certificates.ts");
    encrypted.certify({ ...certify(makeAuthority("other")), key: "no key" });
    expect(() => readCertificates(encrypted.tls)).toThrow(/server\.key: /);
    encrypted.write("clients.pem", "nothing");
    encrypted.certify(certify(encrypted.root));
    expect(() => readCertificates(encrypted.tls)).toThrow(/clients\.pem: holds no certificate/);
  });
});
