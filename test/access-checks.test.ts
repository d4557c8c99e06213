import { randomUUID } from "node:crypto";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { beforeAll, describe, expect, test } from "vitest";
import { ErrorInfoSchema, ResourceInfoSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import { AccessReason } from "../src/gen/roster/v1/access_check_pb.ts";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { type Callers, flushesOfRead, refusal, useHarness } from "./harness.ts";
import { makeHolder, makeRole } from "./made-role.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";
import { told } from "./samples.ts";

const harness = useHarness();

const { MEMBER, MAINTAINER, UNSPECIFIED } = TeamRole;
const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };
const noTeam = { code: "NotFound", reason: "TEAM_NOT_FOUND" };

/** An org with the team Crew, Den below it, the secret team Moles below that, and Burrow, secret too, at the end. */
const world = async () => {
  const tenant = await tenantWithTeam(harness.current);
  const { orgId, owner, team: crew } = tenant;
  const below = (
    parentTeamId: string,
    name: string,
    visibility: TeamVisibility = TeamVisibility.VISIBLE,
  ) => makeTeam(owner, { orgId, name, parentTeamId, visibility });
  const den = await below(crew.id, "Den");
  const moles = await below(den.id, "Moles", TeamVisibility.SECRET);
  const burrow = await below(moles.id, "Burrow", TeamVisibility.SECRET);
  const join = (userId: string, teamId: string, role: TeamRole = MEMBER) =>
    owner.teams.addTeamMember({ orgId, teamId, userId, role });
  const check = async (
    { access }: Pick<Callers, "access">,
    userId: string,
    permission: string,
    teamId = "",
  ) => {
    const { $typeName: _name, ...answer } = await access.checkAccess({
      orgId,
      userId,
      permission,
      teamId,
    });
    return answer;
  };
  return { ...tenant, crew, den, moles, burrow, join, check };
};

type World = Awaited<ReturnType<typeof world>>;

const no = (reason: AccessReason, role = "", teamRole: TeamRole = UNSPECIFIED) => ({
  allowed: false,
  reason,
  role,
  teamRole,
  viaTeamIds: [],
});
const byOrgRole = (role: string, teamRole: TeamRole = UNSPECIFIED) => ({
  allowed: true,
  reason: AccessReason.ORG_ROLE,
  role,
  teamRole,
  viaTeamIds: [],
});
const byTeamRole = (role: string, teamRole: TeamRole, ...viaTeamIds: string[]) => ({
  allowed: true,
  reason: AccessReason.TEAM_ROLE,
  role,
  teamRole,
  viaTeamIds,
});

