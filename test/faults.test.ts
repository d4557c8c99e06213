import { randomUUID } from "node:crypto";
import pg from "pg";
import { afterAll, describe, expect, inject, test, vi } from "vitest";
import { checkDatabase } from "../src/database/check.ts";
import { RetryInfoSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { type Refusal, refusal, slug, type Tenant, useHarness } from "./harness.ts";

const harness = useHarness({ poolSize: 1, pipeline: true });

/** What is waited for comes soon, unless the machine is busy. */
const patience = { timeout: 15_000 };

/** Runs while nobody can read teams. */
const whileTeamsAreLocked = async <T>(work: () => Promise<T>): Promise<T> => {
  const client = new pg.Client({ connectionString: harness.current.urls.admin });
  await client.connect();
  await client.query("begin");
  await client.query("lock table roster.teams in access exclusive mode");
  try {
    return await work();
  } finally {
    await client.end();
  }
};

/** Backends that the server's pools hold. */
const backends = async (condition = "true"): Promise<number[]> => {
  const { rows } = await harness.current.admin.query<{ pid: number }>(`
    select pid from pg_stat_activity
    where datname = current_database() and usename in ('roster_app', 'roster_directory')
      and application_name <> 'roster readiness' and ${condition}
    order by pid`);
  return rows.map(({ pid }) => pid);
};

/** Waits until a call waits for the lock, and names its backend. */
const blocked = (): Promise<number> =>
  vi.waitFor(async () => {
    const [pid] = await backends("wait_event_type = 'Lock'");
    if (pid === undefined) throw new Error("nothing waits for a lock");
    return pid;
  }, patience);

const timed = async <T>(call: Promise<T>): Promise<readonly [T, number]> => {
  const start = performance.now();
  return [await call, performance.now() - start];
};

describe("round trips to the database", () => {
  test("a get takes one, a list one, a mutation two", async () => {
    const { orgId, ownerId, memberId: userId, owner } = await harness.current.tenant();
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
    const teamId = team?.id ?? "";
    await owner.teams.addTeamMember({ orgId, teamId, userId });
    const { ops, server } = harness.current;
    const view = View.FULL;
    const org = { name: "Org", slug: slug() };
    const calls: Record<string, () => Promise<unknown>> = {
      "1 GetCaller": () => owner.users.getCaller({ orgId }),
      "1 GetUser": () => owner.users.getUser({ userId, orgId, view }),
      "1 GetUser outside an org": () => owner.users.getUser({ userId: ownerId, view }),
      "1 GetProfile": () => owner.users.getProfile({ userId: ownerId }),
      "1 ListUsers": () => owner.users.listUsers({ orgId, view }),
      "1 ListUsers outside an org": () => ops.users.listUsers({ view }),
      "1 ListUserOrgs": () => owner.users.listUserOrgs({ userId: ownerId }),
      "1 GetOrg": () => owner.orgs.getOrg({ orgId }),
      "1 GetOrg, refused": () => refusal(owner.orgs.getOrg({ orgId: randomUUID() })),
      "1 ListOrgs": () => ops.orgs.listOrgs({}),
      "1 GetOrgMember": () => owner.orgs.getOrgMember({ orgId, userId }),
      "1 ListOrgMembers": () => owner.orgs.listOrgMembers({ orgId, view }),
      "1 GetTeam": () => owner.teams.getTeam({ orgId, teamId }),
      "1 ListTeams": () => owner.teams.listTeams({ orgId }),
      "1 GetTeamMember": () => owner.teams.getTeamMember({ orgId, teamId, userId }),
      "1 ListTeamMembers": () => owner.teams.listTeamMembers({ orgId, teamId, view }),
      "1 ListAuditEntries": () => owner.audit.listAuditEntries({ orgId }),
      "2 CreateOrg": () => ops.orgs.createOrg({ org, ownerUserId: ownerId }),
      "2 CreateTeam": () => owner.teams.createTeam({ team: { orgId, name: "Second" } }),
      "2 UpdateTeam": () => owner.teams.updateTeam({ team: { orgId, id: teamId, name: "Third" } }),
    };
    const costs: string[] = [];
    for (const [name, call] of Object.entries(calls)) {
      const before = server.roundTrips();
      await call();
      costs.push(name.replace(/^\d/, String(server.roundTrips() - before)));
    }
    expect(costs).toEqual(Object.keys(calls));
  });
});

describe("a connection", () => {
  test("outlives every refusal", async () => {
    const { orgId, ownerId, memberId, owner, member, outsider } = await harness.current.tenant();
    await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
    await harness.current.ops.users.listUsers({});
    const before = await backends();
    const refusals = [
      refusal(owner.teams.getTeam({ orgId, teamId: randomUUID() })),
      refusal(owner.orgs.addOrgMember({ orgId, userId: randomUUID() })),
      refusal(outsider.orgs.getOrg({ orgId })),
      refusal(member.orgs.updateOrg({ org: { id: orgId, name: "Mine" } })),
      refusal(owner.teams.createTeam({ team: { orgId, name: "CREW" } })),
      refusal(owner.orgs.addOrgMember({ orgId, userId: memberId })),
      refusal(owner.orgs.removeOrgMember({ orgId, userId: ownerId })),
      refusal(member.users.getUser({ userId: ownerId })),
    ];
    expect((await Promise.all(refusals)).map(({ code }) => code)).toEqual([
      "NotFound",
      "NotFound",
      "PermissionDenied",
      "PermissionDenied",
      "AlreadyExists",
      "AlreadyExists",
      "FailedPrecondition",
      "PermissionDenied",
    ]);
    expect(await backends()).toEqual(expect.arrayContaining(before));
  });

  test("UNAVAILABLE when it is cut in the middle of a mutation, and the next call gets another", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const create = (name: string) => owner.teams.createTeam({ team: { orgId, name } });
    const cut = await whileTeamsAreLocked(async () => {
      const refused = refusal(create("Cut"));
      await harness.current.admin.query("select pg_terminate_backend($1)", [await blocked()]);
      return refused;
    });
    expect(cut).toMatchObject({ code: "Unavailable", reason: "DATABASE_UNAVAILABLE" });
    expect(cut.error.findDetails(RetryInfoSchema)).toHaveLength(1);
    await create("Next");
    const { teams } = await owner.teams.listTeams({ orgId });
    expect(teams.map(({ name }) => name)).toEqual(["Next"]);
  });

  test("is replaced when it is cut while nobody uses it", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await owner.orgs.getOrg({ orgId });
    await harness.current.admin.query("select pg_terminate_backend(unnest($1::int[]))", [
      await backends(),
    ]);
    await vi.waitFor(async () => expect(await backends()).toEqual([]), patience);
    await vi.waitFor(() => owner.orgs.getOrg({ orgId }), patience);
  });
});

