import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { v7 as uuid } from "uuid";
import { z } from "zod";
import { caller, entryId, maybeOrgId, settings, unitOfWork } from "../context.ts";
import {
  etag,
  type FragmentSqlToken,
  instant,
  labels,
  maybeInstant,
  maybeText,
  sql,
} from "../database/sql.ts";
import { fail } from "../errors.ts";
import { ActorKind } from "../gen/roster/v1/audit_pb.ts";
import { UserSchema, UserState } from "../gen/roster/v1/user_pb.ts";
import type { NewUser, UserService } from "../gen/roster/v1/user_service_pb.ts";
import { View } from "../gen/roster/v1/view_pb.ts";
import {
  briefProfileColumns,
  briefProfileShape,
  profileColumns,
  profileJoin,
  profileShape,
  toBriefProfile,
  toProfile,
} from "./profiles.ts";
import {
  changesOf,
  checkLabelCount,
  inOrder,
  labelChange,
  nfc,
  orNull,
  required,
  sendable,
  settingsText,
  stale,
  undeletable,
  versionOf,
} from "./requests.ts";

/** A user as columns of `users u`. Users see nobody's external id and labels but their own. */
export const userColumns = sql.fragment`
  u.id as user_id, u.email as user_email, u.name as user_name, u.state as user_state,
  case when shown.to_caller then u.external_id end as user_external_id,
  case when shown.to_caller then u.labels else '{}' end as user_labels,
  u.create_time as user_create_time, u.update_time as user_update_time,
  u.delete_time as user_delete_time, u.purge_time as user_purge_time, u.version as user_version`;

/** Goes behind `users u` in every FROM that selects `userColumns`. */
export const userJoin = sql.fragment`
  cross join lateral (
    select (select roster.current_actor()) is null or (select roster.current_actor()) = u.id as to_caller) shown`;

export const userShape = {
  user_id: z.string(),
  user_email: z.string(),
  user_name: z.string(),
  user_state: z.enum(["ACTIVE", "SUSPENDED"]),
  user_external_id: maybeText,
  user_labels: labels,
  user_create_time: instant,
  user_update_time: instant,
  user_delete_time: maybeInstant,
  user_purge_time: maybeInstant,
  user_version: etag,
};
export const userRow = z.object(userShape);
/** A user with a profile of which lists leave the settings away. */
export const listedUserRow = z.object({ ...userShape, ...briefProfileShape });
/** The same with their place in an order that the caller chose. */
export const placedUserRow = z.object({ ...userShape, position: z.string() });
export const placedListedUserRow = z.object({ ...listedUserRow.shape, position: z.string() });
export const fullUserRow = z.object({ ...userShape, ...profileShape });

export const toUser = (row: z.output<typeof userRow>) => ({
  id: row.user_id,
  email: row.user_email,
  name: row.user_name,
  state: UserState[row.user_state],
  externalId: row.user_external_id,
  labels: row.user_labels,
  createTime: row.user_create_time,
  updateTime: row.user_update_time,
  deleteTime: row.user_delete_time,
  purgeTime: row.user_purge_time,
  etag: row.user_version,
});

export const toListedUser = (row: z.output<typeof userRow> | z.output<typeof listedUserRow>) =>
  "profile_id" in row ? { ...toUser(row), profile: toBriefProfile(row) } : toUser(row);

export const toFullUser = (row: z.output<typeof fullUserRow>) => ({
  ...toUser(row),
  profile: toProfile(row),
});

export const noUser = (userId: string) => () => fail("USER_NOT_FOUND", { user_id: userId });

/** The one user for whom a condition on `users u` holds, with their profile where the view asks for it. */
const userWhere = async (
  context: HandlerContext,
  view: View,
  condition: FragmentSqlToken,
  missing: () => Error,
) => {
  const unit = unitOfWork(context);
  if (view === View.FULL) {
    const query = sql.type(fullUserRow)`
      select ${userColumns}, ${profileColumns} from roster.users u ${userJoin} ${profileJoin}
      where ${condition}`;
    return toFullUser(await unit.one(query, missing));
  }
  const query = sql.type(userRow)`
    select ${userColumns} from roster.users u ${userJoin} where ${condition}`;
  return toUser(await unit.one(query, missing));
};

/**
 * The rows of a user to be made and of their default profile, as the request has them.
 *
 * @param path where `user` and `profile` stand in the request: empty, or a path that ends in a dot
 */
export const newUser = ({ user, profile }: Pick<NewUser, "user" | "profile">, path: string) => {
  if (!user) throw fail("FIELD_REQUIRED", { field: `${path}user` });
  return {
    id: uuid(),
    email: nfc(required(user.email, `${path}user.email`)),
    name: nfc(required(user.name, `${path}user.name`)),
    externalId: orNull(nfc(user.externalId)),
    labels: JSON.stringify(user.labels),
    profileId: uuid(),
    avatar: nfc(profile?.avatar ?? ""),
    bio: nfc(profile?.bio ?? ""),
    settings: settingsText(profile?.settings, `${path}profile.settings`),
  };
};

