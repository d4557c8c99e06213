import { createHash, randomUUID } from "node:crypto";
import pg from "pg";
import { beforeAll, describe, expect, test } from "vitest";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { explain, faultsOf, nodesOf, nodesOfCall, plans, useTenTimes } from "./explained.ts";
import { type Tenant, useHarness } from "./harness.ts";
import { enter } from "./sessions.ts";

const harness = useHarness({ poolSize: 1, pipeline: true });

/**
 * Fills a database without triggers: an org of 20,000 with 5,000 teams, and a thousand others. One person is
 * in every team, and another one in 2,000 orgs.
 */
const load = (orgId: string, crewId: string, busyId: string, guestId: string): string => `
  begin;
  set local session_replication_role = replica;
  create temporary table people on commit drop as
    select n, md5('user' || n)::uuid as id,
      case when n <= 20000 then '${orgId}' else md5('org' || n % 1000)::uuid end as org_id
    from generate_series(1, 25000) n;
  insert into roster.users (id, email, name, external_id)
    select id, n || '@example.com', 'Some One', 'x' || n from people;
  insert into roster.profiles (id, user_id) select md5('profile' || n)::uuid, id from people;
  insert into roster.orgs (id, name, slug, external_id)
    select md5('org' || n)::uuid, 'Org', 'org-' || n, 'x' || n from generate_series(0, 29999) n;
  insert into roster.org_slugs (slug_key, org_id)
    select 'org-' || n, md5('org' || n)::uuid from generate_series(0, 29999) n;
  insert into roster.org_members (org_id, user_id) select org_id, id from people;
  insert into roster.org_members (org_id, user_id)
    select md5('org' || n)::uuid, '${guestId}' from generate_series(1, 2000) n;
  insert into roster.roles (org_id, name) select org_id, 'role-' || n from people;
  insert into roster.teams (org_id, id, name, path, visibility, secrets)
    select org_id, id, 'Team ' || n, array[id],
      case n % 50 when 0 then 'SECRET' else 'VISIBLE' end, case n % 50 when 0 then array[id] else '{}' end
    from (select org_id, md5('team' || n)::uuid as id, n from people) t where n <= 5000 or n > 24000;
  update roster.teams set parent_team_id = md5('team1')::uuid, path = md5('team1')::uuid || path
    where id in (select md5('team' || n)::uuid from generate_series(1001, 3000) n);
  update roster.org_counts set teams = 5001 where org_id = '${orgId}';
  insert into roster.team_members (org_id, team_id, user_id)
    select org_id, '${crewId}', id from people where n <= 5000
    union all
    select org_id, md5('team' || n)::uuid, id from people where n <= 5000
    union all
    select org_id, md5('team' || n)::uuid, '${busyId}' from people where n <= 5000;
  insert into roster.invitations (org_id, id, email, expire_time)
    select org_id, md5('invitation' || n)::uuid, n || '@example.com', now() + interval '1 day' from people;
  create temporary table log on commit drop as
    select md5('entry' || n)::uuid as id, now() - make_interval(mins => n) as create_time, n % 20 = 0 as apart,
      case when n % 10 > 1 then '${orgId}'::uuid when n % 10 = 1 then md5('org' || n % 1000)::uuid end as org_id
    from generate_series(1, 20000) n;
  insert into roster.audit_entries (id, org_id, subject, kind, method, correlation_id, create_time)
    select id, org_id, 'service:x', 'SERVICE', 'm', 'c', create_time from log;
  insert into roster.audit_changes (org_id, apart, entry_id, subject, method, correlation_id, resource_type,
      resource_id, kind, changed_fields, create_time)
    select case when apart then '${orgId}' else org_id end, apart, id, 'service:x', 'm', 'c', 'team', 'id',
      'UPDATED', '{}', create_time
    from log;
  insert into roster.audit_entries (id, org_id, subject, kind, method, correlation_id, create_time)
    select md5('later' || n)::uuid,
      md5('org' || case when n % 10 = 0 then 2 else 500 + n % 400 end)::uuid,
      'service:x', 'SERVICE', 'm', 'c', date_trunc('month', now()) + interval '1 month' + make_interval(mins => n * 8)
    from generate_series(1, 50000) n;
  commit;
  analyze`;

