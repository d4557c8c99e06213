import type { Message } from "@bufbuild/protobuf";
import { beforeAll, describe, expect, test } from "vitest";
import { Scope } from "../src/gen/roster/v1/access_pb.ts";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";
import { makeWorld, type World } from "./samples/world.ts";
import { requestOf, send, type Way, ways, withField } from "./samples.ts";

const harness = useHarness();

/**
 * Who may call what, a row for each sample.
 *
 *   ●  may                      –  PERMISSION_MISSING
 *   x  ORG_NOT_ALLOWED          ≤  ROLE_NOT_GRANTABLE, may with the permissions of the role at hand
 *   ?  ORG_REQUIRED             ∅  NOT_FOUND, since nothing of it is theirs to see
 *   !  ORG_SUSPENDED            .  does not apply
 *
 * g, m: guest and member without a role in a team; g:T, m:T and g:M, m:M: who are member and maintainer of it.
 * self: a guest who names themself, or whom the invitation names. pin, free: a service whose scope is the
 * permission, with and without org claim; bare: one without the permission; far: one pinned to another org. lost: a
 * user outside the org.
 */
const table = `
                                    permission      g g:T g:M m m:T m:M admin owner self pin free bare far lost ops
UserService.GetCaller               -               ● ●   ●   ● ●   ●   ●     ●     .    ●   ●    ●    x   x    ●
UserService.CreateUser              users.create    – –   –   – –   –   –     –     .    –   ●    –    –   –    ●
UserService.BatchCreateUsers        users.create    – –   –   – –   –   –     –     .    –   ●    –    –   –    ●
UserService.GetUser                 members.get     – –   –   ● ●   ●   ●     ●     ●    ●   ●    –    x   x    ●
UserService.GetUser outside         users.get       – –   –   – –   –   –     –     ●    .   ●    –    .   –    ●
UserService.BatchGetUsers           members.get     – –   –   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
UserService.BatchGetUsers outside   users.get       – –   –   – –   –   –     –     .    .   ●    –    .   –    ●
UserService.LookupUser              members.get     – –   –   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
UserService.LookupUser outside      users.get       – –   –   – –   –   –     –     .    .   ●    –    .   –    ●
UserService.ListUsers               members.get     – –   –   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
UserService.ListUsers outside       users.get       – –   –   – –   –   –     –     .    .   ●    –    .   –    ●
UserService.UpdateUser              users.update    – –   –   – –   –   –     –     ●    –   ●    –    –   –    ●
UserService.UpdateUser email        users.update    – –   –   – –   –   –     –     –    –   ●    –    –   –    ●
UserService.DeleteUser              roster.platform – –   –   – –   –   –     –     .    –   .    –    –   –    ●
UserService.UndeleteUser            roster.platform – –   –   – –   –   –     –     .    –   .    –    –   –    ●
UserService.SuspendUser             roster.platform – –   –   – –   –   –     –     .    –   .    –    –   –    ●
UserService.ReactivateUser          roster.platform – –   –   – –   –   –     –     .    –   .    –    –   –    ●
UserService.PurgeUser               roster.platform – –   –   – –   –   –     –     .    –   .    –    –   –    ●
UserService.EraseUser               roster.platform – –   –   – –   –   –     –     .    –   .    –    –   –    ●
UserService.GetProfile              members.get     – –   –   ● ●   ●   ●     ●     ●    ●   ●    –    x   x    ●
UserService.GetProfile outside      users.get       – –   –   – –   –   –     –     ●    .   ●    –    .   –    ●
UserService.UpdateProfile           members.update  – –   –   – –   –   ●     ●     ●    ●   ●    –    x   x    ●
UserService.UpdateProfile outside   users.update    – –   –   – –   –   –     –     ●    .   ●    –    .   –    ●
UserService.ListUserOrgs            users.get       – –   –   – –   –   –     –     ●    –   ●    –    –   –    ●
UserService.ExportUser              roster.platform – –   –   – –   –   –     –     ●    –   .    –    –   –    ●
OrgService.CreateOrg                orgs.create     – –   –   – –   –   –     –     .    –   ●    –    –   –    ●
OrgService.GetOrg                   org.get         ● ●   ●   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
OrgService.BatchGetOrgs             orgs.get        ● ●   ●   ● ●   ●   ●     ●     .    –   ●    –    –   ●    ●
OrgService.LookupOrg                orgs.get        ● ●   ●   ● ●   ●   ●     ●     .    –   ●    –    –   ∅    ●
OrgService.ListOrgs                 orgs.get        – –   –   – –   –   –     –     .    –   ●    –    –   –    ●
OrgService.UpdateOrg                org.update      – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
OrgService.DeleteOrg                org.delete      – –   –   – –   –   –     ●     .    –   –    –    x   x    ●
OrgService.UndeleteOrg              roster.platform x x   x   x x   x   x     x     .    x   .    ∅    x   x    ●
OrgService.PurgeOrg                 roster.platform – –   –   – –   –   –     –     .    –   .    –    –   –    ●
OrgService.SuspendOrg               roster.platform x x   x   x x   x   x     x     .    x   .    –    x   x    ●
OrgService.ReactivateOrg            roster.platform x x   x   x x   x   x     x     .    x   .    !    x   x    ●
OrgService.GetOrgLimits             roster.platform – –   –   – –   –   –     –     .    ●   ●    –    x   x    ●
OrgService.UpdateOrgLimits          roster.platform – –   –   – –   –   –     –     .    ●   ●    –    x   x    ●
OrgService.AddOrgMember             members.add     – –   –   – –   –   ●     ●     .    ≤   ≤    –    x   x    ●
OrgService.BatchAddOrgMembers       members.add     – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
OrgService.GetOrgMember             members.get     – –   –   ● ●   ●   ●     ●     ●    ●   ●    –    x   x    ●
OrgService.ListOrgMembers           members.get     – –   –   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
OrgService.UpdateOrgMember          members.update  – –   –   – –   –   ●     ●     .    ≤   ≤    –    x   x    ●
OrgService.RemoveOrgMember          members.remove  – –   –   – –   –   ●     ●     ●    ≤   ≤    –    x   x    ●
OrgService.CreateInvitation         members.invite  – –   –   – –   –   ●     ●     .    ≤   ≤    –    x   x    ●
OrgService.BatchCreateInvitations   members.invite  – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
OrgService.GetInvitation            members.invite  – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
OrgService.ListInvitations          members.invite  – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
OrgService.ResendInvitation         members.invite  – –   –   – –   –   ●     ●     .    ≤   ≤    –    x   x    ●
OrgService.AcceptInvitation         invitations.accept – – –  – –   –   –     –     ●    ●   ●    –    x   –    –
OrgService.DeclineInvitation        invitations.accept – – –  – –   –   –     –     ●    ●   ●    –    x   –    –
OrgService.RevokeInvitation         members.invite  – –   –   – –   –   ●     ●     .    ≤   ≤    –    x   x    ●
OrgService.TransferOrgOwnership     org.delete      – –   –   – –   –   –     ●     .    –   –    –    x   x    ●
TeamService.CreateTeam              teams.create    – –   –   – –   ●   ●     ●     .    ●   ●    –    x   x    ●
TeamService.GetTeam                 teams.get       – ●   ●   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
TeamService.BatchGetTeams           teams.get       ● ●   ●   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
TeamService.ListTeams               teams.get       ● ●   ●   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
TeamService.UpdateTeam              teams.update    – –   ●   – –   ●   ●     ●     .    ●   ●    –    x   x    ●
TeamService.MoveTeam                teams.delete    – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
TeamService.DeleteTeam              teams.delete    – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
TeamService.UndeleteTeam            teams.delete    – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
TeamService.AddTeamMember           teams.update    – –   ●   – –   ●   ●     ●     .    ●   ●    –    x   x    ●
TeamService.SetTeamMembers          teams.update    – –   ●   – –   ●   ●     ●     .    ●   ●    –    x   x    ●
TeamService.GetTeamMember           teams.get       – ●   ●   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
TeamService.ListTeamMembers         teams.get       – ●   ●   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
TeamService.ListUserTeams           teams.get       ∅ ●   ●   ● ●   ●   ●     ●     ●    ●   ●    –    x   x    ●
TeamService.UpdateTeamMember        teams.update    – –   ●   – –   ●   ●     ●     .    ●   ●    –    x   x    ●
TeamService.RemoveTeamMember        teams.update    – –   ●   – –   ●   ●     ●     ●    ●   ●    –    x   x    ●
AccessService.CheckAccess           access.check    – –   –   – –   –   ●     ●     ●    ●   ●    –    x   x    ●
AccessService.BatchCheckAccess      access.check    – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
AccessService.ListEffectivePermissions access.check – –   –   – –   –   ●     ●     ●    ●   ●    –    x   x    ●
AccessService.CreateRole            roles.manage    – –   –   – –   –   ●     ●     .    –   –    –    x   x    ●
AccessService.GetRole               org.get         ● ●   ●   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
AccessService.ListRoles             org.get         ● ●   ●   ● ●   ●   ●     ●     .    ●   ●    –    x   x    ●
AccessService.UpdateRole            roles.manage    – –   –   – –   –   ●     ●     .    –   –    –    x   x    ●
AccessService.DeleteRole            roles.manage    – –   –   – –   –   ●     ●     .    –   –    –    x   x    ●
AuditService.GetAuditEntry          audit.read      – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
AuditService.GetAuditEntry everywhere audit.read    ? ?   ?   ? ?   ?   ?     ?     .    .   ?    ?    .   ?    ●
AuditService.ListAuditEntries       audit.read      – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
AuditService.ListAuditEntries everywhere audit.read ? ?   ?   ? ?   ?   ?     ?     .    .   ?    ?    .   ?    ●
AuditService.ListAuditChanges       audit.read      – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
AuditService.ListAuditChanges everywhere audit.read ? ?   ?   ? ?   ?   ?     ?     .    .   ?    ?    .   ?    ●
AuditService.ExportAuditEntries     audit.read      – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
AuditService.ExportAuditEntries everywhere audit.read ? ? ?   ? ?   ?   ?     ?     .    .   ?    ?    .   ?    ●
AuditService.VerifyAuditLog         audit.read      – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
AuditService.VerifyAuditLog everywhere audit.read   ? ?   ?   ? ?   ?   ?     ?     .    .   ?    ?    .   ?    ●
ChangeService.WatchChanges          changes.read    – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
ChangeService.WatchChanges everywhere changes.read  ? ?   ?   ? ?   ?   ?     ?     .    .   ?    ?    .   ?    ●
ChangeService.ListChanges           changes.read    – –   –   – –   –   ●     ●     .    ●   ●    –    x   x    ●
ChangeService.ListChanges everywhere changes.read   ? ?   ?   ? ?   ?   ?     ?     .    .   ?    ?    .   ?    ●
`;

