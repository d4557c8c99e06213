/** A server that speaks TLS, and clients with and without certificates of their own. */
import { mkdtempSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Client, createClient, type Transport } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { onTestFinished } from "vitest";
import { OrgService } from "../src/gen/roster/v1/org_service_pb.ts";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { type Authority, type Certified, certify, makeAuthority } from "./certificates.ts";
import { type Harness, startHarness } from "./harness.ts";

/** One entry of the file of SPIFFE ids. */
export interface Identity {
  readonly id: string;
  readonly scope: readonly string[];
  readonly orgs: "*" | readonly string[];
}

export type Port = "gRPC" | "HTTP";
export const ports: readonly Port[] = ["gRPC", "HTTP"];

/** What a client shows of itself. */
export interface Shown {
  readonly certified?: Certified;
  readonly token?: string;
}

export interface EncryptedClients {
  readonly users: Client<typeof UserService>;
  readonly orgs: Client<typeof OrgService>;
  readonly teams: Client<typeof TeamService>;
}

/** A server with TLS on both ports, beside another that has made the data. */
export class Encrypted {
  readonly folder = mkdtempSync(join(tmpdir(), "roster-tls-"));
  /** Signs servers. */
  readonly root: Authority = makeAuthority("root");
  /** Signs clients. */
  readonly clients: Authority = makeAuthority("clients");
  readonly tls = {
    certificate: this.file("server.pem"),
    key: this.file("server.key"),
    clientCa: this.file("clients.pem"),
  };
  harness!: Harness;

  file(name: string): string {
    return join(this.folder, name);
  }

  /** As an operator's tool does: a file is there whole or not at all. */
  write(name: string, text: string): void {
    writeFileSync(this.file(`${name}.new`), text);
    renameSync(this.file(`${name}.new`), this.file(name));
  }

  certify(certified: Certified): void {
    this.write("server.key", certified.key);
    this.write("server.pem", certified.certificate);
  }

  allow(identities: readonly Identity[]): void {
    this.write("allowed.json", JSON.stringify({ identities }));
  }

  /** A client with the certificate of a SPIFFE id. */
  service(id: string): { readonly certified: Certified } {
    return { certified: certify(this.clients, { uris: [id] }) };
  }

  portOf(port: Port): number {
    const { server } = this.harness;
    return port === "gRPC" ? server.port : (server.httpPort ?? 0);
  }

  transport(port: Port, { certified, token }: Shown = {}): Transport {
    const baseUrl = `https://127.0.0.1:${this.portOf(port)}`;
    const nodeOptions = {
      ca: this.root.certificate,
      ...(certified ? { cert: certified.certificate, key: certified.key } : {}),
    };
    const interceptors = [
      (next: (request: never) => Promise<never>) => (request: { header: Headers }) => {
        if (token) request.header.set("authorization", `Bearer ${token}`);
        return next(request as never);
      },
    ] as never[];
    return port === "gRPC"
      ? createGrpcTransport({ baseUrl, nodeOptions, interceptors })
      : createConnectTransport({ baseUrl, httpVersion: "1.1", nodeOptions, interceptors });
  }

  as(port: Port, shown: Shown = {}): EncryptedClients {
    const transport = this.transport(port, shown);
    return {
      users: createClient(UserService, transport),
      orgs: createClient(OrgService, transport),
      teams: createClient(TeamService, transport),
    };
  }

  /** The errors that the server has logged. */
  complaints(): string[] {
    return this.harness.logs.filter(({ level }) => level === 50).map(({ msg }) => String(msg));
  }

  async stop(): Promise<void> {
    await this.harness.stop();
    rmSync(this.folder, { recursive: true });
  }
}

/** Starts one on the database of `data`. */
export const startEncrypted = async (
  data: Harness,
  identities: readonly Identity[] = [],
): Promise<Encrypted> => {
  const encrypted = new Encrypted();
  encrypted.certify(certify(encrypted.root));
  encrypted.write("clients.pem", encrypted.clients.certificate);
  encrypted.allow(identities);
  encrypted.harness = await startHarness({
    database: { ...data.urls, worker: undefined },
    tls: encrypted.tls,
    spiffeFile: encrypted.file("allowed.json"),
    openReflection: false,
  });
  onTestFinished(() => encrypted.stop());
  return encrypted;
};
