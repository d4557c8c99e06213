import { randomUUID } from "node:crypto";
import { Code } from "@connectrpc/connect";
import { describe, expect, test, vi } from "vitest";
import { z } from "zod";
import { sql, type UnitOfWork } from "../src/database/sql.ts";
import { failureOf } from "../src/errors.ts";
import { useHarness } from "./harness.ts";
import { clean, failing, fresh, sleeping, usePools } from "./pools.ts";

const harness = useHarness();

/** Ends the connection of a transaction, and waits until this process heard of it. */
const cutOff = async (unit: UnitOfWork): Promise<void> => {
  const [own] = await unit.many(
    sql.type(z.object({ pid: z.number() }))`select pg_backend_pid() as pid`,
  );
  await harness.current.admin.query("select pg_terminate_backend($1, 5000)", [own?.pid]);
  await new Promise((resume) => setTimeout(resume, 50));
};

describe.each([
  ["pipelined", true],
  ["plain", false],
])("a mutation of the %s driver", (_, pipeline) => {
  const pools = usePools(harness, pipeline);

  test("is written whole when its handler returns", async () => {
    const [one, two] = [randomUUID(), randomUUID()];
    const answer = await pools.current.writing(async (unit) => {
      await unit.many(pools.current.addTeam(one));
      expect(await pools.current.teams(one)).toBe(0);
      await unit.many(pools.current.addTeam(two));
      return "done";
    });
    expect(answer).toBe("done");
    expect([await pools.current.teams(one), await pools.current.teams(two)]).toEqual([1, 1]);
  });

  test("writes nothing when it is rehearsed, also when it sent nothing, and answers alike", async () => {
    const [name, entry] = [randomUUID(), randomUUID()];
    const { pid } = await pools.current.probe();
    const rehearsed = { entry, rehearsal: true };
    const work = (unit: UnitOfWork) => unit.many(pools.current.addTeam(name));
    expect(await pools.current.writing(work, rehearsed)).toEqual([{ name }]);
    await pools.current.writing(async () => {}, rehearsed);
    expect(await pools.current.teams(name)).toBe(0);
    const text = "select id from roster.audit_entries where id = $1";
    expect((await harness.current.admin.query(text, [entry])).rows).toEqual([]);
    const { outsiderId: userId } = pools.current.tenant;
    const refused = pools.current.writing(async () => {}, { ...rehearsed, userId });
    await expect(refused).rejects.toThrow("ORG_NOT_ALLOWED");
    expect(await pools.current.probe()).toEqual({ pid, settings: clean });
  });

  test("leaves its audit entry also when it sent nothing", async () => {
    const entry = randomUUID();
    await pools.current.writing(async () => {}, { entry });
    const text = "select org_id from roster.audit_entries where id = $1";
    const { rows } = await harness.current.admin.query(text, [entry]);
    expect(rows).toEqual([{ org_id: pools.current.tenant.orgId }]);
  });

  test("writes nothing when its handler throws", async () => {
    const name = randomUUID();
    const thrown = pools.current.writing(async (unit) => {
      await unit.many(pools.current.addTeam(name));
      throw new Error("thrown");
    });
    await expect(thrown).rejects.toThrow("thrown");
    expect(await pools.current.teams(name)).toBe(0);
  });

  test("UNAVAILABLE when its connection ends between two statements, and nothing is written", async () => {
    const name = randomUUID();
    const cut = pools.current.writing(async (unit) => {
      await unit.many(pools.current.addTeam(name));
      await cutOff(unit);
      await unit.many(fresh());
    });
    expect(failureOf(await cut.catch((error: unknown) => error))?.code).toBe(Code.Unavailable);
    expect(await pools.current.teams(name)).toBe(0);
  });

  test("fails as its handler did, also when its connection ended meanwhile", async () => {
    const name = randomUUID();
    const cut = pools.current.writing(async (unit) => {
      await unit.many(pools.current.addTeam(name));
      await cutOff(unit);
      throw new Error("thrown");
    });
    await expect(cut).rejects.toThrow("thrown");
    expect(await pools.current.teams(name)).toBe(0);
    expect((await pools.current.probe()).settings).toEqual(clean);
  });

  test("fails when its handler passed over a statement that failed", async () => {
    const name = randomUUID();
    const passedOver = pools.current.writing(async (unit) => {
      await unit.many(pools.current.addTeam(name));
      await unit.many(failing("22023")).catch(() => {});
      return "done";
    });
    await expect(passedOver).rejects.toThrow("rolled back");
    expect(await pools.current.teams(name)).toBe(0);
  });

  test("leaves a usable connection when its commit is refused before it runs", async () => {
    // The pipelined driver's own commit is prepared once; the server then forgets it.
    await pools.current.writing(async () => {});
    const forgotten = pools.current.writing((unit) =>
      unit.many(sql.typeAlias("void")`deallocate all`, { prepare: false }),
    );
    if (pipeline) await expect(forgotten).rejects.toMatchObject({ code: "26000" });
    else await forgotten;
    for (let i = 0; i < 3; i++) {
      expect(await pools.current.reading().many(fresh())).toEqual([{ n: 7 }]);
    }
    await pools.current.writing((unit) => unit.many(fresh()));
  });

  const addOrg = (id: string) => sql.type(z.object({ id: z.string() }))`
    insert into roster.orgs (id, name, slug) values (${id}, 'Ownerless', ${id}) returning id`;
  const traces = async (id: string): Promise<number> => {
    const text = `
      select (select count(*) from roster.orgs where id = $1)::int
        + (select count(*) from roster.audit_entries where org_id = $1)::int as n`;
    return (await harness.current.admin.query(text, [id])).rows[0].n;
  };

  test("fails when its commit does", async () => {
    const id = randomUUID();
    const making = (rehearsal: boolean) =>
      pools.current.makingOrg(id, (unit) => unit.many(addOrg(id)), { rehearsal });
    await expect(making(true)).rejects.toMatchObject({ message: "LAST_OWNER" });
    const ownerless = making(false);
    await expect(ownerless).rejects.toMatchObject({ code: "RS001", message: "LAST_OWNER" });
    expect(await traces(id)).toBe(0);
  });

  test("of one statement fails when its end does, after the statement went well", async () => {
    const id = randomUUID();
    const ownerless = pools.current.makingOrgAlone(id).many(addOrg(id));
    await expect(ownerless).rejects.toMatchObject({ code: "RS001", message: "LAST_OWNER" });
    expect(await traces(id)).toBe(0);
  });

  test.each(["40001", "40P01"])("runs again after %s, three more times at most", async (code) => {
    const name = randomUUID();
    let runs = 0;
    const losing = (until: number) =>
      pools.current.writing(async (unit) => {
        runs++;
        await unit.many(pools.current.addTeam(name));
        if (runs < until) await unit.many(failing(code));
      });
    await expect(losing(Number.POSITIVE_INFINITY)).rejects.toMatchObject({ code });
    expect(runs).toBe(4);
    expect(await pools.current.teams(name)).toBe(0);
    runs = 0;
    await losing(4);
    expect(runs).toBe(4);
    expect(await pools.current.teams(name)).toBe(1);
  });

  test.each(["23514", "57014", "RS001"])("runs once for %s", async (code) => {
    let runs = 0;
    const failed = pools.current.writing((unit) => {
      runs++;
      return unit.many(failing(code));
    });
    await expect(failed).rejects.toMatchObject({ code });
    expect(runs).toBe(1);
  });

  test("ends in time, each of its statements having what the others left", async () => {
    const start = performance.now();
    const slow = pools.current.writing(
      async (unit) => {
        await unit.many(sleeping(1.8));
        await unit.many(sleeping(20));
      },
      { ms: 2_000 },
    );
    await expect(slow).rejects.toMatchObject({ code: "57014" });
    expect(performance.now() - start).toBeLessThan(3_700);
  });

  test("gives its locks back when it stalls", async () => {
    const name = randomUUID();
    const locked = Promise.withResolvers<void>();
    const stall = Promise.withResolvers<void>();
    const stalled = pools.current.writing(
      async (unit) => {
        await unit.many(pools.current.addTeam(name));
        locked.resolve();
        await stall.promise;
      },
      { ms: 500 },
    );
    await locked.promise;
    const refused = expect(stalled).rejects.toThrow();
    const text = `
      select pid from pg_locks
      where relation = 'roster.teams'::regclass and mode = 'RowExclusiveLock'`;
    const free = async () => expect((await harness.current.admin.query(text)).rows).toEqual([]);
    // It may take five seconds more than its time.
    await vi.waitFor(free, { timeout: 20_000 });
    stall.resolve();
    await refused;
    expect(await pools.current.teams(name)).toBe(0);
    expect(await pools.current.reading().many(fresh())).toEqual([{ n: 7 }]);
  });

  test("is unavailable when its connection is lost, and the next one has a new connection", async () => {
    const name = randomUUID();
    const lost = pools.current.writing(async (unit) => {
      await unit.many(pools.current.addTeam(name));
      await unit.many(sql.type(z.object({}))`select pg_terminate_backend(pg_backend_pid())`);
    });
    expect(failureOf(await lost.catch((error) => error))?.code).toBe(Code.Unavailable);
    expect(await pools.current.teams(name)).toBe(0);
    expect(await pools.current.reading().many(fresh())).toEqual([{ n: 7 }]);
    expect((await pools.current.probe()).settings).toEqual(clean);
  });
});
