import { randomUUID } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { AccessReason } from "../src/gen/roster/v1/access_check_pb.ts";
import type { CheckAccessResponse } from "../src/gen/roster/v1/access_service_pb.ts";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { byHand } from "./console.ts";
import { type Callers, refusal, type Tenant, useHarness } from "./harness.ts";
import { makeRole } from "./made-role.ts";
import { makeTeam } from "./made-team.ts";

const harness = useHarness();

const { MEMBER, MAINTAINER } = TeamRole;
const { SECRET } = TeamVisibility;

/** Roles that the org makes. */
const custom: Record<string, string[]> = {
  mute: [],
  clerk: ["members.get", "org.get", "teams.create", "teams.get"],
  warden: ["members.add", "teams.update"],
  reaper: ["access.check", "teams.delete"],
  envoy: ["changes.read", "members.invite", "teams.get"],
};

/** Each with a role in the org and roles in teams. */
const people: Record<string, [role: string, teams?: Record<string, TeamRole>]> = {
  owner: ["owner"],
  admin: ["admin"],
  member: ["member"],
  guest: ["guest"],
  mute: ["mute"],
  clerk: ["clerk"],
  warden: ["warden"],
  reaper: ["reaper"],
  envoy: ["envoy", { Vault: MEMBER }],
  "admin who is a maintainer": ["admin", { Mid: MAINTAINER }],
  "member at the top": ["member", { Top: MEMBER }],
  "member in the vault": ["member", { Vault: MEMBER }],
  "member in the cell": ["member", { Cell: MEMBER }],
  "member at the top and in the cell": ["member", { Top: MEMBER, Cell: MEMBER }],
  "member in the nook": ["member", { Nook: MEMBER }],
  "maintainer at the top": ["member", { Top: MAINTAINER }],
  "maintainer in the middle": ["member", { Top: MEMBER, Mid: MAINTAINER, Vault: MEMBER }],
  "maintainer of the cell": ["member", { Cell: MAINTAINER, Side: MEMBER }],
  "guest at the top": ["guest", { Top: MEMBER }],
  "guest in the cell": ["guest", { Cell: MEMBER }],
  "guest who maintains": ["guest", { Mid: MAINTAINER }],
  "mute who maintains": ["mute", { Mid: MAINTAINER }],
  "mute at the top": ["mute", { Top: MEMBER }],
  "clerk at the top": ["clerk", { Top: MEMBER }],
  "one whose membership is suspended": ["admin", { Top: MAINTAINER }],
  "one whose membership has expired": ["admin", { Top: MAINTAINER }],
  "a suspended user": ["admin", { Top: MAINTAINER }],
  "a deleted user": ["admin", { Top: MAINTAINER }],
};

/** Teams, each below the one it names. */
const forest: [name: string, parent: string, visibility?: TeamVisibility][] = [
  ["Top", ""],
  ["Mid", "Top"],
  ["Vault", "Mid", SECRET],
  ["Cell", "Vault"],
  ["Side", ""],
  ["Nook", "Side", SECRET],
];

let tenant: Tenant;
let permissions: string[];
const teams: Record<string, string> = { none: "" };
const users: Record<string, { id: string; callers: Callers }> = {};

beforeAll(async () => {
  const { current } = harness;
  tenant = await current.tenant();
  const { orgId, owner } = tenant;
  permissions = [...(await owner.users.getCaller({ orgId })).permissions].sort();
  for (const [name, held] of Object.entries(custom)) await makeRole(owner, orgId, name, ...held);
  for (const [name, parent, visibility] of forest) {
    const parentTeamId = teams[parent] ?? "";
    const init = { orgId, name, parentTeamId, ...(visibility ? { visibility } : {}) };
    teams[name] = (await makeTeam(owner, init)).id;
  }
  for (const [name, [role, inTeams = {}]] of Object.entries(people)) {
    const id = await current.user();
    await current.ops.orgs.addOrgMember({ orgId, userId: id, role });
    for (const [team, teamRole] of Object.entries(inTeams))
      await owner.teams.addTeamMember({
        orgId,
        teamId: teams[team] ?? "",
        userId: id,
        role: teamRole,
      });
    users[name] = { id, callers: await current.as(id) };
  }
  users["a stranger"] = { id: tenant.outsiderId, callers: tenant.outsider };
  const idOf = (name: string) => users[name]?.id ?? "";
  const suspended = {
    orgId,
    userId: idOf("one whose membership is suspended"),
    state: OrgMemberState.SUSPENDED,
  };
  await owner.orgs.updateOrgMember({ member: suspended });
  await current.ops.users.suspendUser({ userId: idOf("a suspended user") });
  await current.ops.users.deleteUser({ userId: idOf("a deleted user") });
  await byHand(
    current.admin,
    "update roster.org_members set expire_time = now() - interval '1 second' where user_id = $1",
    [idOf("one whose membership has expired")],
  );
});

