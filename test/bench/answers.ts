/** Rows as the answers of the benchmarked RPCs, without a schema and without a check. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type InvitationSchema, InvitationState } from "../../src/gen/roster/v1/invitation_pb.ts";
import { type OrgMemberSchema, OrgMemberState } from "../../src/gen/roster/v1/org_member_pb.ts";
import { type OrgSchema, OrgState } from "../../src/gen/roster/v1/org_pb.ts";
import type { ProfileSchema } from "../../src/gen/roster/v1/profile_pb.ts";
import { type TeamSchema, TeamVisibility } from "../../src/gen/roster/v1/team_pb.ts";
import { type UserSchema, UserState } from "../../src/gen/roster/v1/user_pb.ts";

// biome-ignore lint/suspicious/noExplicitAny: a row of any statement, read by whom knows its columns.
export type Row = Record<string, any>;

const user = (row: Row): MessageInitShape<typeof UserSchema> => ({
  id: row.user_id,
  email: row.user_email,
  name: row.user_name,
  state: UserState[row.user_state as keyof typeof UserState],
  externalId: row.user_external_id ?? "",
  labels: row.user_labels,
  createTime: row.user_create_time,
  updateTime: row.user_update_time,
  deleteTime: row.user_delete_time ?? undefined,
  purgeTime: row.user_purge_time ?? undefined,
  etag: `"${row.user_version}"`,
});

const profile = (row: Row): MessageInitShape<typeof ProfileSchema> => ({
  id: row.profile_id,
  userId: row.profile_user_id,
  orgId: row.profile_org_id ?? "",
  avatar: row.profile_avatar,
  bio: row.profile_bio,
  createTime: row.profile_create_time,
  updateTime: row.profile_update_time,
  etag: `"${row.profile_version}"`,
});

const org = (row: Row): MessageInitShape<typeof OrgSchema> => ({
  id: row.org_id,
  name: row.org_name,
  slug: row.org_slug,
  state: OrgState[row.org_state as keyof typeof OrgState],
  externalId: row.org_external_id ?? "",
  labels: row.org_labels,
  createTime: row.org_create_time,
  updateTime: row.org_update_time,
  deleteTime: row.org_delete_time ?? undefined,
  purgeTime: row.org_purge_time ?? undefined,
  etag: `"${row.org_version}"`,
});

const team = (row: Row): MessageInitShape<typeof TeamSchema> => ({
  id: row.team_id,
  orgId: row.team_org_id,
  parentTeamId: row.team_parent_id ?? "",
  name: row.team_name,
  type: row.team_type,
  description: row.team_description,
  visibility: TeamVisibility[row.team_visibility as keyof typeof TeamVisibility],
  labels: row.team_labels,
  createTime: row.team_create_time,
  updateTime: row.team_update_time,
  deleteTime: row.team_delete_time ?? undefined,
  purgeTime: row.team_purge_time ?? undefined,
  etag: `"${row.team_version}"`,
});

const member = (row: Row): MessageInitShape<typeof OrgMemberSchema> => ({
  orgId: row.member_org_id,
  userId: row.member_user_id,
  role: row.member_role,
  state: OrgMemberState[row.member_state as keyof typeof OrgMemberState],
  joinTime: row.member_join_time,
  expireTime: row.member_expire_time ?? undefined,
  updateTime: row.member_update_time,
  etag: `"${row.member_version}"`,
});

const invitation = (row: Row): MessageInitShape<typeof InvitationSchema> => ({
  id: row.invitation_id,
  orgId: row.invitation_org_id,
  email: row.invitation_email,
  role: row.invitation_role,
  teamIds: row.invitation_team_ids,
  state: InvitationState[row.invitation_state as keyof typeof InvitationState],
  inviterId: row.invitation_inviter_id ?? "",
  createTime: row.invitation_create_time,
  expireTime: row.invitation_expire_time,
  resolveTime: row.invitation_resolve_time ?? undefined,
  etag: `"${row.invitation_version}"`,
});

/** By method. A list is cut to its page of 50 and carries no token, which would cost a digest more. */
export const answers: Readonly<Record<string, (rows: readonly Row[]) => object>> = {
  GetUser: ([row = {}]) => ({ user: user(row) }),
  GetTeam: ([row = {}]) => ({ team: team(row) }),
  GetOrg: ([row = {}]) => ({ org: org(row) }),
  ListOrgMembers: (rows) => ({
    members: rows
      .slice(0, 50)
      .map((row) => ({ ...member(row), user: { ...user(row), profile: profile(row) } })),
  }),
  ListTeams: (rows) => ({ teams: rows.slice(0, 50).map(team) }),
  AddOrgMember: ([row = {}]) => ({ member: member(row) }),
  AcceptInvitation: ([row = {}]) => ({ invitation: invitation(row), member: member(row) }),
  CreateOrg: ([row = {}]) => ({ org: org(row), owner: member(row) }),
  CreateUser: ([row = {}]) => ({ user: { ...user(row), profile: profile(row) } }),
};
