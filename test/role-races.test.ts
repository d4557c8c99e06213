import { randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { refusal, useHarness } from "./harness.ts";
import { makeHolder, makeRole } from "./made-role.ts";
import { overlap } from "./overlap.ts";

const harness = useHarness();

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

describe("Roles that change while they are given", () => {
  /** An admin, and a role that they may give now. */
  const world = async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, admin } = tenant;
    await makeRole(owner, orgId, "crew", "org.get");
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
        create: () => makeRole(admin, orgId, "late", "org.get"),
        update: () => admin.access.updateRole({ role: { orgId, name: "crew", title: "Late" } }),
        delete: () => admin.access.deleteRole({ orgId, name: "crew" }),
        give,
        remove: () => admin.orgs.removeOrgMember({ orgId, userId: guestId }),
      };
      const reason = await secondOf(demote, calls[change] ?? expect.fail(change));
      expect(reason, change).toBe("PERMISSION_MISSING");
    }
  });

  test("are not given by an admin whose membership ends meanwhile", async () => {
    for (const ending of [
      { state: OrgMemberState.SUSPENDED },
      { expireTime: timestampFromMs(1_000) },
    ]) {
      const { orgId, adminId, owner, give } = await world();
      const end = () =>
        owner.orgs.updateOrgMember({ member: { orgId, userId: adminId, ...ending } });
      expect(await secondOf(end, give)).toBe("ORG_NOT_ALLOWED");
    }
  });

  test("are not given by someone whose own role is narrowed meanwhile", async () => {
    const { orgId, owner, userId } = await world();
    await makeRole(owner, orgId, "host", "org.get", "members.add");
    const host = await makeHolder(harness.current, orgId, "host");
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

describe("A role that is made at the same time", () => {
  test("is there for the update and the delete that wait for it", async () => {
    for (const change of ["update", "delete"]) {
      const { orgId, owner } = await harness.current.tenant();
      const role = { orgId, name: "crew", permissions: ["org.get"] };
      const make = () => owner.access.createRole({ role });
      const calls: Record<string, () => Promise<unknown>> = {
        update: () => owner.access.updateRole({ role: { ...role, title: "Crew" } }),
        delete: () => owner.access.deleteRole({ orgId, name: "crew" }),
      };
      expect(await secondOf(make, calls[change] ?? expect.fail)).toBeUndefined();
    }
  });
});
