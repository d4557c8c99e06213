import { setTimeout as delay } from "node:timers/promises";
import pg from "pg";
import { describe, expect, test } from "vitest";
import type { Change } from "../src/gen/roster/v1/change_pb.ts";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { slug, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { Fold, tablesOf, Watching } from "./watching.ts";

const harness = useHarness({ poolSize: 8 });

const writing = `select set_config('roster.entry_id', gen_random_uuid()::text, true),
  set_config('roster.subject', 'test', true), set_config('roster.method', 'test', true),
  set_config('roster.correlation_id', 'test', true), set_config('roster.held_permissions', '*', true)`;

/** A transaction that holds what it changed for a while, behind the back of the server. */
const longTransaction = async (
  texts: readonly string[],
  end: "commit" | "rollback" | "kill",
  holdMs: number,
  begun: () => Promise<void> | void = () => {},
): Promise<void> => {
  const client = new pg.Client({ connectionString: harness.current.urls.admin });
  client.on("error", () => undefined);
  await client.connect();
  await client.query(`begin; ${writing}; select pg_current_xact_id()`);
  await begun();
  for (const text of texts) {
    await delay(holdMs / texts.length);
    await client.query(text);
  }
  await delay(holdMs / 2);
  if (end === "kill") {
    const { rows } = await client.query("select pg_backend_pid() as pid");
    await harness.current.admin.query("select pg_terminate_backend($1)", [rows[0].pid]);
  } else await client.query(end);
  await client.end().catch(() => undefined);
};

const pick = <T>(list: readonly T[]): T => list[Math.floor(Math.random() * list.length)] as T;

describe("The order of the feed", () => {
  test("is that in which a row was changed, whichever transaction began first", async () => {
    const { current } = harness;
    const { orgId, owner } = await current.tenant();
    const { id: teamId } = await makeTeam(owner, { orgId, name: "Hot" });
    const fold = new Fold();
    const watcher = new Watching(owner, { orgId, snapshot: true }, (message) => fold.hear(message));
    await expect.poll(() => watcher.position).not.toBe("");
    const { position } = watcher;
    // It begins first and writes last; a third one, which began between the two, is still running then.
    const [began, written] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
    const older = longTransaction(
      ["second", "third", "fourth", "last"].map(
        (text) => `update roster.teams set description = '${text}' where id = '${teamId}'`,
      ),
      "commit",
      1_000,
      async () => {
        began.resolve();
        await written.promise;
      },
    );
    await began.promise;
    const third = longTransaction([`select 1`], "rollback", 800);
    await owner.teams.updateTeam({ team: { orgId, id: teamId, description: "first" } });
    written.resolve();
    await Promise.all([older, third]);
    await expect.poll(() => JSON.stringify(fold.shown())).toContain("last");
    const { changes } = await owner.changes.listChanges({ orgId, position });
    const told = ["first", "second", "third", "fourth", "last"];
    const of = ({ resource }: Change) => resource.case === "team" && resource.value.description;
    expect(changes.map(of)).toEqual(told);
    expect(watcher.changes.slice(-told.length).map(of)).toEqual(told);
    // Which transactions had begun, and are all over, would tell another order.
    const { rows } = await current.admin.query(
      `select after ->> 'description' as text from roster.audit_changes
        where org_id = $1 and kind = 'UPDATED' and resource_type = 'team' order by xid, id`,
      [orgId],
    );
    expect(rows.map(({ text }) => text)).toEqual([...told.slice(1), "first"]);
  });

  test("leaves nothing out and doubles nothing, and what each watcher holds is what the tables do", async () => {
    const { current } = harness;
    const { orgId, owner, memberId, adminId } = await current.tenant();
    const teams: readonly string[] = await Promise.all(
      ["A", "B", "C", "D"].map(async (name) => (await makeTeam(owner, { orgId, name })).id),
    );
    const people = await Promise.all(Array.from({ length: 4 }, () => current.user()));
    const userId = () => pick([...people, memberId, adminId]);
    const teamId = () => pick(teams);
    let writes = 0;
    const text = () => `text ${writes++}`;
    const works: readonly (() => Promise<unknown>)[] = [
      () => owner.teams.updateTeam({ team: { orgId, id: teamId(), description: text() } }),
      () => owner.teams.updateTeam({ team: { orgId, id: teams[0] ?? "", description: text() } }),
      () => owner.orgs.addOrgMember({ orgId, userId: userId() }),
      () => owner.orgs.removeOrgMember({ orgId, userId: pick(people) }),
      () =>
        owner.teams.addTeamMember({
          orgId,
          teamId: teamId(),
          userId: userId(),
          role: TeamRole.MEMBER,
        }),
      () => owner.teams.removeTeamMember({ orgId, teamId: teamId(), userId: userId() }),
      () => owner.teams.deleteTeam({ orgId, teamId: pick(teams.slice(2)) }),
      () => owner.teams.undeleteTeam({ orgId, teamId: pick(teams.slice(2)) }),
      () => current.ops.users.updateUser({ user: { id: userId(), name: text() } }),
      () => current.ops.users.updateProfile({ profile: { userId: userId(), bio: text() } }),
      () => current.ops.users.suspendUser({ userId: pick(people) }),
      () => current.ops.users.reactivateUser({ userId: pick(people) }),
      () => owner.orgs.createInvitation({ invitation: { orgId, email: `${slug()}@example.com` } }),
      () => owner.access.createRole({ role: { orgId, name: `r${writes++}` } }),
      () => owner.orgs.updateOrg({ org: { id: orgId, name: text() } }),
    ];
    const long = () =>
      longTransaction(
        [
          `update roster.teams set description = 'long ${writes++}' where org_id = '${orgId}' and id = '${teamId()}'`,
          `update roster.users set name = 'long ${writes++}' where id = '${userId()}'`,
          `update roster.teams set description = 'long ${writes++}' where org_id = '${orgId}' and id = '${teams[0]}'`,
        ],
        pick(["commit", "commit", "rollback", "kill"]),
        30 + Math.random() * 300,
      ).catch(() => undefined);

    // Watchers that begin with a snapshot, and break off and come back at random.
    let over = false;
    const folds = Array.from({ length: 4 }, () => new Fold());
    const watchers = folds.map(async (fold, index) => {
      while (!over) {
        fold.reconnect();
        const from = fold.position === "" ? { snapshot: true } : { position: fold.position };
        const watcher = new Watching(owner, { orgId, ...from }, (message) => fold.hear(message));
        if (fold.position === "") await expect.poll(() => fold.position).not.toBe("");
        for (let i = 0; i < 1 + Math.random() * 8 * (index + 1) && !over; i++) await delay(50);
        watcher.cancel();
        await watcher.ended;
      }
    });
    // What a cursor that asks for later ids alone would find.
    const naive = new Set<string>();
    let last = "00000000-0000-0000-0000-000000000000";
    const reader = new pg.Client({ connectionString: current.urls.admin });
    await reader.connect();
    const follow = async (): Promise<void> => {
      while (!over) {
        const { rows } = await reader.query(
          "select id from roster.audit_changes where org_id = $1 and id > $2 order by id",
          [orgId, last],
        );
        for (const { id } of rows) naive.add(id);
        last = rows.at(-1)?.id ?? last;
        await delay(20);
      }
    };
    const following = follow();
    await expect.poll(() => folds.every(({ position }) => position !== "")).toBe(true);
    const { position } = await owner.changes.listChanges({ orgId });

    const end = performance.now() + 3_500;
    let done = 0;
    const writers = [...Array.from({ length: 4 }, () => works), [long], [long]].map(
      async (some) => {
        while (performance.now() < end || done < 80)
          await pick(some)().then(
            () => done++,
            () => undefined,
          );
      },
    );
    await Promise.all(writers);
    await delay(200);
    over = true;
    await Promise.all([...watchers, following]);

    const rest = async (from: string): Promise<Fold> => {
      const fold = new Fold();
      for (let more = true, at = from; more; ) {
        const page = await owner.changes.listChanges({ orgId, position: at, pageSize: 7 });
        fold.hear({
          ...page,
          snapshot: false,
          heartbeat: false,
          $typeName: "roster.v1.WatchChangesResponse",
        });
        ({ more, position: at } = page);
      }
      return fold;
    };
    const listed = await rest(position);
    const tables = await tablesOf(owner, orgId);
    for (const fold of folds) {
      const watcher = new Watching(owner, { orgId, position: fold.position }, (message) =>
        fold.hear(message),
      );
      await expect.poll(() => watcher.messages.some(({ heartbeat }) => heartbeat)).toBe(true);
      watcher.cancel();
      expect(fold.shown()).toEqual(tables);
      // Each change was applied once: all that polling finds from the start of the writing on.
      const wanted = new Set(listed.applied);
      const applied = fold.applied.filter((line) => wanted.has(line)).sort();
      expect(applied).toEqual([...listed.applied].sort());
    }
    const { rows } = await current.admin.query(
      "select count(*)::int as all from roster.audit_changes where org_id = $1",
      [orgId],
    );
    await reader.end();
    expect(listed.applied.length).toBeGreaterThan(30);
    expect(naive.size).toBeLessThan(rows[0].all);
  }, 120_000);
});
