import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { orgId, unitOfWork } from "../context.ts";
import type { Page } from "../database/page.ts";
import { etag, formatInstant, type Instant, instant, maybeInstant, sql } from "../database/sql.ts";
import { fail, fieldCalled, fieldInside } from "../errors.ts";
import { OrgMemberSchema, OrgMemberState } from "../gen/roster/v1/org_member_pb.ts";
import type { OrgService } from "../gen/roster/v1/org_service_pb.ts";
import { View } from "../gen/roster/v1/view_pb.ts";
import { foldedText, oneOf, text, time } from "./conditions.ts";
import { briefProfileColumns, briefProfileShape, profileJoin, toBriefProfile } from "./profiles.ts";
import { changesOf, firstId, pageOf, required, stale, versionOf } from "./requests.ts";
import { type Choices, type Selection, selectionOf } from "./selections.ts";
import { toUser, userColumns, userJoin, userShape } from "./users.ts";

/** A membership as columns of `org_members m`. */
export const memberColumns = sql.fragment`
  m.org_id as member_org_id, m.user_id as member_user_id, m.role as member_role, m.state as member_state,
  m.join_time as member_join_time, m.expire_time as member_expire_time, m.update_time as member_update_time,
  m.version as member_version`;

export const memberShape = {
  member_org_id: z.string(),
  member_user_id: z.string(),
  member_role: z.string(),
  member_state: z.enum(["ACTIVE", "SUSPENDED"]),
  member_join_time: instant,
  member_expire_time: maybeInstant,
  member_update_time: instant,
  member_version: etag,
};
export const memberRow = z.object(memberShape);
const listedRow = z.object({ ...memberShape, live: z.boolean() });
const fullRow = z.object({ ...memberShape, ...userShape, ...briefProfileShape });
const placedListedRow = z.object({ ...listedRow.shape, position: z.string() });
const placedFullRow = z.object({ ...fullRow.shape, position: z.string() });
type Placed = z.output<typeof memberRow> & { readonly position?: string };

export const toMember = (row: z.output<typeof memberRow>) => ({
  orgId: row.member_org_id,
  userId: row.member_user_id,
  role: row.member_role,
  state: OrgMemberState[row.member_state],
  joinTime: row.member_join_time,
  expireTime: row.member_expire_time,
  updateTime: row.member_update_time,
  etag: row.member_version,
});

/**
 * A membership counts until it expires. From then on the org cannot see its user, so that a join with users leaves it
 * out; a page must leave it out before it is cut, and a write that waited while it expired must see so.
 */
export const isLasting = sql.fragment`(m.expire_time is null or m.expire_time > now())`;

/** What ListOrgMembers lets its callers choose. */
const choices: Choices = {
  fields: {
    role: text(sql.fragment`m.role`),
    state: oneOf(sql.fragment`m.state`, ["ACTIVE", "SUSPENDED"]),
    join_time: time(sql.fragment`m.join_time`),
    expire_time: time(sql.fragment`m.expire_time`),
    update_time: time(sql.fragment`m.update_time`),
    "user.name": foldedText(sql.fragment`k.name_key`),
    "user.email": foldedText(sql.fragment`k.email_key`),
  },
  keys: {
    join_time: {
      column: sql.fragment`m.join_time`,
      type: "timestamptz",
      id: sql.fragment`m.user_id`,
    },
    "user.name": { column: sql.fragment`k.name_key`, type: "text" },
    "user.email": { column: sql.fragment`k.email_key`, type: "text" },
  },
  idOrder: "user_id",
  id: sql.fragment`k.user_id`,
};

/**
 * A page of chosen memberships. The limits make each step from one table to the next a probe of a key; which table
 * comes first is the one whose index has the order.
 */
