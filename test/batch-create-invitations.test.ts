import { randomUUID } from "node:crypto";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { beforeAll, describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import { InvitationState } from "../src/gen/roster/v1/invitation_pb.ts";
import type { BatchCreateInvitationsResult } from "../src/gen/roster/v1/org_service_pb.ts";
import { newest } from "./audit-log.ts";
import { type Callers, pipelined, refusal, type Tenant, useHarness } from "./harness.ts";
import { expire, type InvitationInit, invite } from "./made-invitation.ts";
import { makeTeam } from "./made-team.ts";
import { address, makeUser } from "./made-user.ts";

const harness = useHarness();

let tenant: Tenant;
beforeAll(async () => {
  tenant = await harness.current.tenant();
});

/** What became of an item: "made", or why it was not and which field or permission says so. */
const outcomeOf = ({ result, token }: BatchCreateInvitationsResult): string => {
  if (result.case === "invitation") return token === "" ? "no token" : "made";
  const [detail] = result.value?.details ?? [];
  const { reason = "", metadata = {} } = (detail && anyUnpack(detail, ErrorInfoSchema)) ?? {};
  return [reason, metadata.field ?? metadata.role ?? metadata.permission].join(" ").trim();
};

const batch = async ({ orgs }: Callers, invitations: InvitationInit[], orgId = tenant.orgId) =>
  (await orgs.batchCreateInvitations({ orgId, invitations } as object)).results;

describe("OrgService.BatchCreateInvitations", () => {
  test("makes those that can be made, each with a token that is accepted", async () => {
    const { orgId, owner, ownerId } = tenant;
    const { id: teamId } = await makeTeam(owner, { orgId, name: "Crew" });
    const person = await makeUser(harness.current);
    const { invitation: pending } = await invite(owner, orgId);
    const { invitation: late } = await invite(owner, orgId);
    await expire(harness.current, late.id);
    const results = await batch(owner, [
      { email: person.email, role: "guest", teamIds: [teamId] },
      { email: pending.email.toUpperCase() },
      { email: late.email },
      { email: late.email.toUpperCase() },
      { email: address(), role: "nobody" },
      { email: address(), teamIds: [teamId, randomUUID()] },
      { email: address(), expireTime: { seconds: 1n } },
      { email: address(), role: "owner" },
    ] as InvitationInit[]);
    expect(results.map(outcomeOf)).toEqual([
      "made",
      "INVITATION_EXISTS invitations[1].email",
      "made",
      "INVITATION_EXISTS invitations[3].email",
      "ROLE_UNKNOWN invitations[4].role",
      "TEAM_NOT_FOUND",
      "FIELD_INVALID invitations[6].expire_time",
      "made",
    ]);
    const [first] = results;
    if (first?.result.case !== "invitation") return expect.fail("the first was not made");
    const { id: invitationId, inviterId, state } = first.result.value;
    expect([inviterId, state]).toEqual([ownerId, InvitationState.PENDING]);
    const user = await harness.current.as(person.id);
    const { member } = await user.orgs.acceptInvitation({
      orgId,
      invitationId,
      token: first.token,
    });
    expect(member?.role).toBe("guest");
  });

  test("judges each by what the caller holds", async () => {
    const scope = "members.invite org.get";
    const { orgId } = tenant;
    const service = await harness.current.as("service:crm", { scope });
    const teamIds = [randomUUID()];
    const asked = ["guest", "member", "owner", "nobody"].map((role) => ({
      email: address(),
      role,
    }));
    const results = await batch(service, [
      ...asked,
      { email: address(), role: "guest", teamIds },
    ] as InvitationInit[]);
    expect(results.map(outcomeOf)).toEqual([
      "made",
      "ROLE_NOT_GRANTABLE member",
      "ROLE_NOT_GRANTABLE owner",
      "ROLE_UNKNOWN invitations[3].role",
      "PERMISSION_MISSING teams.update",
    ]);
    const filter = `email = "${asked[1]?.email}"`;
    const { invitations } = await tenant.owner.orgs.listInvitations({ orgId, filter });
    expect(invitations).toEqual([]);
  });

  test("makes a thousand in three round trips, with one audit entry of all", async () => {
    const { owner, orgId } = await harness.current.tenant();
    const asked = Array.from({ length: 1_000 }, () => ({ email: address() }) as InvitationInit);
    const flushes = await harness.current.flushesOf(async () => {
      const results = await batch(owner, asked, orgId);
      expect(results.map(outcomeOf)).toEqual(Array(1_000).fill("made"));
    });
    if (pipelined) expect(flushes).toBe(3);
    expect(await newest(owner, orgId)).toMatchObject({
      method: "roster.v1.OrgService/BatchCreateInvitations",
      changeCount: 1_000,
    });
  }, 30_000);

  test("INVALID_ARGUMENT names the field that breaks a rule, and none is made", async () => {
    const { owner, orgId } = tenant;
    const email = address();
    const tooMany = Array.from({ length: 1_001 }, () => ({ email: address() }));
    for (const [invitations, field] of [
      [[{ email }, { email: "nobody" }], "invitations[1].email"],
      [[{ email }, { role: "guest" }], "invitations[1].email"],
      [[{ email, role: "Not A Role" }], "invitations[0].role"],
      [[], "invitations"],
      [tooMany, "invitations"],
    ] as const)
      expect(await refusal(batch(owner, invitations as unknown as InvitationInit[]))).toMatchObject(
        {
          code: "InvalidArgument",
          fields: [field],
        },
      );
    const filter = `email = "${email}"`;
    expect((await owner.orgs.listInvitations({ orgId, filter })).invitations).toEqual([]);
  });
});
