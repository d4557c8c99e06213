import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { orgId, unitOfWork } from "../context.ts";
import { type FragmentSqlToken, ids, maybeText, sql, texts } from "../database/sql.ts";
import { fail, refused } from "../errors.ts";
import { AccessReason } from "../gen/roster/v1/access_check_pb.ts";
import type { AccessService } from "../gen/roster/v1/access_service_pb.ts";
import { TeamRole } from "../gen/roster/v1/team_member_pb.ts";
import { isLasting } from "./org-members.ts";
import { orNull, pageOf } from "./requests.ts";
import { noTeam } from "./teams.ts";

/** A reason, the role, the role on the team, and the path from the team that grants, as of `roster.check_access`. */
const answerRow = z.object({ answer: texts });

/** The answer to a question, or null when the caller sees no such team. */
const toAnswer = ([reason = "", role = "", teamRole = "", ...viaTeamIds]: readonly string[]) =>
  reason === "TEAM_NOT_FOUND"
    ? null
    : {
        allowed: reason === "ORG_ROLE" || reason === "TEAM_ROLE",
        reason: AccessReason[reason as keyof typeof AccessReason],
        role,
        teamRole: TeamRole[teamRole as keyof typeof TeamRole],
        viaTeamIds,
      };

const grantRow = z.object({
  permission: z.string(),
  distance: z.string(),
  role: maybeText,
  team_role: z.enum(["UNSPECIFIED", "MAINTAINER", "MEMBER"]),
  via_team_ids: ids,
});

/**
 * How users stand in the org and, where one is named, on a team that the caller sees, each step one probe of a key:
 * that is what the limits are for. `roster.check_access` does the same for one question.
 *
 * @param questions rows `a` with `user_id` and `team_id`
 */
const standings = (org: string, questions: FragmentSqlToken) => sql.fragment`
  ${questions}
  cross join (select o.state from roster.orgs o where o.id = ${org} limit 1) o
  left join lateral (
    select m.role, m.state, u.state as user_state, coalesce(
      roster.built_in_permissions(m.role),
      (select r.permissions from roster.roles r where r.org_id = ${org} and r.name = m.custom_role)) as permissions
    from roster.org_members m join roster.users u on u.id = m.user_id and u.delete_time is null
    where m.org_id = ${org} and m.user_id = a.user_id and ${isLasting}
    limit 1) p on true
  left join lateral (
    select t.path, t.secrets from roster.teams t
    where t.org_id = ${org} and t.id = a.team_id and t.delete_time is null
    limit 1) t on true
  cross join lateral (
    select max(way.level::int) filter (where m.role = 'MAINTAINER') as maintained, max(way.level::int) as joined
    from unnest(t.path) with ordinality way (id, level)
    cross join lateral (
      select role from roster.team_members
      where org_id = ${org} and team_id = way.id and user_id = a.user_id
      limit 1) m
    where p.role is not null) j
  cross join lateral (
    select case
      when t.secrets = '{}' then true
      when t.secrets <> '{}' then t.secrets <@ roster.known_teams(a.user_id)
    end as is_open limit 1) k
  cross join lateral (
    select case
      when j.maintained is not null then 'MAINTAINER'
      when j.joined is not null and k.is_open then 'MEMBER'
    end as team_role limit 1) s`;

const unanswered = () => new Error("a question got no answer");

/** Why a user of `standings` may do what needs a permission, or may not. */
const reasonFor = (permission: FragmentSqlToken) => sql.fragment`
  roster.access_reason(${permission}, p.permissions, p.role, p.state, p.user_state, o.state, a.team_id is not null,
    k.is_open, s.team_role)`;

/** One user, and a team or none, as the question of `standings`. */
const about = (userId: string, teamId: string) =>
  sql.fragment`(values (${userId}::uuid, ${orNull(teamId)}::uuid)) a (user_id, team_id)`;

