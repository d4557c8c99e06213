import { randomUUID } from "node:crypto";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { beforeAll, describe, expect, test } from "vitest";
import { InvitationState } from "../src/gen/roster/v1/invitation_pb.ts";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { type Callers, refusal, type Tenant, useHarness } from "./harness.ts";
import { customRole, expire, invite, inviteUser } from "./made-invitation.ts";
import { makeTeam } from "./made-team.ts";
import { address, makeUser } from "./made-user.ts";
import { told } from "./samples.ts";

const harness = useHarness();
const { ACCEPTED, DECLINED } = InvitationState;

let tenant: Tenant;
beforeAll(async () => {
  tenant = await harness.current.tenant();
});

const inviting = (init = {}) => inviteUser(harness.current, tenant.owner, tenant.orgId, init);

/** The memberships of a user in the tenant, as its owner reads them. */
const standing = async (userId: string) => {
  const { orgId, owner } = tenant;
  const { member } = await owner.orgs.getOrgMember({ orgId, userId });
  const { userTeams } = await owner.teams.listUserTeams({ orgId, userId });
  return { role: member?.role, teams: userTeams.map(({ team, member: m }) => [team?.id, m?.role]) };
};
const isNoMember = async (userId: string): Promise<void> =>
  expect((await refusal(standing(userId))).reason).toBe("ORG_MEMBER_NOT_FOUND");

const service = (scope = "invitations.accept", org = "") =>
  harness.current.as("service:web", { scope, org });

const unmet = (reason: string) => ({ code: "FailedPrecondition", reason });

type Answer = { orgId?: string; invitationId: string; token: string; userId?: string };
const answers = {
  AcceptInvitation: ({ orgs }: Callers, answer: Answer) => orgs.acceptInvitation(answer),
  DeclineInvitation: ({ orgs }: Callers, answer: Answer) => orgs.declineInvitation(answer),
};