const chosenMembers = (org: string, chosen: Selection, limit: Page["limit"]) => {
  const tables =
    chosen.key?.type === "timestamptz"
      ? sql.fragment`
          roster.org_members m
          cross join lateral (
            select * from roster.org_member_keys where org_id = ${org} and user_id = m.user_id limit 1) k
          where m.org_id = ${org}`
      : sql.fragment`
          roster.org_member_keys k
          cross join lateral (
            select * from roster.org_members where org_id = ${org} and user_id = k.user_id limit 1) m
          where k.org_id = ${org}`;
  return sql.fragment`
    select m.*, ${chosen.places}, ${chosen.position} as position from ${tables} and ${isLasting} and ${chosen.where}
    order by ${chosen.order} limit ${limit}`;
};

const nothing = sql.fragment``;

const noMember = (userId: string) => () => fail("ORG_MEMBER_NOT_FOUND", { user_id: userId });

/** The membership's version, for saying why a write met no row. */
const versionNow = (context: HandlerContext, userId: string) =>
  unitOfWork(context).one(
    sql.type(z.object({ version: etag }))`
      select m.version from roster.org_members m
      join roster.users u on u.id = m.user_id and u.delete_time is null
      where m.org_id = ${orgId(context)} and m.user_id = ${userId}`,
    noMember(userId),
  );

/** A time of a request as PostgreSQL reads it, or null without one. */
export const timeText = (time: Instant | undefined, field: string): string | null => {
  if (!time) return null;
  if (time.nanos < 0 || time.nanos > 999_999_999) {
    throw fail("FIELD_INVALID", { field, rule: "nanos must be from 0 to 999,999,999" });
  }
  return formatInstant(time);
};

type OrgMembers = Pick<
  ServiceImpl<typeof OrgService>,
  | "addOrgMember"
  | "getOrgMember"
  | "listOrgMembers"
  | "updateOrgMember"
  | "removeOrgMember"
  | "transferOrgOwnership"
>;