/** Why a write met no row: the user is gone, or newer than the etag says. */
const unwritten = async (
  context: HandlerContext,
  userId: string,
  given: string,
): Promise<Error> => {
  const row = await unitOfWork(context).one(
    sql.type(z.object({ version: etag }))`
      select version from roster.users where id = ${userId} and delete_time is null`,
    noUser(userId),
  );
  return stale(given, row.version);
};

/** Gives a live user a state; one who has it stays as they are. */
const withState = async (
  context: HandlerContext,
  userId: string,
  given: string,
  state: "ACTIVE" | "SUSPENDED",
) => {
  const row = await unitOfWork(context).maybeOne(sql.type(userRow)`
    with asked as (
      select * from roster.users
      where id = ${userId} and delete_time is null
        and version = coalesce(${versionOf(given, "etag")}::bigint, version)
      for no key update),
    changed as (
      update roster.users u set state = ${state}
      from asked where u.id = asked.id and asked.state <> ${state}
      returning u.*),
    u as (select * from changed union all select * from asked where state = ${state})
    select ${userColumns} from u ${userJoin}`);
  if (!row) throw await unwritten(context, userId, given);
  return toUser(row);
};

const erasedRow = z.object({
  suspended: z.array(z.string()),
  changes: z.number(),
  answers: z.number(),
});

const callerRow = z.object({ role: z.string(), permissions: z.array(z.string()) });

type Users = Omit<
  ServiceImpl<typeof UserService>,
  "batchCreateUsers" | "listUsers" | "getProfile" | "updateProfile" | "listUserOrgs" | "exportUser"
>;

