import { subscribe, unsubscribe } from "node:diagnostics_channel";
import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { callersOf, flushesOfRead, slug, type Tenant, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { Fold, tablesOf, Watching } from "./watching.ts";

const harness = useHarness();

/** How long, in seconds; zero: not at all. */
const seconds = Number(process.env.FEED_SECONDS ?? 0);
const [orgs, writesPerSecond, goalMs] = [20, 200, 250];

const percentile = (sorted: readonly number[], share: number): number =>
  Math.round(sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0);

/** How many of a hundred came how late, as a line and by share. */
const lateness = (committed: Map<string, number>, heard: Map<string, number>) => {
  const late = [...committed]
    .map(([text, ms]) => Math.max(0, (heard.get(text) ?? Number.POSITIVE_INFINITY) - ms))
    .sort((a, b) => a - b);
  const told = [0.5, 0.9, 0.99, 1].map((share) => `p${share * 100} ${percentile(late, share)} ms`);
  return { line: told.join(", "), p99: percentile(late, 0.99) };
};

/** Begins so many writes a second, until the time is over, and waits for the last. */
const steadily = async (write: (number: number) => Promise<void>): Promise<number> => {
  let writes = 0;
  const start = performance.now();
  const running = new Set<Promise<void>>();
  while (performance.now() - start < seconds * 1_000) {
    const due = ((performance.now() - start) / 1_000) * writesPerSecond;
    while (writes < due) {
      const work: Promise<void> = write(writes++).finally(() => running.delete(work));
      running.add(work);
    }
    await delay(5);
  }
  await Promise.all(running);
  return writes;
};

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
    const writes = await steadily(async (number) => {
      const { orgId, owner } = tenants[number % orgs] as Tenant;
      const description = `write ${number}`;
      await owner.teams.updateTeam({
        team: { orgId, id: teams[number % orgs]?.id ?? "", description },
      });
      committed.set(description, performance.now());
    });
    await expect.poll(() => heard.size, { timeout: 10_000 }).toBe(committed.size);
    over = true;
    await Promise.all(reading);
    const { line, p99 } = lateness(committed, heard);
    console.log(`${writes} writes in ${seconds} s, delivered after: ${line}`);
    for (const [index, { owner, orgId }] of tenants.entries()) {
      const fold = folds[index] as Fold;
      const { position } = fold;
      const rest = new Watching(owner, { orgId, position }, (message) => fold.hear(message));
      await expect.poll(() => rest.messages.some(({ heartbeat }) => heartbeat)).toBe(true);
      rest.cancel();
      expect(fold.shown()).toEqual(await tablesOf(owner, orgId));
    }
    expect(p99).toBeLessThan(goalMs);
  },
  (seconds + 120) * 1_000,
);

interface Made {
  readonly orgId: string;
  readonly teamId: string;
}

/** Watchers of an org each, and of one org together. */
const [alone, together] = [1_000, 50];

test.skipIf(seconds === 0)(
  `${alone} who watch as many orgs and ${together} who watch one cost one poll, and hear in time`,
  async () => {
    const { current } = harness;
    const { ops, server, baseUrl } = current;
    const ownerUserId = await current.user();
    const made: Made[] = [];
    const make = async (): Promise<void> => {
      const { org } = await ops.orgs.createOrg({ org: { name: "Org", slug: slug() }, ownerUserId });
      const orgId = org?.id ?? "";
      const { team } = await ops.teams.createTeam({ team: { orgId, name: "Hot" } });
      made.push({ orgId, teamId: team?.id ?? "" });
    };
    while (made.length < alone) await Promise.all(Array.from({ length: 8 }, make));
    const orgs = made.slice(0, alone);
    // A connection carries 250 streams.
    const clients = Array.from({ length: 8 }, () => callersOf(baseUrl, ops.token));
    const [first] = orgs;
    const [committed, heard] = [new Map<string, number>(), new Map<string, number>()];
    const watched = [...orgs, ...Array.from({ length: together }, () => first)];
    const crowd: Watching[] = [];
    for (const [index, org] of watched.entries()) {
      const hear: ConstructorParameters<typeof Watching>[2] = ({ changes }) => {
        for (const { resource } of changes)
          if (resource.case === "team") heard.set(resource.value.description, performance.now());
      };
      const client = clients[index % clients.length];
      if (client) crowd.push(new Watching(client, { orgId: org?.orgId ?? "" }, hear));
      // Who comes to a pool that all want is told to come later.
      if (index % 50 === 49)
        await expect.poll(() => crowd.every(({ position }) => position !== "")).toBe(true);
    }
    expect(server.watchers()).toBe(alone + together);
    let [polls, judged] = [0, 0];
    const count = (steps: unknown): void => {
      const text = (steps as readonly { readonly text: string }[]).at(-1)?.text ?? "";
      if (text.includes("roster.feed_page(")) polls++;
      else if (text.includes("roster.feed_state()")) judged++;
    };
    // Nothing is written: what there is comes of watching alone.
    const beats = () => crowd.reduce((sum, { messages }) => sum + messages.length, 0);
    subscribe("roster:flush", count);
    const [tripsBefore, beatsBefore, start] = [server.roundTrips(), beats(), performance.now()];
    await delay(20_000);
    const elapsed = performance.now() - start;
    unsubscribe("roster:flush", count);
    const trips = server.roundTrips() - tripsBefore;
    console.log(
      `${crowd.length} watchers in ${Math.round(elapsed)} ms of quiet: ${polls} polls, ${judged} judged anew, ` +
        `${beats() - beatsBefore} heartbeats, ${trips} flushes`,
    );
    expect(polls).toBeLessThanOrEqual(elapsed / 50 + 1);
    expect(polls).toBeGreaterThan(elapsed / 200);
    expect(trips).toBeLessThanOrEqual((polls + judged) * flushesOfRead);
    expect(judged).toBeLessThanOrEqual(2 * crowd.length);

    const writes = await steadily(async (number) => {
      const { orgId, teamId } = orgs[number % 20 === 0 ? 0 : number % alone] as Made;
      const description = `write ${number}`;
      await ops.teams.updateTeam({ team: { orgId, id: teamId, description } });
      committed.set(description, performance.now());
    });
    expect(server.watchers()).toBe(crowd.length);
    await expect.poll(() => heard.size, { timeout: 60_000 }).toBe(committed.size);
    const { line, p99 } = lateness(committed, heard);
    console.log(`${writes} writes in ${seconds} s to ${crowd.length} watchers, after: ${line}`);
    for (const watcher of crowd) watcher.cancel();
    expect(p99).toBeLessThan(goalMs);
  },
  (seconds + 240) * 1_000,
);
