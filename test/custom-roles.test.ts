import { describe, expect, test } from "vitest";
import { ChangeKind } from "../src/gen/roster/v1/audit_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { newest } from "./audit-log.ts";
import { refusal, useHarness } from "./harness.ts";
import { invite } from "./made-invitation.ts";
import { makeHolder, makeRole } from "./made-role.ts";
import { makeTeam } from "./made-team.ts";

const harness = useHarness();

const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };
const notGrantable = (role: string) => ({
  code: "PermissionDenied",
  reason: "ROLE_NOT_GRANTABLE",
  metadata: { role },
});

describe("AccessService.CreateRole", () => {
  test("makes a role that GetRole reads back, each permission once and sorted", async () => {
    const { orgId, owner, guest } = await harness.current.tenant();
    const { role } = await owner.access.createRole({
      role: {
        orgId,
        name: "front-desk-2",
        title: "Re\u0301ception",
        permissions: ["org.get", "members.get", "org.get"],
      },
    });
    expect(role).toMatchObject({
      orgId,
      name: "front-desk-2",
      title: "R\u00e9ception",
      permissions: ["members.get", "org.get"],
      etag: '"1"',
    });
    expect(role?.createTime).toBeDefined();
    const read = await guest.access.getRole({ orgId, name: "front-desk-2" });
    expect(read.role).toEqual(role);
    expect((await makeRole(owner, orgId, "idle")).permissions).toEqual([]);
    expect((await newest(owner, orgId)).changes).toMatchObject([
      { resourceType: "role", resourceId: "idle", kind: ChangeKind.CREATED },
    ]);
  });

  test("ALREADY_EXISTS for a name that the org has, or that is built in, not for another org's", async () => {
    const { orgId, owner, admin } = await harness.current.tenant();
    const other = await harness.current.tenant();
    await makeRole(owner, orgId, "crew");
    for (const name of ["crew", "owner", "admin", "member", "guest"]) {
      for (const callers of [owner, admin])
        expect(await refusal(makeRole(callers, orgId, name)), name).toMatchObject({
          code: "AlreadyExists",
          reason: "ROLE_NAME_TAKEN",
          metadata: { field: "role.name" },
        });
    }
    await makeRole(other.owner, other.orgId, "crew");
  });

  test("INVALID_ARGUMENT names the field that breaks a rule, and the permission that is none", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const faults: [string, object][] = [
      ["role.name", { orgId }],
      ["role.name", { orgId, name: "Crew" }],
      ["role.name", { orgId, name: `c${"r".repeat(32)}` }],
      ["role.title", { orgId, name: "crew", title: "x".repeat(201) }],
      ["role.title", { orgId, name: "crew", title: "two\nlines" }],
      ["role.permissions", { orgId, name: "crew", permissions: Array(101).fill("org.get") }],
      ["role.permissions[1]", { orgId, name: "crew", permissions: ["org.get", "x".repeat(9_999)] }],
    ];
    for (const [field, role] of faults) {
      const refused = await refusal(owner.access.createRole({ role }));
      expect(refused, field).toMatchObject({ code: "InvalidArgument", fields: [field] });
    }
    for (const odd of ["teams.fly", "roster.platform", "*", "", "org.get members.get"]) {
      const refused = await refusal(makeRole(owner, orgId, "crew", "org.get", odd));
      expect(refused).toMatchObject({
        code: "InvalidArgument",
        fields: ["role.permissions[1]"],
        message: `role.permissions[1]: "${odd}" is no permission`,
      });
    }
  });

  test("knows every permission that owners have, as the contract lists them", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { permissions } = await owner.users.getCaller({ orgId });
    const all = await makeRole(owner, orgId, "deputy", ...permissions);
    expect(all.permissions).toEqual([...permissions].sort());
    expect(permissions).toHaveLength(16);
  });
});

