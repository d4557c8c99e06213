import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { orgId, unitOfWork } from "../context.ts";
import { etag, maybeInstant, sql } from "../database/sql.ts";
import { fail } from "../errors.ts";
import { type OrgLimits, OrgLimitsSchema } from "../gen/roster/v1/org_limits_pb.ts";
import type { OrgService } from "../gen/roster/v1/org_service_pb.ts";
import { type Changes, changesOf, versionOf } from "./requests.ts";

const limitsRow = z.object({
  members: z.number(),
  teams: z.number(),
  pending_invitations: z.number(),
  roles: z.number(),
  team_depth: z.number(),
  audit_retention_days: z.number(),
  version: etag,
  update_time: maybeInstant,
});

/** The limits in force in the selected org. */
const limitsNow = async (context: HandlerContext) => {
  const row = await unitOfWork(context).one(
    sql.type(limitsRow)`
      select l.members, l.teams, l.pending_invitations, l.roles, l.team_depth, l.audit_retention_days,
        l.version, l.update_time
      from roster.org_limits_of(${orgId(context)}) l`,
    () => new Error("a function without a result"),
  );
  return {
    orgId: orgId(context),
    members: row.members,
    teams: row.teams,
    pendingInvitations: row.pending_invitations,
    roles: row.roles,
    teamDepth: row.team_depth,
    auditRetentionDays: row.audit_retention_days,
    etag: row.version,
    updateTime: row.update_time,
  };
};

const allLimits = [
  "members",
  "teams",
  "pending_invitations",
  "roles",
  "team_depth",
  "audit_retention_days",
] as const;
type Limit = (typeof allLimits)[number];

/** A limit as it is kept: 0 is the default, whatever that will be. */
const kept = (limit: number): number | null => (limit === 0 ? null : limit);

/**
 * Changes limits, unless they have another version. The first change makes the row, and an org without one has
 * version 0; what that change leaves out is the default already.
 */
const write = (
  context: HandlerContext,
  limits: OrgLimits,
  changes: Changes<Limit>,
  version: string | null,
) =>
  unitOfWork(context).maybeOne(sql.type(z.object({ version: etag }))`
    insert into roster.org_limits as l
      (org_id, members, teams, pending_invitations, roles, team_depth, audit_retention_days)
    select ${orgId(context)},
      case when ${changes.members} then ${kept(limits.members)}::int end,
      case when ${changes.teams} then ${kept(limits.teams)}::int end,
      case when ${changes.pending_invitations} then ${kept(limits.pendingInvitations)}::int end,
      case when ${changes.roles} then ${kept(limits.roles)}::int end,
      case when ${changes.team_depth} then ${kept(limits.teamDepth)}::int end,
      case when ${changes.audit_retention_days} then ${kept(limits.auditRetentionDays)}::int end
    where coalesce(${version}::bigint, 0) = 0
      or exists (select from roster.org_limits where org_id = ${orgId(context)})
    on conflict (org_id) do update set
      members = case when ${changes.members} then excluded.members else l.members end,
      teams = case when ${changes.teams} then excluded.teams else l.teams end,
      pending_invitations = case
        when ${changes.pending_invitations} then excluded.pending_invitations else l.pending_invitations end,
      roles = case when ${changes.roles} then excluded.roles else l.roles end,
      team_depth = case when ${changes.team_depth} then excluded.team_depth else l.team_depth end,
      audit_retention_days = case
        when ${changes.audit_retention_days} then excluded.audit_retention_days else l.audit_retention_days end
    where l.version = coalesce(${version}::bigint, l.version)
    returning l.version`);

export const orgLimits = {
  async getOrgLimits(_request, context) {
    return { limits: await limitsNow(context) };
  },

  async updateOrgLimits({ limits, updateMask }, context) {
    if (!limits) throw fail("FIELD_REQUIRED", { field: "limits" });
    const changes = changesOf(OrgLimitsSchema, limits, updateMask, allLimits);
    const written = await write(context, limits, changes, versionOf(limits.etag, "limits.etag"));
    const now = await limitsNow(context);
    if (!written) throw fail("ETAG_STALE", { etag: now.etag });
    return { limits: now };
  },
} satisfies Pick<ServiceImpl<typeof OrgService>, "getOrgLimits" | "updateOrgLimits">;
