import { randomUUID } from "node:crypto";
import { toJson } from "@bufbuild/protobuf";
import { describe, expect, test } from "vitest";
import { AuditOutcome, ChangeKind } from "../src/gen/roster/v1/audit_pb.ts";
import { OrgState } from "../src/gen/roster/v1/org_pb.ts";
import { ExportUserResponseSchema } from "../src/gen/roster/v1/user_service_pb.ts";
import { type Callers, type Harness, refusal, useHarness } from "./harness.ts";
import { address } from "./made-user.ts";
import { overlap } from "./overlap.ts";
import { activeOwners, ownedOrg } from "./owned-org.ts";
import { enterDirectory, settle, useConnections, within } from "./sessions.ts";

const harness = useHarness();
const connect = useConnections();

/** A person of whom every text is their own, a member of two orgs and a team, and how to ask for traces of them. */
const somebody = async () => {
  const { ops } = harness.current;
  const word = `Trace${randomUUID().slice(0, 8)}`;
  const requestId = randomUUID();
  const user = { email: `${word}@example.com`, name: `${word} name`, externalId: `${word}-id` };
  const profile = { avatar: `https://example.com/${word}`, bio: word, settings: { theme: word } };
  const labels = { team: word };
  const made = await ops.users.createUser({ user: { ...user, labels }, profile, requestId });
  const userId = made.user?.id ?? "";
  const [first, second] = [await settle(harness.current), await settle(harness.current)];
  for (const { orgId, teamId, owner } of [first, second]) {
    await owner.orgs.addOrgMember({ orgId, userId, requestId: randomUUID() });
    await owner.teams.addTeamMember({ orgId, teamId, userId });
    await owner.users.updateProfile({
      profile: { userId, orgId, bio: `${word} here` },
      requestId: randomUUID(),
    });
  }
  const self = await harness.current.as(userId);
  await self.users.updateUser({
    user: { id: userId, name: `${word} renamed` },
    requestId: randomUUID(),
  });
  await ops.users.updateUser({ user: { id: userId, email: `second.${word}@example.com` } });
  // Invited under the address they had then, and under that of now.
  for (const [owner, orgId, email] of [
    [first.owner, first.orgId, user.email.toUpperCase()],
    [second.owner, second.orgId, `second.${word}@example.com`],
  ] as const)
    await owner.orgs.createInvitation({ invitation: { orgId, email }, requestId: randomUUID() });
  // From one of the orgs they went again, with what they were there.
  await self.orgs.removeOrgMember({ orgId: second.orgId, userId });
  const again = { user: { ...user, labels }, profile, requestId };
  return { userId, word, first, second, self, again };
};

/** What texts hold that are nobody's own: ids, times, etags, states, roles, the names of RPCs and fields. */
const shared =
  /^([0-9a-f]{8}-[-0-9a-f]{27}|\d{4}-\d\d-\d\dT[\d:.+Z]+|"?\d+"?|[A-Z_]{2,}|member|roster\.v1\.\w+\/\w+)$/;

/** All texts that an export holds and that are somebody's own. */
const exportedTexts = async (callers: Callers, userId: string): Promise<string[]> => {
  const texts = new Set<string>();
  const gather = (value: unknown): void => {
    if (typeof value === "string") texts.add(value);
    else if (value !== null && typeof value === "object") Object.values(value).forEach(gather);
  };
  for await (const item of callers.users.exportUser({ userId }))
    gather(toJson(ExportUserResponseSchema, item));
  return [...texts].filter((text) => text !== "" && !shared.test(text) && !isField(text));
};

/** `changed_fields` name columns. */
const isField = (text: string): boolean => /^[a-z_]+$/.test(text) && text.length < 16;

/** Tables in which a text stands anywhere, in any case, also as bytes. */
const tablesWith = async ({ admin }: Harness, text: string): Promise<string[]> => {
  const { rows } = await admin.query<{ name: string }>(
    `select oid::regclass::text as name from pg_class
     where relnamespace = 'roster'::regnamespace and relkind in ('r', 'p') and not relispartition`,
  );
  const found: string[] = [];
  for (const { name } of rows) {
    const { rowCount } = await admin.query(
      `select from ${name} t where strpos(lower(t::text), lower($1)) > 0
         or strpos(lower(t::text), encode(convert_to($1, 'UTF8'), 'hex')) > 0 limit 1`,
      [text],
    );
    if (rowCount) found.push(name);
  }
  return found.sort();
};

