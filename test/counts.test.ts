import { randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { migrate, readMigrations } from "../src/database/migrate.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { purge } from "../src/jobs/purge.ts";
import { bootstrapped, asAdmin as onDatabase } from "./databases.ts";
import { type Callers, refusal, slug, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { ownedOrg } from "./owned-org.ts";
import { asAdmin, enter, force, useConnections, within } from "./sessions.ts";

const harness = useHarness();
const connect = useConnections();

/** Orgs whose counts are not what counting says. */
const miscounted = async (): Promise<unknown[]> => {
  const { rows } = await harness.current.admin.query(`
    select o.id, c.members, c.teams, c.roles, c.pending_invitations, r.*
    from roster.orgs o left join roster.org_counts c on c.org_id = o.id
    cross join lateral (
      select (select count(*)::int from roster.org_members m join roster.users u on u.id = m.user_id
          where m.org_id = o.id and u.delete_time is null) as real_members,
        (select count(*)::int from roster.teams t where t.org_id = o.id and t.delete_time is null) as real_teams,
        (select count(*)::int from roster.roles x where x.org_id = o.id) as real_roles,
        (select count(*)::int from roster.invitations i
          where i.org_id = o.id and i.state = 'PENDING') as real_pending) r
    where (c.members, c.teams, c.roles, c.pending_invitations)
      is distinct from (r.real_members, r.real_teams, r.real_roles, r.real_pending)`);
  return rows;
};

/** What GetOrg counts, to whoever asks. */
const counts = async ({ orgs }: Callers, orgId: string) => {
  const { org } = await orgs.getOrg({ orgId, view: View.FULL });
  return { members: org?.memberCount, teams: org?.teamCount };
};

const past = timestampFromMs(Date.now() - 60_000);

describe("The counts of OrgService.GetOrg", () => {
  test("come in VIEW_FULL alone, and with no other answer", async () => {
    const { orgId, guest, owner } = await harness.current.tenant();
    const { orgs } = harness.current.ops;
    await makeTeam(owner, { orgId, name: "Crew" });
    expect(await counts(guest, orgId)).toEqual({ members: 4, teams: 1 });
    const answers = [
      await guest.orgs.getOrg({ orgId }),
      await guest.orgs.getOrg({ orgId, view: View.BASIC }),
      await owner.orgs.updateOrg({ org: { id: orgId, name: "Renamed" } }),
      await orgs.suspendOrg({ orgId }),
    ];
    for (const { org } of answers)
      expect([org?.memberCount, org?.teamCount]).toEqual([undefined, undefined]);
  });

  test("tell of live teams and of members who have not expired, also in an org that is deleted", async () => {
    const { orgId, ownerIds } = await ownedOrg(harness.current, 1);
    const owner = await harness.current.as(ownerIds[0] ?? "");
    expect(await counts(owner, orgId)).toEqual({ members: 1, teams: 0 });
    const { ops } = harness.current;
    await ops.orgs.addOrgMember({ orgId, userId: await harness.current.user(), expireTime: past });
    expect(await counts(owner, orgId)).toEqual({ members: 1, teams: 0 });
    const { org } = await ops.orgs.deleteOrg({ orgId, force: true });
    expect(await counts(ops, org?.id ?? "")).toEqual({ members: 1, teams: 0 });
  });
});

/** Some people, orgs and teams, and what may happen to them. */
interface Stage {
  readonly userIds: readonly string[];
  readonly orgIds: readonly string[];
  readonly teams: { readonly orgId: string; readonly teamId: string }[];
}
interface Cast {
  readonly userId: string;
  readonly orgId: string;
  readonly team: { readonly orgId: string; readonly teamId: string };
}

const makeStage = async (): Promise<Stage> => {
  const { orgId, ownerIds } = await ownedOrg(harness.current, 2);
  const owner = ownerIds.slice(0, 1);
  const others = [await ownedOrg(harness.current, 1, owner), await ownedOrg(harness.current, 1)];
  const more = await Promise.all([1, 2, 3, 4, 5].map(() => harness.current.user()));
  const orgIds = [orgId, ...others.map((org) => org.orgId)];
  const userIds = [...ownerIds, ...more];
  const teams: { orgId: string; teamId: string }[] = [];
  for (const id of orgIds) {
    for (const userId of more.slice(2))
      await harness.current.ops.orgs.addOrgMember({ orgId: id, userId, role: "member" });
    const { id: teamId } = await makeTeam(harness.current.ops, { orgId: id, name: "Top" });
    teams.push({ orgId: id, teamId });
  }
  return { userIds, orgIds, teams };
};

const member = ({ userId, orgId }: Cast) => ({ userId, orgId });
const newTeam = async ({ teams }: Stage, orgId: string, parentTeamId: string): Promise<void> => {
  const { id: teamId } = await makeTeam(harness.current.ops, {
    orgId,
    parentTeamId,
    name: randomUUID(),
  });
  teams.push({ orgId, teamId });
};

/** Everything that changes what an org has, by every path. */
const happenings: Record<string, (ops: Callers, cast: Cast, stage: Stage) => Promise<unknown>> = {
  add: ({ orgs }, cast) => orgs.addOrgMember(member(cast)),
  "add expired": ({ orgs }, cast) => orgs.addOrgMember({ ...member(cast), expireTime: past }),
  expire: ({ orgs }, cast) =>
    orgs.updateOrgMember({ member: { ...member(cast), role: "guest", expireTime: past } }),
  renew: ({ orgs }, cast) =>
    orgs.updateOrgMember({ member: member(cast), updateMask: { paths: ["expire_time"] } }),
  remove: ({ orgs }, cast) => orgs.removeOrgMember(member(cast)),
  "create org": ({ orgs }, { userId }) =>
    orgs.createOrg({ org: { name: "New", slug: slug() }, ownerUserId: userId }),
  "delete org": ({ orgs }, { orgId }) => orgs.deleteOrg({ orgId, force: true }),
  "undelete org": ({ orgs }, { orgId }) => orgs.undeleteOrg({ orgId }),
  "purge org": ({ orgs }, { orgId }) => orgs.purgeOrg({ orgId }),
  "delete user": ({ users }, { userId }) => users.deleteUser({ userId }),
  "undelete user": ({ users }, { userId }) => users.undeleteUser({ userId }),
  "purge user": ({ users }, { userId }) => users.purgeUser({ userId }),
  "erase user": ({ users }, { userId }) => users.eraseUser({ userId, force: true }),
  "create team": (_ops, { orgId }, stage) => newTeam(stage, orgId, ""),
  "create inner team": (_ops, { team }, stage) => newTeam(stage, team.orgId, team.teamId),
  "delete team": ({ teams }, { team }) => teams.deleteTeam({ ...team, force: true }),
  "undelete team": ({ teams }, { team }) => teams.undeleteTeam(team),
};
/** What ends somebody or something comes less often than what makes or brings back. */
const weights: Record<string, number> = {
  add: 3,
  "undelete user": 2,
  "undelete org": 2,
  "undelete team": 2,
  "delete org": 0.5,
  "purge org": 0.3,
  "purge user": 0.3,
  "erase user": 0.3,
};
const pick = fc.record({
  what: fc.oneof(
    ...Object.keys(happenings).map((what) => ({
      weight: 10 * (weights[what] ?? 1),
      arbitrary: fc.constant(what),
    })),
  ),
  person: fc.nat(),
  place: fc.nat(),
  team: fc.nat(),
});
type Pick = { what: string; person: number; place: number; team: number };

const unfair = /^(CONFLICT_RETRY|INTERNAL|DATABASE_UNAVAILABLE|DEADLINE_EXCEEDED|)$/;

/** Lets some things happen at once. Refusals are fair, but nobody is told to retry, and nothing breaks. */
const happen = async (stage: Stage, picks: readonly Pick[]): Promise<void> => {
  const done = await Promise.allSettled(
    picks.map(({ what, person, place, team }) => {
      const cast = {
        userId: stage.userIds[person % stage.userIds.length] ?? "",
        orgId: stage.orgIds[place % stage.orgIds.length] ?? "",
        team: stage.teams[team % stage.teams.length] ?? { orgId: "", teamId: "" },
      };
      return happenings[what]?.(harness.current.ops, cast, stage);
    }),
  );
  const refused = done.flatMap((one) => (one.status === "rejected" ? [one.reason] : []));
  for (const reason of refused)
    expect((await refusal(Promise.reject(reason))).reason).not.toMatch(unfair);
};

/** Lets the purge time of everything deleted have come, and purges it. */
const purgeAll = async (): Promise<void> => {
  for (const table of ["users", "orgs", "teams"])
    await asAdmin(
      harness.current,
      `update roster.${table} set purge_time = now() - interval '3 minutes' where purge_time is not null`,
    );
  await purge(harness.current.urls.worker);
};

describe("The counts of every org", () => {
  test("are what counting says, whatever happens, in turns and at once", async () => {
    const happened = fc.asyncProperty(
      fc.array(fc.array(pick, { minLength: 1, maxLength: 6 }), { minLength: 30, maxLength: 30 }),
      async (batches) => {
        const stage = await makeStage();
        for (const [index, picks] of batches.entries()) {
          await happen(stage, picks);
          if (index % 10 === 9) {
            expect(await miscounted()).toEqual([]);
            await purgeAll();
          }
        }
        expect(await miscounted()).toEqual([]);
      },
    );
    await fc.assert(happened, { numRuns: 4, endOnFailure: true });
  });

  test("lose one who is removed and deleted at the same moment just once", async () => {
    const { admin, ops } = harness.current;
    const ends = {
      remove: (orgId: string, userId: string) => ops.orgs.removeOrgMember({ orgId, userId }),
      delete: (_orgId: string, userId: string) => ops.users.deleteUser({ userId }),
    };
    for (const [first, second] of [
      ["delete from roster.org_members where user_id = $1", ends.delete],
      [
        "update roster.users set delete_time = now(), purge_time = now() where id = $1",
        ends.remove,
      ],
    ] as const) {
      const { orgId, memberId } = await harness.current.tenant();
      await admin.query("begin");
      await admin.query(force(randomUUID()));
      await admin.query(first, [memberId]);
      const waiting = second(orgId, memberId);
      const blocked =
        "select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
      await expect
        .poll(
          async () => {
            await admin.query("select pg_stat_clear_snapshot()");
            return (await admin.query(blocked)).rowCount;
          },
          { interval: 5 },
        )
        .toBe(1);
      await admin.query("commit");
      await waiting;
      expect(await counts(ops, orgId)).toMatchObject({ members: 3 });
      expect(await miscounted()).toEqual([]);
    }
  });

  test("are written once by a statement, however many rows it adds or takes away", async () => {
    const { orgId } = await ownedOrg(harness.current, 1);
    const other = await ownedOrg(harness.current, 1);
    // One whose plans were not made for a row or two.
    const admin = await connect(harness.current.urls.admin);
    const written = async (text: string): Promise<number> => {
      const count =
        "select n_tup_upd::int as n from pg_stat_xact_user_tables where relname = 'org_counts'";
      await admin.query("begin");
      try {
        await admin.query(force(randomUUID()));
        const before = (await admin.query(count)).rows[0].n;
        await admin.query(text, [orgId, other.orgId]);
        return (await admin.query(count)).rows[0].n - before;
      } finally {
        await admin.query("commit");
      }
    };
    const people =
      "select gen_random_uuid(), gen_random_uuid() || '@example.com', 'Some One' from generate_series(1, 500)";
    await asAdmin(harness.current, `insert into roster.users (id, email, name) ${people}`);
    const orgs = "(values ($1::uuid), ($2::uuid)) o (id)";
    for (const statement of [
      `insert into roster.org_members (org_id, user_id) select o.id, u.id from ${orgs} cross join roster.users u
       where u.name = 'Some One' and u.delete_time is null on conflict do nothing`,
      `insert into roster.teams (org_id, id, name) select o.id, gen_random_uuid(), 'Team ' || n
       from ${orgs}, generate_series(1, 500) n`,
      `update roster.teams set delete_time = now(), purge_time = now() where org_id in ($1, $2)`,
      `delete from roster.org_members where org_id in ($1, $2) and role = 'member'`,
    ])
      expect(await written(statement)).toBe(2);
    expect(await miscounted()).toEqual([]);
  });

  test("are there for the orgs of a database from before there were any", async () => {
    const urls = await bootstrapped();
    const migrations = readMigrations();
    await migrate(
      urls.migrator,
      migrations.filter(({ version }) => version < 20),
    );
    await onDatabase(
      urls.admin,
      `begin; set local session_replication_role = replica;
      insert into roster.users (id, email, name, delete_time, purge_time)
        select md5(n::text)::uuid, n || '@example.com', 'User', deleted, deleted
        from generate_series(1, 5) n, lateral (select case n when 5 then now() end as deleted) d;
      insert into roster.orgs (id, name, slug) select md5(o)::uuid, o, o from unnest('{a, b}'::text[]) o;
      insert into roster.org_members (org_id, user_id) select md5('a')::uuid, id from roster.users;
      insert into roster.roles (org_id, name) values (md5('a')::uuid, 'singer');
      insert into roster.teams (org_id, id, name, delete_time, purge_time)
        select md5('a')::uuid, md5(n::text)::uuid, 'Team ' || n, deleted, deleted
        from generate_series(1, 3) n, lateral (select case n when 3 then now() end as deleted) d;
      commit`,
    );
    await migrate(urls.migrator, migrations);
    const made = `select o.name, c.members, c.teams, c.roles
      from roster.orgs o join roster.org_counts c on c.org_id = o.id order by 1`;
    expect(await onDatabase(urls.admin, made)).toEqual([
      { name: "a", members: 4, teams: 2, roles: 1 },
      { name: "b", members: 0, teams: 0, roles: 0 },
    ]);
  });

  test("are written by nobody who enters the org", async () => {
    const { orgId, ownerId } = await harness.current.tenant();
    const app = await connect(harness.current.urls.app);
    for (const statement of [
      "update roster.org_counts set members = 0",
      "delete from roster.org_counts",
      `insert into roster.org_counts (org_id) values ('${orgId}')`,
      "delete from roster.org_limits",
    ])
      expect(await within(app, enter(orgId, ownerId), statement)).toMatchObject({ code: "42501" });
  });
});