describe("AccessService.ListRoles and GetRole", () => {
  test("tell the built-in roles too, those first, and then the org's own by name", async () => {
    const { orgId, owner, member, guest } = await harness.current.tenant();
    const other = await harness.current.tenant();
    await makeRole(other.owner, other.orgId, "foreign");
    for (const name of ["zoo", "b-2", "aardvark"]) await makeRole(owner, orgId, name, "org.get");
    const names = ["owner", "admin", "member", "guest", "aardvark", "b-2", "zoo"];
    for (const { access } of [guest, member, owner, harness.current.ops]) {
      const { roles, nextPageToken } = await access.listRoles({ orgId });
      expect(roles.map(({ name }) => name)).toEqual(names);
      expect(nextPageToken).toBe("");
      for (const role of roles)
        expect((await access.getRole({ orgId, name: role.name })).role).toEqual(role);
    }
    const { role } = await guest.access.getRole({ orgId, name: "member" });
    expect(role).toMatchObject({
      orgId: "",
      title: "Member",
      permissions: ["members.get", "org.get", "teams.get"],
      etag: "",
    });
    expect(role?.createTime).toBeUndefined();
    for (const pageSize of [1, 2, 4, 5]) {
      const seen: string[] = [];
      let pageToken = "";
      do {
        const page = await guest.access.listRoles({ orgId, pageSize, pageToken });
        expect(page.roles.length).toBeLessThanOrEqual(pageSize);
        seen.push(...page.roles.map(({ name }) => name));
        pageToken = page.nextPageToken;
      } while (pageToken !== "");
      expect(seen).toEqual(names);
    }
  });

  test("NOT_FOUND for a role of another org, like for one that never was", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const other = await harness.current.tenant();
    await makeRole(other.owner, other.orgId, "foreign");
    const get = (name: string) => refusal(owner.access.getRole({ orgId, name }));
    const [foreign, absent] = [await get("foreign"), await get("nothing")];
    expect(foreign).toMatchObject({ code: "NotFound", reason: "ROLE_NOT_FOUND" });
    expect(absent.message).toBe(foreign.message.replace("foreign", "nothing"));
  });
});

describe("AccessService.UpdateRole", () => {
  test("changes the populated fields, or the masked ones and clears those that are not set", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await makeRole(owner, orgId, "crew", "org.get");
    const update = async (role: object, ...paths: string[]) =>
      (
        await owner.access.updateRole({
          role: { orgId, name: "crew", ...role },
          ...(paths.length > 0 ? { updateMask: { paths } } : {}),
        })
      ).role;
    expect(await update({ title: "Crew" })).toMatchObject({
      title: "Crew",
      permissions: ["org.get"],
      etag: '"2"',
    });
    expect(await update({ title: "No", permissions: ["teams.get"] }, "permissions")).toMatchObject({
      title: "Crew",
      permissions: ["teams.get"],
    });
    expect(await update({}, "*")).toMatchObject({ title: "", permissions: [], etag: '"4"' });
    expect(await refusal(update({ etag: '"1"', title: "Old" }))).toMatchObject({
      code: "Aborted",
      reason: "ETAG_STALE",
      metadata: { etag: '"4"' },
    });
    expect(await refusal(update({ name: "nothing", title: "X" }))).toMatchObject({
      code: "NotFound",
      reason: "ROLE_NOT_FOUND",
    });
  });

  test("takes effect, in what holders may do and see, at their very next call", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, memberId, owner } = tenant;
    await makeRole(owner, orgId, "crew", "org.get");
    await makeTeam(owner, { orgId, name: "Open" });
    await makeTeam(owner, { orgId, name: "Moles", visibility: TeamVisibility.SECRET });
    const crew = await makeHolder(harness.current, orgId, "crew");
    const teamsSeen = async () =>
      (await crew.teams.listTeams({ orgId })).teams.map(({ name }) => name);
    const seesMembers = () => crew.users.getUser({ orgId, userId: memberId });
    const permit = (...permissions: string[]) =>
      owner.access.updateRole({
        role: { orgId, name: "crew", permissions },
        updateMask: { paths: ["permissions"] },
      });
    expect(await teamsSeen()).toEqual([]);
    expect(await refusal(seesMembers())).toMatchObject(denied);
    await permit("org.get", "teams.get", "members.get");
    expect(await teamsSeen()).toEqual(["Open"]);
    await seesMembers();
    await permit("teams.get", "teams.update");
    expect(await teamsSeen()).toEqual(["Open", "Moles"]);
    expect(await refusal(seesMembers())).toMatchObject(denied);
    expect(await crew.users.getCaller({ orgId })).toMatchObject({
      role: "crew",
      permissions: ["teams.get", "teams.update"],
    });
    await permit();
    expect(await refusal(crew.orgs.getOrg({ orgId }))).toMatchObject(denied);
    const { members } = await owner.orgs.listOrgMembers({ orgId, filter: "role = crew" });
    expect(members.map(({ userId }) => userId)).toEqual([crew.userId]);
  });
});

