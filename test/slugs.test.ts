import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { migrate, readMigrations } from "../src/database/migrate.ts";
import { bootstrapped, asAdmin as onDatabase } from "./databases.ts";
import { refusal, slug, useHarness } from "./harness.ts";
import { asAdmin, settle } from "./sessions.ts";

const harness = useHarness();

describe("OrgService and its slugs", () => {
  const by = (value: string) =>
    harness.current.ops.orgs.lookupOrg({ key: { case: "slug", value } });

  test("a former slug leads on, is nobody else's for 90 days, and then whose it is who takes it", async () => {
    const { ops } = harness.current;
    const { orgId, owner, ownerId, slug: former } = await settle(harness.current);
    const current = slug();
    await owner.orgs.updateOrg({ org: { id: orgId, slug: current } });
    expect(await by(former)).toMatchObject({ org: { id: orgId }, renamed: true });
    const take = () =>
      ops.orgs.createOrg({ org: { name: "Taker", slug: former }, ownerUserId: ownerId });
    expect(await refusal(take())).toMatchObject({
      code: "AlreadyExists",
      reason: "SLUG_TAKEN",
      metadata: { field: "org.slug" },
    });
    const wait = (days: number) =>
      asAdmin(
        harness.current,
        `update roster.org_slugs set free_time = free_time - interval '${days} days' where slug_key = $1`,
        [former],
      );
    await wait(89);
    expect((await refusal(take())).reason).toBe("SLUG_TAKEN");
    await wait(1);
    expect(await by(former)).toMatchObject({ org: { id: orgId }, renamed: true });
    const { org } = await take();
    expect(await by(former)).toMatchObject({ org: { id: org?.id }, renamed: false });
    expect(await by(current)).toMatchObject({ org: { id: orgId }, renamed: false });
  });

  test("an org may always go back to its own former slug", async () => {
    const { orgId, owner, slug: former } = await settle(harness.current);
    const current = slug();
    await owner.orgs.updateOrg({ org: { id: orgId, slug: current } });
    await owner.orgs.updateOrg({ org: { id: orgId, slug: former } });
    expect(await by(former)).toMatchObject({ org: { id: orgId }, renamed: false });
    expect(await by(current)).toMatchObject({ org: { id: orgId }, renamed: true });
  });

  test("one of two orgs that want a free slug at the same instant gets it", async () => {
    const { ops } = harness.current;
    const ownerUserId = await harness.current.user();
    for (let round = 0; round < 10; round++) {
      const wanted = slug();
      const { org } = await ops.orgs.createOrg({
        org: { name: "First", slug: wanted },
        ownerUserId,
      });
      await ops.orgs.deleteOrg({ orgId: org?.id ?? "" });
      const takers = await Promise.allSettled(
        [1, 2, 3].map(() =>
          ops.orgs.createOrg({ org: { name: "Next", slug: wanted }, ownerUserId }),
        ),
      );
      expect(takers.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
      for (const taker of takers)
        if (taker.status === "rejected")
          expect((await refusal(Promise.reject(taker.reason))).reason).toBe("SLUG_TAKEN");
    }
  });
});

describe("A database from before", () => {
  test("keeps its slugs, and knows of each change in its log whose data it holds", async () => {
    const urls = await bootstrapped();
    const migrations = readMigrations();
    const former = migrations.filter(({ version }) => version < 12);
    await migrate(urls.migrator, former);
    await onDatabase(
      urls.admin,
      `begin; set local session_replication_role = replica;
      insert into roster.orgs (id, name, slug, delete_time, purge_time, freed_slugs) values
        (md5('live')::uuid, 'Live', 'now', null, null, '{}'),
        (md5('gone')::uuid, 'Gone', 'gone', now(), now() + interval '1 day', '{gone,before,now}');
      insert into roster.org_slugs (slug_key, org_id) values
        ('now', md5('live')::uuid), ('then', md5('live')::uuid);
      insert into roster.audit_changes (entry_id, subject, method, correlation_id, resource_type, resource_id, kind,
          before, after, changed_fields)
        select md5('e')::uuid, 's', 'm', 'c', type, 'r', 'UPDATED', before, after, '{}'
        from (values
          ('user', '{"id": "${randomUUID()}"}'::jsonb, null::jsonb),
          ('profile', null, jsonb_build_object('user_id', md5('p')::uuid)),
          ('team', '{"id": "x"}', null)) v (type, before, after);
      commit`,
    );
    await migrate(urls.migrator, migrations);
    const slugs = `
      select s.slug_key, o.name, s.free_time <= now() as free, s.free_time > now() as held
      from roster.org_slugs s join roster.orgs o on o.id = s.org_id order by 1`;
    expect(await onDatabase(urls.admin, slugs)).toEqual([
      { slug_key: "before", name: "Gone", free: true, held: false },
      { slug_key: "gone", name: "Gone", free: true, held: false },
      { slug_key: "now", name: "Live", free: null, held: null },
      { slug_key: "then", name: "Live", free: false, held: true },
    ]);
    const persons = `
      select resource_type, person is not null as known from roster.audit_changes order by 1`;
    expect(await onDatabase(urls.admin, persons)).toEqual([
      { resource_type: "profile", known: true },
      { resource_type: "team", known: false },
      { resource_type: "user", known: true },
    ]);
  });
});
