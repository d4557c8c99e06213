import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { type Callers, refusal, type Tenant, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { lineOf, Watching } from "./watching.ts";

const harness = useHarness();

const now = async ({ changes }: Callers, orgId = ""): Promise<string> =>
  (await changes.listChanges({ orgId })).position;

/** Every change behind a position, page by page. */
const since = async (
  { changes }: Callers,
  request: { orgId?: string; position: string },
  size = 2,
) => {
  const all = [];
  let { position } = request;
  for (;;) {
    const page = await changes.listChanges({ ...request, position, pageSize: size });
    all.push(...page.changes);
    position = page.position;
    if (!page.more) return { all, position };
  }
};

/** Some changes of all kinds in an org. */
const stir = async ({ orgId, owner, memberId }: Tenant): Promise<void> => {
  const { id: teamId } = await makeTeam(owner, { orgId, name: "One" });
  await owner.teams.addTeamMember({ orgId, teamId, userId: memberId });
  await owner.access.createRole({ role: { orgId, name: "crew", permissions: ["org.get"] } });
  await owner.orgs.createInvitation({
    invitation: { orgId, email: `${randomUUID()}@example.com` },
  });
  await owner.orgs.removeOrgMember({ orgId, userId: memberId });
  await owner.teams.deleteTeam({ orgId, teamId });
};

describe("ChangeService.ListChanges", () => {
  test("tells every change in order, with the resource after it and its audit entry", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, memberId } = tenant;
    const position = await now(owner, orgId);
    await stir(tenant);
    const { all } = await since(owner, { orgId, position });
    expect(all.map(lineOf)).toEqual([
      "team CREATED",
      "team_member CREATED",
      "role CREATED",
      "invitation CREATED",
      "org_member DELETED",
      "team_member DELETED",
      "team DELETED",
    ]);
    const [team, member, role, invitation, gone, , deleted] = all;
    expect(team?.resource).toMatchObject({ case: "team", value: { orgId, name: "One" } });
    expect(member?.resource).toMatchObject({ case: "teamMember", value: { userId: memberId } });
    expect(role?.resource).toMatchObject({ case: "role", value: { permissions: ["org.get"] } });
    expect(invitation?.resource).toMatchObject({ case: "invitation", value: { role: "member" } });
    expect(gone).toMatchObject({ orgId, resourceId: memberId, resource: { case: undefined } });
    expect(deleted?.resource.value).toHaveProperty("deleteTime");
    const { auditEntry } = await owner.audit.getAuditEntry({
      orgId,
      auditEntryId: gone?.auditEntryId ?? "",
    });
    expect(auditEntry?.method).toBe("roster.v1.OrgService/RemoveOrgMember");
  });

  test("tells an org of a new member's user and profile, and of a user no more than it may see", async () => {
    const { current } = harness;
    const { orgId, owner } = await current.tenant();
    const userId = await current.user("New");
    const { users } = current.ops;
    await users.updateUser({ user: { id: userId, externalId: randomUUID(), labels: { a: "b" } } });
    await users.updateProfile({ profile: { userId, bio: "Likes tapes.", settings: { a: [1] } } });
    const position = await now(owner, orgId);
    await owner.orgs.addOrgMember({ orgId, userId });
    await users.updateUser({ user: { id: userId, name: "Newer", externalId: randomUUID() } });
    const { all } = await since(owner, { orgId, position }, 100);
    const [user, profile, member, later] = all.map(({ resource }) => resource);
    const unseen = { externalId: "", labels: {} };
    expect(user).toMatchObject({ case: "user", value: { id: userId, ...unseen } });
    expect(profile?.value).toMatchObject({ userId, bio: "Likes tapes.", settings: { a: [1] } });
    expect(member).toMatchObject({ case: "orgMember", value: { userId, role: "member" } });
    expect(later).toMatchObject({ case: "user", value: { name: "Newer", ...unseen } });
    expect(all).toHaveLength(4);
  });

  test("never tells of another org, and operators of all", async () => {
    const { current } = harness;
    const [home, other] = [await current.tenant(), await current.tenant()];
    const position = await now(home.owner, home.orgId);
    const everywhere = await now(current.ops);
    await stir(other);
    await current.ops.users.updateUser({ user: { id: other.ownerId, externalId: randomUUID() } });
    await makeTeam(home.owner, { orgId: home.orgId, name: "Mine" });
    const own = await since(home.owner, { orgId: home.orgId, position });
    expect(own.all.map(({ orgId }) => orgId)).toEqual([home.orgId]);
    const { all } = await since(current.ops, { position: everywhere });
    const told = all.map(({ orgId, resourceType }) => `${orgId} ${resourceType}`);
    expect(told).toContain(`${home.orgId} team`);
    expect(told).toContain(`${other.orgId} invitation`);
    // Once, and not again for each org of which they are a member.
    expect(told.filter((line) => line.endsWith(" user"))).toEqual([" user"]);
    const user = all.find(({ resourceType }) => resourceType === "user");
    expect(user?.resource.value).not.toMatchObject({ externalId: "" });
  });

  test("goes on behind a transaction that ends late, and tells what it did then", async () => {
    const { current } = harness;
    const { orgId, owner } = await current.tenant();
    const late = await makeTeam(owner, { orgId, name: "Late" });
    const position = await now(owner, orgId);
    await current.admin.query(`begin; select set_config('roster.entry_id', gen_random_uuid()::text, true),
      set_config('roster.subject', 'test', true), set_config('roster.method', 'test', true),
      set_config('roster.correlation_id', 'test', true);
      update roster.teams set description = 'late' where id = '${late.id}'`);
    await makeTeam(owner, { orgId, name: "Early" });
    const early = await since(owner, { orgId, position });
    expect(early.all.map(({ resource }) => resource.value)).toMatchObject([{ name: "Early" }]);
    await current.admin.query("commit");
    const rest = await since(owner, { orgId, position: early.position });
    expect(rest.all.map(({ resource }) => resource.value)).toMatchObject([{ description: "late" }]);
  });

  test("filters by kind of resource and by team", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, adminId } = tenant;
    const position = await now(owner, orgId);
    await stir(tenant);
    const { id: teamId } = await makeTeam(owner, { orgId, name: "Two" });
    await owner.teams.addTeamMember({ orgId, teamId, userId: adminId });
    const list = async (filter: object) => {
      const page = await owner.changes.listChanges({ orgId, position, pageSize: 100, ...filter });
      return page.changes.map(({ resourceType, resourceId }) => `${resourceType} ${resourceId}`);
    };
    const ofTeam = [`team ${teamId}`, `team_member ${teamId}/${adminId}`];
    expect(await list({ teamId })).toEqual(ofTeam);
    expect(await list({ teamId, resourceTypes: ["team_member"] })).toEqual(ofTeam.slice(1));
    expect((await list({ resourceTypes: ["role"] })).join()).toBe("role crew");
    const refused = await refusal(list({ resourceTypes: ["teams"] }));
    expect(refused).toMatchObject({ code: "InvalidArgument", reason: "FIELD_INVALID" });
  });
});

