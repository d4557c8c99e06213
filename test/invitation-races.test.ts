import { randomUUID } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { type Callers, refusal, type Tenant, useHarness } from "./harness.ts";
import { expire, invite, inviteUser } from "./made-invitation.ts";
import { makeRole } from "./made-role.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";
import { address } from "./made-user.ts";
import { overlap } from "./overlap.ts";

const harness = useHarness();
const rounds = 8;

let tenant: Tenant;
let teamId: string;
beforeAll(async () => {
  tenant = await harness.current.tenant();
  const { orgId, owner } = tenant;
  teamId = (await makeTeam(owner, { orgId, name: "Crew" })).id;
});

/** A new invitation to the team, as an admin. */
const inviting = () => {
  const init = { role: "admin", teamIds: [teamId] };
  return inviteUser(harness.current, tenant.owner, tenant.orgId, init);
};
type Invited = Awaited<ReturnType<typeof inviting>>;

/** What a call came to: `done`, or the reason why it was refused. */
const outcomeOf = async (result: PromiseSettledResult<unknown>): Promise<string> =>
  result.status === "fulfilled" ? "done" : (await refusal(Promise.reject(result.reason))).reason;

/** Lets two calls race, each ahead in turn: by chance, or with its locks held while the other comes. */
const race = async (
  round: number,
  first: () => Promise<unknown>,
  second: () => Promise<unknown>,
): Promise<string[]> => {
  const calls = round % 2 === 0 ? ([first, second] as const) : ([second, first] as const);
  const done =
    round % 4 < 2
      ? await overlap(harness.current, ...calls)
      : await Promise.allSettled(calls.map((call) => call()));
  const outcomes = await Promise.all(done.map(outcomeOf));
  return round % 2 === 0 ? outcomes : outcomes.reverse();
};

/** The roles that a user has in org and team. */
const rolesOf = async ({ userId }: Invited): Promise<string[]> => {
  const { rows } = await harness.current.admin.query<{ role: string }>(
    `select role from roster.org_members where org_id = $1 and user_id = $2
      union all select role from roster.team_members where org_id = $1 and team_id = $3 and user_id = $2`,
    [tenant.orgId, userId, teamId],
  );
  return rows.map(({ role }) => role);
};

const accept = (invited: Invited) => () => invited.user.orgs.acceptInvitation(invited.answer);

describe("Who accepts an invitation at the same instant", () => {
  test("as themselves again becomes one member with its role and team, and both succeed", async () => {
    const vouching = await harness.current.as("service:web", { scope: "invitations.accept" });
    for (let round = 0; round < rounds; round++) {
      const invited = await inviting();
      const { answer, userId, invitation } = invited;
      const again = () => vouching.orgs.acceptInvitation({ ...answer, userId });
      const other = round % 3 === 0 ? again : accept(invited);
      expect(await race(round, accept(invited), other)).toEqual(["done", "done"]);
      expect(await rolesOf(invited)).toEqual(["admin", "MEMBER"]);
      const { rows } = await harness.current.admin.query(
        "select count(*)::int as n from roster.audit_changes where resource_id in ($1, $2) and kind = 'CREATED'",
        [`${teamId}/${userId}`, invitation.id],
      );
      expect(rows[0].n).toBe(2);
    }
  });

  test("as another declines is a member or has declined, never both", async () => {
    for (let round = 0; round < rounds; round++) {
      const invited = await inviting();
      const decline = () => invited.user.orgs.declineInvitation(invited.answer);
      const outcomes = await race(round, accept(invited), decline);
      expect([
        ["done", "INVITATION_ACCEPTED"],
        ["INVITATION_DECLINED", "done"],
      ]).toContainEqual(outcomes);
      expect(await rolesOf(invited)).toHaveLength(outcomes[0] === "done" ? 2 : 0);
    }
  });

  test("as it is revoked is a member, or finds it revoked", async () => {
    const { orgId, owner } = tenant;
    for (let round = 0; round < rounds; round++) {
      const invited = await inviting();
      const named = { orgId, invitationId: invited.invitation.id };
      const revoke = () => owner.orgs.revokeInvitation(named);
      const outcomes = await race(round, accept(invited), revoke);
      expect([
        ["done", "INVITATION_ACCEPTED"],
        ["INVITATION_REVOKED", "done"],
      ]).toContainEqual(outcomes);
      expect(await rolesOf(invited)).toHaveLength(outcomes[0] === "done" ? 2 : 0);
    }
  });

  test("as it is sent again is a member, or has a token that is void", async () => {
    const { orgId, owner } = tenant;
    for (let round = 0; round < rounds; round++) {
      const invited = await inviting();
      const named = { orgId, invitationId: invited.invitation.id };
      const resend = () => owner.orgs.resendInvitation(named);
      const outcomes = await race(round, accept(invited), resend);
      expect([
        ["done", "INVITATION_ACCEPTED"],
        ["INVITATION_NOT_FOUND", "done"],
      ]).toContainEqual(outcomes);
      expect(await rolesOf(invited)).toHaveLength(outcomes[0] === "done" ? 2 : 0);
    }
  });

  test("as they are added by hand has one membership, of whoever was first, and the team", async () => {
    const { orgId, owner } = tenant;
    for (let round = 0; round < rounds; round++) {
      const invited = await inviting();
      const { userId } = invited;
      const add = () => owner.orgs.addOrgMember({ orgId, userId, role: "guest" });
      const [accepted, added] = await race(round, accept(invited), add);
      expect(accepted).toBe("done");
      expect(["done", "ORG_MEMBER_EXISTS"]).toContain(added);
      expect(await rolesOf(invited)).toEqual([added === "done" ? "guest" : "admin", "MEMBER"]);
    }
  });

  test("as they are suspended is refused as someone inactive, and so is who declines", async () => {
    for (const answer of ["acceptInvitation", "declineInvitation"] as const) {
      const invited = await inviting();
      const { userId, user } = invited;
      const outcomes = await overlap(
        harness.current,
        () => harness.current.ops.users.suspendUser({ userId }),
        () => user.orgs[answer](invited.answer),
      );
      expect(await Promise.all(outcomes.map(outcomeOf))).toEqual(["done", "CALLER_INACTIVE"]);
      expect(await rolesOf(invited)).toEqual([]);
    }
  });

  test("as they are deleted is refused or gone, and nobody is told to retry", async () => {
    for (let round = 0; round < rounds; round++) {
      const invited = await inviting();
      const { userId } = invited;
      const remove = () => harness.current.ops.users.deleteUser({ userId });
      const [accepted, deleted] = await race(round, accept(invited), remove);
      expect(["done", "CALLER_INACTIVE", "USER_NOT_FOUND", "INVITATION_NOT_FOUND"]).toContain(
        accepted,
      );
      expect(deleted).toBe("done");
    }
  });
});

