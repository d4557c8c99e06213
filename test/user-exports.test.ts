import { toJsonString } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { ChangeKind } from "../src/gen/roster/v1/audit_pb.ts";
import {
  type ExportUserResponse,
  ExportUserResponseSchema,
} from "../src/gen/roster/v1/user_service_pb.ts";
import { byHand } from "./console.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";
import { tenantWithTeam } from "./made-team.ts";
import { address, makeUser } from "./made-user.ts";
import { enterDirectory, useConnections, within } from "./sessions.ts";

const harness = useHarness();
const connect = useConnections();

type Item = ExportUserResponse["item"];

/** The whole stream, and the values of one kind of item. */
const exported = async ({ users }: Callers, userId: string) => {
  const messages: ExportUserResponse[] = [];
  for await (const message of users.exportUser({ userId })) messages.push(message);
  const all = <Case extends Item["case"]>(kind: Case) =>
    messages.flatMap(({ item }) =>
      item.case === kind ? [item.value as Extract<Item, { case: Case }>["value"]] : [],
    );
  const text = messages.map((message) => toJsonString(ExportUserResponseSchema, message)).join();
  return { messages, all, text };
};

/** The kinds of the items, each once where several of it follow one another. */
const kinds = (messages: readonly ExportUserResponse[]) =>
  messages.map(({ item }) => item.case).filter((kind, at, all) => kind !== all[at - 1]);

