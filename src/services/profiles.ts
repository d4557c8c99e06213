import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { v7 as uuid } from "uuid";
import { z } from "zod";
import { maybeOrgId, unitOfWork } from "../context.ts";
import { etag, instant, jsonObject, maybeText, sql } from "../database/sql.ts";
import { fail } from "../errors.ts";
import { ProfileSchema } from "../gen/roster/v1/profile_pb.ts";
import type { UserService } from "../gen/roster/v1/user_service_pb.ts";
import { changesOf, nfc, required, settingsText, stale, versionOf } from "./requests.ts";

/** A profile without its settings, as where many are answered at once, as columns of `profiles p`. */
export const briefProfileColumns = sql.fragment`
  p.id as profile_id, p.user_id as profile_user_id, p.org_id as profile_org_id, p.avatar as profile_avatar,
  p.bio as profile_bio, p.create_time as profile_create_time, p.update_time as profile_update_time,
  p.version as profile_version`;

/** A profile as columns of `profiles p`. */
export const profileColumns = sql.fragment`${briefProfileColumns}, p.settings as profile_settings`;

/** The profile by which user `u` appears: the selected org's, else the default one. */
export const profileJoin = sql.fragment`
  cross join lateral (
    select * from roster.profiles
    where user_id = u.id and (org_id is null or org_id = (select roster.current_org()))
    order by org_id nulls last limit 1) p`;

export const briefProfileShape = {
  profile_id: z.string(),
  profile_user_id: z.string(),
  profile_org_id: maybeText,
  profile_avatar: z.string(),
  profile_bio: z.string(),
  profile_create_time: instant,
  profile_update_time: instant,
  profile_version: etag,
};
export const profileShape = { ...briefProfileShape, profile_settings: jsonObject };
const briefProfileRow = z.object(briefProfileShape);
export const profileRow = z.object(profileShape);

export const toProfile = (row: z.output<typeof profileRow>) => ({
  ...toBriefProfile(row),
  settings: row.profile_settings,
});

export const toBriefProfile = (row: z.output<typeof briefProfileRow>) => ({
  id: row.profile_id,
  userId: row.profile_user_id,
  orgId: row.profile_org_id,
  avatar: row.profile_avatar,
  bio: row.profile_bio,
  createTime: row.profile_create_time,
  updateTime: row.profile_update_time,
  etag: row.profile_version,
});

const noUser = (userId: string) => () => fail("USER_NOT_FOUND", { user_id: userId });

type Profiles = Pick<ServiceImpl<typeof UserService>, "getProfile" | "updateProfile">;

export const profiles = {
  async getProfile({ userId }, context) {
    const row = await unitOfWork(context).one(
      sql.type(profileRow)`
        select ${profileColumns} from roster.users u ${profileJoin}
        where u.id = ${userId} and u.delete_time is null`,
      noUser(userId),
    );
    return { profile: toProfile(row) };
  },

  async updateProfile({ profile, updateMask }, context) {
    if (!profile) throw fail("FIELD_REQUIRED", { field: "profile" });
    const userId = required(profile.userId, "profile.user_id");
    const orgId = profile.orgId || null;
    const unit = unitOfWork(context);
    const changes = changesOf(ProfileSchema, profile, updateMask, ["avatar", "bio", "settings"]);
    const patch = settingsText(profile.settings, "profile.settings");
    const version = versionOf(profile.etag, "profile.etag");
    const clears = changes.settings && profile.settings === undefined;
    const row = await unit.maybeOne(sql.type(profileRow)`
      update roster.profiles p set
        avatar = case when ${changes.avatar} then ${nfc(profile.avatar)} else avatar end,
        bio = case when ${changes.bio} then ${nfc(profile.bio)} else bio end,
        settings = case
          when ${clears} then '{}'
          when ${changes.settings} then roster.merge_patch(settings, ${patch}::jsonb)
          else settings end
      from roster.users u
      where u.id = p.user_id and u.delete_time is null
        and p.user_id = ${userId} and p.org_id is not distinct from ${orgId}::uuid
        and p.version = coalesce(${version}::bigint, p.version)
      returning ${profileColumns}`);
    if (row) {
      settingsText(row.profile_settings, "profile.settings");
      return { profile: toProfile(row) };
    }
    const current = await unit.maybeOne(sql.type(z.object({ version: etag }))`
      select p.version from roster.profiles p join roster.users u on u.id = p.user_id and u.delete_time is null
      where p.user_id = ${userId} and p.org_id is not distinct from ${orgId}::uuid`);
    if (current) throw stale(profile.etag, current.version);
    if (orgId === null) throw noUser(userId)();
    if (version !== null) throw fail("PROFILE_NOT_FOUND", { user_id: userId });
    const first = {
      avatar: changes.avatar ? profile.avatar : "",
      bio: changes.bio ? profile.bio : "",
    };
    return { profile: await firstOfOrg(context, userId, first, changes.settings ? patch : "{}") };
  },
} satisfies Profiles;

/** Makes the profile of a member for the selected org. */
const firstOfOrg = async (
  context: HandlerContext,
  userId: string,
  { avatar, bio }: { avatar: string; bio: string },
  patch: string,
) => {
  const row = await unitOfWork(context).one(
    sql.type(profileRow)`
      insert into roster.profiles as p (id, user_id, org_id, avatar, bio, settings)
      select ${uuid()}, m.user_id, m.org_id, ${nfc(avatar)}, ${nfc(bio)}, roster.merge_patch('{}', ${patch}::jsonb)
      from roster.org_members m join roster.users u on u.id = m.user_id and u.delete_time is null
      where m.org_id = ${maybeOrgId(context) ?? null} and m.user_id = ${userId}
      returning ${profileColumns}`,
    noUser(userId),
  );
  return toProfile(row);
};
