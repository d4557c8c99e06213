import { randomUUID } from "node:crypto";
import pg from "pg";
import { describe, expect, test } from "vitest";
import type { AuditEntry } from "../src/gen/roster/v1/audit_pb.ts";
import { AuditService } from "../src/gen/roster/v1/audit_service_pb.ts";
import { log, methodsOf, newest } from "./audit-log.ts";
import { byHand } from "./console.ts";
import { type Callers, flushesOfRead, refusal, useHarness } from "./harness.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";
import { openStream } from "./open-stream.ts";

const harness = useHarness();

interface Asked {
  readonly orgId?: string;
  readonly filter?: string;
  readonly position?: string;
}

/** All that one call sends: its entries, the last position, and how many messages there were. */
const exported = async ({ audit }: Callers, asked: Asked) => {
  const entries: AuditEntry[] = [];
  let position = "";
  let messages = 0;
  for await (const message of audit.exportAuditEntries(asked)) {
    entries.push(...message.auditEntries);
    position = message.position;
    messages++;
  }
  return { entries, position, messages };
};
/** Reads one message and breaks off. */
const readOne = async ({ token }: Callers, asked: Asked, seen: AuditEntry[]): Promise<string> => {
  const { exportAuditEntries } = AuditService.method;
  const stream = openStream(harness.current.server.port, exportAuditEntries, asked, { token });
  const { auditEntries, position } = await stream.read();
  stream.cancel();
  seen.push(...auditEntries);
  return position;
};
const idsOf = (entries: readonly AuditEntry[]) => entries.map(({ id }) => id);

/** Entries by the second from a time on, each with a change. */
const load = (orgId: string, count: number, from: string, weight = 10): Promise<unknown> =>
  harness.current.admin.query(
    `with made as (
       insert into roster.audit_entries (id, org_id, subject, kind, method, correlation_id, create_time)
       select gen_random_uuid(), $1::uuid, 'service:load', 'SERVICE', 'load', 'load',
         $3::timestamptz + make_interval(secs => n)
       from generate_series(1, $2::int) n returning id, create_time)
     insert into roster.audit_changes (org_id, entry_id, subject, method, correlation_id, resource_type,
       resource_id, kind, after, changed_fields, create_time)
     select $1::uuid, id, 'service:load', 'load', 'load', 'team', id::text, 'CREATED',
       jsonb_build_object('name', repeat('x', $4::int)), '{}', create_time from made`,
    [orgId, count, from, weight],
  );

