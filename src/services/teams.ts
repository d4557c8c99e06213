import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { v7 as uuid } from "uuid";
import { z } from "zod";
import { orgId, settings, unitOfWork } from "../context.ts";
import { etag, instant, labels, maybeInstant, maybeText, sql } from "../database/sql.ts";
import { fail, fieldCalled } from "../errors.ts";
import { TeamSchema, TeamVisibility } from "../gen/roster/v1/team_pb.ts";
import type { TeamService } from "../gen/roster/v1/team_service_pb.ts";
import { foldedText, id, labelsIn, oneOf, text, time } from "./conditions.ts";
import {
  changesOf,
  checkLabelCount,
  firstId,
  inOrder,
  labelChange,
  nfc,
  orNull,
  pageOf,
  required,
  sendable,
  stale,
  versionOf,
} from "./requests.ts";
import { type Choices, selectionOf } from "./selections.ts";

/** A team as columns of `teams t`. */
export const teamColumns = sql.fragment`
  t.id as team_id, t.org_id as team_org_id, t.parent_team_id as team_parent_id, t.name as team_name,
  t.type as team_type, t.description as team_description, t.visibility as team_visibility,
  t.labels as team_labels, t.create_time as team_create_time, t.update_time as team_update_time,
  t.delete_time as team_delete_time, t.purge_time as team_purge_time, t.version as team_version`;

export const teamShape = {
  team_id: z.string(),
  team_org_id: z.string(),
  team_parent_id: maybeText,
  team_name: z.string(),
  team_type: z.string(),
  team_description: z.string(),
  team_visibility: z.enum(["VISIBLE", "SECRET"]),
  team_labels: labels,
  team_create_time: instant,
  team_update_time: instant,
  team_delete_time: maybeInstant,
  team_purge_time: maybeInstant,
  team_version: etag,
};
const teamRow = z.object(teamShape);
const placedRow = z.object({ ...teamShape, position: z.string() });

export const toTeam = (row: z.output<typeof teamRow>) => ({
  id: row.team_id,
  orgId: row.team_org_id,
  parentTeamId: row.team_parent_id,
  name: row.team_name,
  type: row.team_type,
  description: row.team_description,
  visibility: TeamVisibility[row.team_visibility],
  labels: row.team_labels,
  createTime: row.team_create_time,
  updateTime: row.team_update_time,
  deleteTime: row.team_delete_time,
  purgeTime: row.team_purge_time,
  etag: row.team_version,
});

/** What ListTeams lets its callers choose. */
const choices: Choices = {
  fields: {
    name: foldedText(sql.fragment`t.name_key`),
    type: text(sql.fragment`t.type`),
    visibility: oneOf(sql.fragment`t.visibility`, ["VISIBLE", "SECRET"]),
    parent_team_id: id(sql.fragment`t.parent_team_id`),
    labels: labelsIn(sql.fragment`t.labels`),
    create_time: time(sql.fragment`t.create_time`),
    update_time: time(sql.fragment`t.update_time`),
    delete_time: time(sql.fragment`t.delete_time`),
  },
  keys: { name: { column: sql.fragment`t.name_key`, type: "text" } },
  idOrder: "create_time",
  id: sql.fragment`t.id`,
};

/** Deleted teams are for who may delete teams. */
const showsDeleted = sql.fragment`(select roster.team_sight()) = 'deleted'`;

export const noTeam = (teamId: string) => () => fail("TEAM_NOT_FOUND", { team_id: teamId });

const visibilityText = (visibility: TeamVisibility): string =>
  visibility === TeamVisibility.SECRET ? "SECRET" : "VISIBLE";

/** The live team's version, for saying why a write met no row. */
const versionNow = (context: HandlerContext, teamId: string) =>
  unitOfWork(context).one(
    sql.type(z.object({ version: etag }))`
      select version from roster.teams
      where org_id = ${orgId(context)} and id = ${teamId} and delete_time is null`,
    noTeam(teamId),
  );

type Teams = Pick<
  ServiceImpl<typeof TeamService>,
  | "createTeam"
  | "getTeam"
  | "batchGetTeams"
  | "listTeams"
  | "updateTeam"
  | "moveTeam"
  | "deleteTeam"
  | "undeleteTeam"
