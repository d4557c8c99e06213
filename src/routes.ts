/** Which object implements which service: the table of contents. */
import type { DescService } from "@bufbuild/protobuf";
import type { ServiceImpl } from "@connectrpc/connect";
import { AccessService } from "./gen/roster/v1/access_service_pb.ts";
import { AuditService } from "./gen/roster/v1/audit_service_pb.ts";
import { ChangeService } from "./gen/roster/v1/change_service_pb.ts";
import { OrgService } from "./gen/roster/v1/org_service_pb.ts";
import { TeamService } from "./gen/roster/v1/team_service_pb.ts";
import { UserService } from "./gen/roster/v1/user_service_pb.ts";
import { accessChecks } from "./services/access.ts";
import { auditLog } from "./services/audit.ts";
import { auditExports } from "./services/audit-exports.ts";
import { auditProofs } from "./services/audit-proofs.ts";
import { changeService } from "./services/changes.ts";
import { invitationBatches } from "./services/invitation-batches.ts";
import { invitations } from "./services/invitations.ts";
import { orgLimits } from "./services/org-limits.ts";
import { orgMemberBatches } from "./services/org-member-batches.ts";
import { orgMembers } from "./services/org-members.ts";
import { orgs, userOrgs } from "./services/orgs.ts";
import { profiles } from "./services/profiles.ts";
import { roles } from "./services/roles.ts";
import { teamMemberSets } from "./services/team-member-sets.ts";
import { teamMembers } from "./services/team-members.ts";
import { teams } from "./services/teams.ts";
import { userBatches } from "./services/user-batches.ts";
import { userExports } from "./services/user-exports.ts";
import { userLists } from "./services/user-lists.ts";
import { users } from "./services/users.ts";

/** A service and what answers it. */
export interface Route {
  readonly service: DescService;
  readonly implementation: object;
}

const userService = {
  ...users,
  ...userBatches,
  ...userLists,
  ...profiles,
  ...userOrgs,
  ...userExports,
} satisfies ServiceImpl<typeof UserService>;
const orgService = {
  ...orgs,
  ...orgLimits,
  ...orgMembers,
  ...invitations,
  ...invitationBatches,
  ...orgMemberBatches,
} satisfies ServiceImpl<typeof OrgService>;
const teamService = {
  ...teams,
  ...teamMembers,
  ...teamMemberSets,
} satisfies ServiceImpl<typeof TeamService>;
const accessService = { ...roles, ...accessChecks } satisfies ServiceImpl<typeof AccessService>;

const auditService = { ...auditLog, ...auditExports, ...auditProofs } satisfies ServiceImpl<
  typeof AuditService
>;

/** Every service that this process answers. */
export const routes: readonly Route[] = [
  { service: UserService, implementation: userService },
  { service: OrgService, implementation: orgService },
  { service: TeamService, implementation: teamService },
  { service: AccessService, implementation: accessService },
  { service: AuditService, implementation: auditService },
  { service: ChangeService, implementation: changeService },
];