describe("UserService.ExportUser", () => {
  test("sends all that is held about a person in the promised order, to them as to the platform", async () => {
    const { current } = harness;
    const { ops } = current;
    const { orgId, owner, team } = await tenantWithTeam(current);
    const { id: userId } = await makeUser(current, {
      externalId: `x-${address()}`,
      labels: { desk: "7" },
    });
    const self = await current.as(userId);
    await owner.orgs.addOrgMember({ orgId, userId, role: "member" });
    await owner.teams.addTeamMember({ orgId, teamId: team.id, userId });
    await owner.orgs.updateOrgMember({ member: { orgId, userId, state: 2 } });
    await self.users.updateUser({ user: { id: userId, name: "Renamed" } });
    const settings = { theme: "dark" };
    await self.users.updateProfile({ profile: { userId, bio: "Everywhere", settings } });
    await owner.users.updateProfile({ profile: { userId, orgId, bio: "Here" } });
    const { messages, all, text } = await exported(ops, userId);
    expect(kinds(messages)).toEqual([
      "user",
      "profile",
      "orgMember",
      "teamMember",
      "auditChange",
      "auditEntry",
    ]);
    expect(all("user")).toEqual([(await ops.users.getUser({ userId })).user]);
    expect(all("user")[0]).toMatchObject({ labels: { desk: "7" } });
    expect(all("profile")).toMatchObject([
      { orgId: "", bio: "Everywhere", settings },
      { orgId, bio: "Here" },
    ]);
    expect(all("orgMember")).toMatchObject([{ orgId, userId, role: "member", state: 2 }]);
    expect(all("teamMember")).toMatchObject([{ orgId, teamId: team.id, userId }]);
    const { CREATED, UPDATED } = ChangeKind;
    const changes = all("auditChange");
    expect(changes.map(({ resourceType, kind }) => [resourceType, kind]).slice(2)).toEqual([
      ["user", UPDATED],
      ["profile", UPDATED],
      ["profile", CREATED],
    ]);
    // In the order of their making; the two that one statement made, in any.
    expect(
      changes
        .slice(0, 2)
        .map(({ resourceType }) => resourceType)
        .sort(),
    ).toEqual(["profile", "user"]);
    expect(changes[2]).toMatchObject({
      orgId: "",
      before: { name: "Some One", labels: { desk: "7" } },
      after: { name: "Renamed" },
      changedFields: ["name"],
    });
    expect(all("auditEntry")).toMatchObject(
      ["UpdateUser", "UpdateProfile"].map((name) => ({
        method: `roster.v1.UserService/${name}`,
        actor: { subject: userId },
        changes: [],
        changeCount: 1,
      })),
    );
    expect((await exported(self, userId)).text).toBe(text);
  });

  test("shows nobody else to the person: not whom they changed, nor who is where they are", async () => {
    const { current } = harness;
    const { orgId, adminId, admin, team } = await tenantWithTeam(current);
    const canary = "Canary91c4";
    const { id: mateId } = await makeUser(current, { name: canary });
    await admin.orgs.addOrgMember({ orgId, userId: mateId, role: "member" });
    await admin.teams.addTeamMember({ orgId, teamId: team.id, userId: mateId });
    await admin.users.updateProfile({ profile: { userId: mateId, orgId, bio: canary } });
    await admin.orgs.updateOrg({ org: { id: orgId, name: canary } });
    const { text, all } = await exported(admin, adminId);
    expect(all("auditEntry").map(({ method, changeCount }) => [method, changeCount])).toEqual([
      ["roster.v1.OrgService/AddOrgMember", 1],
      ["roster.v1.TeamService/AddTeamMember", 1],
      ["roster.v1.UserService/UpdateProfile", 1],
      ["roster.v1.OrgService/UpdateOrg", 1],
    ]);
    expect(text).not.toContain(canary);
    expect(text).not.toContain(mateId);
    expect((await exported(current.ops, mateId)).text).toContain(canary);
  });

  test("holds every row once, over many pages of each kind", async () => {
    const { current } = harness;
    const { admin, ops } = current;
    const userId = await current.user();
    const count = 510;
    await byHand(
      admin,
      `with o as (
        insert into roster.orgs (id, name, slug)
        select gen_random_uuid(), 'Bulk', 'bulk-' || n from generate_series(1, $2::int) n returning id)
      insert into roster.org_members (org_id, user_id, role) select id, $1, 'owner' from o`,
      [userId, count],
    );
    const each = "from roster.org_members where user_id = $1";
    for (const text of [
      `insert into roster.profiles (id, user_id, org_id) select gen_random_uuid(), user_id, org_id ${each}`,
      `insert into roster.teams (org_id, id, name) select org_id, gen_random_uuid(), 'Crew' ${each}`,
      `insert into roster.team_members (org_id, team_id, user_id)
        select t.org_id, t.id, m.user_id from roster.org_members m join roster.teams t using (org_id)
        where m.user_id = $1`,
    ])
      await byHand(admin, text, [userId]);
    const { all } = await exported(ops, userId);
    expect(new Set(all("profile").map(({ id }) => id)).size).toBe(count + 1);
    expect(all("profile")[0]?.orgId).toBe("");
    expect(new Set(all("orgMember").map(({ orgId }) => orgId)).size).toBe(count);
    expect(new Set(all("teamMember").map(({ teamId }) => teamId)).size).toBe(count);
    // One for the user, one for each profile.
    expect(all("auditChange")).toHaveLength(count + 2);
    expect(all("profile")).toHaveLength(count + 1);
    expect(all("teamMember")).toHaveLength(count);
  });

  test("sends deleted users to the platform, with memberships of deleted orgs, and to nobody else", async () => {
    const { current } = harness;
    const { ops } = current;
    const { orgId, memberId: userId, member } = await current.tenant();
    await ops.orgs.deleteOrg({ orgId, force: true });
    await ops.users.deleteUser({ userId });
    const { all } = await exported(ops, userId);
    expect(all("user")[0]?.deleteTime).toBeDefined();
    expect(all("orgMember")).toMatchObject([{ orgId, userId }]);
    expect(all("auditChange").at(-1)).toMatchObject({ kind: ChangeKind.DELETED });
    expect(await refusal(exported(member, userId))).toMatchObject({ reason: "CALLER_INACTIVE" });
  });

  test("reads the log for nobody but the person and the platform, whatever statement is sent", async () => {
    const { current } = harness;
    const { memberId, guestId } = await current.tenant();
    const directory = await connect(current.urls.directory);
    const first = "00000000-0000-0000-0000-000000000000";
    for (const [name, after] of [
      ["exported_changes", "-infinity"],
      ["exported_entries", "-infinity"],
      ["exported_invitations", first],
    ]) {
      const text = `select * from roster.${name}('${memberId}', '${after}', '${first}', 10)`;
      const outcome = await within(directory, enterDirectory(guestId), text);
      expect(outcome).toMatchObject({ code: "RS001", error: { message: "PERMISSION_MISSING" } });
      for (const [who, reach] of [
        [memberId, false],
        [null, true],
      ] as const)
        expect((await within(directory, enterDirectory(who, reach), text)).code).toBeUndefined();
      await expect(directory.query(text)).rejects.toThrow("PERMISSION_MISSING");
    }
    const { rows } = await within(
      directory,
      enterDirectory(guestId),
      "select distinct user_id from roster.team_members",
    );
    expect(rows).toEqual([]);
  });

  test("PERMISSION_DENIED to a credential that is pinned to one org, for it reaches beyond", async () => {
    const { orgId, memberId: userId } = await harness.current.tenant();
    const pinned = await harness.current.as(userId, { org: orgId });
    const exporting = async () => {
      for await (const _ of pinned.users.exportUser({ userId }));
    };
    expect(await refusal(exporting())).toMatchObject({
      code: "PermissionDenied",
      reason: "ORG_NOT_ALLOWED",
    });
  });
});