describe("Whoever invites at the same instant", () => {
  const pending = async (email: string): Promise<number> => {
    const { orgId, owner } = tenant;
    const filter = `email = "${email}" AND state = PENDING`;
    return (await owner.orgs.listInvitations({ orgId, filter })).invitations.length;
  };

  test("does nothing once they have lost their rights", async () => {
    for (const act of ["create", "resend", "revoke"] as const) {
      const { orgId, owner, admin, adminId: userId } = await harness.current.tenant();
      const { invitation } = await invite(owner, orgId);
      const named = { orgId, invitationId: invitation.id };
      const acts = {
        create: () => invite(admin, orgId),
        resend: () => admin.orgs.resendInvitation(named),
        revoke: () => admin.orgs.revokeInvitation(named),
      };
      const demote = () => owner.orgs.updateOrgMember({ member: { orgId, userId, role: "guest" } });
      const outcomes = await overlap(harness.current, demote, acts[act]);
      const told = await Promise.all(outcomes.map(outcomeOf));
      expect(told, act).toEqual(["done", "PERMISSION_MISSING"]);
    }
  });

  test("makes one invitation to an address, be it new or one whose time is over", async () => {
    const { orgId, owner } = tenant;
    for (let round = 0; round < rounds; round++) {
      const email = address();
      if (round % 2 === 0)
        await expire(harness.current, (await invite(owner, orgId, { email })).invitation.id);
      const call = () => invite(owner, orgId, { email });
      const outcomes = await Promise.allSettled([call(), call(), call()]);
      expect((await Promise.all(outcomes.map(outcomeOf))).sort()).toEqual([
        "INVITATION_EXISTS",
        "INVITATION_EXISTS",
        "done",
      ]);
      expect(await pending(email)).toBe(1);
    }
  });

  test("many answers for each by the roles and teams of then", async () => {
    for (const change of ["updateRole", "deleteRole", "deleteTeam"] as const) {
      const { orgId, owner, admin, team } = await tenantWithTeam(harness.current);
      await makeRole(owner, orgId, "crew", "org.get");
      const role = { orgId, name: "crew", permissions: ["org.delete"] };
      const changes = {
        updateRole: () => owner.access.updateRole({ role }),
        deleteRole: () => owner.access.deleteRole(role),
        deleteTeam: () => owner.teams.deleteTeam({ orgId, teamId: team.id }),
      };
      const touched = { email: address(), role: "crew", teamIds: [team.id] };
      const invitations = [touched, { email: address() }];
      const [changed, invited] = await overlap(harness.current, changes[change], () =>
        admin.orgs.batchCreateInvitations({ orgId, invitations }),
      );
      expect(changed?.status).toBe("fulfilled");
      expect(invited, change).toMatchObject({
        value: { results: [{ result: { case: "error" } }, { result: { case: "invitation" } }] },
      });
    }
  });

  test("many in any order makes each once, and nobody is told to retry", async () => {
    const { orgId, admin, owner } = tenant;
    for (let round = 0; round < 5; round++) {
      const emails = Array.from({ length: 20 }, () => address());
      for (const email of emails.slice(0, 5))
        await expire(harness.current, (await invite(owner, orgId, { email })).invitation.id);
      const batch = ({ orgs }: Callers, addresses: readonly string[]) =>
        orgs.batchCreateInvitations({
          orgId,
          invitations: addresses.map((email) => ({ email })),
          requestId: randomUUID(),
        });
      const answers = await Promise.all([
        batch(owner, emails),
        batch(admin, emails.toReversed()),
        batch(owner, emails.toSorted()),
      ]);
      const made = answers.flatMap(({ results }) => results.filter(({ token }) => token !== ""));
      expect(made).toHaveLength(20);
      expect((await Promise.all(emails.map(pending))).every((count) => count === 1)).toBe(true);
    }
  });
});