/** Refuses a team that is absent, deleted or hidden from the caller, and a user who is not in the org. */
const demandBoth = async (context: HandlerContext, userId: string, teamId: string) => {
  const { reason } = await unitOfWork(context).one(
    sql.type(z.object({ reason: z.string() }))`
      select ${reasonFor(sql.fragment`''`)} as reason from ${standings(orgId(context), about(userId, teamId))}`,
    unanswered,
  );
  if (reason === "TEAM_NOT_FOUND") throw noTeam(teamId)();
  if (reason === "NOT_A_MEMBER") throw fail("ORG_MEMBER_NOT_FOUND", { user_id: userId });
};

type AccessChecks = Pick<
  ServiceImpl<typeof AccessService>,
  "checkAccess" | "batchCheckAccess" | "listEffectivePermissions"
>;

/** What users may do, and why: RPCs of AccessService. */
export const accessChecks = {
  async checkAccess({ userId, permission, teamId }, context) {
    const row = await unitOfWork(context).one(
      sql.type(answerRow)`
        select roster.check_access(${userId}, ${permission}, ${orNull(teamId)}) as answer`,
      unanswered,
    );
    const answer = toAnswer(row.answer);
    if (!answer) throw noTeam(teamId)();
    return answer;
  },

  async batchCheckAccess({ checks }, context) {
    const people = checks.map(({ userId }) => userId);
    const permissions = checks.map(({ permission }) => permission);
    const teamIds = checks.map(({ teamId }) => orNull(teamId));
    const questions = sql.fragment`
      unnest(${sql.array(people, "uuid")}, ${sql.array(permissions, "text")}, ${sql.array(teamIds, "uuid")})
        with ordinality a (user_id, permission, team_id, place)`;
    const rows = await unitOfWork(context).many(sql.type(answerRow)`
      select array[reason, role, team_role] || case reason when 'TEAM_ROLE' then path[nearest :]::text[] end as answer
      from (
        select a.place, ${reasonFor(sql.fragment`a.permission`)} as reason, coalesce(p.role, '') as role,
          coalesce(s.team_role, 'UNSPECIFIED') as team_role, t.path, coalesce(j.maintained, j.joined) as nearest
        from ${standings(orgId(context), questions)}) answers
      order by place`);
    return {
      results: rows.map(({ answer }, place) => {
        const value = toAnswer(answer);
        if (value) return { result: { case: "answer" as const, value } };
        const field = `checks[${place}].team_id`;
        return { result: refused("TEAM_NOT_FOUND", { field, team_id: teamIds[place] ?? "" }) };
      }),
    };
  },

  async listEffectivePermissions(request, context) {
    const { userId, teamId } = request;
    const page = pageOf(context, request);
    const [permission = "", distance = "0"] = page.after ?? [];
    const rows = await unitOfWork(context).many(sql.type(grantRow)`
      select g.permission, g.distance::text, g.role, g.team_role, g.via_team_ids
      from ${standings(orgId(context), about(userId, teamId))}
      cross join lateral (
        select unnest(p.permissions) collate "C" as permission, 0 as distance, p.role, 'UNSPECIFIED' as team_role,
          '{}'::uuid[] as via_team_ids
        union all
        select unnest(roster.team_permissions(m.role)), cardinality(via.path), '', m.role, via.path
        from roster.team_members m
        cross join lateral (select t.path[array_position(t.path, m.team_id) :] as path) via
        where m.org_id = ${orgId(context)} and m.user_id = a.user_id and m.team_id = any (t.path)
          and (m.role = 'MAINTAINER' or k.is_open)) g
      where ${reasonFor(sql.fragment`g.permission`)} in ('ORG_ROLE', 'TEAM_ROLE')
        and (g.permission, g.distance) > (${permission}, ${distance}::int)
      order by g.permission, g.distance limit ${page.limit}`);
    if (rows.length === 0) await demandBoth(context, userId, teamId);
    const { items, nextPageToken } = page.finish(
      rows,
      (row) => [row.permission, row.distance],
      (row) => ({
        permission: row.permission,
        role: row.role,
        teamRole: TeamRole[row.team_role],
        teamId: row.via_team_ids[0] ?? "",
        viaTeamIds: row.via_team_ids,
      }),
    );
    return { permissions: items, nextPageToken };
  },
} satisfies AccessChecks;