const line = /^(\S+(?: (?:outside|email|everywhere))?) +(\S+) +(.+)$/;
const [head = "", ...lines] = table.trim().split("\n");
const columns = head.trim().split(/ +/).slice(1);
const rows = lines.map((text) => {
  const [, name = "", permission = "", cells = ""] = line.exec(text) ?? [];
  return [name, permission, cells.split(/ +/)] as const;
});

let home: World;
let other: World;
const people: Record<string, Callers> = {};

beforeAll(async () => {
  home = await makeWorld(harness.current);
  other = await makeWorld(harness.current);
  people.g = home.guest;
  people.m = home.member;
  for (const orgRole of ["guest", "member"]) {
    for (const [letter, role] of [
      ["T", TeamRole.MEMBER],
      ["M", TeamRole.MAINTAINER],
    ] as const) {
      people[`${orgRole[0]}:${letter}`] = await harness.current.as(
        await home.person(orgRole, role),
      );
    }
  }
});

/** Whoever stands in the column, and what they send. */
const caller = async (
  { method, rule }: Way,
  request: Message,
  world: World,
  column: string,
  scope: string,
): Promise<readonly [Callers, Message]> => {
  const service = (org: string, scopes = scope) =>
    harness.current.as("service:crm", { ...(org ? { org } : {}), scope: scopes });
  switch (column) {
    case "self": {
      if (rule.scope === Scope.INVITEE) {
        const { userId } = request as Message & { userId: string };
        return [await harness.current.as(userId), request];
      }
      const id = await world.person("guest", TeamRole.MEMBER);
      const profile = { userId: id, orgId: world.orgId };
      await harness.current.ops.users.updateProfile({ profile });
      const own = withField(method, request, rule.self, id);
      return [await harness.current.as(id), own];
    }
    case "pin":
      return [await service(world.orgId), request];
    case "free":
      return [await service(""), request];
    case "bare":
      return [await service("", "nothing"), request];
    case "far":
      return [await service(other.orgId), request];
    case "lost":
      return [world.outsider, request];
    case "ops":
      return [harness.current.ops, request];
    default:
      return [people[column] ?? world[column as "admin" | "owner"], request];
  }
};