describe("AuditService.ExportAuditEntries", () => {
  test("sends a log with its changes, the oldest entry first, and goes on where a message ended", async () => {
    const { orgId, owner, team } = await tenantWithTeam(harness.current);
    await owner.teams.updateTeam({ team: { orgId, id: team.id, name: "Bakers" } });
    const first = await exported(owner, { orgId });
    expect(first.entries).toEqual((await log(owner, orgId)).reverse());
    expect(methodsOf(first.entries).slice(-2)).toEqual(["CreateTeam", "UpdateTeam"]);
    expect(await exported(owner, { orgId, position: first.position })).toMatchObject({
      entries: [],
      messages: 1,
    });
    await makeTeam(owner, { orgId, name: "Late" });
    const second = await exported(owner, { orgId, position: first.position });
    expect(methodsOf(second.entries)).toEqual(["CreateTeam"]);
    expect((await exported(owner, { orgId, position: second.position })).entries).toEqual([]);
  });

  test("sends each entry once over many pages, also when it is broken off and goes on", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await load(orgId, 2_300, "2026-09-30T23:45:00Z");
    const flushes = harness.current.server.roundTrips();
    const whole = await exported(owner, { orgId });
    expect(harness.current.server.roundTrips() - flushes).toBe(4 * flushesOfRead);
    expect(whole.entries).toHaveLength(2_304);
    expect(new Set(idsOf(whole.entries)).size).toBe(2_304);
    const seen: AuditEntry[] = [];
    let position = "";
    for (let turn = 0; turn < 10; turn++)
      position = await readOne(owner, { orgId, position }, seen);
    expect(idsOf(seen)).toEqual(idsOf(whole.entries));
  });

  test("misses no call that took so long that younger ones were sent before it", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const slow = new pg.Client({ connectionString: harness.current.urls.admin });
    await slow.connect();
    await slow.query("begin");
    const id = randomUUID();
    const insert = `insert into roster.audit_entries (id, org_id, subject, kind, method, correlation_id)
      values ($1, $2, 'service:slow', 'SERVICE', 'slow', 'slow')`;
    await slow.query(insert, [id, orgId]);
    await makeTeam(owner, { orgId, name: "Quick" });
    const before = await exported(owner, { orgId });
    expect(idsOf(before.entries)).not.toContain(id);
    const waiting = await exported(owner, { orgId, position: before.position });
    expect(waiting.entries).toEqual([]);
    await slow.query("commit");
    await slow.end();
    await makeTeam(owner, { orgId, name: "Next" });
    const after = await exported(owner, { orgId, position: waiting.position });
    expect(methodsOf(after.entries).length).toBe(2);
    expect(after.entries[0]?.id).toBe(id);
    expect((await exported(owner, { orgId, position: after.position })).entries).toEqual([]);
    // From the beginning it comes in its place.
    const all = idsOf((await exported(owner, { orgId })).entries);
    expect(all).toEqual(idsOf((await log(owner, orgId)).reverse()));
  });

  test("sends every change of an entry of thousands, in pieces that belong together", async () => {
    const { orgId, owner, team } = await tenantWithTeam(harness.current);
    await byHand(
      harness.current.admin,
      `insert into roster.teams (org_id, id, parent_team_id, name)
        select $1, gen_random_uuid(), $2, 'Team ' || n from generate_series(1, 1200) n`,
      [orgId, team.id],
    );
    await owner.teams.deleteTeam({ orgId, teamId: team.id, force: true });
    await makeTeam(owner, { orgId, name: "After" });
    const { entries } = await exported(owner, { orgId });
    const { id, changeCount } = entries.find(({ method }) => method.endsWith("DeleteTeam")) ?? {};
    expect(changeCount).toBe(1_201);
    const pieces = entries.filter((entry) => entry.id === id);
    const changes = pieces.flatMap((piece) => piece.changes);
    expect(new Set(changes.map(({ resourceId }) => resourceId)).size).toBe(1_201);
    expect(changes).toHaveLength(1_201);
    expect(methodsOf(entries).at(-1)).toBe("CreateTeam");
  });

  test("keeps messages small when rows are heavy, and a position with each", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await load(orgId, 60, "2026-10-01T00:00:00Z", 100_000);
    const whole = await exported(owner, { orgId });
    expect(whole.entries).toHaveLength(64);
    expect(whole.messages).toBeGreaterThan(5);
    const seen: AuditEntry[] = [];
    let position = "";
    for (let turn = 0; turn < whole.messages; turn++)
      position = await readOne(owner, { orgId, position }, seen);
    expect(idsOf(seen)).toEqual(idsOf(whole.entries));
  });

  test("sends what the filter lets through, such as a range of time", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await load(orgId, 1_300, "2026-10-05T00:00:00Z");
    const filter =
      "create_time >= 2026-10-05T00:10:00Z AND create_time < 2026-10-05T00:20:00Z AND changes.resource_type = team";
    const { entries } = await exported(owner, { orgId, filter });
    expect(entries).toHaveLength(600);
    const refused = await refusal(exported(owner, { orgId, filter: "nonsense = 1" }));
    expect(refused).toMatchObject({ code: "InvalidArgument", reason: "FILTER_INVALID" });
  });

  test("is asked for no further page while its reader does not read", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await load(orgId, 6_000, "2026-10-07T00:00:00Z", 8_192);
    const stream = openStream(
      harness.current.server.port,
      AuditService.method.exportAuditEntries,
      { orgId },
      { token: owner.token },
    );
    const before = harness.current.server.roundTrips();
    await stream.read();
    await new Promise((resolve) => setTimeout(resolve, 500));
    expect(harness.current.server.roundTrips() - before).toBeLessThan(12 * flushesOfRead);
    expect(await stream.rest()).toMatchObject({ code: "OK" });
    expect(harness.current.server.roundTrips() - before).toBeGreaterThanOrEqual(40 * flushesOfRead);
  });

  test("of an org has nothing of others, but of work across orgs what concerns it", async () => {
    const one = await tenantWithTeam(harness.current);
    const other = await tenantWithTeam(harness.current);
    const { ops } = harness.current;
    await ops.users.updateUser({ user: { id: one.memberId, name: "New" } });
    const { entries } = await exported(one.owner, { orgId: one.orgId });
    expect(methodsOf(entries).at(-1)).toBe("UpdateUser");
    expect(entries.at(-1)?.changes).toMatchObject([{ orgId: one.orgId }]);
    expect(JSON.stringify(entries, bigints)).not.toContain(other.orgId);
    const theirs = await exported(other.owner, { orgId: other.orgId });
    expect(methodsOf(theirs.entries)).not.toContain("UpdateUser");
    const everywhere = await exported(ops, { filter: `actor.subject:* AND create_time:*` });
    for (const { orgId } of [one, other])
      expect(everywhere.entries.map((entry) => entry.orgId)).toContain(orgId);
    const refused = await refusal(exported(one.owner, { orgId: other.orgId }));
    expect(refused).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
  });

  test("INVALID_ARGUMENT for a position that was made up, touched, or is another org's", async () => {
    const one = await tenantWithTeam(harness.current);
    const other = await tenantWithTeam(harness.current);
    const { position } = await exported(other.owner, { orgId: other.orgId });
    for (const bad of [position, `${position.slice(0, -2)}AA`, "garbage", "x".repeat(200)]) {
      const refused = await refusal(exported(one.owner, { orgId: one.orgId, position: bad }));
      expect(refused).toMatchObject({
        code: "InvalidArgument",
        reason: "EXPORT_POSITION_INVALID",
        fields: ["position"],
      });
    }
  });
});

