import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { accessOf, orgId, unitOfWork } from "../context.ts";
import type { Page } from "../database/page.ts";
import { etag, ids, instant, maybeInstant, sql } from "../database/sql.ts";
import { fail } from "../errors.ts";
import { TeamMemberSchema, TeamRole } from "../gen/roster/v1/team_member_pb.ts";
import type { TeamService } from "../gen/roster/v1/team_service_pb.ts";
import { View } from "../gen/roster/v1/view_pb.ts";
import { isLasting } from "./org-members.ts";
import { briefProfileColumns, briefProfileShape, profileJoin, toBriefProfile } from "./profiles.ts";
import { changesOf, firstId, pageOf, required, stale, versionOf } from "./requests.ts";
import { noTeam, teamColumns, teamShape, toTeam } from "./teams.ts";
import { toUser, userColumns, userJoin, userShape } from "./users.ts";

/** A team membership as columns of `team_members m`. */
export const memberColumns = sql.fragment`
  m.org_id as member_org_id, m.team_id as member_team_id, m.user_id as member_user_id, m.role as member_role,
  m.join_time as member_join_time, m.version as member_version`;

const memberShape = {
  member_org_id: z.string(),
  member_team_id: z.string(),
  member_user_id: z.string(),
  member_role: z.enum(["MAINTAINER", "MEMBER"]),
  member_join_time: instant,
  member_version: etag,
};
export const memberRow = z.object(memberShape);
/** A membership with the teams from the asked one down to its own; none where the tree was not asked. */
const grantedShape = { ...memberShape, member_path: ids };
const grantedRow = z.object(grantedShape);
const listedRow = z.object({ ...grantedShape, user_delete_time: maybeInstant });
const userTeamRow = z.object({ ...grantedShape, ...teamShape });
const fullRow = z.object({ ...grantedShape, ...userShape, ...briefProfileShape });

export const toMember = (row: z.output<typeof memberRow>) => ({
  orgId: row.member_org_id,
  teamId: row.member_team_id,
  userId: row.member_user_id,
  role: TeamRole[row.member_role],
  joinTime: row.member_join_time,
  etag: row.member_version,
});

const viaOf = (row: z.output<typeof grantedRow>) => row.member_path.toReversed();

const toGranted = (row: z.output<typeof grantedRow>) => ({
  ...toMember(row),
  viaTeamIds: viaOf(row),
});

const noMember = (userId: string) => () => fail("TEAM_MEMBER_NOT_FOUND", { user_id: userId });

export const roleText = (role: TeamRole): string =>
  role === TeamRole.MAINTAINER ? "MAINTAINER" : "MEMBER";

/** A membership counts while its team and its user are live; which teams exist for the caller, RLS says. */
const liveMember = (context: HandlerContext, teamId: string, userId: string) => sql.fragment`
  m.org_id = ${orgId(context)} and m.team_id = ${teamId} and m.user_id = ${userId}
  and t.org_id = m.org_id and t.id = m.team_id and t.delete_time is null
  and u.id = m.user_id and u.delete_time is null`;

/** A user's nearest membership in a team or a team below it. */
const nearest = (context: HandlerContext, teamId: string, userId: string) => sql.fragment`
  select ${memberColumns}, t.path[array_position(t.path, ${teamId}::uuid) :] as member_path
  from roster.team_members m
  join roster.users u on u.id = m.user_id and u.delete_time is null
  cross join lateral (
    select path from roster.teams
    where org_id = ${orgId(context)} and id = m.team_id and ${teamId} = any (path) and delete_time is null
    limit 1) t
  where m.org_id = ${orgId(context)} and m.user_id = ${userId}
  order by cardinality(t.path), m.team_id limit 1`;

/** A page of a team's own members behind a user. */
const ownMembers = (context: HandlerContext, teamId: string, page: Page) => sql.fragment`
  select own.*, '{}'::uuid[] as path from roster.team_members own
  where own.org_id = ${orgId(context)} and own.team_id = ${teamId}
    and exists (
      select from roster.teams t
      where t.org_id = ${orgId(context)} and t.id = ${teamId} and t.delete_time is null)
    and (
      select true from roster.org_members m
      where m.org_id = ${orgId(context)} and m.user_id = own.user_id and ${isLasting})
    and own.user_id > ${page.after?.[0] ?? firstId}::uuid
  order by own.user_id limit ${page.limit}`;

