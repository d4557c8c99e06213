import { timestampFromMs, timestampMs } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { ChangeKind } from "../src/gen/roster/v1/audit_pb.ts";
import { InvitationState } from "../src/gen/roster/v1/invitation_pb.ts";
import { log } from "./audit-log.ts";
import { byHand } from "./console.ts";
import { refusal, useHarness } from "./harness.ts";
import { customRole, expire, invite, inviteUser, resolvedInvitations } from "./made-invitation.ts";
import { makeTeam } from "./made-team.ts";

const harness = useHarness();
const { PENDING, ACCEPTED, DECLINED, REVOKED, EXPIRED } = InvitationState;

const dayMs = 24 * 3_600_000;
const inDays = (days: number) => timestampFromMs(Date.now() + days * dayMs);

describe("OrgService.ListInvitations", () => {
  test("shows those that a filter asks for, the expired ones among them, in pages", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner } = tenant;
    const ends = await resolvedInvitations(harness.current, tenant);
    const open = [await invite(owner, orgId), await invite(owner, orgId, { role: "guest" })];
    const { invitation: late } = await invite(owner, orgId);
    await expire(harness.current, late.id);
    const ids = async (filter: string, orderBy = ""): Promise<string[]> => {
      const { invitations } = await owner.orgs.listInvitations({ orgId, filter, orderBy });
      return invitations.map(({ id }) => id);
    };
    const pending = open.map(({ invitation }) => invitation.id);
    expect(await ids("state = PENDING")).toEqual(pending);
    expect(await ids("state = EXPIRED")).toEqual([late.id]);
    expect(await ids("state = PENDING AND role = guest")).toEqual([pending[1]]);
    for (const [index, state] of ["ACCEPTED", "DECLINED", "REVOKED"].entries())
      expect(await ids(`state = ${state}`)).toEqual([ends[index]?.[0]]);
    expect(await ids(`email = "${late.email.toUpperCase()}"`)).toEqual([late.id]);
    expect(await ids(`email = "${late.email.slice(0, 8)}*"`)).toEqual([late.id]);
    const { invitations } = await owner.orgs.listInvitations({ orgId });
    expect(invitations.map(({ state }) => state)).toEqual([
      ACCEPTED,
      DECLINED,
      REVOKED,
      PENDING,
      PENDING,
      EXPIRED,
    ]);
    const emails = invitations.map(({ email }) => email).sort();
    const ordered = await owner.orgs.listInvitations({ orgId, orderBy: "email" });
    expect(ordered.invitations.map(({ email }) => email)).toEqual(emails);
    for (const orderBy of ["", "email desc"]) {
      const walked: string[] = [];
      for (let pageToken = ""; walked.length === 0 || pageToken !== ""; ) {
        const page = await owner.orgs.listInvitations({ orgId, pageSize: 4, pageToken, orderBy });
        walked.push(...page.invitations.map(({ id }) => id));
        pageToken = page.nextPageToken;
      }
      expect(walked).toEqual(await ids("", orderBy));
    }
  });
});

describe("OrgService.ResendInvitation", () => {
  test("gives a pending or an expired one seven days and another token, and voids the former", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { invitation, answer, user } = await inviteUser(harness.current, owner, orgId, {
      expireTime: inDays(1),
    });
    const named = { orgId, invitationId: invitation.id };
    let token = answer.token;
    for (const etag of ['"2"', '"3"']) {
      const again = await owner.orgs.resendInvitation(named);
      expect(again.invitation).toMatchObject({ state: PENDING, etag });
      const left = timestampMs(again.invitation?.expireTime ?? inDays(0)) - Date.now();
      expect(left).toBeGreaterThan(6.9 * dayMs);
      const former = await refusal(user.orgs.acceptInvitation({ ...answer, token }));
      expect(former.reason).toBe("INVITATION_NOT_FOUND");
      token = again.token;
      await expire(harness.current, invitation.id);
    }
    const { token: last } = await owner.orgs.resendInvitation(named);
    await user.orgs.acceptInvitation({ ...answer, token: last });
  });

  test("FAILED_PRECONDITION with a reason each for one that is resolved", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner } = tenant;
    for (const [invitationId, reason] of await resolvedInvitations(harness.current, tenant))
      for (const { orgs } of [owner, harness.current.ops])
        expect(await refusal(orgs.resendInvitation({ orgId, invitationId }))).toMatchObject({
          code: "FailedPrecondition",
          reason,
          metadata: { invitation_id: invitationId },
        });
  });

  test("ALREADY_EXISTS when the address was invited anew, unless that has expired too", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { invitation: former } = await invite(owner, orgId);
    const resend = () => owner.orgs.resendInvitation({ orgId, invitationId: former.id });
    await expire(harness.current, former.id);
    const { invitation: later } = await invite(owner, orgId, { email: former.email });
    expect(await refusal(resend())).toMatchObject({
      code: "AlreadyExists",
      reason: "INVITATION_EXISTS",
    });
    await expire(harness.current, later.id);
    expect((await resend()).invitation?.state).toBe(PENDING);
    const read = await owner.orgs.getInvitation({ orgId, invitationId: later.id });
    expect(read.invitation?.state).toBe(EXPIRED);
  });
});

