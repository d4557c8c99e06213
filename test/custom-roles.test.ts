import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { ChangeKind } from "../src/gen/roster/v1/audit_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { newest } from "./audit-log.ts";
import { type Callers, refusal, type Tenant, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { overlap } from "./overlap.ts";

const harness = useHarness();

const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };
const notGrantable = (role: string) => ({
  code: "PermissionDenied",
  reason: "ROLE_NOT_GRANTABLE",
  metadata: { role },
});

/** A role that the callers make. */
const make = async ({ access }: Callers, orgId: string, name: string, ...permissions: string[]) => {
  const { role } = await access.createRole({ role: { orgId, name, permissions } });
  return role ?? expect.fail("no role came back");
};

/** A new member who has a role. */
const holder = async ({ orgId }: Tenant, role: string) => {
  const userId = await harness.current.user();
  await harness.current.ops.orgs.addOrgMember({ orgId, userId, role });
  return { userId, ...(await harness.current.as(userId)) };
};

/** Why the second of two overlapping calls was refused; undefined when it was not. */
const secondOf = async (
  first: () => Promise<unknown>,
  second: () => Promise<unknown>,
): Promise<string | undefined> => {
  const [one, two] = await overlap(harness.current, first, second);
  expect(one?.status).toBe("fulfilled");
  if (two?.status !== "rejected") return undefined;
  return (await refusal(Promise.reject(two.reason))).reason;
};

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
    expect((await make(owner, orgId, "idle")).permissions).toEqual([]);
    expect((await newest(owner, orgId)).changes).toMatchObject([
      { resourceType: "role", resourceId: "idle", kind: ChangeKind.CREATED },
    ]);
  });

  test("ALREADY_EXISTS for a name that the org has, or that is built in, not for another org's", async () => {
    const { orgId, owner, admin } = await harness.current.tenant();
    const other = await harness.current.tenant();
    await make(owner, orgId, "crew");
    for (const name of ["crew", "owner", "admin", "member", "guest"]) {
      for (const callers of [owner, admin])
        expect(await refusal(make(callers, orgId, name)), name).toMatchObject({
          code: "AlreadyExists",
          reason: "ROLE_NAME_TAKEN",
          metadata: { field: "role.name" },
        });
    }
    await make(other.owner, other.orgId, "crew");
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
      const refused = await refusal(make(owner, orgId, "crew", "org.get", odd));
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
    const all = await make(owner, orgId, "deputy", ...permissions);
    expect(all.permissions).toEqual([...permissions].sort());
    expect(permissions).toHaveLength(16);
  });
});

describe("AccessService.ListRoles and GetRole", () => {
  test("tell the built-in roles too, those first, and then the org's own by name", async () => {
    const { orgId, owner, member, guest } = await harness.current.tenant();
    const other = await harness.current.tenant();
    await make(other.owner, other.orgId, "foreign");
    for (const name of ["zoo", "b-2", "aardvark"]) await make(owner, orgId, name, "org.get");
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
    await make(other.owner, other.orgId, "foreign");
    const get = (name: string) => refusal(owner.access.getRole({ orgId, name }));
    const [foreign, absent] = [await get("foreign"), await get("nothing")];
    expect(foreign).toMatchObject({ code: "NotFound", reason: "ROLE_NOT_FOUND" });
    expect(absent.message).toBe(foreign.message.replace("foreign", "nothing"));
  });
});