describe("AccessService.CheckAccess", () => {
  test("names the role in the org that permits, also where a role in a team would", async () => {
    const { owner, crew, den, adminId, memberId, join, check } = await world();
    expect(await check(owner, memberId, "members.get")).toEqual(byOrgRole("member"));
    expect(await check(owner, adminId, "teams.update", den.id)).toEqual(byOrgRole("admin"));
    await join(adminId, crew.id, MAINTAINER);
    expect(await check(owner, adminId, "teams.update", den.id)).toEqual(
      byOrgRole("admin", MAINTAINER),
    );
  });

  test("names the best role on the team, and the path from the nearest team that gives it", async () => {
    const { owner, crew, den, moles, guestId, memberId, join, check } = await world();
    await join(memberId, crew.id, MAINTAINER);
    const path = [crew.id, den.id, moles.id];
    expect(await check(owner, memberId, "teams.update", moles.id)).toEqual(
      byTeamRole("member", MAINTAINER, ...path),
    );
    await join(memberId, moles.id, MEMBER);
    expect(await check(owner, memberId, "teams.create", moles.id)).toEqual(
      byTeamRole("member", MAINTAINER, ...path),
    );
    await join(memberId, den.id, MAINTAINER);
    expect(await check(owner, memberId, "teams.update", moles.id)).toEqual(
      byTeamRole("member", MAINTAINER, den.id, moles.id),
    );
    await join(guestId, crew.id);
    await join(guestId, den.id);
    expect(await check(owner, guestId, "teams.get", den.id)).toEqual(
      byTeamRole("guest", MEMBER, den.id),
    );
    expect(await check(owner, guestId, "teams.get", crew.id)).toEqual(
      byTeamRole("guest", MEMBER, crew.id),
    );
  });

  test("says that a permission is missing, or that the team is not there for the user", async () => {
    const { owner, crew, den, moles, burrow, guestId, memberId, join, check } = await world();
    const missing = (role: string, teamRole: TeamRole = UNSPECIFIED) =>
      no(AccessReason.PERMISSION_MISSING, role, teamRole);
    const unseen = (role: string) => no(AccessReason.TEAM_NOT_VISIBLE, role);
    expect(await check(owner, memberId, "org.update")).toEqual(missing("member"));
    expect(await check(owner, memberId, "org.get", moles.id)).toEqual(unseen("member"));
    expect(await check(owner, guestId, "org.get", crew.id)).toEqual(unseen("guest"));
    // To list teams takes no permission: a guest gets those where they have a role.
    expect(await check(owner, guestId, "teams.get")).toEqual(missing("guest"));
    await join(guestId, crew.id, MAINTAINER);
    expect(await check(owner, guestId, "teams.create", crew.id)).toEqual(
      missing("guest", MAINTAINER),
    );
    await join(memberId, den.id);
    expect(await check(owner, memberId, "teams.get", moles.id)).toEqual(unseen("member"));
    await join(memberId, burrow.id);
    expect(await check(owner, memberId, "teams.update", moles.id)).toEqual(
      missing("member", MEMBER),
    );
    expect(await check(owner, memberId, "org.get", moles.id)).toEqual(byOrgRole("member", MEMBER));
  });

  test("calls whoever is not in the org no member, be they unknown, deleted, of another org or expired", async () => {
    const { orgId, owner, crew, memberId, outsiderId, join, check } = await world();
    const stranger = no(AccessReason.NOT_A_MEMBER);
    const { memberId: foreign } = await harness.current.tenant();
    await join(memberId, crew.id, MAINTAINER);
    const expireTime = { seconds: BigInt(Math.floor(Date.now() / 1000) - 1), nanos: 0 };
    await owner.orgs.updateOrgMember({ member: { orgId, userId: memberId, expireTime } });
    const { userId: deleted } = await makeHolder(harness.current, orgId, "admin");
    await harness.current.ops.users.deleteUser({ userId: deleted });
    for (const userId of [randomUUID(), outsiderId, foreign, memberId, deleted]) {
      expect(await check(owner, userId, "org.get")).toEqual(stranger);
      expect(await check(owner, userId, "teams.update", crew.id)).toEqual(stranger);
      const list = owner.access.listEffectivePermissions({ orgId, userId });
      expect(await refusal(list)).toMatchObject({
        code: "NotFound",
        reason: "ORG_MEMBER_NOT_FOUND",
      });
    }
  });

  test("tells a suspended membership, user and org, and grants nothing then", async () => {
    const { orgId, owner, crew, adminId, memberId, join, check } = await world();
    const { ops } = harness.current;
    await join(adminId, crew.id, MAINTAINER);
    const none = async (
      reason: AccessReason,
      userId: string,
      role: string,
      teamRole: TeamRole = UNSPECIFIED,
    ) => {
      expect(await check(ops, userId, "teams.update", crew.id)).toEqual(no(reason, role, teamRole));
      const ask = { orgId, userId, teamId: crew.id };
      expect((await ops.access.listEffectivePermissions(ask)).permissions).toEqual([]);
    };
    const suspended = { orgId, userId: adminId, state: OrgMemberState.SUSPENDED };
    await owner.orgs.updateOrgMember({ member: suspended });
    await none(AccessReason.MEMBERSHIP_SUSPENDED, adminId, "admin", MAINTAINER);
    await ops.users.suspendUser({ userId: adminId });
    await none(AccessReason.USER_SUSPENDED, adminId, "admin", MAINTAINER);
    await ops.orgs.suspendOrg({ orgId });
    await none(AccessReason.USER_SUSPENDED, adminId, "admin", MAINTAINER);
    await none(AccessReason.ORG_SUSPENDED, memberId, "member");
    expect(await refusal(check(owner, memberId, "org.get"))).toMatchObject({
      reason: "ORG_SUSPENDED",
    });
  });

  test("follows a custom role, a team role and a membership at the very next call", async () => {
    const other = await harness.current.tenant();
    await makeRole(other.owner, other.orgId, "crew", "audit.read");
    const { orgId, owner, crew, join, check } = await world();
    await makeRole(owner, orgId, "crew", "org.get");
    const { userId } = await makeHolder(harness.current, orgId, "crew");
    const missing = no(AccessReason.PERMISSION_MISSING, "crew");
    expect(await check(owner, userId, "audit.read")).toEqual(missing);
    const role = { orgId, name: "crew", permissions: ["audit.read"] };
    await owner.access.updateRole({ role });
    expect(await check(owner, userId, "audit.read")).toEqual(byOrgRole("crew"));
    expect(await check(owner, userId, "org.get")).toEqual(missing);
    await join(userId, crew.id);
    expect(await check(owner, userId, "teams.get", crew.id)).toMatchObject({ allowed: true });
    await owner.orgs.updateOrgMember({ member: { orgId, userId, role: "admin" } });
    expect(await check(owner, userId, "org.get")).toEqual(byOrgRole("admin"));
    await owner.orgs.removeOrgMember({ orgId, userId });
    expect(await check(owner, userId, "org.get")).toEqual(no(AccessReason.NOT_A_MEMBER));
  });

  test("INVALID_ARGUMENT for what is no permission, and knows all that owners have", async () => {
    const { orgId, owner, ownerId, check } = await world();
    const { permissions } = await owner.users.getCaller({ orgId });
    for (const permission of permissions)
      expect(await check(owner, ownerId, permission)).toEqual(byOrgRole("owner"));
    for (const odd of ["teams.fly", "roster.platform", "*", "users.get", ""]) {
      const message = odd === "" ? "must be set" : `"${odd}" is no permission`;
      const single = await refusal(check(owner, ownerId, odd));
      expect(single).toMatchObject({ code: "InvalidArgument", fields: ["permission"] });
      expect(single.message).toContain(message);
      const checks = [
        { userId: ownerId, permission: "org.get" },
        { userId: ownerId, permission: odd },
      ];
      const many = await refusal(owner.access.batchCheckAccess({ orgId, checks }));
      expect(many).toMatchObject({ code: "InvalidArgument", fields: ["checks[1].permission"] });
      expect(many.message).toContain(message);
    }
  });
});

