import { randomUUID } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { refusal, type Tenant, useHarness } from "./harness.ts";
import { inviteUser } from "./made-invitation.ts";
import { address } from "./made-user.ts";

const harness = useHarness();

let tenant: Tenant;
beforeAll(async () => {
  tenant = await harness.current.tenant();
});

/** Which tables hold a text, as text or as bytes. */
const holdersOf = async (text: string): Promise<string[]> => {
  const { admin } = harness.current;
  const { rows: tables } = await admin.query<{ name: string }>(
    `select oid::regclass::text as name from pg_class
      where relnamespace = 'roster'::regnamespace and relkind in ('r', 'p') and not relispartition`,
  );
  const found: string[] = [];
  for (const { name } of tables) {
    const { rows } = await admin.query(
      `select from ${name} t where strpos(t::text, $1) > 0 or strpos(t::text, $2) > 0 limit 1`,
      [text, Buffer.from(text).toString("hex")],
    );
    if (rows.length > 0) found.push(name);
  }
  return found;
};

describe("The token of an invitation", () => {
  test("comes again by request_id, while no table and no log ever hold it", async () => {
    const { orgId, owner } = tenant;
    const [requestId, email] = [randomUUID(), address()];
    const create = () => owner.orgs.createInvitation({ invitation: { orgId, email }, requestId });
    const created = await create();
    const invitationId = created.invitation?.id ?? "";
    const resend = () => owner.orgs.resendInvitation({ orgId, invitationId, requestId });
    const resent = await resend();
    const batch = () =>
      owner.orgs.batchCreateInvitations({
        orgId,
        invitations: [{ email: `a.${email}` }, { email }],
        requestId,
      });
    const many = await batch();
    expect(await create()).toEqual(created);
    expect(await resend()).toEqual(resent);
    expect(await batch()).toEqual(many);
    const tokens = [created.token, resent.token, many.results[0]?.token ?? ""];
    expect(new Set(tokens).size).toBe(3);
    for (const token of tokens) {
      const [, signature = ""] = token.split(".");
      expect(signature).toHaveLength(43);
      expect(await holdersOf(signature)).toEqual([]);
      expect(JSON.stringify(harness.current.logs)).not.toContain(signature);
    }
    // The answers themselves are kept, or the search would prove nothing.
    expect(await holdersOf(email)).toContain("roster.idempotency_keys");
  });

  test("is not kept of who answers by it either", async () => {
    const { orgId, owner } = tenant;
    const { answer, user } = await inviteUser(harness.current, owner, orgId);
    const request = { ...answer, requestId: randomUUID() };
    const accepted = await user.orgs.acceptInvitation(request);
    expect(await user.orgs.acceptInvitation(request)).toEqual(accepted);
    expect(await holdersOf(answer.token.split(".")[1] ?? "")).toEqual([]);
  });

  test("opens nothing when it was only asked what a call would answer, then and later", async () => {
    const { orgId, owner } = tenant;
    const { answer, user, invitation } = await inviteUser(harness.current, owner, orgId);
    const named = { orgId, invitationId: invitation.id };
    const { token } = await owner.orgs.resendInvitation({ ...named, validateOnly: true });
    const real = await owner.orgs.resendInvitation(named);
    expect((await refusal(user.orgs.acceptInvitation({ ...answer, token }))).reason).toBe(
      "INVITATION_NOT_FOUND",
    );
    await user.orgs.acceptInvitation({ ...answer, token: real.token });
  });
});