describe("AccessService.DeleteRole", () => {
  test("FAILED_PRECONDITION while a member has the role, also one who is deleted and may come back", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner } = tenant;
    const { etag } = await makeRole(owner, orgId, "crew", "org.get");
    const { userId } = await makeHolder(harness.current, orgId, "crew");
    const inUse = {
      code: "FailedPrecondition",
      reason: "ROLE_IN_USE",
      metadata: { role: "crew" },
    };
    const take = (more = {}) => owner.access.deleteRole({ orgId, name: "crew", ...more });
    expect(await refusal(take())).toMatchObject(inUse);
    await harness.current.ops.users.deleteUser({ userId });
    expect(await refusal(take())).toMatchObject(inUse);
    await harness.current.ops.users.undeleteUser({ userId });
    await owner.orgs.updateOrgMember({ member: { orgId, userId, role: "guest" } });
    expect(await refusal(take({ etag: '"9"' }))).toMatchObject({ reason: "ETAG_STALE" });
    expect((await take({ etag })).role).toMatchObject({ name: "crew", permissions: ["org.get"] });
    const add = owner.orgs.addOrgMember({
      orgId,
      userId: await harness.current.user(),
      role: "crew",
    });
    expect(await refusal(add)).toMatchObject({ reason: "ROLE_UNKNOWN", fields: ["role"] });
  });

  test("FAILED_PRECONDITION while an invitation promises the role, until it is taken back", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await makeRole(owner, orgId, "crew", "org.get");
    const { invitation } = await invite(owner, orgId, { role: "crew" });
    const take = () => owner.access.deleteRole({ orgId, name: "crew" });
    expect(await refusal(take())).toMatchObject({
      code: "FailedPrecondition",
      reason: "ROLE_IN_USE",
    });
    await owner.orgs.revokeInvitation({ orgId, invitationId: invitation.id });
    expect((await take()).role?.name).toBe("crew");
  });
});

describe("The built-in roles", () => {
  test("FAILED_PRECONDITION for whoever would change them or take them away", async () => {
    const { orgId, owner, admin } = await harness.current.tenant();
    for (const name of ["owner", "admin", "member", "guest"]) {
      for (const { access } of [owner, admin, harness.current.ops]) {
        for (const call of [
          () => access.updateRole({ role: { orgId, name, permissions: ["org.get"] } }),
          () => access.deleteRole({ orgId, name, allowMissing: true }),
        ])
          expect(await refusal(call()), name).toMatchObject({
            code: "FailedPrecondition",
            reason: "ROLE_BUILT_IN",
          });
      }
    }
  });
});

describe("Nobody makes, changes or takes away a role that holds more than they do", () => {
  test("admins cannot touch what holds org.delete, before or after", async () => {
    const { orgId, owner, admin } = await harness.current.tenant();
    await makeRole(admin, orgId, "reader", "org.get", "audit.read");
    await makeRole(owner, orgId, "undertaker", "org.delete");
    const change = (name: string, role: object) =>
      admin.access.updateRole({ role: { orgId, name, ...role } });
    for (const [name, call] of [
      ["digger", () => makeRole(admin, orgId, "digger", "org.get", "org.delete")],
      ["reader", () => change("reader", { permissions: ["org.delete"] })],
      ["undertaker", () => change("undertaker", { permissions: ["org.get"] })],
      ["undertaker", () => change("undertaker", { title: "Sexton" })],
      ["undertaker", () => admin.access.deleteRole({ orgId, name: "undertaker" })],
    ] as const)
      expect(await refusal(call()), name).toMatchObject(notGrantable(name));
    await change("reader", { permissions: ["members.invite"] });
    await admin.access.deleteRole({ orgId, name: "reader" });
    const { roles } = await owner.access.listRoles({ orgId });
    expect(roles.at(-1)).toMatchObject({
      name: "undertaker",
      permissions: ["org.delete"],
      etag: '"1"',
    });
  });

  test("binds those who manage roles by a role of the org, and narrowed tokens", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, ownerId, owner } = tenant;
    await makeRole(owner, orgId, "registrar", "org.get", "roles.manage", "members.get");
    const registrar = await makeHolder(harness.current, orgId, "registrar");
    await makeRole(registrar, orgId, "reader", "members.get");
    expect(await refusal(makeRole(registrar, orgId, "more", "teams.get"))).toMatchObject(
      notGrantable("more"),
    );
    const narrowed = await harness.current.as(ownerId, { scope: "roles.manage org.get" });
    await makeRole(narrowed, orgId, "visitor", "org.get");
    expect(await refusal(makeRole(narrowed, orgId, "more", "members.get"))).toMatchObject(
      notGrantable("more"),
    );
  });
});
