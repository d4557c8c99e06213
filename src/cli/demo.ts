/** The demo org of a development server: Acme, with an owner, an admin, two members and three teams. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { OrgService } from "../gen/roster/v1/org_service_pb.ts";
import { TeamRole } from "../gen/roster/v1/team_member_pb.ts";
import { TeamService } from "../gen/roster/v1/team_service_pb.ts";
import { UserService } from "../gen/roster/v1/user_service_pb.ts";

/** What there is to try the service on. */
export interface Demo {
  readonly orgId: string;
  readonly ownerId: string;
}

const people = [
  { email: "ada@acme.example", name: "Ada Owner", role: "owner" },
  { email: "ben@acme.example", name: "Ben Admin", role: "admin" },
  { email: "cleo@acme.example", name: "Cleo Member", role: "member" },
  { email: "dan@acme.example", name: "Dan Member", role: "member" },
] as const;
const teamNames = ["Engineering", "Design", "Support"] as const;

/**
 * Makes the demo through the service itself, once: its ids are kept under `dataDir`. What an interrupted
 * start left behind is found again and completed.
 */
export const seedDemo = async (dataDir: string, port: number, token: string): Promise<Demo> => {
  const file = join(dataDir, "demo.json");
  try {
    return JSON.parse(readFileSync(file, "utf8")) as Demo;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  const transport = createGrpcTransport({
    baseUrl: `http://127.0.0.1:${port}`,
    interceptors: [
      (next) => (request) => {
        request.header.set("authorization", `Bearer ${token}`);
        return next(request);
      },
    ],
  });
  const users = createClient(UserService, transport);
  const orgs = createClient(OrgService, transport);
  const teams = createClient(TeamService, transport);

  const ids = new Map<string, string>();
  for (const { email, name } of people) ids.set(email, await userId(users, email, name));
  const idOf = (index: number): string => ids.get(people[index]?.email ?? "") ?? "";
  const orgId = await acmeId(orgs, idOf(0));
  for (const [index, { role }] of people.entries()) {
    if (role !== "owner")
      await unlessThere(orgs.addOrgMember({ orgId, userId: idOf(index), role }));
  }
  const existing = new Map(
    (await teams.listTeams({ orgId })).teams.map((team) => [team.name, team.id]),
  );
  for (const [index, name] of teamNames.entries()) {
    const teamId =
      existing.get(name) ?? (await teams.createTeam({ team: { orgId, name } })).team?.id ?? "";
    const role = TeamRole.MAINTAINER;
    await unlessThere(teams.addTeamMember({ orgId, teamId, userId: idOf(index + 1), role }));
  }
  const demo: Demo = { orgId, ownerId: idOf(0) };
  writeFileSync(file, JSON.stringify(demo));
  return demo;
};

const isThere = (error: unknown): boolean => ConnectError.from(error).code === Code.AlreadyExists;

const unlessThere = async (work: Promise<unknown>): Promise<void> => {
  try {
    await work;
  } catch (error) {
    if (!isThere(error)) throw error;
  }
};

const userId = async (
  users: Client<typeof UserService>,
  email: string,
  name: string,
): Promise<string> => {
  try {
    return (await users.createUser({ user: { email, name } })).user?.id ?? "";
  } catch (error) {
    if (!isThere(error)) throw error;
  }
  for (let pageToken = ""; ; ) {
    const page = await users.listUsers({ pageSize: 1000, pageToken });
    const found = page.users.find((user) => user.email === email);
    if (found) return found.id;
    pageToken = page.nextPageToken;
    if (pageToken === "") throw new Error(`${email} exists and cannot be found`);
  }
};

const acmeId = async (orgs: Client<typeof OrgService>, ownerUserId: string): Promise<string> => {
  try {
    return (
      (await orgs.createOrg({ org: { name: "Acme", slug: "acme" }, ownerUserId })).org?.id ?? ""
    );
  } catch (error) {
    if (!isThere(error)) throw error;
  }
  for (let pageToken = ""; ; ) {
    const page = await orgs.listOrgs({ pageSize: 1000, pageToken });
    const found = page.orgs.find((org) => org.slug === "acme");
    if (found) return found.id;
    pageToken = page.nextPageToken;
    if (pageToken === "") throw new Error("the slug acme is held and its org cannot be found");
  }
};