describe("OrgService.RevokeInvitation", () => {
  test("takes a pending or expired one back, whose token then says so", async () => {
    const { orgId, owner } = await harness.current.tenant();
    for (const late of [false, true]) {
      const { invitation, answer, user } = await inviteUser(harness.current, owner, orgId);
      if (late) await expire(harness.current, invitation.id);
      const { invitation: revoked } = await owner.orgs.revokeInvitation({
        orgId,
        invitationId: invitation.id,
        etag: invitation.etag,
      });
      expect(revoked?.state).toBe(REVOKED);
      expect(revoked?.resolveTime).toBeDefined();
      expect(await refusal(user.orgs.acceptInvitation(answer))).toMatchObject({
        code: "FailedPrecondition",
        reason: "INVITATION_REVOKED",
      });
    }
  });

  test("FAILED_PRECONDITION with a reason each for one that is resolved", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner } = tenant;
    for (const [invitationId, reason] of await resolvedInvitations(harness.current, tenant))
      expect(await refusal(owner.orgs.revokeInvitation({ orgId, invitationId }))).toMatchObject({
        code: "FailedPrecondition",
        reason,
      });
  });

  test("is open for one whose role is gone", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner } = tenant;
    await customRole(harness.current, tenant.orgId, "crew", "org.get");
    const removal = () =>
      byHand(harness.current.admin, "delete from roster.roles where org_id = $1", [orgId]);
    const { invitation: former } = await invite(owner, orgId, { role: "crew" });
    const named = { orgId, invitationId: former.id };
    // A pending one holds its role.
    await expect(removal()).rejects.toThrow("invitations_org_id_custom_role_fkey");
    await expire(harness.current, former.id);
    await invite(owner, orgId, { email: former.email });
    await removal();
    expect((await refusal(owner.orgs.resendInvitation(named))).reason).toBe("ROLE_UNKNOWN");
    await owner.orgs.revokeInvitation(named);
  });
});

describe("The log of an org", () => {
  test("tells who invited, and who accepted what", async () => {
    const { orgId, ownerId, owner } = await harness.current.tenant();
    const team = await makeTeam(owner, { orgId, name: "Crew" });
    const { invitation, answer, user, userId } = await inviteUser(harness.current, owner, orgId, {
      teamIds: [team.id],
    });
    await user.orgs.acceptInvitation(answer);
    const [accepted, created] = await log(owner, orgId, 2);
    expect(created).toMatchObject({ orgId, actor: { subject: ownerId } });
    expect(created?.changes).toMatchObject([
      { resourceType: "invitation", resourceId: invitation.id, kind: ChangeKind.CREATED },
    ]);
    expect(accepted).toMatchObject({
      orgId,
      actor: { subject: userId },
      method: "roster.v1.OrgService/AcceptInvitation",
    });
    const changes = accepted?.changes.map(({ resourceType, resourceId }) => [
      resourceType,
      resourceId,
    ]);
    expect(changes?.sort()).toEqual([
      ["invitation", invitation.id],
      ["org_member", userId],
      ["team_member", `${team.id}/${userId}`],
    ]);
  });
});
