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

/** The demo that was made before, unless somebody deleted it or its database. */
const madeBefore = async (
  file: string,
  orgs: Client<typeof OrgService>,
): Promise<Demo | undefined> => {
  try {
    const demo = JSON.parse(readFileSync(file, "utf8")) as Demo;
    await orgs.getOrgMember({ orgId: demo.orgId, userId: demo.ownerId });
    return demo;
  } catch (error) {
    const gone = error instanceof ConnectError && error.code === Code.NotFound;
    if (!gone && (error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    return undefined;
  }
};

/**
 * Makes the demo through the service itself, once: its ids are kept under `dataDir`. What an interrupted
 * start left behind is found again and completed.
 *
 * @param token of an operator
 */
export const seedDemo = async (dataDir: string, baseUrl: string, token: string): Promise<Demo> => {
  const transport = createGrpcTransport({
    baseUrl,
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
  const file = join(dataDir, "demo.json");
  const before = await madeBefore(file, orgs);
  if (before) return before;

  const ids = new Map<string, string>();
  for (const { email, name } of people) ids.set(email, await userId(users, email, name));
  const idOf = (index: number): string => ids.get(people[index]?.email ?? "") ?? "";
  const orgId = await acmeId(orgs, idOf(0));
  for (const [index, { role }] of people.entries())
    await unlessThere(orgs.addOrgMember({ orgId, userId: idOf(index), role }));
  for (const [index, name] of teamNames.entries()) {
    const id = await teamId(teams, orgId, name);
    const role = TeamRole.MAINTAINER;
    await unlessThere(teams.addTeamMember({ orgId, teamId: id, userId: idOf(index + 1), role }));
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

const teamId = async (
  teams: Client<typeof TeamService>,
  orgId: string,
  name: string,
): Promise<string> => {
  try {
    return (await teams.createTeam({ team: { orgId, name } })).team?.id ?? "";
  } catch (error) {
    if (!isThere(error)) throw error;
  }
  const listed = (await teams.listTeams({ orgId, pageSize: 1000 })).teams;
  const found = listed.find((team) => team.name === name);
  if (!found) throw new Error(`the team ${name} exists and cannot be found`);
  return found.id;
};
