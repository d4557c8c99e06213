import { randomUUID } from "node:crypto";
import type pg from "pg";
import { beforeAll, describe, expect, test } from "vitest";
import { useHarness } from "./harness.ts";
import { inviteUser } from "./made-invitation.ts";
import {
  asAdmin,
  enter,
  enterDirectory,
  enterInvitation,
  force,
  type Outcome,
  type Settled,
  settle,
  useConnections,
  within,
} from "./sessions.ts";

const harness = useHarness();
const connect = useConnections();

describe("the session of an org", () => {
  let app: pg.Client;
  let a: Settled;
  let b: Settled;
  const inA = (statement: string, values?: readonly unknown[]): Promise<Outcome> =>
    within(app, enter(a.orgId, a.ownerId), statement, values);

  beforeAll(async () => {
    app = await connect(harness.current.urls.app);
    a = await settle(harness.current);
    b = await settle(harness.current);
  });

  test("shows its members' users and default profiles, and those of nobody else", async () => {
    await b.owner.orgs.addOrgMember({ orgId: b.orgId, userId: a.memberId });
    await b.owner.users.updateProfile({
      profile: { userId: a.memberId, orgId: b.orgId, bio: "B" },
    });
    const members = [a.ownerId, a.adminId, a.memberId, a.guestId].sort();
    const users = await inA("select id from roster.users order by id");
    expect(users.rows.map(({ id }) => id)).toEqual(members);
    const profiles = await inA("select user_id, org_id from roster.profiles order by 1, 2");
    expect(profiles.rows).toEqual(
      members.flatMap((user_id) => [
        ...(user_id === a.memberId ? [{ user_id, org_id: a.orgId }] : []),
        { user_id, org_id: null },
      ]),
    );
  });

  test("lets nobody write a default profile, not even their own: it shows in other orgs too", async () => {
    const write =
      "update roster.profiles set bio = 'Mine' where user_id = $1 and org_id is null returning 1";
    expect((await inA(write, [a.memberId])).rows).toEqual([]);
    expect((await inA(write, [a.ownerId])).rows).toEqual([]);
    const make = "insert into roster.profiles (id, user_id) values (gen_random_uuid(), $1)";
    expect((await inA(make, [a.ownerId])).code).toBe("42501");
  });

  test("cannot take over another org's profile by its id", async () => {
    const { rows } = await harness.current.admin.query(
      "select id from roster.profiles where org_id = $1",
      [b.orgId],
    );
    const insert = `insert into roster.profiles (id, user_id, org_id) values ($1, $2, $3) on conflict (id)`;
    const values = [rows[0].id, a.guestId, a.orgId];
    expect((await inA(`${insert} do update set bio = 'Taken'`, values)).code).toBe("42501");
    expect((await inA(`${insert} do nothing returning 1`, values)).rows).toEqual([]);
  });

  test("learns that a slug is taken, and not by whom", async () => {
    const take = "update roster.orgs set slug = $1 where id = $2";
    const { error } = await inA(take, [b.slug, a.orgId]);
    expect(error).toMatchObject({ code: "RS001", message: "SLUG_TAKEN" });
    expect(error?.detail).toBe('{"field": "org.slug"}');
    // It claims none but as the org that it is.
    const claim = "insert into roster.org_slugs (slug_key, org_id) values ('mine', $1)";
    for (const orgId of [a.orgId, b.orgId]) expect((await inA(claim, [orgId])).code).toBe("42501");
  });

  test("may use the id of another org's team", async () => {
    const insert = "insert into roster.teams (org_id, id, name) values ($1, $2, 'Same')";
    expect((await inA(insert, [a.orgId, b.teamId])).code).toBeUndefined();
    const { teams } = await a.owner.teams.listTeams({ orgId: a.orgId });
    expect(teams.find(({ id }) => id === b.teamId)?.name).toBe("Same");
    expect((await b.owner.teams.getTeam({ orgId: b.orgId, teamId: b.teamId })).team?.name).toBe(
      "Crew",
    );
  });

  test.each<[string, () => string]>([
    [
      "teams_org_id_parent_team_id_fkey",
      // The triggers that look for the parent would say so first.
      () => `alter table roster.teams disable trigger user;
        update roster.teams set parent_team_id = '${b.innerTeamId}' where id = '${a.innerTeamId}'`,
    ],
    [
      "team_members_org_id_team_id_fkey",
      () => `insert into roster.team_members (org_id, team_id, user_id)
        values ('${a.orgId}', '${b.innerTeamId}', '${a.guestId}')`,
    ],
    [
      "team_members_org_id_user_id_fkey",
      () => `insert into roster.team_members (org_id, team_id, user_id)
        values ('${a.orgId}', '${a.teamId}', '${b.guestId}')`,
    ],
    [
      "profiles_org_id_user_id_fkey",
      () => `insert into roster.profiles (id, org_id, user_id)
        values (gen_random_uuid(), '${a.orgId}', '${b.guestId}')`,
    ],
    [
      "org_members_org_id_custom_role_fkey",
      () => `update roster.org_members set role = 'dancer'
        where org_id = '${a.orgId}' and user_id = '${a.guestId}'`,
    ],
  ])("%s keeps even a superuser from crossing orgs", async (constraint, statement) => {
    await asAdmin(
      harness.current,
      `insert into roster.roles (org_id, name, permissions) values ('${b.orgId}', 'dancer', '{}')
        on conflict do nothing`,
    );
    await expect(asAdmin(harness.current, statement())).rejects.toMatchObject({
      code: "23503",
      constraint,
    });
  });

  test("ends with its transaction; the next one on the connection is another org's", async () => {
    const seen = "select org_id from roster.teams union select org_id from roster.org_members";
    for (const { orgId, ownerId } of [a, b, a, b]) {
      const { rows } = await within(app, enter(orgId, ownerId), seen);
      expect(rows).toEqual([{ org_id: orgId }]);
      expect((await app.query(seen)).rows).toEqual([]);
      // Entered in a transaction of its own, an org is left at once.
      await app.query(enter(orgId, ownerId));
      expect((await app.query(seen)).rows).toEqual([]);
    }
  });

  test("keeps nothing of an org when another is entered behind it", async () => {
    const both = `${enter(a.orgId, a.ownerId)}; ${enter(b.orgId, b.ownerId)}`;
    const { rows } = await within(app, both, "select distinct org_id from roster.teams");
    expect(rows).toEqual([{ org_id: b.orgId }]);
  });
});

