import { setTimeout as delay } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { ChangeService } from "../src/gen/roster/v1/change_service_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { flushesOfRead, slug, startHarness, tokenFor, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { openStream } from "./open-stream.ts";
import { Fold, tablesOf, Watching } from "./watching.ts";

const heartbeatMs = 300;
const harness = useHarness({ feed: { heartbeatMs, buffered: 200 } });

/** A watcher of an org from now on, who has begun. */
const watching = async (...given: ConstructorParameters<typeof Watching>): Promise<Watching> => {
  const watcher = new Watching(...given);
  await expect.poll(() => watcher.position).not.toBe("");
  return watcher;
};

const denied = { code: "PermissionDenied" };

describe("ChangeService.WatchChanges", () => {
  test("tells of changes as they are committed, each with a position to go on from", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const watcher = await watching(owner, { orgId });
    await makeTeam(owner, { orgId, name: "One" });
    await makeTeam(owner, { orgId, name: "Two" });
    await expect.poll(() => watcher.told).toEqual(["team CREATED", "team CREATED"]);
    const [first] = watcher.changes;
    expect(first?.position || watcher.position).not.toBe("");
    watcher.cancel();
    const again = new Watching(owner, { orgId, position: first?.position || watcher.position });
    await makeTeam(owner, { orgId, name: "Three" });
    await expect.poll(() => again.changes.at(-1)?.resource.value).toMatchObject({ name: "Three" });
    expect(again.changes.length).toBeLessThanOrEqual(2);
  });

  test("begins with all there is, which at its position is what lists show", async () => {
    const tenant = await harness.current.tenant();
    const { orgId, owner, memberId, adminId } = tenant;
    const parent = await makeTeam(owner, { orgId, name: "Parent", labels: { a: "b" } });
    const { id: teamId } = await makeTeam(owner, { orgId, name: "Child", parentTeamId: parent.id });
    await owner.teams.addTeamMember({ orgId, teamId, userId: memberId });
    await owner.access.createRole({ role: { orgId, name: "crew", permissions: ["org.get"] } });
    await owner.orgs.createInvitation({
      invitation: { orgId, email: "who@example.com", teamIds: [teamId] },
    });
    await owner.users.updateProfile({ profile: { userId: tenant.ownerId, orgId, bio: "Here." } });
    const { id: gone } = await makeTeam(owner, { orgId, name: "Gone" });
    await owner.teams.addTeamMember({ orgId, teamId: gone, userId: adminId });
    await owner.teams.deleteTeam({ orgId, teamId: gone });
    const fold = new Fold();
    await makeTeam(owner, { orgId, name: "Hidden", visibility: TeamVisibility.SECRET });
    // Narrowed to this, an owner sees no secret teams elsewhere.
    const narrow = await harness.current.as(tenant.ownerId, { scope: "changes.read" });
    const watcher = new Watching(narrow, { orgId, snapshot: true }, async (message) => {
      fold.hear(message);
      // While the snapshot is on its way.
      if (watcher.messages.length === 1)
        await owner.teams.updateTeam({ team: { orgId, id: teamId, name: "Renamed" } });
    });
    await expect.poll(() => watcher.position).not.toBe("");
    const first = watcher.messages.findIndex(({ position }) => position !== "");
    expect(watcher.messages.slice(0, first + 1).every(({ snapshot }) => snapshot)).toBe(true);
    expect(first).toBeGreaterThan(0);
    await expect.poll(() => JSON.stringify(fold.shown())).toContain("Renamed");
    expect(fold.shown()).toEqual(await tablesOf(owner, orgId));
    const profiles = watcher.changes.filter(({ resourceType }) => resourceType === "profile");
    expect(profiles.map(({ resource }) => resource.value)).toContainEqual(
      expect.objectContaining({ bio: "Here." }),
    );
    await owner.teams.undeleteTeam({ orgId, teamId: gone });
    await expect.poll(() => watcher.told.at(-1)).toBe("team UNDELETED");
    expect(fold.shown()).toEqual(await tablesOf(owner, orgId));
  });

  test("tells one org nothing of another, and operators of both", async () => {
    const { current } = harness;
    const [home, other] = [await current.tenant(), await current.tenant()];
    const mine = await watching(home.owner, { orgId: home.orgId });
    const all = await watching(current.ops, {});
    await makeTeam(other.owner, { orgId: other.orgId, name: "Theirs" });
    await current.ops.users.updateUser({ user: { id: other.ownerId, name: "Theirs" } });
    await makeTeam(home.owner, { orgId: home.orgId, name: "Mine" });
    await expect.poll(() => all.told).toEqual(["team CREATED", "user UPDATED", "team CREATED"]);
    await expect.poll(() => mine.told).toEqual(["team CREATED"]);
    expect(mine.changes[0]?.orgId).toBe(home.orgId);
  });

  test("filters, and its heartbeats bring the position on", async () => {
    const { orgId, owner, adminId } = await harness.current.tenant();
    const { id: teamId } = await makeTeam(owner, { orgId, name: "Mine" });
    const watcher = await watching(owner, { orgId, teamId, resourceTypes: ["team_member"] });
    await makeTeam(owner, { orgId, name: "Other" });
    await owner.teams.addTeamMember({ orgId, teamId, userId: adminId });
    await expect.poll(() => watcher.told).toEqual(["team_member CREATED"]);
    await makeTeam(owner, { orgId, name: "Another" });
    const before = watcher.messages.length;
    await expect.poll(() => watcher.messages.length).toBeGreaterThan(before + 1);
    const beats = watcher.messages.slice(before + 1);
    expect(
      beats.every(
        ({ heartbeat, position, changes }) => heartbeat && position && changes.length === 0,
      ),
    ).toBe(true);
    const behind = async () =>
      (await owner.changes.listChanges({ orgId, position: watcher.position })).changes;
    await expect.poll(behind).toEqual([]);
  });

  test("costs one poll, be it one who watches, fifty, or many in as many orgs", async () => {
    const { current } = harness;
    const { ops } = current;
    const { orgId, owner, ownerId } = await current.tenant();
    const orgs = await Promise.all(
      Array.from({ length: 30 }, () =>
        ops.orgs.createOrg({ org: { name: "Org", slug: slug() }, ownerUserId: ownerId }),
      ),
    );
    const second = async (): Promise<number> => {
      // Heartbeats ask whether the caller still may.
      const before = current.server.roundTrips();
      await delay(heartbeatMs / 2);
      return current.server.roundTrips() - before;
    };
    await expect.poll(() => current.server.watchers()).toBe(0);
    expect(await second()).toBeLessThanOrEqual(flushesOfRead);
    const crowd = Array.from({ length: 50 }, () => new Watching(owner, { orgId }));
    for (const { org } of orgs) crowd.push(new Watching(ops, { orgId: org?.id ?? "" }));
    await expect.poll(() => crowd.every(({ position }) => position !== "")).toBe(true);
    const { roundTrips } = current.server;
    const [before, beats] = [roundTrips(), crowd.map(({ messages }) => messages.length)];
    const start = performance.now();
    await delay(1_000);
    const polls = (performance.now() - start) / 50 + 2;
    const judged = crowd.reduce(
      (sum, { messages }, i) => sum + messages.length - (beats[i] ?? 0),
      0,
    );
    expect(roundTrips() - before).toBeLessThanOrEqual(
      (polls + judged + crowd.length) * flushesOfRead,
    );
    await makeTeam(owner, { orgId, name: "All" });
    const who = () => crowd.filter(({ told }) => told.join() === "team CREATED").length;
    await expect.poll(who).toBe(50);
    expect(crowd.slice(50).flatMap(({ told }) => told)).toEqual([]);
    for (const watcher of crowd) watcher.cancel();
    await expect.poll(() => current.server.watchers()).toBe(0);
    await delay(100);
    expect(await second()).toBe(0);
  });
});

