import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { byHand } from "./console.ts";
import { type Callers, refusal, type Tenant, useHarness } from "./harness.ts";

const harness = useHarness();

const notGrantable = (role: string) => ({
  code: "PermissionDenied",
  reason: "ROLE_NOT_GRANTABLE",
  metadata: { role },
});

/** Adds a new user with a role. */
const add = async ({ orgs }: Callers, orgId: string, role: string): Promise<string> => {
  const userId = await harness.current.user();
  await orgs.addOrgMember({ orgId, userId, role });
  return userId;
};

/** A role of the org's own. */
const customRole = ({ orgId }: Tenant, name: string, ...permissions: string[]) =>
  harness.current.ops.access.createRole({ role: { orgId, name, permissions } });

describe("Nobody gives, changes or takes away a role that holds more than they do", () => {
  test("owners give every role, admins all but owner", async () => {
    const { orgId, owner, admin } = await harness.current.tenant();
    for (const role of ["guest", "member", "admin"]) {
      for (const caller of [owner, admin]) await add(caller, orgId, role);
    }
    await add(owner, orgId, "owner");
    expect(await refusal(add(admin, orgId, "owner"))).toMatchObject(notGrantable("owner"));
  });

  test("PERMISSION_DENIED to an admin who would make, change or remove an owner", async () => {
    const { orgId, ownerId, adminId, memberId, owner, admin } = await harness.current.tenant();
    const second = await add(owner, orgId, "owner");
    for (const call of [
      () => admin.orgs.updateOrgMember({ member: { orgId, userId: memberId, role: "owner" } }),
      () => admin.orgs.updateOrgMember({ member: { orgId, userId: adminId, role: "owner" } }),
      () => admin.orgs.updateOrgMember({ member: { orgId, userId: ownerId, role: "guest" } }),
      () =>
        admin.orgs.updateOrgMember({
          member: { orgId, userId: second, state: OrgMemberState.SUSPENDED },
        }),
      () => admin.orgs.removeOrgMember({ orgId, userId: second }),
    ]) {
      expect(await refusal(call()), call.toString()).toMatchObject(notGrantable("owner"));
    }
    const { member } = await owner.orgs.getOrgMember({ orgId, userId: second });
    expect(member).toMatchObject({ role: "owner", state: OrgMemberState.ACTIVE, etag: '"1"' });
  });

  test("says so before it says whether the user exists", async () => {
    const { orgId, outsiderId, admin } = await harness.current.tenant();
    await harness.current.ops.users.deleteUser({ userId: outsiderId });
    const call = admin.orgs.addOrgMember({ orgId, userId: outsiderId, role: "owner" });
    expect(await refusal(call)).toMatchObject(notGrantable("owner"));
  });

  test("binds services to their scopes, and never lets them make an owner", async () => {
    const { orgId, memberId, owner } = await harness.current.tenant();
    const narrow = await harness.current.as("service:crm", {
      scope: "members.add members.update members.remove org.get",
    });
    const guest = await add(narrow, orgId, "guest");
    expect(await refusal(add(narrow, orgId, "member"))).toMatchObject(notGrantable("member"));
    for (const call of [
      () => narrow.orgs.updateOrgMember({ member: { orgId, userId: guest, role: "admin" } }),
      () => narrow.orgs.updateOrgMember({ member: { orgId, userId: memberId, role: "guest" } }),
      () => narrow.orgs.removeOrgMember({ orgId, userId: memberId }),
    ]) {
      expect(await refusal(call())).toMatchObject({ reason: "ROLE_NOT_GRANTABLE" });
    }
    await narrow.orgs.removeOrgMember({ orgId, userId: guest });

    const { permissions } = await owner.users.getCaller({ orgId });
    const wide = await harness.current.as("service:crm", { scope: permissions.join(" ") });
    await add(wide, orgId, "admin");
    expect(await refusal(add(wide, orgId, "owner"))).toMatchObject(notGrantable("owner"));
    await add(harness.current.ops, orgId, "owner");
  });

  test("binds users to what their token is narrowed to", async () => {
    const { orgId, ownerId, adminId } = await harness.current.tenant();
    for (const userId of [ownerId, adminId]) {
      const narrowed = await harness.current.as(userId, { scope: "members.add org.get" });
      await add(narrowed, orgId, "guest");
      expect(await refusal(add(narrowed, orgId, "member"))).toMatchObject(notGrantable("member"));
      expect(await refusal(add(narrowed, orgId, "owner"))).toMatchObject(notGrantable("owner"));
    }
  });
});