describe("a session that entered nothing", () => {
  const settings = {
    "no org": "select",
    "an empty org": "select set_config('roster.org_id', '', true)",
    "an org that is no UUID": "select set_config('roster.org_id', 'garbage', true)",
    "an org that never was": `select set_config('roster.org_id', '${randomUUID()}', true)`,
  };
  beforeAll(() => settle(harness.current));

  test.each(
    Object.entries(settings).flatMap(([what, setting]) =>
      ["roster_app", "roster_directory", "roster_worker"].map((role) => [role, what, setting]),
    ),
  )("as %s with %s reads and changes nothing", async (role, _, setting) => {
    const { admin } = harness.current;
    const { rows: tables } = await admin.query<{ name: string; column: string }>(`
      select c.relname as name, a.attname as column
      from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum = 1
      where c.relnamespace = 'roster'::regnamespace and c.relkind in ('r', 'p')
        and c.relname <> 'schema_migrations'`);
    expect(tables.length).toBeGreaterThan(10);
    // With an audit entry in force: it is not the want of one that refuses.
    const opening = `set local role ${role}; ${force(randomUUID())}; ${setting}`;
    const faults: string[] = [];
    for (const { name, column } of tables) {
      for (const attempt of [
        `select 1 from roster.${name}`,
        `update roster.${name} set ${column} = ${column} returning 1`,
        `delete from roster.${name} returning 1`,
      ]) {
        const { rows, code } = await within(admin, opening, attempt);
        // Refused for want of a privilege, or because the org cannot be read as a UUID.
        if (rows.length > 0 || !["42501", "22P02", undefined].includes(code))
          faults.push(`${code}: ${attempt}`);
      }
    }
    expect(faults).toEqual([]);
  });
});