describe("OrgService.AcceptInvitation", () => {
  test("makes the user with the address a member with the role and the teams that are there", async () => {
    const { orgId, owner } = tenant;
    const [crew, gone] = [
      await makeTeam(owner, { orgId, name: "Crew" }),
      await makeTeam(owner, { orgId, name: "Gone" }),
    ];
    const { id: userId, email } = await makeUser(harness.current);
    const init = { role: "admin", teamIds: [crew.id, gone.id], email: email.toUpperCase() };
    const { answer, invitation } = await invite(owner, orgId, init);
    await owner.teams.deleteTeam({ orgId, teamId: gone.id });
    const user = await harness.current.as(userId);
    const accepted = await user.orgs.acceptInvitation(answer);
    const { member } = await owner.orgs.getOrgMember({ orgId, userId });
    expect(accepted.member).toEqual(member);
    expect(member).toMatchObject({ userId, role: "admin", state: OrgMemberState.ACTIVE });
    expect(accepted.invitation).toMatchObject({ state: ACCEPTED, etag: '"2"' });
    expect(accepted.invitation?.resolveTime).toEqual(member?.joinTime);
    const { invitation: read } = await owner.orgs.getInvitation({
      orgId,
      invitationId: invitation.id,
    });
    expect(read).toEqual(accepted.invitation);
    expect(await standing(userId)).toEqual({
      role: "admin",
      teams: [[crew.id, TeamRole.MEMBER]],
    });
    expect((await user.orgs.getOrg({ orgId })).org?.id).toBe(orgId);
    await owner.teams.undeleteTeam({ orgId, teamId: gone.id });
    expect((await standing(userId)).teams).toHaveLength(1);
  });

  test("is for whom a service vouches, whatever their address, pinned to the org or not", async () => {
    const { orgId, owner } = tenant;
    for (const caller of [await service(), await service("invitations.accept", orgId)]) {
      const { answer } = await invite(owner, orgId, { role: "guest" });
      const userId = await harness.current.user();
      await caller.orgs.acceptInvitation({ ...answer, userId });
      expect(await standing(userId)).toMatchObject({ role: "guest" });
    }
  });

  test("succeeds again, changes nothing, and brings nobody back who has left or expired", async () => {
    const { orgId, owner } = tenant;
    const { answer, user, userId } = await inviting();
    const first = await user.orgs.acceptInvitation(answer);
    expect(await user.orgs.acceptInvitation(answer)).toEqual(first);
    await user.orgs.removeOrgMember({ orgId, userId });
    expect(await refusal(user.orgs.acceptInvitation(answer))).toMatchObject(
      unmet("INVITATION_ACCEPTED"),
    );
    await isNoMember(userId);
    const late = await inviting();
    await late.user.orgs.acceptInvitation(late.answer);
    const expired = { orgId, userId: late.userId, expireTime: timestampFromMs(1_000) };
    await owner.orgs.updateOrgMember({ member: expired });
    expect(await refusal(late.user.orgs.acceptInvitation(late.answer))).toMatchObject(
      unmet("INVITATION_ACCEPTED"),
    );
  });

  test("leaves a membership that is there as it is, and joins the teams", async () => {
    const { orgId, owner } = tenant;
    const [kept, joined] = [
      await makeTeam(owner, { orgId, name: "Kept" }),
      await makeTeam(owner, { orgId, name: "Joined" }),
    ];
    const { answer, user, userId } = await inviting({
      role: "admin",
      teamIds: [kept.id, joined.id],
    });
    await owner.orgs.addOrgMember({ orgId, userId, role: "guest" });
    const role = TeamRole.MAINTAINER;
    await owner.teams.addTeamMember({ orgId, teamId: kept.id, userId, role });
    const suspended = OrgMemberState.SUSPENDED;
    await owner.orgs.updateOrgMember({ member: { orgId, userId, state: suspended } });
    const { member } = await user.orgs.acceptInvitation(answer);
    expect(member).toMatchObject({ role: "guest", state: suspended, etag: '"2"' });
    expect((await standing(userId)).teams).toEqual([
      [kept.id, role],
      [joined.id, TeamRole.MEMBER],
    ]);
  });

  test("needs no right of the inviter any more, and gives roles of the org's own, and ownership", async () => {
    const { orgId, owner } = tenant;
    await customRole(harness.current, orgId, "crew", "org.get", "members.get");
    for (const role of ["crew", "owner"]) {
      const inviterId = await harness.current.user();
      await owner.orgs.addOrgMember({ orgId, userId: inviterId, role: "owner" });
      const inviter = await harness.current.as(inviterId);
      const { answer, user, userId } = await inviteUser(harness.current, inviter, orgId, { role });
      await owner.orgs.removeOrgMember({ orgId, userId: inviterId });
      await user.orgs.acceptInvitation(answer);
      expect((await user.users.getCaller({ orgId })).role).toBe(role);
      expect(await standing(userId)).toMatchObject({ role });
    }
  });
});

describe("OrgService.DeclineInvitation", () => {
  test("ends the invitation, again too, and makes nobody a member", async () => {
    const { answer, user, userId } = await inviting();
    const first = await user.orgs.declineInvitation(answer);
    expect(first.invitation).toMatchObject({ state: DECLINED, etag: '"2"' });
    expect(first.invitation?.resolveTime).toBeDefined();
    expect(await user.orgs.declineInvitation(answer)).toEqual(first);
    expect(await refusal(user.orgs.acceptInvitation(answer))).toMatchObject(
      unmet("INVITATION_DECLINED"),
    );
    await isNoMember(userId);
  });

  test("FAILED_PRECONDITION once it was accepted", async () => {
    const { answer, user, userId } = await inviting();
    await user.orgs.acceptInvitation(answer);
    expect(await refusal(user.orgs.declineInvitation(answer))).toMatchObject(
      unmet("INVITATION_ACCEPTED"),
    );
    expect(await standing(userId)).toMatchObject({ role: "member" });
  });
});

