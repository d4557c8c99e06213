/** Sessions of roster_app and roster_directory as the service opens them, for raw SQL. */
import { randomUUID } from "node:crypto";
import pg from "pg";
import { afterAll } from "vitest";
import type { Harness, Tenant } from "./harness.ts";

/** A tenant with a row in every table. */
export interface Settled extends Tenant {
  readonly teamId: string;
  /** A team under it. */
  readonly innerTeamId: string;
  readonly slug: string;
}

/** Makes a tenant with a row in every table. */
export const settle = async (harness: Harness): Promise<Settled> => {
  const tenant = await harness.tenant();
  const { orgId, owner, memberId } = tenant;
  const { team } = await owner.teams.createTeam({
    team: { orgId, name: "Crew" },
    requestId: randomUUID(),
  });
  const teamId = team?.id ?? "";
  const inner = await owner.teams.createTeam({
    team: { orgId, name: "Inner crew", parentTeamId: teamId },
  });
  await owner.teams.addTeamMember({ orgId, teamId, userId: memberId });
  await owner.users.updateProfile({ profile: { userId: memberId, orgId, bio: "Here I sing" } });
  await owner.orgs.createInvitation({ invitation: { orgId, email: "new@example.com" } });
  const { org } = await owner.orgs.getOrg({ orgId });
  await harness.ops.orgs.updateOrgLimits({ limits: { orgId, roles: 10 } });
  await asAdmin(harness, "insert into roster.roles (org_id, name) values ($1, 'singer')", [orgId]);
  return { ...tenant, teamId, innerTeamId: inner.team?.id ?? "", slug: org?.slug ?? "" };
};

/** Puts an audit entry in force for one transaction, without which no table can be written. */
export const force = (entry: string): string =>
  `select set_config('roster.entry_id', '${entry}', true), set_config('roster.subject', 'test', true),
    set_config('roster.method', 'test', true), set_config('roster.correlation_id', 'test', true),
    set_config('roster.held_permissions', '*', true)`;

/** Runs a statement as a superuser, whom row-level security does not bind. */
export const asAdmin = async (
  { admin }: Harness,
  text: string,
  values: readonly unknown[] = [],
): Promise<void> => {
  await admin.query("begin");
  try {
    await admin.query(force(randomUUID()));
    await admin.query(text, [...values]);
    await admin.query("commit");
  } catch (error) {
    await admin.query("rollback");
    throw error;
  }
};

type Row = Record<string, unknown>;
/** What a statement came to. */
export interface Outcome {
  readonly rows: readonly Row[];
  /** Its SQLSTATE where it was refused. */
  readonly code: string | undefined;
  readonly error: pg.DatabaseError | undefined;
}

/** Runs a statement in a transaction that `entering` opened. */
export const within = async (
  client: pg.Client,
  entering: string,
  text: string,
  values: readonly unknown[] = [],
): Promise<Outcome> => {
  await client.query("begin");
  try {
    await client.query(entering);
    const { rows } = await client.query<Row>(text, [...values]);
    await client.query("commit");
    return { rows, code: undefined, error: undefined };
  } catch (error) {
    await client.query("rollback");
    const known = error as pg.DatabaseError;
    return { rows: [], code: known.code, error: known };
  }
};

/** Enters an org as the service does for a mutation by one of its owners. */
export const enter = (orgId: string, userId: string): string =>
  `select roster.enter('${orgId}', '${userId}', false, false, null, '', true, null, false, 20000,
    '${randomUUID()}', '${userId}', '{}', 'test', 'test')`;

/** Enters no org, as the service does for a mutation by a user, or with `reach` by the platform. */
export const enterDirectory = (userId: string | null, reach = false): string =>
  `select roster.enter_directory(${userId === null ? "null" : `'${userId}'`}, ${reach}, null, '', true, null, 20000,
    '${randomUUID()}', 'test', '{}', 'test', 'test')`;

/** Enters an org that invites, as the service does for an answer by a user. */
export const enterInvitation = (orgId: string, userId: string): string =>
  `select roster.enter_invitation('${orgId}', '${userId}', false, null, 'invitations.accept', true, 20000,
    '${randomUUID()}', '${userId}', '{}', 'test', 'test')`;

/** Opens connections that end with the test file. */
export const useConnections = (): ((url: string) => Promise<pg.Client>) => {
  const connections: pg.Client[] = [];
  afterAll(async () => {
    await Promise.all(connections.map((client) => client.end()));
  });
  return async (url) => {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    connections.push(client);
    return client;
  };
};