describe("AccessService.UpdateRole", () => {
  test("changes the populated fields, or the masked ones and clears those that are not set", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await make(owner, orgId, "crew", "org.get");
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
    await make(owner, orgId, "crew", "org.get");
    await makeTeam(owner, { orgId, name: "Open" });
    await makeTeam(owner, { orgId, name: "Moles", visibility: TeamVisibility.SECRET });
    const crew = await holder(tenant, "crew");
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
    const { etag } = await make(owner, orgId, "crew", "org.get");
    const { userId } = await holder(tenant, "crew");
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
    await make(admin, orgId, "reader", "org.get", "audit.read");
    await make(owner, orgId, "undertaker", "org.delete");
    const change = (name: string, role: object) =>
      admin.access.updateRole({ role: { orgId, name, ...role } });
    for (const [name, call] of [
      ["digger", () => make(admin, orgId, "digger", "org.get", "org.delete")],
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
    await make(owner, orgId, "registrar", "org.get", "roles.manage", "members.get");
    const registrar = await holder(tenant, "registrar");
    await make(registrar, orgId, "reader", "members.get");
    expect(await refusal(make(registrar, orgId, "more", "teams.get"))).toMatchObject(
      notGrantable("more"),
    );
    const narrowed = await harness.current.as(ownerId, { scope: "roles.manage org.get" });
    await make(narrowed, orgId, "visitor", "org.get");
    expect(await refusal(make(narrowed, orgId, "more", "members.get"))).toMatchObject(
      notGrantable("more"),
    );
  });
});

describe("Roles that change while they are given", () => {
  /** An admin, and a role that they may give now. */
  const world = async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, admin } = tenant;
    await make(owner, orgId, "crew", "org.get");
    const userId = await harness.current.user();
    const permit = (...permissions: string[]) =>
      owner.access.updateRole({ role: { orgId, name: "crew", permissions } });
    const give = ({ orgs } = admin) => orgs.addOrgMember({ orgId, userId, role: "crew" });
    return { ...tenant, userId, permit, give };
  };

  test("are not given once they hold more than the giver does", async () => {
    const { permit, give } = await world();
    const reason = await secondOf(() => permit("org.delete"), give);
    expect(reason).toBe("ROLE_NOT_GRANTABLE");
  });

  test("are given as they were when the change comes second", async () => {
    const { orgId, userId, permit, give, owner } = await world();
    expect(await secondOf(give, () => permit("org.delete"))).toBeUndefined();
    const { member } = await owner.orgs.getOrgMember({ orgId, userId });
    expect(member?.role).toBe("crew");
  });

  test("are gone, or in use, when they are deleted at the same time", async () => {
    const one = await world();
    const taken = () => one.owner.access.deleteRole({ orgId: one.orgId, name: "crew" });
    expect(await secondOf(taken, one.give)).toBe("ROLE_UNKNOWN");
    const two = await world();
    const late = () => two.owner.access.deleteRole({ orgId: two.orgId, name: "crew" });
    expect(await secondOf(two.give, late)).toBe("ROLE_IN_USE");
  });

  test("are not changed by an admin who loses their rights meanwhile", async () => {
    for (const change of ["create", "update", "delete", "give", "remove"]) {
      const { orgId, adminId, owner, admin, guestId, give } = await world();
      const demote = () =>
        owner.orgs.updateOrgMember({ member: { orgId, userId: adminId, role: "guest" } });
      const calls: Record<string, () => Promise<unknown>> = {
        create: () => make(admin, orgId, "late", "org.get"),
        update: () => admin.access.updateRole({ role: { orgId, name: "crew", title: "Late" } }),
        delete: () => admin.access.deleteRole({ orgId, name: "crew" }),
        give,
        remove: () => admin.orgs.removeOrgMember({ orgId, userId: guestId }),
      };
      const reason = await secondOf(demote, calls[change] ?? expect.fail(change));
      expect(reason, change).toBe("PERMISSION_MISSING");
    }
  });

  test("are not given by someone whose own role is narrowed meanwhile", async () => {
    const tenant = await world();
    const { orgId, owner, userId } = tenant;
    await make(owner, orgId, "host", "org.get", "members.add");
    const host = await holder(tenant, "host");
    const narrow = () =>
      owner.access.updateRole({ role: { orgId, name: "host", permissions: ["org.get"] } });
    const give = () => host.orgs.addOrgMember({ orgId, userId, role: "crew" });
    expect(await secondOf(narrow, give)).toBe("PERMISSION_MISSING");
  });

  test("and are given in a crowd are all changed and given, and nobody is told to try again", async () => {
    const { orgId, permit, admin, owner } = await world();
    const rounds = Array.from({ length: 10 }, (_, n) => n);
    const calls = rounds.flatMap((n) => [
      permit(...(n % 2 === 0 ? ["org.get"] : ["org.get", "members.get"])),
      harness.current
        .user()
        .then((userId) => admin.orgs.addOrgMember({ orgId, userId, role: "crew" })),
      admin.access.createRole({ role: { orgId, name: `r${randomUUID().slice(0, 8)}` } }),
    ]);
    const done = await Promise.allSettled(calls);
    expect(done.filter(({ status }) => status === "rejected")).toEqual([]);
    expect((await owner.access.getRole({ orgId, name: "crew" })).role?.etag).toBe('"11"');
  });
});