export const users = {
  async getCaller(_request, context) {
    const { subject, userId, onBehalfOf, scope } = caller(context);
    // Outside an org, and for services, the credential alone says what the caller may do.
    const { role, permissions } = await unitOfWork(context).one(
      maybeOrgId(context) === undefined
        ? sql.type(callerRow)`select '' as role, '{}'::text[] as permissions`
        : sql.type(callerRow)`
            select coalesce(m.role, '') as role,
              coalesce(roster.built_in_permissions(m.role), r.permissions, '{}') as permissions
            from (select roster.current_org() as org_id, roster.current_actor() as user_id) me
            left join roster.org_members m using (org_id, user_id)
            left join roster.roles r on r.org_id = m.org_id and r.name = m.custom_role`,
      () => new Error("the caller's role query returned no row"),
    );
    return {
      subject,
      kind: userId === undefined ? ActorKind.SERVICE : ActorKind.USER,
      orgId: maybeOrgId(context) ?? "",
      role,
      permissions:
        userId === undefined
          ? [...(scope ?? [])]
          : permissions.filter((permission) => scope?.includes(permission) ?? true),
      onBehalfOf: [...onBehalfOf],
    };
  },

  async createUser(request, context) {
    const made = newUser(request, "");
    const row = await unitOfWork(context).one(
      sql.type(fullUserRow)`
        with u as (
          insert into roster.users (id, email, name, external_id, labels)
          values (${made.id}, ${made.email}, ${made.name}, ${made.externalId}, ${made.labels})
          returning *),
        p as (
          insert into roster.profiles (id, user_id, avatar, bio, settings)
          select ${made.profileId}, u.id, ${made.avatar}, ${made.bio}, ${made.settings} from u
          returning *)
        select ${userColumns}, ${profileColumns} from u cross join p ${userJoin}`,
      () => new Error("the insert returned no row"),
    );
    return { user: toFullUser(row) };
  },

  async getUser({ userId, view }, context) {
    // In an org row-level security shows its members alone; deleted users are for the platform.
    const deleted = caller(context).platform;
    const isAsked = sql.fragment`u.id = ${userId} and roster.kept(u.delete_time, u.purge_time, ${deleted})`;
    return { user: await userWhere(context, view, isAsked, noUser(userId)) };
  },

  async batchGetUsers({ userIds, view }, context) {
    const deleted = caller(context).platform;
    // The limit makes each id one probe of the key: a plain join may read the whole table instead.
    const found = sql.fragment`
      unnest(${sql.array([...new Set(userIds)], "uuid")}) asked (id)
      cross join lateral (
        select * from roster.users where id = asked.id and roster.kept(delete_time, purge_time, ${deleted}) limit 1) u
      ${userJoin}`;
    const rows =
      view === View.FULL
        ? await unitOfWork(context).many(sql.type(listedUserRow)`
            select ${userColumns}, ${briefProfileColumns} from ${found} ${profileJoin}`)
        : await unitOfWork(context).many(sql.type(userRow)`select ${userColumns} from ${found}`);
    const { items, missingIds } = inOrder(userIds, rows.map(toListedUser));
    return sendable(context, { users: items, missingIds }, "user_ids");
  },

  async lookupUser({ key, view }, context) {
    // Users see nobody's external id but their own, so by it they find nobody else.
    const isAsked =
      key.case === "email"
        ? sql.fragment`u.email_key = lower(normalize(${key.value}, nfc))`
        : sql.fragment`u.external_id = ${nfc(key.value ?? "")} and shown.to_caller`;
    const field = key.case === "email" ? "email" : "external_id";
    const isLive = sql.fragment`${isAsked} and u.delete_time is null`;
    const missing = () => fail("USER_NOT_FOUND", { field });
    return { user: await userWhere(context, view, isLive, missing) };
  },

  async updateUser({ user, updateMask }, context) {
    if (!user) throw fail("FIELD_REQUIRED", { field: "user" });
    const userId = required(user.id, "user.id");
    const changes = changesOf(UserSchema, user, updateMask, [
      "email",
      "name",
      "external_id",
      "labels",
    ]);
    if (changes.email) required(user.email, "user.email");
    if (changes.name) required(user.name, "user.name");
    const label = labelChange(user.labels, changes.labels);
    const row = await unitOfWork(context).maybeOne(sql.type(userRow)`
      with u as (
        update roster.users set
          email = case when ${changes.email} then ${nfc(user.email)} else email end,
          name = case when ${changes.name} then ${nfc(user.name)} else name end,
          external_id = case when ${changes.external_id} then ${orNull(nfc(user.externalId))} else external_id end,
          labels = (case when ${label.clear} then '{}' else labels end || ${label.set}::jsonb)
            - ${sql.array(label.remove, "text")}
        where id = ${userId} and delete_time is null
          and version = coalesce(${versionOf(user.etag, "user.etag")}::bigint, version)
        returning *)
      select ${userColumns} from u ${userJoin}`);
    if (!row) throw await unwritten(context, userId, user.etag);
    checkLabelCount(row.user_labels, "user.labels");
    return { user: toUser(row) };
  },

  async deleteUser({ userId, etag: given }, context) {
    const unit = unitOfWork(context);
    // Organisations first, then the user: the order in which every path locks.
    await unit.many(sql.typeAlias("void")`select from roster.lock_owned_orgs(${userId})`);
    const row = await unit.maybeOne(sql.type(userRow)`
      with u as (
        update roster.users set
          delete_time = now(), purge_time = now() + make_interval(days => ${settings(context).purgeAfterDays})
        where id = ${userId} and delete_time is null
          and version = coalesce(${versionOf(given, "etag")}::bigint, version)
        returning *)
      select ${userColumns} from u ${userJoin}`);
    if (!row) throw await unwritten(context, userId, given);
    return { user: toUser(row) };
  },

  async undeleteUser({ userId }, context) {
    const unit = unitOfWork(context);
    const row = await unit.maybeOne(sql.type(userRow)`
      with u as (
        update roster.users set delete_time = null, purge_time = null
        where id = ${userId} and delete_time is not null and purge_time > now()
        returning *)
      select ${userColumns} from u ${userJoin}`);
    if (row) return { user: toUser(row) };
    const now = await unit.one(
      sql.type(z.object({ deleted: z.boolean() }))`
        select delete_time is not null as deleted from roster.users
        where id = ${userId} and roster.kept(delete_time, purge_time, true)`,
      noUser(userId),
    );
    throw undeletable(now);
  },

  async purgeUser({ userId }, context) {
    // What the function removes, the statement around it still sees.
    const row = await unitOfWork(context).one(
      sql.type(userRow)`
        select ${userColumns} from roster.users u cross join roster.purge_user(${userId}) ${userJoin}
        where u.id = ${userId}`,
      noUser(userId),
    );
    return { user: toUser(row) };
  },

  async eraseUser({ userId, force }, context) {
    const auditEntryId = entryId(context);
    const row = await unitOfWork(context).one(
      sql.type(erasedRow)`
        select suspended, changes, answers from roster.erase_user(${userId}, ${force}, ${auditEntryId})`,
      () => new Error("a function without a result"),
    );
    return {
      auditEntryId,
      suspendedOrgIds: row.suspended,
      erasedChangeCount: row.changes,
      erasedAnswerCount: row.answers,
    };
  },

  async suspendUser({ userId, etag: given }, context) {
    // Organisations first, then the user: the order in which every path locks.
    await unitOfWork(context).many(
      sql.typeAlias("void")`select from roster.lock_owned_orgs(${userId})`,
    );
    return { user: await withState(context, userId, given, "SUSPENDED") };
  },

  async reactivateUser({ userId, etag: given }, context) {
    return { user: await withState(context, userId, given, "ACTIVE") };
  },
} satisfies Users;
