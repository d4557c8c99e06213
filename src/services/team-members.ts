import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { accessOf, orgId, unitOfWork } from "../context.ts";
import { etag, instant, maybeInstant, sql } from "../database/sql.ts";
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
const listedRow = z.object({ ...memberShape, user_delete_time: maybeInstant });
const userTeamRow = z.object({ ...memberShape, ...teamShape });
const fullRow = z.object({ ...memberShape, ...userShape, ...briefProfileShape });

export const toMember = (row: z.output<typeof memberRow>) => ({
  orgId: row.member_org_id,
  teamId: row.member_team_id,
  userId: row.member_user_id,
  role: TeamRole[row.member_role],
  joinTime: row.member_join_time,
  etag: row.member_version,
});

const noMember = (userId: string) => () => fail("TEAM_MEMBER_NOT_FOUND", { user_id: userId });

const roleText = (role: TeamRole): string =>
  role === TeamRole.MAINTAINER ? "MAINTAINER" : "MEMBER";

/** A membership counts while its team and its user are live; which teams exist for the caller, RLS says. */
const liveMember = (context: HandlerContext, teamId: string, userId: string) => sql.fragment`
  m.org_id = ${orgId(context)} and m.team_id = ${teamId} and m.user_id = ${userId}
  and t.org_id = m.org_id and t.id = m.team_id and t.delete_time is null
  and u.id = m.user_id and u.delete_time is null`;

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
    // The org membership is held first: with the foreign key alone, one that ends meanwhile would not be named.
    const row = await unitOfWork(context).maybeOne(sql.type(memberRow)`
      insert into roster.team_members as m (org_id, team_id, user_id, role)
      select t.org_id, t.id, o.user_id, ${roleText(role)}
      from roster.teams t
      join roster.org_members o on o.org_id = t.org_id and o.user_id = ${userId}
      join roster.users u on u.id = o.user_id and u.delete_time is null
      where t.org_id = ${orgId(context)} and t.id = ${teamId} and t.delete_time is null
      for key share of o
      returning ${memberColumns}`);
    if (!row) {
      await demandTeam(context, teamId);
      throw fail("ORG_MEMBER_NOT_FOUND", { user_id: userId });
    }
    return { member: toMember(row) };
  },

  async getTeamMember({ teamId, userId }, context) {
    const row = await unitOfWork(context).maybeOne(sql.type(memberRow)`
      select ${memberColumns} from roster.team_members m, roster.teams t, roster.users u
      where ${liveMember(context, teamId, userId)}`);
    if (!row) {
      await demandTeam(context, teamId);
      throw noMember(userId)();
    }
    return { member: toMember(row) };
  },

  async listTeamMembers(request, context) {
    const { teamId } = request;
    const page = pageOf(context, request);
    const [after = firstId] = page.after ?? [];
    const members = sql.fragment`
      select own.* from roster.team_members own
      where own.org_id = ${orgId(context)} and own.team_id = ${teamId}
        and exists (
          select from roster.teams t
          where t.org_id = ${orgId(context)} and t.id = ${teamId} and t.delete_time is null)
        and (
          select true from roster.org_members m
          where m.org_id = ${orgId(context)} and m.user_id = own.user_id and ${isLasting})
        and own.user_id > ${after}::uuid
      order by own.user_id limit ${page.limit}`;
    const answer = async <Row extends z.output<typeof listedRow>>(
      rows: readonly Row[],
      toItem: (row: Row) => ReturnType<typeof toMember>,
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
        select ${memberColumns}, ${userColumns}, ${briefProfileColumns}
        from (${members}) m join roster.users u on u.id = m.user_id ${userJoin} ${profileJoin}
        order by m.user_id`);
      return answer(rows, (row) => ({
        ...toMember(row),
        user: { ...toUser(row), profile: toBriefProfile(row) },
      }));
    }
    const rows = await unitOfWork(context).many(sql.type(listedRow)`
      select ${memberColumns}, u.delete_time as user_delete_time
      from (${members}) m join roster.users u on u.id = m.user_id
      order by m.user_id`);
    return answer(rows, toMember);
  },

  async listUserTeams(request, context) {
    const { userId } = request;
    const page = pageOf(context, request);
    const [after = firstId] = page.after ?? [];
    // Teams that the caller may not see are left out before the page is cut, so that no token names one.
    const rows = await unitOfWork(context).many(sql.type(userTeamRow)`
      select ${memberColumns}, ${teamColumns}
      from (
        select m.* from roster.team_members m
        where m.org_id = ${orgId(context)} and m.user_id = ${userId} and m.team_id > ${after}::uuid
          and exists (select from roster.users where id = ${userId} and delete_time is null)
          and (
            select true from roster.teams
            where org_id = ${orgId(context)} and id = m.team_id and delete_time is null)
        order by m.team_id limit ${page.limit}) m
      join roster.teams t on t.org_id = m.org_id and t.id = m.team_id
      order by m.team_id`);
    if (rows.length === 0) await demandOrgMember(context, userId);
    const { items, nextPageToken } = page.finish(
      rows,
      (row) => [row.team_id],
      (row) => ({ team: toTeam(row), member: toMember(row) }),
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