let tenant: Tenant & { readonly slug: string };
let crewId: string;

beforeAll(async () => {
  const { admin } = harness.current;
  await explain(admin);
  const made = await harness.current.tenant();
  const { org } = await made.owner.orgs.getOrg({ orgId: made.orgId });
  tenant = { ...made, slug: org?.slug ?? "" };
  const { orgId, owner } = tenant;
  const { team } = await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
  crewId = team?.id ?? "";
  await admin.query(load(orgId, crewId, tenant.adminId, tenant.outsiderId));
});

/** The id that `load` gives a thing. */
const idOf = (what: string): string =>
  createHash("md5")
    .update(what)
    .digest("hex")
    .replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");

type Page = { readonly nextPageToken: string };

describe("in an org of 20,000, after ten uses", () => {
  const view = View.FULL;
  const effective = true;
  const byEmail = { case: "email", value: "77@EXAMPLE.com" } as const;
  const byExternalId = { case: "externalId", value: "x77" } as const;
  const bySlug = { case: "slug", value: "org-77" } as const;
  const gets: Record<string, () => Promise<unknown>> = {
    GetUser: () => tenant.member.users.getUser({ userId: tenant.ownerId, orgId: tenant.orgId }),
    "GetUser FULL": () =>
      tenant.member.users.getUser({ userId: tenant.ownerId, orgId: tenant.orgId, view }),
    "GetUser outside the org": () => tenant.member.users.getUser({ userId: tenant.memberId, view }),
    GetOrg: () => tenant.member.orgs.getOrg({ orgId: tenant.orgId }),
    "GetOrg FULL": () => tenant.member.orgs.getOrg({ orgId: tenant.orgId, view }),
    GetProfile: () =>
      tenant.member.users.getProfile({ userId: tenant.ownerId, orgId: tenant.orgId }),
    GetOrgMember: () =>
      tenant.member.orgs.getOrgMember({ orgId: tenant.orgId, userId: tenant.ownerId }),
    GetRole: () => tenant.member.access.getRole({ orgId: tenant.orgId, name: "role-77" }),
    ListEffectivePermissions: () =>
      tenant.owner.access.listEffectivePermissions({
        orgId: tenant.orgId,
        userId: idOf("user77"),
        teamId: crewId,
      }),
    GetTeam: () => tenant.member.teams.getTeam({ orgId: tenant.orgId, teamId: crewId }),
    "GetTeamMember effective": () =>
      tenant.member.teams.getTeamMember({
        orgId: tenant.orgId,
        teamId: idOf("team77"),
        userId: idOf("user77"),
        effective,
      }),
    GetInvitation: () =>
      tenant.owner.orgs.getInvitation({ orgId: tenant.orgId, invitationId: idOf("invitation77") }),
    ListUserOrgs: () => tenant.member.users.listUserOrgs({ userId: tenant.memberId }),
    "LookupUser by email": () =>
      tenant.member.users.lookupUser({ orgId: tenant.orgId, key: byEmail, view }),
    "LookupUser by external_id": () =>
      harness.current.ops.users.lookupUser({ orgId: tenant.orgId, key: byExternalId }),
    "LookupUser by email outside the org": () =>
      harness.current.ops.users.lookupUser({ key: byEmail }),
    "LookupUser by external_id outside the org": () =>
      harness.current.ops.users.lookupUser({ key: byExternalId, view }),
    "LookupOrg by slug": () => harness.current.ops.orgs.lookupOrg({ key: bySlug }),
    "LookupOrg by slug by a user": async () =>
      tenant.member.orgs.lookupOrg({ key: { case: "slug", value: tenant.slug } }),
    "LookupOrg by external_id": () => harness.current.ops.orgs.lookupOrg({ key: byExternalId }),
  };

  test.each(Object.entries(gets))("%s reads a few rows by index", async (_, call) => {
    await useTenTimes(call);
    expect(faultsOf(await nodesOfCall(call), 5)).toEqual([]);
  });

  const lists: Record<string, (page: { pageSize: number; pageToken: string }) => Promise<Page>> = {
    ListUsers: (page) => tenant.member.users.listUsers({ orgId: tenant.orgId, ...page }),
    "ListUsers FULL": (page) =>
      tenant.member.users.listUsers({ orgId: tenant.orgId, view, ...page }),
    "ListUsers outside an org": (page) => harness.current.ops.users.listUsers({ view, ...page }),
    "ListOrgs by an operator": (page) => harness.current.ops.orgs.listOrgs(page),
    ListOrgMembers: (page) => tenant.member.orgs.listOrgMembers({ orgId: tenant.orgId, ...page }),
    "ListOrgMembers FULL": (page) =>
      tenant.member.orgs.listOrgMembers({ orgId: tenant.orgId, view, ...page }),
    ListInvitations: (page) => tenant.owner.orgs.listInvitations({ orgId: tenant.orgId, ...page }),
    ListRoles: (page) => tenant.member.access.listRoles({ orgId: tenant.orgId, ...page }),
    ListTeams: (page) => tenant.member.teams.listTeams({ orgId: tenant.orgId, ...page }),
    "ListTeams by an operator": (page) =>
      harness.current.ops.teams.listTeams({ orgId: tenant.orgId, ...page }),
    ListTeamMembers: (page) =>
      tenant.member.teams.listTeamMembers({ orgId: tenant.orgId, teamId: crewId, ...page }),
    ListUserTeams: (page) =>
      tenant.member.teams.listUserTeams({
        orgId: tenant.orgId,
        userId: tenant.adminId,
        ...page,
      }),
    ListUserOrgs: (page) =>
      tenant.outsider.users.listUserOrgs({ userId: tenant.outsiderId, ...page }),
    "ListUserOrgs by an operator": (page) =>
      harness.current.ops.users.listUserOrgs({ userId: tenant.outsiderId, ...page }),
    "ListTeamMembers FULL": (page) =>
      tenant.member.teams.listTeamMembers({ orgId: tenant.orgId, teamId: crewId, view, ...page }),
    // What its function asks, effective-pages judges by its answers.
    "ListTeamMembers effective": (page) =>
      tenant.member.teams.listTeamMembers({
        orgId: tenant.orgId,
        teamId: crewId,
        view,
        effective,
        ...page,
      }),
    ListAuditEntries: (page) =>
      tenant.owner.audit.listAuditEntries({ orgId: tenant.orgId, ...page }),
    "ListAuditEntries of all orgs": (page) => harness.current.ops.audit.listAuditEntries(page),
  };

  // A page asks for one row more than it holds, and PostgreSQL may look at some that it leaves out.
  const most = (pageSize: number): number => 4 * (pageSize + 1);

  test.each(Object.entries(lists))("%s reads a page, the first or a later one", async (_, list) => {
    // A large page may be sorted, but it must not lead PostgreSQL to hash a whole membership.
    const large = () => list({ pageSize: 1_000, pageToken: "" });
    const hashed = (await nodesOfCall(large)).filter((node) => /hashed/.test(JSON.stringify(node)));
    expect(hashed).toEqual([]);
    const first = () => list({ pageSize: 50, pageToken: "" });
    await useTenTimes(first);
    expect(faultsOf(await nodesOfCall(first), most(50))).toEqual([]);
    const { nextPageToken: pageToken } = await list({ pageSize: 900, pageToken: "" });
    expect(pageToken).not.toBe("");
    const later = () => list({ pageSize: 50, pageToken });
    await useTenTimes(later);
    expect(faultsOf(await nodesOfCall(later), most(50))).toEqual([]);
  });

  const idsOf = (what: string, count: number): string[] =>
    Array.from({ length: count }, (_, n) => idOf(`${what}${n + 1}`));
  const batches: Record<string, (count: number) => Promise<unknown>> = {
    BatchGetUsers: (count) =>
      tenant.member.users.batchGetUsers({ orgId: tenant.orgId, userIds: idsOf("user", count) }),
    "BatchGetUsers FULL": (count) =>
      tenant.member.users.batchGetUsers({
        orgId: tenant.orgId,
        userIds: idsOf("user", count),
        view,
      }),
    "BatchGetUsers outside an org": (count) =>
      harness.current.ops.users.batchGetUsers({ userIds: idsOf("user", count), view }),
    BatchGetTeams: (count) =>
      tenant.member.teams.batchGetTeams({ orgId: tenant.orgId, teamIds: idsOf("team", count) }),
    BatchCheckAccess: (count) =>
      tenant.owner.access.batchCheckAccess({
        orgId: tenant.orgId,
        checks: Array.from({ length: count }, (_, n) => ({
          userId: idOf(`user${n + 1}`),
          permission: "teams.get",
          teamId: idOf(`team${n + 1}`),
        })),
      }),
    BatchGetOrgs: (count) => harness.current.ops.orgs.batchGetOrgs({ orgIds: idsOf("org", count) }),
    "BatchGetOrgs by a user": (count) =>
      tenant.member.orgs.batchGetOrgs({ orgIds: [...idsOf("org", count - 1), tenant.orgId] }),
  };

  test.each(Object.entries(batches))("%s probes each id, few of them or many", async (_, get) => {
    for (const count of [1_000, 3, 1_000]) {
      const call = () => get(count);
      await useTenTimes(call);
      expect(faultsOf(await nodesOfCall(call), count + 1)).toEqual([]);
    }
  });

  test("BatchCreateUsers probes each email and external id, and reads no other user", async () => {
    const { users } = harness.current.ops;
    const create = (count: number) =>
      users.batchCreateUsers({
        users: Array.from({ length: count }, () => ({
          user: { email: `${randomUUID()}@example.com`, name: "New", externalId: randomUUID() },
        })),
      });
    for (const count of [1_000, 3, 1_000]) {
      if (count === 3) await useTenTimes(() => create(count));
      plans.length = 0;
      await create(count);
      const nodes = plans.flatMap(nodesOf);
      expect(nodes.some((node) => node["Relation Name"] === "users")).toBe(true);
      expect(faultsOf(nodes, count + 1)).toEqual([]);
    }
  });

  test("BatchCreateInvitations probes each address, and reads no other invitation", async () => {
    const { orgId, owner } = tenant;
    const limits = { orgId, pendingInvitations: 100_000 };
    await harness.current.ops.orgs.updateOrgLimits({ limits });
    const create = (count: number) =>
      owner.orgs.batchCreateInvitations({
        orgId,
        invitations: Array.from({ length: count }, () => ({
          email: `${randomUUID()}@example.com`,
        })),
      });
    for (const count of [1_000, 3, 1_000]) {
      if (count === 3) await useTenTimes(() => create(count));
      plans.length = 0;
      await create(count);
      const nodes = plans.flatMap(nodesOf);
      expect(nodes.some((node) => node["Relation Name"] === "invitations")).toBe(true);
      expect(faultsOf(nodes, count + 1)).toEqual([]);
    }
  });

  test("ListUserTeams effective reads the teams of the user and those above them, and no others", async () => {
    const { orgId, adminId: userId, member } = tenant;
    const call = () => member.teams.listUserTeams({ orgId, userId, effective });
    await useTenTimes(call);
    expect(faultsOf(await nodesOfCall(call), 7_001)).toEqual([]);
  });

  test("ListTeamMembers effective of a large subtree walks on until the page is full", async () => {
    const { admin, urls } = harness.current;
    const { rows } = await admin.query("select current_database() as name");
    const role = `alter role roster_app in database ${rows[0].name}`;
    const client = new pg.Client({ connectionString: urls.app });
    await admin.query(`${role} set auto_explain.log_nested_statements = on`);
    await client.connect();
    await admin.query(`${role} reset auto_explain.log_nested_statements`);
    const find = async () => {
      await client.query("begin");
      await client.query(enter(tenant.orgId, tenant.ownerId));
      plans.length = 0;
      const text = "select from roster.effective_members($1, $2, 51)";
      const found = await client.query({ text, values: [idOf("team1"), tenant.adminId] });
      await client.query("commit");
      expect(found.rowCount).toBe(51);
    };
    await useTenTimes(find);
    await find();
    await client.end();
    const nodes = plans.flatMap(nodesOf);
    expect(nodes.filter((node) => node["Relation Name"] === "teams").length).toBeGreaterThan(2);
    expect(faultsOf(nodes, 2_400)).toEqual(["no InitPlan"]);
  });

  test("SetTeamMembers probes each user, and reads no other team", async () => {
    const { orgId, owner } = tenant;
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Set" } });
    const set = (count: number, from: number) =>
      owner.teams.setTeamMembers({
        orgId,
        teamId: team?.id ?? "",
        members: idsOf("user", from + count)
          .slice(from)
          .map((userId) => ({ userId })),
      });
    for (const count of [1_000, 3, 1_000]) {
      if (count === 3) await useTenTimes(() => set(count, 500));
      plans.length = 0;
      await set(count, 700);
      const nodes = plans.flatMap(nodesOf);
      expect(nodes.some((node) => node["Relation Name"] === "team_members")).toBe(true);
      expect(faultsOf(nodes, 1_001)).toEqual([]);
    }
  });

  // It reads inside its function, whose plans are not noted.
  test("CheckAccess reads a few blocks, also of who is in 5,000 teams", async () => {
    const { orgId, ownerId, adminId } = tenant;
    const client = new pg.Client({ connectionString: harness.current.urls.app });
    await client.connect();
    await client.query("begin");
    await client.query(enter(orgId, ownerId));
    const ask = `select roster.check_access('${adminId}', 'teams.update', '${idOf("team77")}')`;
    await useTenTimes(() => client.query(ask));
    const { rows } = await client.query(`explain (analyze, buffers, format json) ${ask}`);
    expect(rows[0]["QUERY PLAN"][0].Plan["Shared Hit Blocks"]).toBeLessThan(40);
    const { rows: answers } = await client.query(ask);
    expect(answers[0].check_access).toEqual(["ORG_ROLE", "admin", "MEMBER"]);
    await client.end();
  });

  // Only a plan that serves all values names their places.
  test.each([
    ["ListUsers", () => harness.current.ops.users.listUsers({ view })],
    ["ListOrgs", () => harness.current.ops.orgs.listOrgs({})],
  ])("%s of the whole platform is not planned anew for each call", async (_, call) => {
    await useTenTimes(call);
    expect(JSON.stringify(await nodesOfCall(call))).toMatch(/id > \$\d/);
  });

  test.each([View.BASIC, View.FULL])(
    "ListUsers outside an org reads the users of a page once, in view %i",
    async (view) => {
      const call = () => harness.current.ops.users.listUsers({ view });
      await useTenTimes(call);
      const nodes = await nodesOfCall(call);
      expect(nodes.filter((node) => node["Relation Name"] === "users")).toHaveLength(1);
    },
  );

  test("ListAuditEntries of a busy org does not sort its log of many months", async () => {
    const call = () => harness.current.ops.audit.listAuditEntries({ orgId: idOf("org2") });
    expect((await call()).auditEntries).toHaveLength(50);
    await useTenTimes(call);
    expect(faultsOf(await nodesOfCall(call), most(50))).toEqual([]);
  });

  test("ListAuditEntries of a small org passes over the log of the large one", async () => {
    const orgId = idOf("org1");
    const call = () => harness.current.ops.audit.listAuditEntries({ orgId });
    expect((await call()).auditEntries).toHaveLength(20);
    await useTenTimes(call);
    expect(faultsOf(await nodesOfCall(call), most(50))).toEqual([]);
  });

  // What no call asks yet, and the policies must bear.
  test.each([
    [
      "an e-mail by the index of its key",
      "users where email_key = '77@example.com' and delete_time is null",
      1,
    ],
    ["a page of users without their memberships", "users order by id limit 50", 50],
    ["a page of profiles without their users", "profiles order by user_id limit 50", 50],
  ])("row-level security finds %s", async (name, rest, count) => {
    const client = new pg.Client({ connectionString: harness.current.urls.app });
    await client.connect();
    const find = async () => {
      await client.query("begin");
      await client.query(enter(tenant.orgId, tenant.memberId));
      const { rows } = await client.query({ name, text: `select id from roster.${rest}` });
      await client.query("commit");
      expect(rows).toHaveLength(count);
    };
    await useTenTimes(find);
    expect(faultsOf(await nodesOfCall(find), most(count))).toEqual([]);
    await client.end();
  });
});
