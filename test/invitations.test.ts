import { randomUUID } from "node:crypto";
import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { InvitationState } from "../src/gen/roster/v1/invitation_pb.ts";
import { refusal, type Tenant, useHarness } from "./harness.ts";
import {
  customRole,
  expire,
  type InvitationInit,
  invite,
  inviteUser,
  resolvedInvitations,
} from "./made-invitation.ts";
import { makeTeam } from "./made-team.ts";
import { address } from "./made-user.ts";
import { told } from "./samples.ts";

const harness = useHarness();
const { PENDING, EXPIRED } = InvitationState;

const dayMs = 24 * 3_600_000;
const inDays = (days: number) => timestampFromMs(Date.now() + days * dayMs);

const notGrantable = (role: string) => ({
  code: "PermissionDenied",
  reason: "ROLE_NOT_GRANTABLE",
  metadata: { role },
});

/** How many invitations an org has. */
const count = async ({ orgId, owner }: Tenant): Promise<number> =>
  (await owner.orgs.listInvitations({ orgId })).invitations.length;

describe("OrgService.CreateInvitation", () => {
  test("makes a pending invitation for seven days that GetInvitation reads back", async () => {
    const { orgId, admin, adminId } = await harness.current.tenant();
    const team = await makeTeam(admin, { orgId, name: "Crew" });
    const email = `A.${address()}`;
    const teamIds = [team.id, team.id.toUpperCase()];
    const { invitation, token } = await invite(admin, orgId, { email, teamIds });
    expect(invitation).toMatchObject({
      orgId,
      email,
      role: "member",
      teamIds: [team.id],
      state: PENDING,
      inviterId: adminId,
      etag: '"1"',
    });
    expect(invitation.resolveTime).toBeUndefined();
    if (!invitation.createTime || !invitation.expireTime) return expect.fail("times are missing");
    expect(timestampMs(invitation.expireTime) - timestampMs(invitation.createTime)).toBe(7 * dayMs);
    expect(token).toMatch(/^0\.[\w-]{43}$/);
    const read = await admin.orgs.getInvitation({ orgId, invitationId: invitation.id });
    expect(read.invitation).toEqual(invitation);
  });

  test("names no inviter where a service invites, and takes a time and a role", async () => {
    const { orgId } = await harness.current.tenant();
    const expireTime = { ...inDays(89), nanos: 123_456_000 };
    const { invitation } = await invite(harness.current.ops, orgId, { role: "owner", expireTime });
    expect(invitation).toMatchObject({ role: "owner", inviterId: "", expireTime });
  });

  test("INVALID_ARGUMENT names the field that breaks a rule", async () => {
    const tenant = await harness.current.tenant();
    const other = await harness.current.tenant();
    await customRole(harness.current, other.orgId, "crew", "org.get");
    for (const [field, init, reason] of [
      ["email", { email: "" }, "FIELD_REQUIRED"],
      ["email", { email: "nobody" }, "FIELD_INVALID"],
      ["role", { role: "Not A Role" }, "FIELD_INVALID"],
      ["role", { role: "crew" }, "ROLE_UNKNOWN"],
      ["team_ids[0]", { teamIds: ["crew"] }, "FIELD_INVALID"],
      ["team_ids", { teamIds: Array.from({ length: 101 }, () => randomUUID()) }, "FIELD_INVALID"],
      ["expire_time", { expireTime: inDays(-1) }, "FIELD_INVALID"],
      ["expire_time", { expireTime: inDays(90.1) }, "FIELD_INVALID"],
      ["expire_time", { expireTime: { seconds: 9n, nanos: 1_000_000_000 } }, "FIELD_INVALID"],
    ] as const) {
      const call = invite(tenant.owner, tenant.orgId, init as unknown as InvitationInit);
      const fields = [`invitation.${field}`];
      expect(await refusal(call), field).toMatchObject({
        code: "InvalidArgument",
        reason,
        fields,
      });
    }
    expect(await count(tenant)).toBe(0);
  });

  test("ALREADY_EXISTS while the address has a pending one, however it is spelt, in this org alone", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const elsewhere = await harness.current.tenant();
    const email = `Zo\u00eb.${address()}`;
    await invite(owner, orgId, { email });
    for (const spelt of [email, email.toUpperCase(), email.normalize("NFD")])
      expect(await refusal(invite(owner, orgId, { email: spelt }))).toMatchObject({
        code: "AlreadyExists",
        reason: "INVITATION_EXISTS",
        metadata: { field: "invitation.email" },
      });
    await invite(elsewhere.owner, elsewhere.orgId, { email });
  });

  test("invites an address anew once the former invitation is resolved or its time is over", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner } = tenant;
    for (const [invitationId] of await resolvedInvitations(harness.current, tenant)) {
      const { invitation } = await owner.orgs.getInvitation({ orgId, invitationId });
      await invite(owner, orgId, { email: invitation?.email ?? "" });
    }
    const { invitation: former } = await invite(owner, orgId);
    await expire(harness.current, former.id);
    const { invitation } = await invite(owner, orgId, { email: former.email.toUpperCase() });
    expect(invitation.state).toBe(PENDING);
    const read = await owner.orgs.getInvitation({ orgId, invitationId: former.id });
    expect(read.invitation?.state).toBe(EXPIRED);
    expect(read.invitation?.resolveTime).toBeUndefined();
  });

  test("NOT_FOUND for a team that is absent, deleted or another org's, all alike", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner } = tenant;
    const other = await harness.current.tenant();
    const foreign = await makeTeam(other.owner, { orgId: other.orgId, name: "Crew" });
    const [live, deleted] = [
      await makeTeam(owner, { orgId, name: "Crew" }),
      await makeTeam(owner, { orgId, name: "Gone" }),
    ];
    await owner.teams.deleteTeam({ orgId, teamId: deleted.id });
    const answers = [];
    for (const id of [randomUUID(), deleted.id, foreign.id]) {
      const refused = await refusal(invite(owner, orgId, { teamIds: [live.id, id] }));
      expect(refused).toMatchObject({ code: "NotFound", reason: "TEAM_NOT_FOUND" });
      answers.push(told(refused, id));
    }
    expect(new Set(answers).size).toBe(1);
    expect(await count(tenant)).toBe(0);
  });

  test("is untouched by who becomes a member by hand, or is deleted", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { invitation, userId } = await inviteUser(harness.current, owner, orgId);
    await owner.orgs.addOrgMember({ orgId, userId });
    await harness.current.ops.users.deleteUser({ userId });
    const read = await owner.orgs.getInvitation({ orgId, invitationId: invitation.id });
    expect(read.invitation).toEqual(invitation);
  });
});

