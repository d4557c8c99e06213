import { describe, expect, test } from "vitest";
import { refusal, useHarness } from "./harness.ts";
import { invite } from "./made-invitation.ts";
import { makeUser } from "./made-user.ts";
import { overlap } from "./overlap.ts";
import { ownedOrg } from "./owned-org.ts";

const harness = useHarness();

/** An org of two owners, its delete without force, and calls that give it something to lose. */
const world = async () => {
  const { orgId, ownerIds } = await ownedOrg(harness.current, 2);
  const [ownerId = "", otherId = ""] = ownerIds;
  const owner = await harness.current.as(ownerId);
  const { id: userId, email } = await makeUser(harness.current);
  const { answer } = await invite(owner, orgId, { email });
  const user = await harness.current.as(userId);
  const calls: Record<string, () => Promise<unknown>> = {
    add: () => owner.orgs.addOrgMember({ orgId, userId }),
    batch: () => owner.orgs.batchAddOrgMembers({ orgId, members: [{ userId }] }),
    demote: () => owner.orgs.updateOrgMember({ member: { orgId, userId: otherId, role: "admin" } }),
    accept: () => user.orgs.acceptInvitation(answer),
    team: () => owner.teams.createTeam({ team: { orgId, name: "Crew" } }),
  };
  return { calls, destroy: () => owner.orgs.deleteOrg({ orgId }) };
};

const kinds = ["add", "batch", "demote", "accept", "team"];

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

describe("OrgService.DeleteOrg without force", () => {
  test.each(kinds)("ORG_HAS_CHILDREN when %s comes first at the same time", async (kind) => {
    const { calls, destroy } = await world();
    expect(await secondOf(calls[kind] ?? expect.fail, destroy)).toBe("ORG_HAS_CHILDREN");
  });

  test.each(kinds)("leaves no org to %s that comes second at the same time", async (kind) => {
    const { calls, destroy } = await world();
    const reason = await secondOf(destroy, calls[kind] ?? expect.fail);
    expect(reason).toBe(kind === "accept" ? "INVITATION_NOT_FOUND" : "ORG_NOT_ALLOWED");
  });
});