describe("a mutation that loses a race", () => {
  const losing = async (times: number): Promise<Tenant> => {
    const { admin } = harness.current;
    // A sequence counts also what is rolled back.
    await admin.query(`
      drop sequence if exists races;
      create sequence races;
      grant usage on sequence races to roster_app;
      create or replace function race() returns trigger language plpgsql as $$
        begin
          if new.name = 'Racer' and nextval('public.races') <= ${times} then
            raise exception 'lost' using errcode = 'serialization_failure';
          end if;
          return new;
        end $$;
      create or replace trigger teams_race before insert on roster.teams for each row execute function race()`);
    return harness.current.tenant();
  };
  const runs = async (): Promise<number> => {
    const { rows } = await harness.current.admin.query("select last_value::int as n from races");
    return rows[0].n;
  };
  const entries = async (orgId: string): Promise<number> => {
    const { rows } = await harness.current.admin.query(
      "select count(*)::int as n from roster.audit_entries where org_id = $1 and method ~ 'CreateTeam'",
      [orgId],
    );
    return rows[0].n;
  };
  afterAll(() => harness.current.admin.query("drop function if exists race cascade"));

  test("runs again, and leaves one entry", async () => {
    const { orgId, owner } = await losing(2);
    await owner.teams.createTeam({ team: { orgId, name: "Racer" } });
    expect(await runs()).toBe(3);
    expect(await entries(orgId)).toBe(1);
  });

  test("ABORTED when it lost four times", async () => {
    const { orgId, owner } = await losing(1_000);
    const refused = await refusal(owner.teams.createTeam({ team: { orgId, name: "Racer" } }));
    expect(refused).toMatchObject({ code: "Aborted", reason: "CONFLICT_RETRY" });
    expect(await runs()).toBe(4);
    expect(await entries(orgId)).toBe(0);
  });
});