describe("A position", () => {
  const denied = { code: "InvalidArgument", reason: "POSITION_INVALID" };

  test("INVALID_ARGUMENT when it is made up, touched, or another org's", async () => {
    const { current } = harness;
    const [home, other] = [await current.tenant(), await current.tenant()];
    const position = await now(home.owner, home.orgId);
    const bytes = Buffer.from(position, "base64url");
    bytes[20] = (bytes[20] ?? 0) ^ 1;
    const bad = [
      "x",
      bytes.toString("base64url"),
      await now(other.owner, other.orgId),
      await now(current.ops),
    ];
    for (const given of bad) {
      const list = home.owner.changes.listChanges({ orgId: home.orgId, position: given });
      expect(await refusal(list)).toMatchObject({ ...denied, fields: ["position"] });
    }
    const outside = current.ops.changes.listChanges({ position });
    expect(await refusal(outside)).toMatchObject(denied);
  });

  test("OUT_OF_RANGE when what lies behind it is kept no more, or the database is another", async () => {
    const { current } = harness;
    const { orgId, owner } = await current.tenant();
    const position = await now(owner, orgId);
    const list = () => owner.changes.listChanges({ orgId, position });
    const gone = { code: "OutOfRange", reason: "POSITION_OUT_OF_RANGE" };
    const { rows } = await current.admin.query("select epoch from roster.audit_feed");
    await current.admin.query("update roster.audit_feed set epoch = gen_random_uuid()");
    expect(await refusal(list())).toMatchObject(gone);
    await current.admin.query("update roster.audit_feed set epoch = $1", [rows[0].epoch]);
    await list();
    await makeTeam(owner, { orgId, name: "Any" });
    const all = await current.ops.changes.listChanges({});
    await current.admin.query(
      `insert into roster.audit_removals (org_id, number, until_xid, kept_from)
       values ($1, 1, pg_snapshot_xmax(pg_current_snapshot()), now())`,
      [(await current.tenant()).orgId],
    );
    await list();
    const everything = current.ops.changes.listChanges({ position: all.position });
    expect(await refusal(everything)).toMatchObject(gone);
    await current.admin.query("update roster.audit_removals set org_id = $1", [orgId]);
    expect(await refusal(list())).toMatchObject(gone);
    expect(await new Watching(owner, { orgId, position }).ended).toMatchObject(gone);
  });
});