/** Reasons by which a call tells that it was refused for want of rights, or of sight. */
const refusing = new Set([
  "PERMISSION_MISSING",
  "ORG_NOT_ALLOWED",
  "CALLER_INACTIVE",
  "TEAM_NOT_FOUND",
]);

/** Whether a call goes through, or fails for another reason than that its caller may not. */
const passes = async (call: Promise<unknown>, ...also: string[]): Promise<boolean> => {
  const outcome = await call.then(
    () => "",
    () => refusal(call).then(({ reason }) => reason),
  );
  return also.includes(outcome) || !refusing.has(outcome);
};

/** A call that needs a permission in the org as a whole; a team that is not there is met behind it. */
const inOrg = (
  { orgs, access, audit, users: people }: Callers,
  permission: string,
): Promise<boolean> => {
  const { orgId } = tenant;
  const userId = randomUUID();
  const dry = { orgId, validateOnly: true };
  switch (permission) {
    case "org.get":
      return passes(orgs.getOrg({ orgId }));
    case "org.update":
      return passes(orgs.updateOrg({ org: { id: orgId, name: "New" }, validateOnly: true }));
    case "org.delete":
      return passes(orgs.deleteOrg({ ...dry, force: true }));
    case "members.get":
      return passes(orgs.listOrgMembers({ orgId }));
    case "members.add":
      return passes(orgs.addOrgMember({ ...dry, userId, role: "mute" }));
    case "members.update":
      return passes(
        orgs.updateOrgMember({ member: { orgId, userId, role: "mute" }, validateOnly: true }),
      );
    case "members.remove":
      return passes(orgs.removeOrgMember({ ...dry, userId }));
    case "members.invite":
      return passes(orgs.listInvitations({ orgId }));
    case "roles.manage":
      return passes(access.deleteRole({ ...dry, name: "nothing" }));
    case "access.check":
      return passes(access.checkAccess({ orgId, userId, permission }));
    case "audit.read":
      return passes(audit.listAuditEntries({ orgId }));
    // No RPC needs it yet.
    case "changes.read":
      return people.getCaller({ orgId }).then(
        ({ permissions: held }) => held.includes(permission),
        () => false,
      );
    default:
      return Promise.resolve(expect.fail(`no call needs ${permission}`));
  }
};

/** A call that needs a permission on a team; without one it is made on a team that is not there. */
const onTeam = (
  { teams: calls }: Callers,
  permission: string,
  teamId: string,
): Promise<boolean> => {
  const { orgId } = tenant;
  const id = teamId || randomUUID();
  const also = teamId ? [] : ["TEAM_NOT_FOUND"];
  switch (permission) {
    case "teams.get":
      return passes(calls.getTeam({ orgId, teamId: id }), ...also);
    case "teams.update":
      return passes(
        calls.updateTeam({ team: { orgId, id, description: "New" }, validateOnly: true }),
        ...also,
      );
    case "teams.create":
      return passes(
        calls.createTeam({
          team: { orgId, parentTeamId: teamId, name: "New" },
          validateOnly: true,
        }),
      );
    default:
      return passes(
        calls.deleteTeam({ orgId, teamId: id, force: true, validateOnly: true }),
        ...also,
      );
  }
};