/** The same with the members of the teams below it. Which of these the caller sees, the function judges. */
const effectiveMembers = (context: HandlerContext, teamId: string, page: Page) => sql.fragment`
  select own.*, e.path
  from roster.effective_members(${teamId}, ${page.after?.[0] ?? firstId}, ${page.limit}) e
  cross join lateral (
    select * from roster.team_members
    where org_id = ${orgId(context)} and team_id = e.team_id and user_id = e.user_id
    limit 1) own`;

/** A page of the teams in which a user has a role of their own, each by its membership. */
const ownTeams = (context: HandlerContext, userId: string, page: Page) => sql.fragment`
  select m.*, m.team_id as id, '{}'::uuid[] as path
  from roster.team_members m
  where m.org_id = ${orgId(context)} and m.user_id = ${userId}
    and m.team_id > ${page.after?.[0] ?? firstId}::uuid
    and exists (select from roster.users where id = ${userId} and delete_time is null)
    and (
      select true from roster.teams
      where org_id = ${orgId(context)} and id = m.team_id and delete_time is null)
  order by m.team_id limit ${page.limit}`;

/** The same with the teams above these, each by the nearest membership in a team that the caller sees. */
const effectiveTeams = (context: HandlerContext, userId: string, page: Page) => sql.fragment`
  select up.*
  from (
    select distinct on (a.id) m.*, a.id, t.path[a.level :] as path
    from roster.team_members m
    cross join lateral (
      select path from roster.teams
      where org_id = ${orgId(context)} and id = m.team_id and delete_time is null
      limit 1) t
    cross join unnest(t.path) with ordinality a (id, level)
    where m.org_id = ${orgId(context)} and m.user_id = ${userId}
      and a.id > ${page.after?.[0] ?? firstId}::uuid
      and exists (select from roster.users where id = ${userId} and delete_time is null)
    order by a.id, cardinality(t.path), m.team_id) up
  where (select true from roster.teams where org_id = ${orgId(context)} and id = up.id)
  order by up.id limit ${page.limit}`;

/** Refuses a team that is absent, deleted or hidden. */
const demandTeam = (context: HandlerContext, teamId: string) =>
  unitOfWork(context).one(
    sql.type(z.object({}))`
      select from roster.teams where org_id = ${orgId(context)} and id = ${teamId} and delete_time is null`,
    noTeam(teamId),
  );

/**
 * Refuses a user who is not in the org. To a caller who sees only their own teams and finds this user in none
 * of them, nobody is: or asking would tell who is in the org.
 */
const demandOrgMember = (context: HandlerContext, userId: string) =>
  unitOfWork(context).one(
    sql.type(z.object({}))`
      select from roster.org_members m join roster.users u on u.id = m.user_id and u.delete_time is null
      where m.org_id = ${orgId(context)} and m.user_id = ${userId}
        and (${accessOf(context.values).self} or (select roster.team_sight()) <> 'own')`,
    () => fail("ORG_MEMBER_NOT_FOUND", { user_id: userId }),
  );

/** Why a write met no row: no such team, no such member, or a newer one than the etag says. */
const unwritten = async (
  context: HandlerContext,
  teamId: string,
  userId: string,
  given: string,
): Promise<Error> => {
  await demandTeam(context, teamId);
  const row = await unitOfWork(context).one(
    sql.type(z.object({ version: etag }))`
      select m.version from roster.team_members m, roster.teams t, roster.users u
      where ${liveMember(context, teamId, userId)}`,
    noMember(userId),
  );
  return stale(given, row.version);
};

type TeamMembers = Pick<
  ServiceImpl<typeof TeamService>,
  | "addTeamMember"
  | "getTeamMember"
  | "listTeamMembers"
  | "listUserTeams"
  | "updateTeamMember"
  | "removeTeamMember"
>;