>;

export const teams = {
  async createTeam({ team }, context) {
    if (!team) throw fail("FIELD_REQUIRED", { field: "team" });
    // That the parent is live and not too deep, a trigger demands.
    const row = await unitOfWork(context).one(
      sql.type(teamRow)`
        insert into roster.teams as t (org_id, id, parent_team_id, name, type, description, visibility, labels)
        values (${orgId(context)}, ${uuid()}, ${orNull(team.parentTeamId)},
          ${nfc(required(team.name, "team.name"))}, ${team.type || "team"}, ${nfc(team.description)},
          ${visibilityText(team.visibility)}, ${JSON.stringify(team.labels)})
        returning ${teamColumns}`,
      () => new Error("the insert returned no row"),
    );
    return { team: toTeam(row) };
  },

  async getTeam({ teamId }, context) {
    const row = await unitOfWork(context).one(
      sql.type(teamRow)`
        select ${teamColumns} from roster.teams t
        where t.org_id = ${orgId(context)} and t.id = ${teamId}
          and roster.kept(t.delete_time, t.purge_time, ${showsDeleted})`,
      noTeam(teamId),
    );
    return { team: toTeam(row) };
  },

  async batchGetTeams({ teamIds }, context) {
    // The limit makes each id one probe of the key: a plain join reads the whole org, once for each id.
    const rows = await unitOfWork(context).many(sql.type(teamRow)`
      select ${teamColumns}
      from unnest(${sql.array([...new Set(teamIds)], "uuid")}) asked (id)
      cross join lateral (
        select * from roster.teams
        where org_id = ${orgId(context)} and id = asked.id
          and roster.kept(delete_time, purge_time, ${showsDeleted})
        limit 1) t`);
    const { items, missingIds } = inOrder(teamIds, rows.map(toTeam));
    return sendable(context, { teams: items, missingIds }, "team_ids");
  },

  async listTeams(request, context) {
    const page = pageOf(context, request);
    const chosen = selectionOf(request, page, true, choices);
    const [after = firstId] = page.after ?? [];
    const isShown = sql.fragment`
      t.org_id = ${orgId(context)}
      and roster.kept(t.delete_time, t.purge_time, ${request.showDeleted} and ${showsDeleted})`;
    if (chosen) {
      const query = sql.type(placedRow)`
        select ${teamColumns}, ${chosen.position} as position from roster.teams t
        where ${isShown} and ${chosen.where}
        order by ${chosen.order} limit ${page.limit}`;
      const rows = await unitOfWork(context).many(query, { prepare: false });
      const cursor = (row: z.output<typeof placedRow>) => chosen.cursor(row.position, row.team_id);
      const { items, nextPageToken } = page.finish(rows, cursor, toTeam);
      return { teams: items, nextPageToken };
    }
    const rows = await unitOfWork(context).many(sql.type(teamRow)`
      select ${teamColumns} from roster.teams t
      where ${isShown} and t.id > ${after}::uuid
      order by t.id limit ${page.limit}`);
    const { items, nextPageToken } = page.finish(rows, (row) => [row.team_id], toTeam);
    return { teams: items, nextPageToken };
  },

  async updateTeam({ team, updateMask }, context) {
    if (!team) throw fail("FIELD_REQUIRED", { field: "team" });
    const teamId = required(team.id, "team.id");
    const changes = changesOf(TeamSchema, team, updateMask, [
      "name",
      "type",
      "description",
      "visibility",
      "labels",
    ]);
    if (changes.name) required(team.name, "team.name");
    const label = labelChange(team.labels, changes.labels);
    // Named only when it changes: the name alone makes a trigger hold the whole tree.
    const visibility = changes.visibility
      ? sql.fragment`, visibility = ${visibilityText(team.visibility)}`
      : sql.fragment``;
    const row = await unitOfWork(context).maybeOne(sql.type(teamRow)`
      update roster.teams t set
        name = case when ${changes.name} then ${nfc(team.name)} else name end,
        type = case when ${changes.type} then ${team.type || "team"} else type end,
        description = case when ${changes.description} then ${nfc(team.description)} else description end,
        labels = (case when ${label.clear} then '{}' else labels end || ${label.set}::jsonb)
          - ${sql.array(label.remove, "text")}
        ${visibility}
      where t.org_id = ${orgId(context)} and t.id = ${teamId} and t.delete_time is null
        and t.version = coalesce(${versionOf(team.etag, "team.etag")}::bigint, t.version)
      returning ${teamColumns}`);
    if (!row) throw stale(team.etag, (await versionNow(context, teamId)).version);
    checkLabelCount(row.team_labels, "team.labels");
    return { team: toTeam(row) };
  },

  async moveTeam({ teamId, parentTeamId, etag: given }, context) {
    // That the parent is live, not below the team and not too deep, a trigger demands; the subtree follows by another.
    const moved = unitOfWork(context).maybeOne(sql.type(teamRow)`
      update roster.teams t set parent_team_id = ${orNull(parentTeamId)}
      where t.org_id = ${orgId(context)} and t.id = ${teamId} and t.delete_time is null
        and t.version = coalesce(${versionOf(given, "etag")}::bigint, t.version)
      returning ${teamColumns}`);
    const row = await moved.catch(fieldCalled(() => "parent_team_id"));
    if (!row) throw stale(given, (await versionNow(context, teamId)).version);
    return { team: toTeam(row) };
  },

  async deleteTeam({ teamId, etag: given, force }, context) {
    const unit = unitOfWork(context);
    const id = orgId(context);
    const version = versionOf(given, "etag");
    // Nobody makes or moves a team while the subtree is marked with one delete_time.
    await unit.many(sql.typeAlias("void")`select from roster.lock_org()`);
    const row = await unit.maybeOne(sql.type(teamRow)`
      with recursive tree as (
        select id from roster.teams
        where org_id = ${id} and id = ${teamId} and delete_time is null
          and version = coalesce(${version}::bigint, version)
        union all
        select child.id from tree join roster.teams child
          on child.org_id = ${id} and child.parent_team_id = tree.id and child.delete_time is null),
      gone as (
        update roster.teams t set
          delete_time = now(), purge_time = now() + make_interval(days => ${settings(context).purgeAfterDays})
        from tree
        where t.org_id = ${id} and t.id = tree.id and (${force} or (select count(*) from tree) = 1)
        returning t.*)
      select ${teamColumns} from gone t where t.id = ${teamId}`);
    if (!row) {
      const now = await versionNow(context, teamId);
      if (force || (version !== null && now.version !== given)) throw stale(given, now.version);
      throw fail("TEAM_HAS_CHILDREN", { team_id: teamId });
    }
    return { team: toTeam(row) };
  },

  async undeleteTeam({ teamId }, context) {
    const unit = unitOfWork(context);
    const id = orgId(context);
    await unit.many(sql.typeAlias("void")`select from roster.lock_org()`);
    const row = await unit.maybeOne(sql.type(teamRow)`
      with recursive tree as (
        select t.id, t.delete_time from roster.teams t
        where t.org_id = ${id} and t.id = ${teamId} and t.delete_time is not null and t.purge_time > now()
          and not exists (
            select from roster.teams parent
            where parent.org_id = ${id} and parent.id = t.parent_team_id and parent.delete_time is not null)
        union all
        select child.id, tree.delete_time from tree join roster.teams child
          on child.org_id = ${id} and child.parent_team_id = tree.id and child.delete_time = tree.delete_time),
      back as (
        update roster.teams t set delete_time = null, purge_time = null
        from tree where t.org_id = ${id} and t.id = tree.id
        returning t.*)
      select ${teamColumns} from back t where t.id = ${teamId}`);
    if (row) return { team: toTeam(row) };
    const found = await unit.one(
      sql.type(z.object({ deleted: z.boolean(), parent_id: maybeText }))`
        select delete_time is not null as deleted, parent_team_id as parent_id from roster.teams
        where org_id = ${id} and id = ${teamId} and roster.kept(delete_time, purge_time, true)`,
      noTeam(teamId),
    );
    if (!found.deleted) throw fail("NOT_DELETED");
    throw fail("TEAM_PARENT_DELETED", { team_id: found.parent_id });
  },
} satisfies Teams;