describe("UserService.EraseUser", () => {
  test("leaves no trace of a person in any table, answer or log, and a proof", async () => {
    const { ops, logs } = harness.current;
    const { userId, word, first, second, self } = await somebody();
    const texts = await exportedTexts(self, userId);
    expect(await exportedTexts(ops, userId)).toEqual(texts);
    const own = word.toUpperCase();
    expect(texts.filter((text) => !text.toUpperCase().includes(own))).toEqual([]);
    expect(texts).toHaveLength(8);
    expect(await tablesWith(harness.current, word)).toEqual([
      "roster.audit_changes",
      "roster.idempotency_keys",
      "roster.invitations",
      "roster.org_member_keys",
      "roster.profiles",
      "roster.users",
    ]);
    const { proof, ...erased } = await erase(userId);
    expect(erased.erasedChangeCount).toBeGreaterThan(10);
    expect(erased.erasedAnswerCount).toBe(8);
    for (const text of [word, ...texts])
      expect(await tablesWith(harness.current, text), text).toEqual([]);
    expect(JSON.stringify(logs)).not.toContain(word);

    expect((await refusal(ops.users.getUser({ userId }))).code).toBe("NotFound");
    for (const { owner, orgId } of [first, second]) {
      const { auditEntries } = await owner.audit.listAuditEntries({ orgId, pageSize: 1000 });
      expect(JSON.stringify(auditEntries, withoutBigints)).not.toContain(word);
      const about = auditEntries.flatMap(({ changes }) =>
        changes.filter(({ resourceId }) => resourceId === userId),
      );
      expect(about.length).toBeGreaterThan(0);
    }
    expect(proof).toMatchObject({
      method: "roster.v1.UserService/EraseUser",
      outcome: AuditOutcome.SUCCEEDED,
      actor: { subject: "service:ops" },
    });
    const last = proof?.changes.find(({ resourceType }) => resourceType === "user");
    expect(last).toMatchObject({ resourceId: userId, kind: ChangeKind.PURGED });
    expect([last?.before, last?.after]).toEqual([undefined, undefined]);
  });

  test("blanks nothing that is other people's", async () => {
    const { admin } = harness.current;
    const [one, other] = [await somebody(), await somebody()];
    const told = async () =>
      (
        await admin.query(
          `select md5(string_agg(c::text, '' order by c::text)) as hash, count(*)
           from roster.audit_changes c where person = $1`,
          [other.userId],
        )
      ).rows;
    const before = await told();
    await erase(one.userId);
    expect(await told()).toEqual(before);
    expect(await tablesWith(harness.current, other.word)).toHaveLength(6);
    expect((await harness.current.ops.users.createUser(other.again)).user?.id).toBe(other.userId);
  });

  test("knows the address that the person was given at the same instant", async () => {
    const { ops } = harness.current;
    const { orgId, owner, outsiderId: userId } = await harness.current.tenant();
    const email = address();
    await owner.orgs.createInvitation({ invitation: { orgId, email } });
    const both = await overlap(
      harness.current,
      () => ops.users.updateUser({ user: { id: userId, email } }),
      () => ops.users.eraseUser({ userId }),
    );
    expect(both.map(({ status }) => status)).toEqual(["fulfilled", "fulfilled"]);
    expect(await tablesWith(harness.current, email)).toEqual([]);
  });

  test("leaves invitations to an address that somebody else has by now", async () => {
    const { ops } = harness.current;
    const { orgId, owner, outsiderId: userId, memberId } = await settle(harness.current);
    const email = `${randomUUID()}@example.com`;
    await ops.users.updateUser({ user: { id: userId, email } });
    await ops.users.updateUser({ user: { id: userId, email: `${randomUUID()}@example.com` } });
    await ops.users.updateUser({ user: { id: memberId, email } });
    const { invitation } = await owner.orgs.createInvitation({ invitation: { orgId, email } });
    await erase(userId);
    const invitationId = invitation?.id ?? "";
    const left = await owner.orgs.getInvitation({ orgId, invitationId });
    expect(left.invitation?.email).toBe(email);
  });

  test("FAILED_PRECONDITION ANSWER_ERASED when what told of them is sent again, and nobody is made", async () => {
    const { users } = harness.current.ops;
    const { userId, again, word } = await somebody();
    await erase(userId);
    expect(await refusal(users.createUser(again))).toMatchObject({
      code: "FailedPrecondition",
      reason: "ANSWER_ERASED",
    });
    expect(await tablesWith(harness.current, word)).toEqual([]);
    // Under an id of its own it is a new person.
    const { user } = await users.createUser({ ...again, requestId: randomUUID() });
    expect(user?.id).not.toBe(userId);
  });

  test("reaches the log of who was deleted or purged before", async () => {
    const { users } = harness.current.ops;
    for (const purgeFirst of [false, true]) {
      const { userId, word } = await somebody();
      await users.deleteUser({ userId });
      if (purgeFirst) {
        await users.purgeUser({ userId });
        expect(await tablesWith(harness.current, word)).toContain("roster.audit_changes");
      }
      const { proof } = await erase(userId);
      expect(await tablesWith(harness.current, word)).toEqual([]);
      expect(proof?.changes.map(({ resourceId }) => resourceId)).toContain(userId);
      expect((await refusal(users.eraseUser({ userId }))).reason).toBe("USER_NOT_FOUND");
    }
  });

  test("FAILED_PRECONDITION LAST_OWNER names the orgs that would have no owner; force suspends them", async () => {
    const { ops } = harness.current;
    const userId = await harness.current.user();
    const lonely = [await ownedOrg(harness.current, 1, [userId])];
    lonely.push(await ownedOrg(harness.current, 1, [userId]));
    const shared = await ownedOrg(harness.current, 2, [userId]);
    const ids = lonely.map(({ orgId }) => orgId).sort();
    const refused = await refusal(ops.users.eraseUser({ userId }));
    expect(refused).toMatchObject({ code: "FailedPrecondition", reason: "LAST_OWNER" });
    expect(refused.metadata.org_ids?.split(",")).toEqual(ids);
    expect((await ops.users.getUser({ userId })).user?.id).toBe(userId);

    const { suspendedOrgIds } = await ops.users.eraseUser({ userId, force: true });
    expect([...suspendedOrgIds].sort()).toEqual(ids);
    for (const orgId of ids) {
      expect((await ops.orgs.getOrg({ orgId })).org?.state).toBe(OrgState.SUSPENDED);
      expect((await refusal(ops.orgs.reactivateOrg({ orgId }))).reason).toBe("LAST_OWNER");
      const heir = await harness.current.user();
      await ops.orgs.addOrgMember({ orgId, userId: heir, role: "owner" });
      expect((await ops.orgs.reactivateOrg({ orgId })).org?.state).toBe(OrgState.ACTIVE);
    }
    expect((await ops.orgs.getOrg({ orgId: shared.orgId })).org?.state).toBe(OrgState.ACTIVE);
    expect(await activeOwners(harness.current, shared.orgId)).toBe(1);
  });

  test("is the platform's alone in the database too", async () => {
    const userId = await harness.current.user();
    const client = await connect(harness.current.urls.directory);
    for (const call of [
      `roster.erase_user('${userId}', true, '${randomUUID()}')`,
      `roster.purge_user('${userId}')`,
      `roster.purge_org('${userId}')`,
    ]) {
      const { error } = await within(client, enterDirectory(userId), `select ${call}`);
      expect(error?.message, call).toBe("PERMISSION_MISSING");
    }
  });

  test("says what it would do when it only validates, and does nothing", async () => {
    const { ops } = harness.current;
    const { userId, word } = await somebody();
    const { erasedChangeCount } = await ops.users.eraseUser({ userId, validateOnly: true });
    expect(erasedChangeCount).toBeGreaterThan(10);
    expect(await tablesWith(harness.current, word)).toHaveLength(6);
  });
});

const withoutBigints = (_name: string, value: unknown): unknown =>
  typeof value === "bigint" ? `${value}` : value;

/** Erases a person and reads the entry that proves it. */
const erase = async (userId: string) => {
  const { ops } = harness.current;
  const erased = await ops.users.eraseUser({ userId, force: true, requestId: randomUUID() });
  const { auditEntryId } = erased;
  const { auditEntry: proof } = await ops.audit.getAuditEntry({ auditEntryId });
  return { ...erased, proof };
};