export const teamMembers = {
  async addTeamMember({ teamId, userId, role }, context) {
    // The org membership is held first: with the foreign key alone, one that ends meanwhile would not be named. And the
    // team, so that whose list is being set comes before or after this.
    const row = await unitOfWork(context).maybeOne(sql.type(memberRow)`
      insert into roster.team_members as m (org_id, team_id, user_id, role)
      select t.org_id, t.id, o.user_id, ${roleText(role)}
      from roster.teams t
      join roster.org_members o on o.org_id = t.org_id and o.user_id = ${userId}
      join roster.users u on u.id = o.user_id and u.delete_time is null
      where t.org_id = ${orgId(context)} and t.id = ${teamId} and t.delete_time is null
      for key share of o for share of t
      returning ${memberColumns}`);
    if (!row) {
      await demandTeam(context, teamId);
      throw fail("ORG_MEMBER_NOT_FOUND", { user_id: userId });
    }
    return { member: toMember(row) };
  },

  async getTeamMember({ teamId, userId, effective }, context) {
    const membership = effective
      ? nearest(context, teamId, userId)
      : sql.fragment`
          select ${memberColumns}, '{}'::uuid[] as member_path
          from roster.team_members m, roster.teams t, roster.users u
          where ${liveMember(context, teamId, userId)}`;
    const row = await unitOfWork(context).maybeOne(sql.type(grantedRow)`${membership}`);
    if (!row) {
      await demandTeam(context, teamId);
      throw noMember(userId)();
    }
    return { member: toGranted(row) };
  },

  async listTeamMembers(request, context) {
    const { teamId } = request;
    const page = pageOf(context, request);
    const members = (request.effective ? effectiveMembers : ownMembers)(context, teamId, page);
    const answer = async <Row extends z.output<typeof listedRow>>(
      rows: readonly Row[],
      toItem: (row: Row) => ReturnType<typeof toGranted>,
    ) => {
      if (rows.length === 0) await demandTeam(context, teamId);
      const { items, nextPageToken } = page.finish(
        rows,
        (row) => [row.member_user_id],
        (row) => (row.user_delete_time ? null : toItem(row)),
      );
      return { members: items, nextPageToken };
    };
    if (request.view === View.FULL) {
      const rows = await unitOfWork(context).many(sql.type(fullRow)`
        select ${memberColumns}, m.path as member_path, ${userColumns}, ${briefProfileColumns}
        from (${members}) m join roster.users u on u.id = m.user_id ${userJoin} ${profileJoin}
        order by m.user_id`);
      return answer(rows, (row) => ({
        ...toGranted(row),
        user: { ...toUser(row), profile: toBriefProfile(row) },
      }));
    }
    const rows = await unitOfWork(context).many(sql.type(listedRow)`
      select ${memberColumns}, m.path as member_path, u.delete_time as user_delete_time
      from (${members}) m join roster.users u on u.id = m.user_id
      order by m.user_id`);
    return answer(rows, toGranted);
  },

  async listUserTeams(request, context) {
    const { userId } = request;
    const page = pageOf(context, request);
    const teams = (request.effective ? effectiveTeams : ownTeams)(context, userId, page);
    // Teams that the caller may not see are left out before the page is cut, so that no token names one.
    const rows = await unitOfWork(context).many(sql.type(userTeamRow)`
      select ${memberColumns}, m.path as member_path, ${teamColumns}
      from (${teams}) m join roster.teams t on t.org_id = m.org_id and t.id = m.id
      order by m.id`);
    if (rows.length === 0) await demandOrgMember(context, userId);
    const { items, nextPageToken } = page.finish(
      rows,
      (row) => [row.team_id],
      (row) => ({ team: toTeam(row), member: toMember(row), viaTeamIds: viaOf(row) }),
    );
    return { userTeams: items, nextPageToken };
  },

  async updateTeamMember({ member, updateMask }, context) {
    if (!member) throw fail("FIELD_REQUIRED", { field: "member" });
    const teamId = required(member.teamId, "member.team_id");
    const userId = required(member.userId, "member.user_id");
    const changes = changesOf(TeamMemberSchema, member, updateMask, ["role"]);
    const row = await unitOfWork(context).maybeOne(sql.type(memberRow)`
      update roster.team_members m set
        role = case when ${changes.role} then ${roleText(member.role)} else m.role end
      from roster.teams t, roster.users u
      where ${liveMember(context, teamId, userId)}
        and m.version = coalesce(${versionOf(member.etag, "member.etag")}::bigint, m.version)
      returning ${memberColumns}`);
    if (!row) throw await unwritten(context, teamId, userId, member.etag);
    return { member: toMember(row) };
  },

  async removeTeamMember({ teamId, userId, etag: given }, context) {
    const row = await unitOfWork(context).maybeOne(sql.type(memberRow)`
      delete from roster.team_members m using roster.teams t, roster.users u
      where ${liveMember(context, teamId, userId)}
        and m.version = coalesce(${versionOf(given, "etag")}::bigint, m.version)
      returning ${memberColumns}`);
    if (!row) throw await unwritten(context, teamId, userId, given);
    return { member: toMember(row) };
  },
} satisfies TeamMembers;