/** What really happens when a user does what needs a permission, in the org or on each team that they see. */
const happens = async (name: string): Promise<boolean[]> => {
  const { callers } = users[name] as (typeof users)[string];
  const list = callers.teams.listTeams({ orgId: tenant.orgId });
  const seen = await list.then(
    ({ teams: all }) => all.map(({ id }) => id),
    (): string[] => [],
  );
  const ofOrg = permissions.filter((permission) => !permission.startsWith("teams."));
  const done = new Map(
    await Promise.all(
      ofOrg.map(async (permission) => [permission, await inOrg(callers, permission)] as const),
    ),
  );
  return Promise.all(
    asked(name).map(({ permission, teamId }) =>
      done.has(permission)
        ? done.get(permission) === true && (teamId === "" || seen.includes(teamId))
        : onTeam(callers, permission, teamId),
    ),
  );
};

const asked = (name: string) =>
  Object.keys(teams).flatMap((team) =>
    permissions.map((permission) => ({
      team,
      userId: users[name]?.id ?? "",
      permission,
      teamId: teams[team] ?? "",
    })),
  );

const answered = new Map<string, Promise<CheckAccessResponse[]>>();
const answers = (name: string): Promise<CheckAccessResponse[]> => {
  const { orgId, owner } = tenant;
  const known =
    answered.get(name) ??
    Promise.all(
      asked(name).map(({ userId, permission, teamId }) =>
        owner.access.checkAccess({ orgId, userId, permission, teamId }),
      ),
    );
  answered.set(name, known);
  return known;
};

const everyone = [...Object.keys(people), "a stranger"].map((name) => [name]);

describe("What CheckAccess says", () => {
  test.each(everyone)("is what happens to %s who tries, on every team", async (name) => {
    const said = await answers(name);
    const done = await happens(name);
    const told = (allowed: readonly boolean[]) =>
      asked(name).map(({ permission, team }, i) => `${permission} on ${team}: ${allowed[i]}`);
    expect(told(said.map(({ allowed }) => allowed))).toEqual(told(done));
  });

  test.each(everyone)("BatchCheckAccess says too, of %s", async (name) => {
    const { orgId, owner } = tenant;
    const checks = asked(name).map(({ team: _team, ...check }) => check);
    const { results } = await owner.access.batchCheckAccess({ orgId, checks });
    expect(results.map(({ result }) => result.value)).toEqual(await answers(name));
  });

  test.each(everyone)("ListEffectivePermissions lists, of %s", async (name) => {
    const { orgId, owner } = tenant;
    const userId = users[name]?.id ?? "";
    const said = await answers(name);
    for (const [team, teamId] of Object.entries(teams)) {
      const own = asked(name).flatMap((check, i) =>
        check.team === team ? [{ ...check, ...said[i] }] : [],
      );
      const call = owner.access.listEffectivePermissions({ orgId, userId, teamId });
      if (own[0]?.reason === AccessReason.NOT_A_MEMBER) {
        expect(await refusal(call)).toMatchObject({
          code: "NotFound",
          reason: "ORG_MEMBER_NOT_FOUND",
        });
        continue;
      }
      const { permissions: grants } = await call;
      const allowed = own.filter((check) => check.allowed);
      expect([...new Set(grants.map(({ permission }) => permission))], team).toEqual(
        allowed.map(({ permission }) => permission),
      );
      for (const { permission, reason, role, teamRole, viaTeamIds } of allowed) {
        const [first, ...others] = grants.filter((grant) => grant.permission === permission);
        const byOrg = reason === AccessReason.ORG_ROLE;
        if (byOrg) expect(first).toMatchObject({ role, teamRole: 0, teamId: "", viaTeamIds: [] });
        const byTeam = byOrg ? others : [first, ...others];
        for (const grant of byTeam)
          expect(grant?.viaTeamIds).toEqual(pathOf(grant?.teamId ?? "", team));
        if (!byOrg)
          expect(byTeam).toContainEqual(expect.objectContaining({ teamRole, viaTeamIds }));
      }
    }
  });
});

/** The ids from one team down to another. */
const pathOf = (from: string, to: string): string[] => {
  const [, parent = ""] = forest.find(([name]) => name === to) ?? [];
  const id = teams[to] ?? "";
  return id === from || parent === "" ? [id] : [...pathOf(from, parent), id];
};