describe("Nobody promises what they do not hold", () => {
  test("admins invite to every role but owner, and touch no invitation to it", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, admin } = tenant;
    for (const role of ["guest", "member", "admin"]) await invite(admin, orgId, { role });
    const { invitation } = await invite(owner, orgId, { role: "owner" });
    const named = { orgId, invitationId: invitation.id };
    for (const call of [
      () => invite(admin, orgId, { role: "owner" }),
      () => admin.orgs.resendInvitation(named),
      () => admin.orgs.revokeInvitation(named),
    ])
      expect(await refusal(call()), call.toString()).toMatchObject(notGrantable("owner"));
    expect((await admin.orgs.getInvitation(named)).invitation).toEqual(invitation);
    expect(await count(tenant)).toBe(4);
    await owner.orgs.resendInvitation(named);
    await harness.current.ops.orgs.revokeInvitation(named);
  });

  test("binds services to their scopes, and users to what their token is narrowed to", async () => {
    const { orgId, owner, ownerId } = await harness.current.tenant();
    const scope = "members.invite org.get";
    for (const caller of [
      await harness.current.as("service:crm", { scope }),
      await harness.current.as(ownerId, { scope }),
    ]) {
      await invite(caller, orgId, { role: "guest" });
      expect(await refusal(invite(caller, orgId))).toMatchObject(notGrantable("member"));
    }
    const { permissions } = await owner.users.getCaller({ orgId });
    const wide = await harness.current.as("service:crm", { scope: permissions.join(" ") });
    await invite(wide, orgId, { role: "admin" });
    expect(await refusal(invite(wide, orgId, { role: "owner" }))).toMatchObject(
      notGrantable("owner"),
    );
  });

  test("invites into teams with teams.update alone", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, memberId: userId } = tenant;
    await customRole(harness.current, tenant.orgId, "host", "org.get", "members.invite");
    await owner.orgs.updateOrgMember({ member: { orgId, userId, role: "host" } });
    const host = await harness.current.as(userId);
    const team = await makeTeam(owner, { orgId, name: "Crew" });
    await invite(host, orgId, { role: "host" });
    for (const id of [team.id, randomUUID()])
      expect(await refusal(invite(host, orgId, { role: "guest", teamIds: [id] }))).toMatchObject({
        code: "PermissionDenied",
        metadata: { permission: "teams.update" },
      });
    const scope = "members.invite org.get teams.update";
    const service = await harness.current.as("service:crm", { scope });
    await invite(service, orgId, { role: "guest", teamIds: [team.id] });
  });
});