const bigints = (_: string, value: unknown) => (typeof value === "bigint" ? `${value}` : value);

describe("AuditService.ListAuditChanges", () => {
  const walk = async (
    { audit }: Callers,
    orgId: string,
    auditEntryId: string,
    pageSize: number,
  ) => {
    const ids: string[] = [];
    let pageToken = "";
    do {
      const asked = { orgId, auditEntryId, pageSize, pageToken };
      const page = await audit.listAuditChanges(asked);
      expect(page.auditChanges.length).toBeLessThanOrEqual(pageSize);
      ids.push(...page.auditChanges.map(({ resourceId }) => resourceId));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    return ids;
  };

  test("lists every change of an entry over pages, each once", async () => {
    const { orgId, owner, team } = await tenantWithTeam(harness.current);
    await byHand(
      harness.current.admin,
      `insert into roster.teams (org_id, id, parent_team_id, name)
        select $1, gen_random_uuid(), $2, 'Team ' || n from generate_series(1, 249) n`,
      [orgId, team.id],
    );
    await owner.teams.deleteTeam({ orgId, teamId: team.id, force: true });
    const { id, changes } = await newest(owner, orgId);
    const ids = await walk(owner, orgId, id, 60);
    expect(ids).toHaveLength(250);
    expect(new Set(ids).size).toBe(250);
    for (const { resourceId } of changes) expect(ids).toContain(resourceId);
    expect(await walk(harness.current.ops, "", id, 1_000)).toHaveLength(250);
  });

  test("is empty for an entry that changed nothing", async () => {
    const { orgId, owner, member } = await harness.current.tenant();
    await refusal(makeTeam(member, { orgId, name: "Crew" }));
    const { id } = await newest(owner, orgId);
    expect(await walk(owner, orgId, id, 10)).toEqual([]);
  });

  test("shows an org its own changes of work across orgs; NOT_FOUND where there are none", async () => {
    const one = await harness.current.tenant();
    const other = await harness.current.tenant();
    const foreign = await harness.current.tenant();
    const { ops } = harness.current;
    await ops.orgs.addOrgMember({ orgId: other.orgId, userId: one.memberId });
    await ops.users.updateUser({ user: { id: one.memberId, name: "New" } });
    const { id } = await newest(ops);
    for (const { owner, orgId } of [one, other]) {
      const { auditChanges } = await owner.audit.listAuditChanges({ orgId, auditEntryId: id });
      expect(auditChanges).toMatchObject([{ orgId, resourceId: one.memberId }]);
    }
    // The platform sees the change itself, without the copies that the orgs got.
    const whole = await ops.audit.listAuditChanges({ auditEntryId: id });
    expect(whole.auditChanges).toMatchObject([{ orgId: "", resourceId: one.memberId }]);
    const ask = { orgId: foreign.orgId, auditEntryId: id };
    for (const { audit } of [foreign.owner, ops]) {
      const refused = await refusal(audit.listAuditChanges(ask));
      expect(refused).toMatchObject({ code: "NotFound", reason: "AUDIT_ENTRY_NOT_FOUND" });
    }
    const { id: own } = await newest(one.owner, one.orgId);
    const theirs = { orgId: foreign.orgId, auditEntryId: own };
    expect((await refusal(foreign.owner.audit.listAuditChanges(theirs))).code).toBe("NotFound");
  });
});