describe.each(Object.entries(answers))("OrgService.%s", (_name, send) => {
  test("NOT_FOUND, byte for byte alike, for all that is wrong", async () => {
    const { orgId, owner, member } = tenant;
    const other = await harness.current.tenant();
    const gone = await harness.current.tenant();
    const { answer, user, email } = await inviting();
    const { answer: stranger } = await invite(owner, orgId);
    const elsewhere = await inviteUser(harness.current, other.owner, other.orgId);
    const lost = await inviteUser(harness.current, gone.owner, gone.orgId);
    await gone.owner.orgs.deleteOrg({ orgId: gone.orgId, force: true });
    const late = await inviting();
    await expire(harness.current, late.invitation.id);
    const revoked = await inviting();
    await owner.orgs.revokeInvitation({ orgId, invitationId: revoked.invitation.id });
    const dry = await owner.orgs.createInvitation({
      invitation: { orgId, email: address() },
      validateOnly: true,
    });
    const { token } = answer;
    const last = token.endsWith("A") ? "B" : "A";
    const attempts: (readonly [Callers, Answer])[] = [
      ...["0", "0.", `1${token.slice(1)}`, `00${token.slice(1)}`, `${token} `, `${token}=`].map(
        (wrong) => [user, { ...answer, token: wrong }] as const,
      ),
      [user, { ...answer, token: `${token.slice(0, -1)}${last}` }],
      [user, { ...answer, token: stranger.token }],
      [user, { ...answer, token: elsewhere.token }],
      [user, { ...answer, token: dry.token }],
      [user, { ...answer, invitationId: randomUUID() }],
      [user, { ...answer, invitationId: dry.invitation?.id ?? "", token: dry.token }],
      [user, { ...answer, orgId: other.orgId }],
      [user, { ...answer, orgId: gone.orgId }],
      [user, { ...answer, orgId: randomUUID() }],
      [user, elsewhere.answer],
      [user, stranger],
      [member, answer],
      [owner, answer],
      [lost.user, lost.answer],
      [late.user, { ...late.answer, token }],
      [revoked.user, { ...revoked.answer, token }],
    ];
    const refusals = new Set<string>();
    for (const [caller, attempt] of attempts)
      refusals.add(told(await refusal(send(caller, attempt)), attempt.invitationId));
    expect([...refusals]).toHaveLength(1);
    expect([...refusals][0]).toContain("INVITATION_NOT_FOUND");
    const { invitation } = await send(user, answer);
    expect(invitation?.email).toBe(email);
  });

  test("FAILED_PRECONDITION with a reason each for who has the token", async () => {
    const { orgId, owner } = tenant;
    const late = await inviting();
    await expire(harness.current, late.invitation.id);
    expect(await refusal(send(late.user, late.answer))).toMatchObject(unmet("INVITATION_EXPIRED"));
    // What has made way for another has expired no less.
    const { answer: next } = await invite(owner, orgId, { email: late.email });
    expect(await refusal(send(late.user, late.answer))).toMatchObject(unmet("INVITATION_EXPIRED"));
    await owner.orgs.revokeInvitation({ orgId, invitationId: next.invitationId });
    expect(await refusal(send(late.user, next))).toMatchObject(unmet("INVITATION_REVOKED"));
    await isNoMember(late.userId);
    // Nor does it answer who has become a member in another way.
    await owner.orgs.addOrgMember({ orgId, userId: late.userId });
    expect(await refusal(send(late.user, next))).toMatchObject(unmet("INVITATION_REVOKED"));
  });

  test("FAILED_PRECONDITION in a suspended org, and only for who has the token", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { answer, user } = await inviteUser(harness.current, owner, orgId);
    await harness.current.ops.orgs.suspendOrg({ orgId });
    expect(await refusal(send(user, answer))).toMatchObject(unmet("ORG_SUSPENDED"));
    const wrong = await refusal(send(user, { ...answer, token: "0.wrong" }));
    expect(wrong.reason).toBe("INVITATION_NOT_FOUND");
    await harness.current.ops.orgs.reactivateOrg({ orgId });
    await send(user, answer);
  });

  test("PERMISSION_DENIED for a suspended user, whoever they name, and for platform", async () => {
    const { answer, user, userId } = await inviting();
    const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };
    const narrowed = await harness.current.as(userId, { scope: "org.get" });
    const naming = { ...answer, userId };
    for (const [caller, request] of [
      [narrowed, answer],
      [tenant.owner, naming],
      [harness.current.ops, naming],
      [await service("members.invite members.add"), naming],
    ] as const)
      expect(await refusal(send(caller, request))).toMatchObject(denied);
    await harness.current.ops.users.suspendUser({ userId });
    for (const token of [answer.token, "0.wrong"])
      expect(await refusal(send(user, { ...answer, token }))).toMatchObject({
        code: "PermissionDenied",
        reason: "CALLER_INACTIVE",
      });
    await harness.current.ops.users.reactivateUser({ userId });
    const own = await harness.current.as(userId, { scope: "invitations.accept" });
    await send(own, { ...answer, userId: userId.toUpperCase() });
  });

  test("is for whom a service names, who must be there and active", async () => {
    const { answer } = await invite(tenant.owner, tenant.orgId);
    const caller = await service();
    expect(await refusal(send(caller, answer))).toMatchObject({
      code: "InvalidArgument",
      reason: "FIELD_REQUIRED",
      fields: ["user_id"],
    });
    const [deleted, suspended] = [await harness.current.user(), await harness.current.user()];
    await harness.current.ops.users.deleteUser({ userId: deleted });
    await harness.current.ops.users.suspendUser({ userId: suspended });
    const refusals = new Set<string>();
    for (const userId of [randomUUID(), deleted, suspended])
      refusals.add(told(await refusal(send(caller, { ...answer, userId })), userId));
    expect([...refusals]).toHaveLength(1);
    expect([...refusals][0]).toContain("USER_NOT_FOUND");
    await send(caller, { ...answer, userId: await harness.current.user() });
  });

  test("is for who has the address now", async () => {
    const { answer, user, userId, email } = await inviting();
    const heir = await makeUser(harness.current);
    const { users } = harness.current.ops;
    await users.updateUser({ user: { id: userId, email: address() } });
    await users.updateUser({ user: { id: heir.id, email } });
    expect((await refusal(send(user, answer))).reason).toBe("INVITATION_NOT_FOUND");
    await send(await harness.current.as(heir.id), answer);
  });

  test("takes the org from metadata or the credential, and needs one", async () => {
    const { orgId } = tenant;
    for (const options of [{ org: orgId }, {}]) {
      const { answer, userId } = await inviting();
      const { orgId: _org, ...rest } = answer;
      const caller = await harness.current.as(
        userId,
        options,
        options.org ? {} : { "roster-org-id": orgId },
      );
      expect((await send(caller, rest)).invitation?.orgId).toBe(orgId);
      const plain = await harness.current.as(userId);
      expect((await refusal(send(plain, rest))).reason).toBe("ORG_REQUIRED");
    }
  });
});

describe("Who invited themselves", () => {
  test("FAILED_PRECONDITION INVITATION_REVOKED, so that no removed owner comes back by it", async () => {
    const { ops } = harness.current;
    const { orgId, owner, ownerId, memberId } = await harness.current.tenant();
    const { user } = await ops.users.getUser({ userId: ownerId });
    const { invitation, token } = await owner.orgs.createInvitation({
      invitation: { orgId, email: user?.email ?? "", role: "owner" },
    });
    await ops.orgs.updateOrgMember({ member: { orgId, userId: memberId, role: "owner" } });
    await ops.orgs.removeOrgMember({ orgId, userId: ownerId });
    const answer = { orgId, invitationId: invitation?.id ?? "", token };
    expect(await refusal(owner.orgs.acceptInvitation(answer))).toMatchObject({
      code: "FailedPrecondition",
      reason: "INVITATION_REVOKED",
    });
    expect((await refusal(owner.orgs.getOrg({ orgId }))).reason).toBe("ORG_NOT_ALLOWED");
  });
});