describe("the session of a user outside any org", () => {
  let directory: pg.Client;
  let a: Settled;
  let b: Settled;
  const asMember = (statement: string): Promise<Outcome> =>
    within(directory, enterDirectory(a.memberId), statement);
  const seen = async (statement: string): Promise<unknown[]> => {
    const { rows, error } = await asMember(statement);
    if (error) throw error;
    return [...rows];
  };

  beforeAll(async () => {
    directory = await connect(harness.current.urls.directory);
    a = await settle(harness.current);
    b = await settle(harness.current);
    await b.owner.orgs.addOrgMember({ orgId: b.orgId, userId: a.memberId });
  });

  test("shows their own user, profiles, memberships and orgs, and nothing else", async () => {
    const own = { user_id: a.memberId };
    const orgs = [a.orgId, b.orgId].sort().map((id) => ({ id }));
    expect(await seen("select id as user_id from roster.users")).toEqual([own]);
    expect(await seen("select user_id from roster.profiles")).toEqual([own, own]);
    expect(await seen("select user_id from roster.org_members")).toEqual([own, own]);
    expect(await seen("select user_id from roster.team_members")).toEqual([own]);
    expect(await seen("select id from roster.orgs order by id")).toEqual(orgs);
    const slugs = [a, b].map(({ slug }) => ({ slug_key: slug }));
    expect(await seen("select slug_key from roster.org_slugs")).toHaveLength(2);
    expect(await seen("select slug_key from roster.org_slugs")).toEqual(
      expect.arrayContaining(slugs),
    );
    for (const table of ["audit_entries", "audit_changes"])
      expect(await seen(`select 1 from roster.${table}`)).toEqual([]);
    for (const table of ["teams", "roles"])
      expect((await asMember(`select 1 from roster.${table}`)).code).toBe("42501");
  });

  test("changes their own rows alone", async () => {
    const own = { user_id: a.memberId };
    const users = "update roster.users set name = 'New' returning id as user_id";
    expect(await seen(users)).toEqual([own]);
    const profiles = "update roster.profiles set bio = 'New' returning user_id";
    expect(await seen(profiles)).toEqual([own, own]);
    for (const table of ["orgs", "org_members", "org_slugs"])
      expect((await asMember(`delete from roster.${table}`)).code).toBe("42501");
  });

  test.each<[string, () => string]>([
    [
      "a user",
      () =>
        `insert into roster.users (id, email, name) values (gen_random_uuid(), 'x@example.com', 'X')`,
    ],
    [
      "someone's profile",
      () => `insert into roster.profiles (id, user_id, org_id)
        values (gen_random_uuid(), '${b.guestId}', '${b.orgId}')`,
    ],
    [
      "a membership",
      () => `insert into roster.org_members (org_id, user_id, role)
        values ('${b.orgId}', '${a.guestId}', 'member')`,
    ],
    [
      "an org",
      () => "insert into roster.orgs (id, name, slug) values (gen_random_uuid(), 'Mine', 'mine')",
    ],
  ])("cannot make %s", async (_, statement) => {
    // With every role to give: it is the wall that refuses.
    const entering = `${enterDirectory(a.memberId)}; select set_config('roster.held_permissions', '*', true)`;
    const { error } = await within(directory, entering, statement());
    expect(error).toMatchObject({
      code: "42501",
      message: expect.stringMatching(/row-level security/),
    });
  });
});

test("Nobody enters an org that is there as one that they make", async () => {
  const { orgId } = await settle(harness.current);
  const directory = await connect(harness.current.urls.directory);
  const entering = `select roster.enter_directory(null, true, null, '', false, '${orgId}', 20000,
    '${randomUUID()}', 'service:test', '{}', 'test', 'test')`;
  const rename = `update roster.users set name = 'New'`;
  const { error } = await within(directory, entering, rename);
  expect(error?.message).toBe(`organisation ${orgId} exists`);
});

describe("the session of an org that invites", () => {
  test("shows nothing of it, and may do nothing there but answer, before and after", async () => {
    const { orgId, owner, teamId, memberId } = await settle(harness.current);
    const { userId, invitation } = await inviteUser(harness.current, owner, orgId);
    const elsewhere = await settle(harness.current);
    const directory = await connect(harness.current.urls.directory);
    const inside = (statement: string, values?: readonly unknown[]): Promise<Outcome> =>
      within(directory, enterInvitation(orgId, userId), statement, values);
    for (const table of ["orgs", "org_members", "users"]) {
      const { rows } = await inside(`select to_jsonb(t) as row from roster.${table} t`);
      expect(rows.filter(({ row }) => (row as { id?: string }).id !== userId)).toEqual([]);
    }
    for (const statement of [
      "select from roster.invitations",
      "update roster.invitations set state = 'REVOKED'",
      `insert into roster.team_members (org_id, team_id, user_id) values ('${orgId}', '${teamId}', '${memberId}')`,
    ])
      expect((await inside(statement)).code, statement).toBe("42501");
    const answer = `
      select (a.accepted).state, current_setting('roster.held_permissions') as held
      from roster.accept_invitation($1, 0, $2) a`;
    const values = [invitation.id, userId];
    const lost = await within(directory, enterInvitation(elsewhere.orgId, userId), answer, values);
    expect(lost.error?.message).toBe("INVITATION_NOT_FOUND");
    const { rows } = await inside(answer, values);
    expect(rows).toEqual([{ state: "ACCEPTED", held: "" }]);
  });
});