describe("a database that is too slow", () => {
  test("DEADLINE_EXCEEDED in time, for the call it holds up and for one that waits behind it", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await whileTeamsAreLocked(async () => {
      const [[slow, slowMs], [waiting, waitingMs]] = await Promise.all([
        timed(refusal(owner.teams.listTeams({ orgId }, { timeoutMs: 400 }))),
        timed(blocked().then(() => refusal(owner.orgs.getOrg({ orgId }, { timeoutMs: 200 })))),
      ]);
      expect([slow.code, waiting.code]).toEqual(["DeadlineExceeded", "DeadlineExceeded"]);
      // Not the server's default.
      expect(Math.max(slowMs, waitingMs)).toBeLessThan(9_000);
      // The statement ends with the call, though the lock is still held.
      const ended = async () => expect(await backends("state <> 'idle'")).toEqual([]);
      await vi.waitFor(ended, patience);
    });
    await owner.teams.listTeams({ orgId });
  });

  test("UNAVAILABLE at once for those for whom too many wait already", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const refusals: Refusal[] = [];
    // One connection lets fifty wait.
    const { held, waiting } = await whileTeamsAreLocked(async () => {
      const held = owner.teams.listTeams({ orgId });
      await blocked();
      const waiting = Array.from({ length: 60 }, async () => {
        const call = owner.orgs.getOrg({ orgId });
        await call.catch(async () => refusals.push(await refusal(call)));
      });
      await vi.waitFor(() => expect(refusals).toHaveLength(10), patience);
      return { held, waiting };
    });
    await Promise.all([held, ...waiting]);
    expect(refusals).toHaveLength(10);
    for (const { code, reason, error } of refusals) {
      expect([code, reason]).toEqual(["Unavailable", "OVERLOADED"]);
      expect(error.findDetails(RetryInfoSchema)).toHaveLength(1);
    }
  });
});

describe("a database that is away", () => {
  /** Refuses connections to the database, and cuts those it has. */
  const setAway = async (away: boolean): Promise<void> => {
    const { rows } = await harness.current.admin.query("select current_database() as name");
    const client = new pg.Client({ connectionString: inject("adminUrl") });
    await client.connect();
    await client.query(`alter database ${rows[0].name} allow_connections ${!away}`);
    if (away)
      await client.query("select pg_terminate_backend(unnest($1::int[]))", [await backends()]);
    await client.end();
  };

  test("UNAVAILABLE to mutations while it is read-only, as after a failover, and open to reads", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { rows } = await harness.current.admin.query("select current_database() as name");
    const setting = `database ${rows[0].name} set default_transaction_read_only`;
    const cutAll = async (): Promise<void> => {
      const cut = "select pg_terminate_backend(unnest($1::int[]))";
      await harness.current.admin.query(cut, [await backends()]);
      await vi.waitFor(async () => expect(await backends()).toEqual([]), patience);
    };
    await harness.current.admin.query(`alter ${setting} = on`);
    try {
      await cutAll();
      await vi.waitFor(() => owner.orgs.getOrg({ orgId }), patience);
      const refused = await refusal(owner.teams.createTeam({ team: { orgId, name: "Crew" } }));
      expect(refused).toMatchObject({ code: "Unavailable", reason: "DATABASE_UNAVAILABLE" });
    } finally {
      await harness.current.admin.query(`alter ${setting} = off`);
      await cutAll();
    }
    await vi.waitFor(() => owner.orgs.getOrg({ orgId }), patience);
  });

  test("UNAVAILABLE until it is back, and no server starts meanwhile", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await setAway(true);
    try {
      for (let i = 0; i < 3; i++) {
        const refused = await refusal(owner.orgs.getOrg({ orgId }, { timeoutMs: 2_000 }));
        expect(refused).toMatchObject({ code: "Unavailable", reason: "DATABASE_UNAVAILABLE" });
      }
      await expect(checkDatabase(harness.current.urls.app, "roster_app")).rejects.toThrow();
    } finally {
      await setAway(false);
    }
    expect((await owner.orgs.getOrg({ orgId })).org?.id).toBe(orgId);
  });
});