describe("A role of the org's own", () => {
  test("gives just its permissions, which take effect and end at the very next call", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, memberId, guestId, owner } = tenant;
    await customRole(tenant, "steward", "org.get", "members.get", "members.remove");
    const userId = await add(owner, orgId, "steward");
    const steward = await harness.current.as(userId);
    const permissions = ["members.get", "members.remove", "org.get"];
    expect(await steward.users.getCaller({ orgId })).toMatchObject({
      role: "steward",
      permissions,
    });
    expect((await steward.orgs.listOrgMembers({ orgId })).members).toHaveLength(5);
    await steward.orgs.removeOrgMember({ orgId, userId: guestId });
    for (const call of [
      () => steward.orgs.addOrgMember({ orgId, userId: guestId, role: "guest" }),
      () => steward.orgs.updateOrg({ org: { id: orgId, name: "X" } }),
      () => steward.teams.createTeam({ team: { orgId, name: "X" } }),
    ]) {
      expect(await refusal(call())).toMatchObject({ reason: "PERMISSION_MISSING" });
    }
    // A member holds teams.get, which the steward lacks.
    const taking = await refusal(steward.orgs.removeOrgMember({ orgId, userId: memberId }));
    expect(taking).toMatchObject(notGrantable("member"));
    await owner.access.updateRole({ role: { orgId, name: "steward", permissions: ["org.get"] } });
    expect(await refusal(steward.orgs.listOrgMembers({ orgId }))).toMatchObject({
      reason: "PERMISSION_MISSING",
    });
  });

  test("is given, changed and taken away only by who holds all of it", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, memberId, owner, admin } = tenant;
    await customRole(tenant, "reader", "org.get", "members.get");
    await customRole(tenant, "undertaker", "org.get", "org.delete");
    const reader = await add(admin, orgId, "reader");
    await admin.orgs.updateOrgMember({ member: { orgId, userId: reader, role: "member" } });
    expect(await refusal(add(admin, orgId, "undertaker"))).toMatchObject(
      notGrantable("undertaker"),
    );
    const undertaker = await add(owner, orgId, "undertaker");
    for (const call of [
      () => admin.orgs.updateOrgMember({ member: { orgId, userId: memberId, role: "undertaker" } }),
      () => admin.orgs.updateOrgMember({ member: { orgId, userId: undertaker, role: "guest" } }),
      () => admin.orgs.removeOrgMember({ orgId, userId: undertaker }),
    ]) {
      expect(await refusal(call())).toMatchObject(notGrantable("undertaker"));
    }
    const { orgs } = await harness.current.as(undertaker);
    expect((await orgs.deleteOrg({ orgId, force: true })).org?.deleteTime).toBeDefined();
  });
});

describe("A role that the org made", () => {
  test("cannot hold a permission that owners lack, a blank or a null", async () => {
    const { orgId } = await harness.current.tenant();
    const insert = "insert into roster.roles (org_id, name, permissions) values ($1, 'odd', $2)";
    for (const odd of ["*", "org.get org.delete", "roster.platform", null]) {
      const made = byHand(harness.current.admin, insert, [orgId, [odd]]);
      await expect(made).rejects.toThrow("roles_permissions_check");
    }
  });

  test("INVALID_ARGUMENT when it is not there, before the user is looked for", async () => {
    const { orgId, admin } = await harness.current.tenant();
    const call = admin.orgs.addOrgMember({ orgId, userId: randomUUID(), role: "nothing" });
    expect(await refusal(call)).toMatchObject({ code: "InvalidArgument", reason: "ROLE_UNKNOWN" });
  });

  test("can make no team below a secret one that it does not see, like below one that never was", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner } = tenant;
    await customRole(tenant, "builder", "teams.get", "teams.create");
    const builder = await harness.current.as(await add(owner, orgId, "builder"));
    const team = { orgId, name: "Moles", visibility: TeamVisibility.SECRET };
    const secret = (await owner.teams.createTeam({ team })).team?.id ?? "";
    const below = (parentTeamId: string) =>
      refusal(builder.teams.createTeam({ team: { orgId, name: "Below", parentTeamId } }));
    const random = randomUUID();
    const absent = await below(random);
    expect(absent).toMatchObject({ code: "NotFound", reason: "TEAM_NOT_FOUND" });
    expect((await below(secret)).message).toBe(absent.message.replace(random, secret));
  });
});