describe("A watch ends", () => {
  test("PERMISSION_DENIED when its caller is removed, before what comes after", async () => {
    const { orgId, owner, admin, adminId } = await harness.current.tenant();
    const watcher = await watching(admin, { orgId });
    await owner.orgs.removeOrgMember({ orgId, userId: adminId });
    await makeTeam(owner, { orgId, name: "Secret" });
    expect(await watcher.ended).toMatchObject({ ...denied, reason: "ORG_NOT_ALLOWED" });
    expect(watcher.told).toEqual([]);
    await expect.poll(() => harness.current.server.watchers()).toBe(0);
  });

  test("when its caller loses the right, or the org is suspended or deleted", async () => {
    const { current } = harness;
    const { orgId, owner, admin, adminId } = await current.tenant();
    const [first, second] = [await watching(admin, { orgId }), await watching(owner, { orgId })];
    await owner.orgs.updateOrgMember({ member: { orgId, userId: adminId, role: "member" } });
    expect(await first.ended).toMatchObject({ ...denied, reason: "PERMISSION_MISSING" });
    await current.ops.orgs.suspendOrg({ orgId });
    expect(await second.ended).toMatchObject({ reason: "ORG_SUSPENDED" });
    await current.ops.orgs.reactivateOrg({ orgId });
    const third = await watching(owner, { orgId });
    await owner.orgs.deleteOrg({ orgId, force: true });
    expect(await third.ended).toMatchObject({ ...denied, reason: "ORG_NOT_ALLOWED" });
  });

  test("at the next heartbeat when an expiry of which no change tells has come", async () => {
    const { orgId, owner, admin, adminId } = await harness.current.tenant();
    const expireTime = { seconds: BigInt(Math.floor(Date.now() / 1000) + 2), nanos: 0 };
    await owner.orgs.updateOrgMember({
      member: { orgId, userId: adminId, role: "admin", expireTime },
    });
    const watcher = await watching(admin, { orgId });
    expect(await watcher.ended).toMatchObject(denied);
  });

  test("UNAUTHENTICATED when the credential expires, DEADLINE_EXCEEDED at the caller's deadline", async () => {
    const { current } = harness;
    const { orgId, ownerId } = await current.tenant();
    const { watchChanges } = ChangeService.method;
    const expires = Math.floor(Date.now() / 1000) - 55;
    const open = async (options: object) =>
      openStream(
        current.server.port,
        watchChanges,
        { orgId },
        { token: await tokenFor(ownerId), ...options },
      ).rest();
    const [expired, late] = await Promise.all([
      open({ token: await tokenFor(ownerId, { expires }) }),
      open({ timeoutMs: 3_000 }),
    ]);
    expect(expired).toMatchObject({ code: "UNAUTHENTICATED", reason: "CREDENTIAL_EXPIRED" });
    expect(late.code).toBe("DEADLINE_EXCEEDED");
    expect(late.received).toBeGreaterThan(1);
    await expect.poll(() => current.server.watchers()).toBe(0);
  });

  test("RESOURCE_EXHAUSTED with its last position when its reader is too slow", async () => {
    const { current } = harness;
    const { orgId, owner } = await current.tenant();
    let go = (): void => {};
    const gate = new Promise<void>((resolve) => {
      go = resolve;
    });
    const slow = await watching(owner, { orgId }, () => gate);
    const [writes, rows] = [40, 100];
    for (let i = 0; i < writes; i++) {
      await current.admin.query(
        `insert into roster.audit_changes (org_id, entry_id, subject, method, correlation_id, resource_type,
            resource_id, kind, after, changed_fields)
          select $1, gen_random_uuid(), 'test', 'test', 'test', 'role', n, 'UPDATED',
            jsonb_build_object('name', n::text, 'title', repeat('x', 2048), 'permissions', '[]'::jsonb), '{}'
          from generate_series(1, $2::int) n`,
        [orgId, rows],
      );
      await delay(60);
    }
    go();
    const { code, reason, metadata } = await slow.ended;
    expect({ code, reason }).toEqual({ code: "ResourceExhausted", reason: "WATCH_TOO_SLOW" });
    const again = new Watching(owner, { orgId, position: metadata.position ?? "" });
    const all = () => slow.told.length + again.told.length;
    await expect.poll(all, { timeout: 15_000 }).toBeGreaterThanOrEqual(writes * rows);
    expect(all()).toBe(writes * rows);
    expect(slow.told.length).toBeLessThan(writes * rows);
  });

  test("UNAVAILABLE when the database goes, or the server stops; nobody is left", async () => {
    const current = await startHarness({ feed: { heartbeatMs } });
    const { orgId, owner } = await current.tenant();
    const first = await watching(owner, { orgId });
    const { rows } = await current.admin.query("select current_database() as name");
    const admit = (most: number) =>
      current.admin.query(`alter database ${rows[0].name} connection limit ${most}`);
    await admit(0);
    await current.admin.query(
      `select pg_terminate_backend(pid) from pg_stat_activity
        where datname = current_database() and usename in ('roster_app', 'roster_directory')`,
    );
    const away = { code: "Unavailable", reason: "DATABASE_UNAVAILABLE" };
    expect(await first.ended).toMatchObject(away);
    await admit(-1);
    await makeTeam(owner, { orgId, name: "Meanwhile" });
    const second = await watching(owner, { orgId, position: first.position });
    await expect.poll(() => second.told).toEqual(["team CREATED"]);
    const before = performance.now();
    const stopped = current.stop();
    expect(await second.ended).toMatchObject({ code: "Unavailable", reason: "STREAM_ENDED" });
    expect(performance.now() - before).toBeLessThan(5_000);
    await stopped;
    expect(current.server.watchers()).toBe(0);
  });

  test("is refused a snapshot of all orgs, or with a position", async () => {
    const { ops } = harness.current;
    const everywhere = new Watching(ops, { snapshot: true });
    expect(await everywhere.ended).toMatchObject({ reason: "ORG_REQUIRED" });
    const { orgId, owner } = await harness.current.tenant();
    const { position } = await owner.changes.listChanges({ orgId });
    const both = new Watching(owner, { orgId, position, snapshot: true });
    expect(await both.ended).toMatchObject({ reason: "FIELD_INVALID", fields: ["snapshot"] });
  });
});