export const orgMembers = {
  async addOrgMember({ userId, role, expireTime }, context) {
    // That the user is live and active, and the role one the caller may give, a trigger demands: in the
    // org the user cannot be seen before they are a member.
    const row = await unitOfWork(context).one(
      sql.type(memberRow)`
        insert into roster.org_members as m (org_id, user_id, role, expire_time)
        values (${orgId(context)}, ${userId}, ${role || "member"}, ${timeText(expireTime, "expire_time")}::timestamptz)
        returning ${memberColumns}`,
      () => new Error("the insert returned no row"),
    );
    return { member: toMember(row) };
  },

  async getOrgMember({ userId }, context) {
    const row = await unitOfWork(context).one(
      sql.type(memberRow)`
        select ${memberColumns} from roster.org_members m
        join roster.users u on u.id = m.user_id and u.delete_time is null
        where m.org_id = ${orgId(context)} and m.user_id = ${userId}`,
      noMember(userId),
    );
    return { member: toMember(row) };
  },

  async listOrgMembers(request, context) {
    const page = pageOf(context, request);
    const chosen = selectionOf(request, page, true, choices);
    const [after = firstId] = page.after ?? [];
    // The page comes first and the users are joined to it: a join in the page may sort the rest of the org.
    const members = chosen
      ? chosenMembers(orgId(context), chosen, page.limit)
      : sql.fragment`
          select * from roster.org_members m
          where org_id = ${orgId(context)} and user_id > ${after}::uuid and ${isLasting}
          order by user_id limit ${page.limit}`;
    const position = chosen ? sql.fragment`, m.position` : nothing;
    const order = chosen?.placeOrder ?? sql.fragment`m.user_id`;
    const options = { prepare: chosen === undefined };
    const cursor = (row: Placed) =>
      chosen?.cursor(row.position ?? "", row.member_user_id) ?? [row.member_user_id];
    if (request.view === View.FULL) {
      const query = sql.type(chosen ? placedFullRow : fullRow)`
        select ${memberColumns}, ${userColumns}, ${briefProfileColumns}${position}
        from (${members}) m join roster.users u on u.id = m.user_id ${userJoin} ${profileJoin}
        order by ${order}`;
      const rows = await unitOfWork(context).many(query, options);
      const { items, nextPageToken } = page.finish(rows, cursor, (row) =>
        row.user_delete_time
          ? null
          : { ...toMember(row), user: { ...toUser(row), profile: toBriefProfile(row) } },
      );
      return { members: items, nextPageToken };
    }
    const query = sql.type(chosen ? placedListedRow : listedRow)`
      select ${memberColumns}, u.delete_time is null as live${position}
      from (${members}) m join roster.users u on u.id = m.user_id
      order by ${order}`;
    const rows = await unitOfWork(context).many(query, options);
    const { items, nextPageToken } = page.finish(rows, cursor, (row) =>
      row.live ? toMember(row) : null,
    );
    return { members: items, nextPageToken };
  },

  async updateOrgMember({ member, updateMask }, context) {
    if (!member) throw fail("FIELD_REQUIRED", { field: "member" });
    const userId = required(member.userId, "member.user_id");
    const changes = changesOf(OrgMemberSchema, member, updateMask, [
      "role",
      "state",
      "expire_time",
    ]);
    const state = member.state === OrgMemberState.SUSPENDED ? "SUSPENDED" : "ACTIVE";
    const changed = unitOfWork(context).maybeOne(sql.type(memberRow)`
      update roster.org_members m set
        role = case when ${changes.role} then ${member.role || "member"} else role end,
        state = case when ${changes.state} then ${state} else m.state end,
        expire_time = case
          when ${changes.expire_time} then ${timeText(member.expireTime, "member.expire_time")}::timestamptz
          else expire_time end
      from roster.users u
      where m.org_id = ${orgId(context)} and m.user_id = ${userId} and ${isLasting}
        and u.id = m.user_id and u.delete_time is null
        and m.version = coalesce(${versionOf(member.etag, "member.etag")}::bigint, m.version)
      returning ${memberColumns}`);
    const row = await changed.catch(fieldInside("member"));
    if (!row) throw stale(member.etag, (await versionNow(context, userId)).version);
    return { member: toMember(row) };
  },

  async removeOrgMember({ userId, etag: given }, context) {
    const row = await unitOfWork(context).maybeOne(sql.type(memberRow)`
      delete from roster.org_members m
      using roster.users u
      where m.org_id = ${orgId(context)} and m.user_id = ${userId} and ${isLasting}
        and u.id = m.user_id and u.delete_time is null
        and m.version = coalesce(${versionOf(given, "etag")}::bigint, m.version)
      returning ${memberColumns}`);
    if (!row) throw stale(given, (await versionNow(context, userId)).version);
    return { member: toMember(row) };
  },

  async transferOrgOwnership({ fromUserId, toUserId, formerRole }, context) {
    if (fromUserId.toLowerCase() === toUserId.toLowerCase())
      throw fail("FIELD_INVALID", { field: "to_user_id", rule: "must not be from_user_id" });
    const unit = unitOfWork(context);
    // The new owner comes first, for an org is never without one. Their user is held until the end by a trigger.
    const to = await unit.one(
      sql.type(memberRow)`
        update roster.org_members m set role = 'owner', expire_time = null
        from roster.users u
        where m.org_id = ${orgId(context)} and m.user_id = ${toUserId} and m.state = 'ACTIVE' and ${isLasting}
          and u.id = m.user_id and u.delete_time is null
        returning ${memberColumns}`,
      noMember(toUserId),
    );
    const demoted = unit.maybeOne(sql.type(memberRow)`
      update roster.org_members m set role = ${formerRole || "admin"}
      from roster.users u
      where m.org_id = ${orgId(context)} and m.user_id = ${fromUserId} and m.role = 'owner' and m.state = 'ACTIVE'
        and u.id = m.user_id and u.delete_time is null
      returning ${memberColumns}`);
    const from = await demoted.catch(fieldCalled(() => "former_role"));
    if (!from) {
      await versionNow(context, fromUserId);
      throw fail("ORG_MEMBER_NOT_OWNER", { user_id: fromUserId });
    }
    return { from: toMember(from), to: toMember(to) };
  },
} satisfies OrgMembers;
