import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { type Tenant, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { Fold, tablesOf, Watching } from "./watching.ts";

const harness = useHarness();

/** How long, in seconds; zero: not at all. */
const seconds = Number(process.env.FEED_SECONDS ?? 0);
const [orgs, writesPerSecond, goalMs] = [20, 200, 250];

const percentile = (sorted: readonly number[], share: number): number =>
  Math.round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0);

/** Comes back again and again, from where it was. */
const restless = async (tenant: Tenant, fold: Fold, over: () => boolean): Promise<void> => {
  const { orgId, owner } = tenant;
  while (!over()) {
    fold.reconnect();
    const from = fold.position === "" ? { snapshot: true } : { position: fold.position };
    const watcher = new Watching(owner, { orgId, ...from }, (message) => fold.hear(message));
    for (let i = 0; i < 10 + Math.random() * 100 && !over(); i++) await delay(50);
    watcher.cancel();
    await watcher.ended;
  }
};

test.skipIf(seconds === 0)(
  `under ${writesPerSecond} writes a second changes arrive in time, and each copy is exact`,
  async () => {
    const tenants = await Promise.all(Array.from({ length: orgs }, () => harness.current.tenant()));
    const teams = await Promise.all(
      tenants.map(({ owner, orgId }) => makeTeam(owner, { orgId, name: "Hot" })),
    );
    let over = false;
    const [committed, heard] = [new Map<string, number>(), new Map<string, number>()];
    const steady = tenants.map(
      ({ owner, orgId }) =>
        new Watching(owner, { orgId }, ({ changes }) => {
          for (const { resource } of changes)
            if (resource.case === "team") heard.set(resource.value.description, performance.now());
        }),
    );
    await expect.poll(() => steady.every(({ position }) => position !== "")).toBe(true);
    const folds = tenants.map(() => new Fold());
    const reading = tenants.map((tenant, index) =>
      restless(tenant, folds[index] as Fold, () => over),
    );
    let writes = 0;
    const write = async (): Promise<void> => {
      const number = writes++;
      const { orgId, owner } = tenants[number % orgs] as Tenant;
      const description = `write ${number}`;
      await owner.teams.updateTeam({
        team: { orgId, id: teams[number % orgs]?.id ?? "", description },
      });
      committed.set(description, performance.now());
    };
    const start = performance.now();
    const running = new Set<Promise<void>>();
    while (performance.now() - start < seconds * 1_000) {
      const due = ((performance.now() - start) / 1_000) * writesPerSecond;
      while (writes < due) {
        const work: Promise<void> = write().finally(() => running.delete(work));
        running.add(work);
      }
      await delay(5);
    }
    await Promise.all(running);
    await expect.poll(() => heard.size, { timeout: 10_000 }).toBe(committed.size);
    over = true;
    await Promise.all(reading);
    const late = [...committed]
      .map(([text, ms]) => Math.max(0, (heard.get(text) ?? Number.POSITIVE_INFINITY) - ms))
      .sort((a, b) => a - b);
    const told = [0.5, 0.9, 0.99, 1].map(
      (share) => `p${share * 100} ${percentile(late, share)} ms`,
    );
    console.log(`${writes} writes in ${seconds} s, delivered after: ${told.join(", ")}`);
    for (const [index, { owner, orgId }] of tenants.entries()) {
      const fold = folds[index] as Fold;
      const { position } = fold;
      const rest = new Watching(owner, { orgId, position }, (message) => fold.hear(message));
      await expect.poll(() => rest.messages.some(({ heartbeat }) => heartbeat)).toBe(true);
      rest.cancel();
      expect(fold.shown()).toEqual(await tablesOf(owner, orgId));
    }
    expect(percentile(late, 0.99)).toBeLessThan(goalMs);
  },
  (seconds + 120) * 1_000,
);
