import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { ChangeKind } from "../src/gen/roster/v1/audit_pb.ts";
import { type PurgeStep, purge, purgeable } from "../src/jobs/purge.ts";
import { refusal, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { asAdmin, type Settled, settle } from "./sessions.ts";

const harness = useHarness();

/** How many rows of each table belong to an org. */
const rowsOfOrg = async (orgId: string): Promise<Record<string, number>> => {
  const ofMembers = ["org_members", "org_member_keys", "team_members", "profiles"];
  const others = ["teams", "roles", "org_slugs", "org_limits", "org_counts"];
  const counts = [...ofMembers, ...others].map(
    (name) => `select '${name}' as name, count(*)::int as n from roster.${name} where org_id = $1`,
  );
  const orgs = "select 'orgs' as name, count(*)::int as n from roster.orgs where id = $1";
  const { rows } = await harness.current.admin.query([...counts, orgs].join(" union all "), [
    orgId,
  ]);
  return Object.fromEntries(rows.map(({ name, n }) => [name, n]).filter(([, n]) => n > 0));
};

/** A tenant with rows in every table, a member with a role of the org's own among them, that was deleted. */
const deletedTenant = async (): Promise<Settled> => {
  const settled = await settle(harness.current);
  const { orgId, memberId: userId } = settled;
  const { ops } = harness.current;
  await ops.orgs.updateOrgMember({ member: { orgId, userId, role: "singer" } });
  await ops.orgs.deleteOrg({ orgId, force: true });
  return settled;
};

/** Lets the purge time of a row have come so long ago. */
const due = (table: string, id: string, ago = "3 minutes"): Promise<void> =>
  asAdmin(
    harness.current,
    `update roster.${table} set purge_time = now() - interval '${ago}' where id = $1`,
    [id],
  );

/** Purges and keeps what each transaction did. */
const purged = async (): Promise<PurgeStep[]> => {
  const steps: PurgeStep[] = [];
  await purge(harness.current.urls.worker, {}, (step) => steps.push(step));
  return steps;
};

const changesOf = async (resourceId: string) => {
  const { rows } = await harness.current.admin.query(
    `select e.subject, e.method, c.kind, c.org_id from roster.audit_changes c
     join roster.audit_entries e on e.id = c.entry_id
     where c.resource_id = $1 order by c.create_time, c.kind`,
    [resourceId],
  );
  return rows;
};

describe("UserService.PurgeUser", () => {
  test("removes a deleted user and all that hangs on them, and says so in the log", async () => {
    const { admin, ops } = harness.current;
    const { orgId, memberId: userId } = await settle(harness.current);
    const { user: deleted } = await ops.users.deleteUser({ userId });
    expect((await ops.users.purgeUser({ userId })).user).toEqual(deleted);
    for (const table of ["profiles", "org_members", "org_member_keys", "team_members"]) {
      const found = await admin.query(`select from roster.${table} where user_id = $1`, [userId]);
      expect(found.rowCount, table).toBe(0);
    }
    expect((await refusal(ops.users.getUser({ userId }))).code).toBe("NotFound");
    expect((await refusal(ops.users.undeleteUser({ userId }))).code).toBe("NotFound");
    const filter = "method = roster.v1.UserService/PurgeUser";
    const { auditEntries } = await ops.audit.listAuditEntries({ pageSize: 1, filter });
    const changes = auditEntries[0]?.changes ?? [];
    expect(changes.map(({ resourceType }) => resourceType)).toEqual(
      expect.arrayContaining(["user", "profile", "org_member", "team_member"]),
    );
    const kinds = changes.filter(({ resourceId }) => resourceId === userId);
    expect(kinds.map(({ kind, orgId: of }) => [kind, of])).toEqual(
      expect.arrayContaining([
        [ChangeKind.PURGED, ""],
        [ChangeKind.DELETED, orgId],
      ]),
    );
  });

  test("FAILED_PRECONDITION STILL_LIVE for a live user, who stays", async () => {
    const { users } = harness.current.ops;
    const userId = await harness.current.user();
    const refused = await refusal(users.purgeUser({ userId }));
    expect(refused).toMatchObject({
      code: "FailedPrecondition",
      reason: "STILL_LIVE",
      metadata: { user_id: userId },
    });
    expect((await users.getUser({ userId })).user?.id).toBe(userId);
  });
});

describe("OrgService.PurgeOrg", () => {
  test("removes a deleted org with everything in it, and nothing else", async () => {
    const { ops } = harness.current;
    const { orgId, ownerId, memberId, slug: name } = await deletedTenant();
    const other = await settle(harness.current);
    const before = await rowsOfOrg(other.orgId);
    expect(Object.keys(await rowsOfOrg(orgId))).toHaveLength(10);
    expect((await ops.orgs.purgeOrg({ orgId })).org?.id).toBe(orgId);
    expect(await rowsOfOrg(orgId)).toEqual({});
    expect(await rowsOfOrg(other.orgId)).toEqual(before);
    for (const userId of [ownerId, memberId])
      expect((await ops.users.getProfile({ userId })).profile?.userId).toBe(userId);
    expect((await refusal(ops.orgs.getOrg({ orgId }))).code).toBe("NotFound");
    expect((await refusal(ops.orgs.undeleteOrg({ orgId }))).code).toBe("NotFound");
    expect(await changesOf(orgId)).toContainEqual({
      subject: "service:ops",
      method: "roster.v1.OrgService/PurgeOrg",
      kind: "PURGED",
      org_id: orgId,
    });
    const taken = await ops.orgs.createOrg({ org: { name, slug: name }, ownerUserId: ownerId });
    expect(taken.org?.slug).toBe(name);
  });

  test("FAILED_PRECONDITION STILL_LIVE for a live org, which stays whole", async () => {
    const { orgId } = await settle(harness.current);
    const before = await rowsOfOrg(orgId);
    expect(await refusal(harness.current.ops.orgs.purgeOrg({ orgId }))).toMatchObject({
      code: "FailedPrecondition",
      reason: "STILL_LIVE",
      metadata: { org_id: orgId },
    });
    expect(await rowsOfOrg(orgId)).toEqual(before);
  });
});

describe("What is past its purge time", () => {
  test("counts as gone although it has not been removed yet", async () => {
    const { ops } = harness.current;
    const { orgId } = await deletedTenant();
    const userId = await harness.current.user();
    await ops.users.deleteUser({ userId });
    const live = await settle(harness.current);
    const { id: teamId } = await makeTeam(live.owner, { orgId: live.orgId, name: "Gone" });
    await live.owner.teams.deleteTeam({ orgId: live.orgId, teamId });
    const seen = async () => {
      const { users } = await ops.users.listUsers({ pageSize: 1000, showDeleted: true });
      const { orgs } = await ops.orgs.listOrgs({ pageSize: 1000, showDeleted: true });
      const { teams } = await live.owner.teams.listTeams({
        orgId: live.orgId,
        showDeleted: true,
      });
      const got = [
        await ops.users.batchGetUsers({ userIds: [userId] }),
        await ops.orgs.batchGetOrgs({ orgIds: [orgId] }),
        await live.owner.teams.batchGetTeams({ orgId: live.orgId, teamIds: [teamId] }),
      ].flatMap(({ missingIds }) => missingIds);
      const listed = [...users, ...orgs, ...teams].map(({ id }) => id);
      return [userId, orgId, teamId].map((id) => [listed.includes(id), !got.includes(id)]);
    };
    expect((await seen()).flat()).toEqual(Array(6).fill(true));
    // Not so long ago that the background work would have come for it.
    for (const [table, id] of [
      ["users", userId],
      ["orgs", orgId],
      ["teams", teamId],
    ] as const)
      await due(table, id, "1 second");
    expect((await seen()).flat()).toEqual(Array(6).fill(false));
    for (const call of [
      () => ops.users.getUser({ userId }),
      () => ops.users.undeleteUser({ userId }),
      () => ops.users.purgeUser({ userId }),
      () => ops.users.exportUser({ userId })[Symbol.asyncIterator]().next(),
      () => ops.orgs.getOrg({ orgId }),
      () => ops.orgs.undeleteOrg({ orgId }),
      () => ops.orgs.purgeOrg({ orgId }),
      () => live.owner.teams.getTeam({ orgId: live.orgId, teamId }),
      () => live.owner.teams.undeleteTeam({ orgId: live.orgId, teamId }),
    ])
      expect((await refusal(call())).code).toBe("NotFound");
  });
});

describe("The background purge", () => {
  test("removes what is due, says so in the log, and leaves the rest", async () => {
    const { ops, urls } = harness.current;
    const gone = await deletedTenant();
    const kept = await deletedTenant();
    const userId = await harness.current.user();
    await ops.users.deleteUser({ userId });
    const live = await settle(harness.current);
    const { orgId } = live;
    const { id: top } = await makeTeam(live.owner, { orgId, name: "Top" });
    const { id: inner } = await makeTeam(live.owner, { orgId, name: "In", parentTeamId: top });
    await live.owner.teams.addTeamMember({ orgId, teamId: inner, userId: live.memberId });
    await live.owner.teams.deleteTeam({ orgId, teamId: top, force: true });
    await due("orgs", gone.orgId);
    await due("users", userId);
    for (const id of [top, inner]) await due("teams", id);

    const [org, team, user] = await purgeable(urls.worker);
    expect(org).toMatchObject({ resourceType: "org", resourceId: gone.orgId, items: 1, rows: 7 });
    expect(team).toMatchObject({ resourceType: "team", resourceId: null, items: 2, rows: 1 });
    expect(user).toMatchObject({ resourceType: "user", resourceId: null, items: 1, rows: 0 });
    expect(await purge(urls.worker)).toEqual({ orgs: 1, users: 1, teams: 2 });
    expect(await purgeable(urls.worker)).toEqual([]);

    expect(await rowsOfOrg(gone.orgId)).toEqual({});
    expect(Object.keys(await rowsOfOrg(kept.orgId))).toHaveLength(10);
    expect((await ops.orgs.undeleteOrg({ orgId: kept.orgId })).org?.id).toBe(kept.orgId);
    const by = { subject: "roster", method: "purge", kind: "PURGED" };
    expect(await changesOf(gone.orgId)).toContainEqual({ ...by, org_id: gone.orgId });
    expect(await changesOf(userId)).toContainEqual({ ...by, org_id: null });
    expect(await changesOf(inner)).toContainEqual({ ...by, org_id: orgId });
    const { auditEntries } = await live.owner.audit.listAuditEntries({
      orgId,
      filter: 'method = "purge"',
    });
    expect(auditEntries[0]?.actor?.subject).toBe("roster");
  });

  test("goes on where it was broken off", async () => {
    const { orgId } = await deletedTenant();
    await due("orgs", orgId);
    const stopping = new AbortController();
    const broken = purge(harness.current.urls.worker, { signal: stopping.signal }, () =>
      stopping.abort(),
    );
    await expect(broken).rejects.toThrow();
    const left = Object.values(await rowsOfOrg(orgId)).reduce((sum, n) => sum + n, 0);
    expect(left).toBeGreaterThan(0);
    const steps = (await purged()).filter(({ resourceId }) => resourceId === orgId);
    expect(steps.at(-1)).toMatchObject({ resourceType: "org", items: 1 });
    expect(await rowsOfOrg(orgId)).toEqual({});
  });

  test("takes teams from the leaves up, however few rows go at a time", async () => {
    const { admin } = harness.current;
    const { orgId: goneId } = await deletedTenant();
    await due("orgs", goneId);
    const { orgId, owner } = await settle(harness.current);
    const ids: string[] = [];
    for (const name of ["Top", "In", "Further in", "Innermost"])
      ids.push((await makeTeam(owner, { orgId, name, parentTeamId: ids.at(-1) ?? "" })).id);
    await owner.teams.deleteTeam({ orgId, teamId: ids[0] ?? "", force: true });
    for (const id of ids) await due("teams", id);
    let rowCount: number | null = 1;
    while (rowCount)
      ({ rowCount } = await admin.query("select from roster.purge(1, $1)", [randomUUID()]));
    expect(await rowsOfOrg(goneId)).toEqual({});
    expect(await rowsOfOrg(orgId)).toMatchObject({ teams: 2 });
  });

  test("is done once when two processes are at it", async () => {
    const ids = await Promise.all(Array.from({ length: 60 }, () => harness.current.user()));
    await Promise.all(ids.map((userId) => harness.current.ops.users.deleteUser({ userId })));
    for (const id of ids) await due("users", id);
    const both = await Promise.all([purge(harness.current.urls.worker), purged()]);
    const [one, steps] = both;
    const two = steps.reduce((sum, { items }) => sum + items, 0);
    expect(one.users + two).toBe(60);
    const entries = await harness.current.admin.query(
      `select resource_id from roster.audit_changes
       where resource_type = 'user' and kind = 'PURGED' and resource_id = any ($1)`,
      [ids],
    );
    expect(entries.rowCount).toBe(60);
  });

  test("waits while another process is at it", async () => {
    const { admin, ops, urls } = harness.current;
    const userId = await harness.current.user();
    await ops.users.deleteUser({ userId });
    await due("users", userId);
    await admin.query("begin");
    const { rows } = await admin.query("select * from roster.purge(1, $1)", [randomUUID()]);
    expect(rows).toMatchObject([{ resource_type: "user", items: 1 }]);
    const waiting = purge(urls.worker);
    const still = new Promise((resolve) => setTimeout(resolve, 300, "waiting"));
    expect(await Promise.race([waiting, still])).toBe("waiting");
    await admin.query("rollback");
    expect(await waiting).toEqual({ orgs: 0, users: 1, teams: 0 });
  });

  test("leaves two minutes to an undelete that began in time", async () => {
    const { ops, urls } = harness.current;
    const userId = await harness.current.user();
    await ops.users.deleteUser({ userId });
    await due("users", userId, "110 seconds");
    expect(await purgeable(urls.worker)).toEqual([]);
    expect(await purge(urls.worker)).toEqual({ orgs: 0, users: 0, teams: 0 });
    await due("users", userId, "121 seconds");
    expect(await purge(urls.worker)).toEqual({ orgs: 0, users: 1, teams: 0 });
  });

  test("leaves alone who is held by another transaction, and takes them the next time", async () => {
    const { admin, ops, urls } = harness.current;
    const userId = await harness.current.user();
    await ops.users.deleteUser({ userId });
    await due("users", userId);
    await admin.query("begin");
    await admin.query("select from roster.users where id = $1 for update", [userId]);
    const entries = async () =>
      (await admin.query("select from roster.audit_entries where method = 'purge'")).rowCount;
    const before = await entries();
    expect(await purge(urls.worker)).toEqual({ orgs: 0, users: 0, teams: 0 });
    expect(await entries()).toBe(before);
    await admin.query("rollback");
    expect(await purge(urls.worker)).toEqual({ orgs: 0, users: 1, teams: 0 });
  });
});

describe("A delete of an org", () => {
  test("and its undelete write one row each, however many people it has", async () => {
    const { admin, ops } = harness.current;
    const { orgId } = await settle(harness.current);
    const changes = async (call: (headers: Record<string, string>) => Promise<unknown>) => {
      const id = randomUUID();
      await call({ "x-request-id": id });
      const { rows } = await admin.query(
        "select resource_type from roster.audit_changes where correlation_id = $1",
        [id],
      );
      return rows;
    };
    const one = [{ resource_type: "org" }];
    expect(
      await changes((headers) => ops.orgs.deleteOrg({ orgId, force: true }, { headers })),
    ).toEqual(one);
    expect(await changes((headers) => ops.orgs.undeleteOrg({ orgId }, { headers }))).toEqual(one);
  });
});