const refusals: Record<string, object> = {
  "–": { code: "PermissionDenied", reason: "PERMISSION_MISSING" },
  x: { code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" },
  "≤": { code: "PermissionDenied", reason: "ROLE_NOT_GRANTABLE" },
  "?": { code: "InvalidArgument", reason: "ORG_REQUIRED" },
  "∅": { code: "NotFound" },
  "!": { code: "FailedPrecondition", reason: "ORG_SUSPENDED" },
};

describe("The access table", () => {
  test("has a row for each way to call an RPC, and a cell for each caller", () => {
    expect(rows.map(([name]) => name)).toEqual(ways.map(({ name }) => name));
    for (const [name, , cells] of rows) expect(cells, name).toHaveLength(columns.length);
  });

  test.each(rows)("holds for %s", async (name, permission, cells) => {
    const way = ways.find((candidate) => candidate.name === name) as Way;
    const spare = await requestOf(way, home);
    const judge = async (column: string, cell: string, scope: string) => {
      if (cell === ".") return;
      // An allowed delete takes the world with it.
      const ends = name === "OrgService.DeleteOrg" && cell === "●";
      const world = ends ? await makeWorld(harness.current) : home;
      const sample = cell === "●" ? await requestOf(way, world) : spare;
      const [callers, request] = await caller(way, sample, world, column, scope);
      const call = send(callers, way.method, request);
      if (cell === "●") await call;
      else expect(await refusal(call), column).toMatchObject(refusals[cell] ?? {});
      if (cell === "≤") await judge(column, "●", `${scope} org.get members.get teams.get`);
    };
    const done = columns.map((column, at) => judge(column, cells[at] ?? "", permission));
    await Promise.all(done);
  });
});
