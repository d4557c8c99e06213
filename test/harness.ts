/** A server of its own for each test file, real clients, and fresh tenants for each test. */
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { importJWK, SignJWT } from "jose";
import pg from "pg";
import pino from "pino";
import { afterAll, beforeAll, expect, inject } from "vitest";
import type { Roster } from "../src/client.ts";
import { urlsOf } from "../src/database/provision.ts";
import { BadRequestSchema, ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import { AccessService } from "../src/gen/roster/v1/access_service_pb.ts";
import { AuditService } from "../src/gen/roster/v1/audit_service_pb.ts";
import { ChangeService } from "../src/gen/roster/v1/change_service_pb.ts";
import { OrgService } from "../src/gen/roster/v1/org_service_pb.ts";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { type RunningServer, type ServerOptions, startServer } from "../src/main.ts";
import { weakenDatabase } from "./mutants/weakness.ts";

/** One caller's view of the service. */
export interface Callers extends Omit<Roster, "watch" | "close"> {
  readonly transport: Transport;
  readonly token: string;
}

/** What a test token says; `claims` override everything. */
export interface TokenOptions {
  readonly org?: string;
  readonly scope?: string;
  readonly claims?: Record<string, unknown>;
  readonly expires?: string | number;
}

/** Whether the servers under test pipeline; `DATABASE_PIPELINE=off` runs the suite without. */
export const pipelined = process.env.DATABASE_PIPELINE !== "off";

/** Flushes that a read costs: alone, or as BEGIN, enter, query and COMMIT one by one. */
export const flushesOfRead = pipelined ? 1 : 4;

export const issuer = "roster-test";
export const audience = "roster";

/** Signs a token for a subject: a user id, or `service:NAME`. */
export const tokenFor = async (subject: string, options: TokenOptions = {}): Promise<string> => {
  const { org, scope, claims = {}, expires = "1h" } = options;
  return new SignJWT({ ...(org ? { org } : {}), ...(scope ? { scope } : {}), ...claims })
    .setProtectedHeader({ alg: "ES256", kid: "test" })
    .setSubject(subject)
    .setIssuer(String(claims.iss ?? issuer))
    .setAudience(String(claims.aud ?? audience))
    .setExpirationTime(expires)
    .sign(await importJWK(inject("signingKey"), "ES256"));
};

/** A running server on a database of its own. */
export class Harness {
  readonly server: RunningServer;
  readonly urls: ReturnType<typeof urlsOf>;
  /** Lines that the server logged, parsed. */
  readonly logs: Record<string, unknown>[];
  /** The operator: a service with scope roster.platform. */
  readonly ops: Callers;
  /** A superuser's connection to the database: sees and may do everything. */
  readonly admin: pg.Client;
  private readonly folder: string;

  constructor(
    parts: Pick<Harness, "server" | "urls" | "logs" | "ops" | "admin"> & { folder: string },
  ) {
    this.server = parts.server;
    this.urls = parts.urls;
    this.logs = parts.logs;
    this.ops = parts.ops;
    this.admin = parts.admin;
    this.folder = parts.folder;
  }

  get baseUrl(): string {
    return `http://127.0.0.1:${this.server.port}`;
  }

  /** Clients of one caller. `headers` go with every call. */
  async as(
    subject: string,
    options: TokenOptions = {},
    headers: Record<string, string> = {},
  ): Promise<Callers> {
    return callersOf(this.baseUrl, await tokenFor(subject, options), headers);
  }

  /** The flushes that a call costs. */
  async flushesOf(call: () => Promise<unknown>): Promise<number> {
    const before = this.server.roundTrips();
    await call();
    return this.server.roundTrips() - before;
  }

  /** A new live user. */
  async user(name = "Some One"): Promise<string> {
    const { user } = await this.ops.users.createUser({
      user: { email: `${randomUUID()}@example.com`, name },
    });
    return user?.id ?? "";
  }

  /** A new org with a user in each built-in role, another user outside it, and clients for all of them. */
  async tenant(): Promise<Tenant> {
    const [ownerId, adminId, memberId, guestId, outsiderId] = (await Promise.all(
      ["Owner", "Admin", "Member", "Guest", "Outsider"].map((name) => this.user(name)),
    )) as [string, string, string, string, string];
    const { org } = await this.ops.orgs.createOrg({
      org: { name: "Org", slug: slug() },
      ownerUserId: ownerId,
    });
    const orgId = org?.id ?? "";
    await this.ops.orgs.addOrgMember({ orgId, userId: adminId, role: "admin" });
    await this.ops.orgs.addOrgMember({ orgId, userId: memberId, role: "member" });
    await this.ops.orgs.addOrgMember({ orgId, userId: guestId, role: "guest" });
    const [owner, admin, member, guest, outsider] = (await Promise.all(
      [ownerId, adminId, memberId, guestId, outsiderId].map((id) => this.as(id)),
    )) as [Callers, Callers, Callers, Callers, Callers];
    return {
      orgId,
      ownerId,
      adminId,
      memberId,
      guestId,
      outsiderId,
      owner,
      admin,
      member,
      guest,
      outsider,
    };
  }

  async stop(): Promise<void> {
    await this.server.stop();
    await this.admin.end();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** An org and its people. */
export interface Tenant {
  readonly orgId: string;
  readonly ownerId: string;
  readonly adminId: string;
  readonly memberId: string;
  readonly guestId: string;
  readonly outsiderId: string;
  readonly owner: Callers;
  readonly admin: Callers;
  readonly member: Callers;
  readonly guest: Callers;
  readonly outsider: Callers;
}

/** A slug nobody has. */
export const slug = (): string => `o${randomUUID().replaceAll("-", "")}`;

/** Clients over the real wire. An empty token sends no credential. */
export const callersOf = (
  baseUrl: string,
  token: string,
  headers: Record<string, string> = {},
): Callers => {
  const transport = createGrpcTransport({
    baseUrl,
    interceptors: [
      (next) => (request) => {
        if (token !== "") request.header.set("authorization", `Bearer ${token}`);
        for (const [name, value] of Object.entries(headers)) request.header.set(name, value);
        return next(request);
      },
    ],
  });
  return {
    transport,
    token,
    users: createClient(UserService, transport),
    orgs: createClient(OrgService, transport),
    teams: createClient(TeamService, transport),
    access: createClient(AccessService, transport),
    audit: createClient(AuditService, transport),
    changes: createClient(ChangeService, transport),
  };
};

/** Starts a server on a fresh clone of the template. */
export const startHarness = async (options: Partial<ServerOptions> = {}): Promise<Harness> => {
  const adminUrl = inject("adminUrl");
  const database = `${inject("template")}_${randomUUID().replaceAll("-", "").slice(0, 12)}`;
  const creator = new pg.Client({ connectionString: adminUrl });
  await creator.connect();
  await creator.query(`create database ${database} template ${inject("template")}`);
  await creator.end();
  const urls = urlsOf(adminUrl, database);
  const admin = new pg.Client({ connectionString: urls.admin });
  await admin.connect();

  const folder = mkdtempSync(join(tmpdir(), "roster-keys-"));
  const file = join(folder, "jwks.json");
  const { d: _private, ...publicKey } = inject("signingKey");
  writeFileSync(file, JSON.stringify({ keys: [publicKey] }));
  const logs: Record<string, unknown>[] = [];
  const server = await startServer({
    address: { host: "127.0.0.1", port: 0 },
    http: { host: "127.0.0.1", port: 0, origins: [] },
    // Background work would take away what tests look at. Those about it start it themselves.
    database: { ...urls, worker: undefined },
    poolSize: 6,
    pipeline: pipelined,
    trust: { jwks: { file }, issuer, audience, orgClaim: "org" },
    tokenSecret: "a secret of at least thirty-two characters",
    purgeAfterDays: 30,
    openReflection: true,
    log: pino({ level: "debug" }, { write: (line: string) => void logs.push(JSON.parse(line)) }),
    ...options,
  });
  await weakenDatabase(admin);
  const token = await tokenFor("service:ops", { scope: "roster.platform" });
  const ops = callersOf(`http://127.0.0.1:${server.port}`, token);
  return new Harness({ server, urls, logs, ops, admin, folder });
};

/** A harness for a whole test file. */
export const useHarness = (options: Partial<ServerOptions> = {}): { readonly current: Harness } => {
  let harness: Harness | undefined;
  beforeAll(async () => {
    harness = await startHarness(options);
  });
  afterAll(async () => {
    await harness?.stop();
  });
  return {
    get current() {
      if (!harness) throw new Error("the harness is there inside tests only");
      return harness;
    },
  };
};

/** What a refused call told: code, reason, metadata, message, fields at fault. */
export interface Refusal {
  readonly code: string;
  readonly reason: string;
  readonly metadata: Record<string, string>;
  readonly message: string;
  readonly fields: readonly string[];
  readonly error: ConnectError;
}

/** Waits for a call to be refused and reads how; fails the test when it was not. */
export const refusal = async (call: Promise<unknown>): Promise<Refusal> => {
  try {
    await call;
  } catch (thrown) {
    const error = ConnectError.from(thrown);
    const [info] = error.findDetails(ErrorInfoSchema);
    const [bad] = error.findDetails(BadRequestSchema);
    return {
      code: Code[error.code] ?? "",
      reason: info?.reason ?? "",
      metadata: info?.metadata ?? {},
      message: error.rawMessage,
      fields: bad?.fieldViolations.map(({ field }) => field) ?? [],
      error,
    };
  }
  return expect.fail("the call was not refused");
};