describe("Who may not see", () => {
  /** Someone whose role permits to ask and nothing else, a member of Moles. */
  const asker = async ({ orgId, owner, moles, join }: World) => {
    await makeRole(owner, orgId, "asker", "access.check");
    const made = await makeHolder(harness.current, orgId, "asker");
    await join(made.userId, moles.id);
    return made;
  };

  test("a team gets the same answer for it as for none, byte for byte", async () => {
    const here = await world();
    const { orgId, owner, crew, burrow, memberId } = here;
    const { access } = await asker(here);
    const { team: foreign } = await tenantWithTeam(harness.current);
    const gone = await makeTeam(owner, { orgId, name: "Gone" });
    await owner.teams.deleteTeam({ orgId, teamId: gone.id });
    const ask = { orgId, userId: memberId, permission: "org.get" };
    const calls: ((teamId: string) => Promise<unknown>)[] = [
      (teamId) => access.checkAccess({ ...ask, teamId }),
      (teamId) => access.listEffectivePermissions({ orgId, userId: memberId, teamId }),
      (teamId) => access.listEffectivePermissions({ orgId, userId: randomUUID(), teamId }),
    ];
    for (const call of calls) {
      const random = randomUUID();
      const absent = await refusal(call(random));
      expect(absent).toMatchObject(noTeam);
      for (const { id } of [foreign, gone, burrow, crew])
        expect(told(await refusal(call(id)), id)).toBe(told(absent, random));
    }
    const checks = [foreign, gone, burrow, crew].map(({ id: teamId }) => ({ ...ask, teamId }));
    const { results } = await access.batchCheckAccess({ orgId, checks });
    expect(results.map(({ result }) => result.case)).toEqual(Array(4).fill("error"));
    // Nor is it there for who sees all that is.
    for (const check of checks.slice(0, 2)) {
      expect(await refusal(owner.access.checkAccess(check))).toMatchObject(noTeam);
      expect(await refusal(owner.access.listEffectivePermissions(check))).toMatchObject(noTeam);
      const many = await owner.access.batchCheckAccess({ orgId, checks: [check] });
      expect(many.results[0]?.result.case).toBe("error");
    }
  });

  test("all of a user's teams still hears what the user may", async () => {
    const here = await world();
    const { orgId, moles, burrow, guestId, join, check } = here;
    const asking = await asker(here);
    expect(await check(asking, guestId, "teams.get", moles.id)).toEqual(
      no(AccessReason.TEAM_NOT_VISIBLE, "guest"),
    );
    // Burrow is hidden from who asks, and opens Moles to the user.
    await join(guestId, burrow.id);
    await join(guestId, here.crew.id);
    const path = [here.crew.id, here.den.id, moles.id];
    const answer = byTeamRole("guest", MEMBER, ...path);
    expect(await check(asking, guestId, "teams.get", moles.id)).toEqual(answer);
    const checks = [{ userId: guestId, permission: "teams.get", teamId: moles.id }];
    const { results } = await asking.access.batchCheckAccess({ orgId, checks });
    expect(results[0]?.result.value).toMatchObject(answer);
  });

  test("others' rights may ask about themselves, one question at a time", async () => {
    const { orgId, guest, guestId, member, memberId, crew, moles, join, check } = await world();
    expect(await check(guest, guestId, "org.get")).toEqual(byOrgRole("guest"));
    expect(await refusal(check(guest, guestId, "org.get", crew.id))).toMatchObject(noTeam);
    expect(await refusal(check(member, memberId, "org.get", moles.id))).toMatchObject(noTeam);
    const { permissions } = await guest.access.listEffectivePermissions({ orgId, userId: guestId });
    expect(permissions).toMatchObject([{ permission: "org.get", role: "guest" }]);
    // A role in the team does not permit to ask about others.
    await join(memberId, crew.id, MAINTAINER);
    const checks = [{ userId: memberId, permission: "org.get" }];
    for (const call of [
      () => check(member, guestId, "org.get", crew.id),
      () => member.access.listEffectivePermissions({ orgId, userId: guestId, teamId: crew.id }),
      () => member.access.batchCheckAccess({ orgId, checks }),
    ])
      expect(await refusal(call())).toMatchObject(denied);
    const narrow = await harness.current.as(memberId, { scope: "org.get" });
    expect(await refusal(check(narrow, memberId, "org.get"))).toMatchObject(denied);
  });
});

