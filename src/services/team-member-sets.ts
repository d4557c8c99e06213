import type { ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { caller, orgId, unitOfWork } from "../context.ts";
import { type FragmentSqlToken, sql } from "../database/sql.ts";
import { refused } from "../errors.ts";
import type { TeamService } from "../gen/roster/v1/team_service_pb.ts";
import { memberColumns, memberRow, roleText, toMember } from "./team-members.ts";
import { noTeam } from "./teams.ts";

const userRow = z.object({ user_id: z.string() });

/** Making the members of a team exactly a list, an RPC of TeamService. */
export const teamMemberSets = {
  async setTeamMembers({ teamId, members }, context) {
    const unit = unitOfWork(context);
    const id = orgId(context);
    const items = members.map(({ userId, role }) => ({
      userId: userId.toLowerCase(),
      role: roleText(role),
    }));
    const roles = new Map<string, string>();
    for (const { userId, role } of items) if (!roles.has(userId)) roles.set(userId, role);
    const named = sql.array([...roles.keys()].sort(), "uuid");

    // The team is held first, by which two calls for it come one after the other; then the right to do this, also where
    // nothing is left to do, and what each item stands on.
    await unit.one(
      sql.type(z.object({}))`
        with held as materialized (
          select id from roster.teams where org_id = ${id} and id = ${teamId} and delete_time is null
          for no key update)
        select from held where roster.hold_team(id)`,
      noTeam(teamId),
    );
    const people = await unit.many(sql.type(userRow)`
      select m.user_id
      from unnest(${named}) named (user_id)
      cross join lateral (
        select user_id from roster.org_members where org_id = ${id} and user_id = named.user_id
        limit 1 for key share) m
      cross join lateral (
        select from roster.users where id = m.user_id and delete_time is null limit 1) u`);
    const present = people.map(({ user_id }) => user_id);

    // Also a row that stays as it is is held, so that it is still there to be read.
    const change = (whose: FragmentSqlToken) =>
      unit.many(sql.type(userRow)`
      with removed as (
        delete from roster.team_members m
        where m.org_id = ${id} and m.team_id = ${teamId} and m.user_id ${whose}
          and m.user_id <> all (${named})
          and (select true from roster.users where id = m.user_id and delete_time is null)
        returning m.user_id),
      put as (
        insert into roster.team_members as m (org_id, team_id, user_id, role)
        select ${id}, ${teamId}, wanted.user_id, wanted.role
        from unnest(${sql.array(present, "uuid")}, ${sql.array(
          present.map((userId) => roles.get(userId) ?? ""),
          "text",
        )}) wanted (user_id, role)
        where wanted.user_id ${whose}
        order by wanted.user_id
        on conflict (org_id, team_id, user_id) do update set role = excluded.role
          where m.role <> excluded.role)
      select user_id from removed`);
    const { userId: self = null } = caller(context);
    const removed = [...(await change(sql.fragment`is distinct from ${self}::uuid`))];
    // The caller comes last: a maintainer who leaves or steps down changes the others by the role they have until then.
    if (self !== null) removed.push(...(await change(sql.fragment`= ${self}::uuid`)));
    const rows = await unit.many(sql.type(memberRow)`
      select ${memberColumns} from roster.team_members m
      where m.org_id = ${id} and m.team_id = ${teamId} and m.user_id = any (${sql.array(present, "uuid")})`);

    const made = new Map(rows.map((row) => [row.member_user_id, row]));
    const results = items.map(({ userId, role }, place) => {
      if (roles.get(userId) !== role) {
        const rule = "must be the role by which the user was named before";
        return { result: refused("FIELD_INVALID", { field: `members[${place}].role`, rule }) };
      }
      const row = made.get(userId);
      const absent = { field: `members[${place}].user_id`, user_id: userId };
      return {
        result: row
          ? { case: "member" as const, value: toMember(row) }
          : refused("ORG_MEMBER_NOT_FOUND", absent),
      };
    });
    return { results, removedUserIds: removed.map(({ user_id }) => user_id).sort() };
  },
} satisfies Pick<ServiceImpl<typeof TeamService>, "setTeamMembers">;
