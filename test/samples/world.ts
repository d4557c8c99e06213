/** A world of which the requests of all RPCs speak. */
import { randomUUID } from "node:crypto";
import { TeamRole } from "../../src/gen/roster/v1/team_member_pb.ts";
import { type Harness, slug, type Tenant } from "../harness.ts";
import { makeTeam } from "../made-team.ts";

/** A tenant with a team, people in it, a role called `crew`, and what was deleted. */
export interface World extends Tenant {
  readonly harness: Harness;
  readonly teamId: string;
  /** A member of org and team. */
  readonly mateId: string;
  /** A pending one, to an address that nobody has. */
  readonly invitationId: string;
  readonly auditEntryId: string;
  /** In the feed of the org, and of all orgs, before most of this was made. */
  readonly position: string;
  readonly positionEverywhere: string;
  readonly deletedUserId: string;
  readonly deletedTeamId: string;
  readonly deletedOrgId: string;
  /** A new member of the org, of the team too where a team role is given. */
  readonly person: (orgRole: string, teamRole?: TeamRole) => Promise<string>;
}

/** @param word stands in every text of the world that a person wrote */
export const makeWorld = async (harness: Harness, word = "World"): Promise<World> => {
  const tenant = await harness.tenant();
  const { orgId, owner } = tenant;
  const { ops } = harness;
  const { position } = await owner.changes.listChanges({ orgId });
  const { position: positionEverywhere } = await ops.changes.listChanges({});
  const person = async (orgRole: string, teamRole?: TeamRole): Promise<string> => {
    const userId = await harness.user(`${word} person`);
    await ops.orgs.addOrgMember({ orgId, userId, role: orgRole });
    if (teamRole) await ops.teams.addTeamMember({ orgId, teamId, userId, role: teamRole });
    return userId;
  };
  const text = { name: `${word} team`, description: word, type: word.toLowerCase() };
  const { id: teamId } = await makeTeam(owner, { ...text, orgId, labels: { [word]: word } });
  const { id: deletedTeamId } = await makeTeam(owner, { orgId, name: `${word} deleted` });
  await owner.teams.deleteTeam({ orgId, teamId: deletedTeamId });
  await owner.orgs.updateOrg({ org: { id: orgId, name: `${word} org`, labels: { [word]: word } } });
  await owner.access.createRole({ role: { orgId, name: "crew", title: word } });
  const mateId = await person("member", TeamRole.MEMBER);
  for (const id of [tenant.ownerId, mateId]) {
    const email = `${word}.${randomUUID()}@example.com`;
    await ops.users.updateUser({ user: { id, email, name: word, labels: { [word]: word } } });
    const profile = { userId: id, bio: word, settings: { [word]: word } };
    await ops.users.updateProfile({ profile });
    await ops.users.updateProfile({ profile: { ...profile, orgId } });
  }
  const deletedUserId = await person("member", TeamRole.MEMBER);
  const { org: gone } = await ops.orgs.createOrg({
    org: { name: `${word} deleted`, slug: slug() },
    ownerUserId: deletedUserId,
  });
  const deletedOrgId = gone?.id ?? "";
  await ops.orgs.addOrgMember({ orgId: deletedOrgId, userId: tenant.ownerId, role: "owner" });
  await ops.orgs.deleteOrg({ orgId: deletedOrgId, force: true });
  await ops.users.deleteUser({ userId: deletedUserId });
  const { invitation } = await owner.orgs.createInvitation({
    invitation: { orgId, email: `${word}.${randomUUID()}@example.com` },
  });
  const invitationId = invitation?.id ?? "";
  const { auditEntries } = await owner.audit.listAuditEntries({ orgId, pageSize: 1 });
  const auditEntryId = auditEntries[0]?.id ?? "";
  const deleted = { deletedUserId, deletedTeamId, deletedOrgId };
  const things = {
    teamId,
    mateId,
    invitationId,
    auditEntryId,
    position,
    positionEverywhere,
  };
  return { ...tenant, ...deleted, ...things, harness, person };
};

/** One way to call an RPC. */
export interface Sample {
  /** A request that succeeds for whoever may; what it takes away is made for it. */
  readonly request: (world: World) => object | Promise<object>;
  /** Who sends it: someone inside the org, or platform, or a service outside any org. */
  readonly by: "owner" | "member" | "platform" | "service";
  /** Fields with the form of an id that the RPC does not read. */
  readonly ignored?: readonly string[];
  /** Fields that may hold the id of nothing, which is answered like a foreign or a deleted one. */
  readonly unknown?: readonly string[];
  /** A field with a value by which the request fails; without it a second try does, or a stale etag. */
  readonly fault?: readonly [path: string, value: unknown];
}

/** By `Service.Method`; a second way to call the same RPC has a word behind it. */
export type Samples = Readonly<Record<string, Sample>>;