describe("AccessService.BatchCheckAccess", () => {
  test("answers each in order, failures with their path, twice what is asked twice", async () => {
    const { orgId, owner, crew, moles, ownerId, guestId } = await world();
    const random = randomUUID();
    const check = (userId: string, permission: string, teamId = "") => ({
      userId,
      permission,
      teamId,
    });
    const checks = [
      check(guestId, "org.get"),
      check(ownerId, "org.delete", random),
      check(ownerId.toUpperCase(), "org.delete", crew.id.toUpperCase()),
      check(guestId, "org.get"),
      check(randomUUID(), "teams.get", moles.id),
    ];
    const { results } = await owner.access.batchCheckAccess({ orgId, checks });
    const said = results.map(({ result }) =>
      result.case === "answer" ? result.value.reason : result.case,
    );
    const { ORG_ROLE, NOT_A_MEMBER } = AccessReason;
    expect(said).toEqual([ORG_ROLE, "error", ORG_ROLE, ORG_ROLE, NOT_A_MEMBER]);
    const status = results[1]?.result;
    if (status?.case !== "error") return expect.fail("there is no such team");
    const [info, resource] = status.value.details;
    expect(status.value).toMatchObject({ code: 5, message: `there is no team ${random}` });
    expect(info && anyUnpack(info, ErrorInfoSchema)).toMatchObject({
      reason: "TEAM_NOT_FOUND",
      metadata: { field: "checks[1].team_id", team_id: random },
    });
    expect(resource && anyUnpack(resource, ResourceInfoSchema)).toMatchObject({
      resourceName: random,
    });
  });

  test("takes none to 1,000, in one flush whatever their number", async () => {
    const { orgId, owner, guestId, crew } = await world();
    const ask = (count: number) => {
      const check = { userId: guestId, permission: "org.get", teamId: crew.id };
      return owner.access.batchCheckAccess({ orgId, checks: Array(count).fill(check) });
    };
    for (const count of [0, 1, 1_000]) {
      const call = async () => expect((await ask(count)).results).toHaveLength(count);
      expect(await harness.current.flushesOf(call)).toBe(flushesOfRead);
    }
    expect(await refusal(ask(1_001))).toMatchObject({
      code: "InvalidArgument",
      fields: ["checks"],
    });
    const one = () => owner.access.checkAccess({ orgId, userId: guestId, permission: "org.get" });
    expect(await harness.current.flushesOf(one)).toBe(flushesOfRead);
  });
});

