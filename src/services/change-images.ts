/** Rows of the log as changes of the feed. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ChangeRow, Image } from "../database/feed.ts";
import { parseInstant } from "../database/sql.ts";
import { ChangeKind } from "../gen/roster/v1/audit_pb.ts";
import type { ChangeSchema } from "../gen/roster/v1/change_pb.ts";
import { toInvitation } from "./invitations.ts";
import { toMember } from "./org-members.ts";
import { toOrg } from "./orgs.ts";
import { toProfile } from "./profiles.ts";
import { toRole } from "./roles.ts";
import { toMember as toTeamMember } from "./team-members.ts";
import { toTeam } from "./teams.ts";
import { toUser } from "./users.ts";

export type ChangeInit = MessageInitShape<typeof ChangeSchema>;
type Resource = NonNullable<ChangeInit["resource"]>;

/** A column as the services read it. JSON has times as text. */
const readable = (name: string, value: unknown): unknown => {
  if (name.endsWith("_time"))
    return value === null ? undefined : parseInstant(String(value).replace("T", " "));
  return value ?? "";
};

/** An image as the row that a service selects, whose columns have a prefix. The log keeps no versions. */
const rowOf = (prefix: string, image: Image): never =>
  Object.fromEntries([
    [`${prefix}_version`, ""],
    ...Object.entries(image).map(([name, value]) => [`${prefix}_${name}`, readable(name, value)]),
  ]) as never;

const resources: Readonly<Record<string, (image: Image) => Resource>> = {
  user: (image) => ({ case: "user", value: toUser(rowOf("user", image)) }),
  profile: (image) => ({ case: "profile", value: toProfile(rowOf("profile", image)) }),
  org: (image) => ({ case: "org", value: toOrg(rowOf("org", image)) }),
  org_member: (image) => ({ case: "orgMember", value: toMember(rowOf("member", image)) }),
  team: ({ parent_team_id: parent_id, ...image }) => ({
    case: "team",
    value: toTeam(rowOf("team", { ...image, parent_id })),
  }),
  team_member: (image) => ({ case: "teamMember", value: toTeamMember(rowOf("member", image)) }),
  role: (image) => ({ case: "role", value: toRole(rowOf("role", image)) }),
  invitation: (image) => ({
    case: "invitation",
    value: toInvitation(rowOf("invitation", image)),
  }),
};

/** A change that is told without being in the log: a resource as it is. */
export const created = (orgId: string, type: string, id: string, image: Image): ChangeInit => ({
  orgId,
  resourceType: type,
  resourceId: id,
  kind: ChangeKind.CREATED,
  ...resourceOf(type, image),
});

const resourceOf = (type: string, image: Image): { resource?: Resource } => {
  const resource = resources[type]?.(image);
  return resource ? { resource } : {};
};

/**
 * The changes that a row tells.
 *
 * @param toOrg before a new member come their user and profile, of whom an org had not been told
 */
export const changesOfRow = (row: ChangeRow, toOrg: boolean): ChangeInit[] => {
  const {
    org_id: orgId,
    resource_type: resourceType,
    resource_id: resourceId,
    user_now: user,
    profile_now: profile,
  } = row;
  // Limits are no resource of the feed.
  if (!(resourceType in resources)) return [];
  const change: ChangeInit = {
    orgId,
    resourceType,
    resourceId,
    kind: ChangeKind[row.kind],
    auditEntryId: row.entry_id,
    ...(row.after ? resourceOf(resourceType, row.after) : {}),
  };
  if (!user || !toOrg) return [change];
  return [
    created(orgId, "user", String(user.id), user),
    ...(profile ? [created(orgId, "profile", String(profile.id), profile)] : []),
    change,
  ];
};