describe("AccessService.ListEffectivePermissions", () => {
  let here: World;
  beforeAll(async () => {
    here = await world();
    const { crew, den, moles, memberId, join } = here;
    await join(memberId, crew.id, MAINTAINER);
    await join(memberId, den.id, MEMBER);
    await join(memberId, moles.id, MEMBER);
  });
  const list = async (teamId: string, page = {}) => {
    const { orgId, owner, memberId } = here;
    return owner.access.listEffectivePermissions({ orgId, userId: memberId, teamId, ...page });
  };

  test("lists by permission what the org role grants, then each team role, the nearest first", async () => {
    const { crew, den, moles } = here;
    const byOrg = (permission: string) => ({
      permission,
      role: "member",
      teamRole: UNSPECIFIED,
      teamId: "",
      viaTeamIds: [],
    });
    const byTeam = (permission: string, teamRole: TeamRole, ...viaTeamIds: string[]) => ({
      permission,
      role: "",
      teamRole,
      teamId: viaTeamIds[0],
      viaTeamIds,
    });
    const paths = [[moles.id], [den.id, moles.id], [crew.id, den.id, moles.id]] as const;
    expect((await list(moles.id)).permissions).toMatchObject([
      byOrg("members.get"),
      byOrg("org.get"),
      byTeam("teams.create", MAINTAINER, ...paths[2]),
      byOrg("teams.get"),
      byTeam("teams.get", MEMBER, ...paths[0]),
      byTeam("teams.get", MEMBER, ...paths[1]),
      byTeam("teams.get", MAINTAINER, ...paths[2]),
      byTeam("teams.update", MAINTAINER, ...paths[2]),
    ]);
    expect((await list("")).permissions).toMatchObject(
      ["members.get", "org.get", "teams.get"].map(byOrg),
    );
  });

  test("comes in pages of any size, by tokens for this user and team alone", async () => {
    const { orgId, owner, den, moles, memberId, guestId } = here;
    const all = (await list(moles.id)).permissions;
    for (const pageSize of [1, 2, 3, 7, 8]) {
      const seen: typeof all = [];
      let pageToken = "";
      do {
        const page = await list(moles.id, { pageSize, pageToken });
        expect(page.permissions.length).toBeLessThanOrEqual(pageSize);
        seen.push(...page.permissions);
        pageToken = page.nextPageToken;
      } while (pageToken !== "");
      expect(seen).toEqual(all);
    }
    const { nextPageToken: pageToken } = await list(moles.id, { pageSize: 2 });
    for (const [userId, teamId] of [
      [memberId, den.id],
      [guestId, moles.id],
      [memberId, ""],
    ] as const)
      expect(
        await refusal(owner.access.listEffectivePermissions({ orgId, userId, teamId, pageToken })),
      ).toMatchObject({ reason: "PAGE_TOKEN_INVALID" });
  });

  test("is empty for a team that the user cannot see, and leaves out a role that ends above it", async () => {
    const { orgId, owner, guestId, crew, den, moles, join } = here;
    const ask = { orgId, userId: guestId, teamId: moles.id };
    await join(guestId, crew.id, MEMBER);
    expect((await owner.access.listEffectivePermissions(ask)).permissions).toEqual([]);
    await join(guestId, den.id, MAINTAINER);
    const { permissions } = await owner.access.listEffectivePermissions(ask);
    expect(permissions.map(({ permission, teamId }) => [permission, teamId])).toEqual([
      ["org.get", ""],
      ["teams.get", den.id],
      ["teams.update", den.id],
    ]);
  });
});
