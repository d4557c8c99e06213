/** Mixed operations on a few orgs and people at once, drawn from a seed, and what became of each. */
import { randomUUID } from "node:crypto";
import { purge } from "../src/jobs/purge.ts";
import { type Callers, callersOf, type Harness, refusal, slug, tokenFor } from "./harness.ts";
import { asAdmin } from "./sessions.ts";
import {
  type Answer,
  fairTo,
  type Kind,
  kinds,
  operations,
  type Target,
} from "./storm-operations.ts";

/** All that the seed decides of an operation. People and orgs are told by their place. */
export interface Draw {
  readonly kind: Kind;
  readonly org: number;
  readonly person: number;
  /** Undefined: platform calls. */
  readonly caller: number | undefined;
  readonly withEtag: boolean;
  readonly withRequestId: boolean;
  /** Sent two times at the same instant, under one request_id. */
  readonly twice: boolean;
  readonly force: boolean;
}

/** How one call ended. The reason is empty when it succeeded. */
export interface Ending {
  readonly correlationId: string;
  readonly code: string;
  readonly reason: string;
  readonly answer?: Answer;
}

/** An operation and the endings of its one or two calls. */
export interface Outcome extends Draw {
  readonly endings: readonly Ending[];
}

const places = 4;
const people = 8;
/** Of so many people four in five operations on an org tell, so that the same few meet often. */
const near = 3;
const connections = 8;
/** So many operations all connections mostly spend on one org, before they go on to the next together. */
const gust = 8;
/** So many of them mostly bring people, the rest mostly take them. */
const flood = 5;

/** After so many looks for orgs without an owner somebody is purged, and others take the place of who is gone. */
const renewal = 60;

/** Numbers from 0 to 1 that the seed decides: mulberry32. */
const randomOf = (seed: number): (() => number) => {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
};

/** Gives items in a random order again and again, each as often as its share says, so that none is long in coming. */
function* dealt(tide: "flood" | "ebb", below: (n: number) => number): Generator<Kind, never> {
  const deck = kinds.flatMap((kind) =>
    operations[kind].tide === tide ? Array<Kind>(operations[kind].share).fill(kind) : [],
  );
  for (;;) {
    const cards = [...deck];
    while (cards.length > 0) yield* cards.splice(below(cards.length), 1);
  }
}

/** What one connection does, without end. All of them go from org to org together. */
export function* drawsOf(seed: number, connection: number): Generator<Draw, never> {
  const random = randomOf(seed * connections + connection);
  const below = (n: number): number => Math.floor(random() * n);
  const chance = (share: number): boolean => random() < share;
  const tides = [dealt("flood", below), dealt("ebb", below)] as const;
  for (let turn = 0; ; turn++) {
    const kind = tides[turn % gust < flood === chance(0.85) ? 0 : 1].next().value;
    const org = chance(0.8) ? Math.floor(turn / gust) % places : below(places);
    const someone = (): number => (chance(0.9) ? (org * 2 + below(near)) % people : below(people));
    const [person, other] = [someone(), someone()];
    const { by } = operations[kind];
    const sender = by[below(by.length)];
    const twice = chance(0.1);
    yield {
      kind,
      org,
      person,
      caller: sender === "platform" ? undefined : sender === "self" ? person : other,
      withEtag: chance(0.2),
      withRequestId: twice || chance(0.3),
      twice,
      force: chance(0.7),
    };
  }
}

/** Live, active orgs without an active owner whose user is active: there must be none, at any time. */
const ownerless = `
  select o.id from roster.orgs o
  where o.delete_time is null and o.state = 'ACTIVE' and not exists (
    select from roster.org_members m join roster.users u on u.id = m.user_id
    where m.org_id = o.id and m.role = 'owner' and m.state = 'ACTIVE'
      and u.delete_time is null and u.state = 'ACTIVE')`;

/** A storm over orgs and people of its own. */
export class Storm {
  readonly outcomes: Outcome[] = [];
  /** What must never be. The first one ends the storm. */
  readonly alarms: string[] = [];
  /** How often somebody looked for orgs without an owner. */
  looks = 0;
  /** Kinds of which none has succeeded yet. */
  readonly missing = new Set<string>(kinds);
  private readonly harness: Harness;
  private readonly userIds: string[] = [];
  private readonly tokens: string[] = [];
  private readonly orgs: { readonly orgId: string; readonly teamId: string }[] = [];
  /** Of each resource the last that was seen. */
  private readonly etags = new Map<string, string>();

  constructor(harness: Harness) {
    this.harness = harness;
  }

  /**
   * Runs at least so many operations over all connections, while another connection looks on. It goes on until each
   * kind has succeeded, for three times as many at most.
   */
  async run(seed: number, count: number): Promise<void> {
    await this.settle();
    const sources = Array.from({ length: connections }, (_, connection) => ({
      clients: callersOf(this.harness.baseUrl, ""),
      draws: drawsOf(seed, connection),
    }));
    let over = false;
    const watch = async (): Promise<void> => {
      for (let turn = 1; !over && this.alarms.length === 0; turn++) {
        await this.look();
        if (turn % renewal === 0) await this.renew();
      }
    };
    const blow = async (): Promise<void> => {
      while (this.isShort(count) && this.alarms.length === 0)
        await Promise.all(sources.map(({ clients, draws }) => this.gust(clients, draws)));
    };
    const blowing = blow().finally(() => {
      over = true;
    });
    await Promise.all([blowing, watch()]);
    if (this.alarms.length === 0) await this.look();
  }

  private isShort(count: number): boolean {
    const { length } = this.outcomes;
    return length < count || (this.missing.size > 0 && length < 3 * count);
  }

  private async settle(): Promise<void> {
    const { harness } = this;
    while (this.userIds.length < people) {
      const userId = await harness.user();
      this.userIds.push(userId);
      this.tokens.push(await tokenFor(userId));
    }
    for (let place = 0; place < places; place++) {
      const [ownerUserId = "", ...others] = this.userIds.slice(place * 2, place * 2 + 3);
      const org = { name: "Org", slug: slug() };
      const made = await harness.ops.orgs.createOrg({ org, ownerUserId });
      const orgId = made.org?.id ?? "";
      for (const userId of others)
        await harness.ops.orgs.addOrgMember({ orgId, userId, role: "owner" });
      await this.place(place, orgId);
    }
  }

  /** Puts an org in a place, and deletes the one that was there: it would keep its owners for ever. */
  private async place(place: number, orgId: string): Promise<void> {
    const { orgs, teams } = this.harness.ops;
    const { team } = await teams.createTeam({ team: { orgId, name: "Crew" } });
    const former = this.orgs[place];
    this.orgs[place] = { orgId, teamId: team?.id ?? "" };
    if (former) await orgs.deleteOrg({ orgId: former.orgId, force: true, allowMissing: true });
  }

  private async gust(clients: Callers, draws: Generator<Draw, never>): Promise<void> {
    for (let turn = 0; turn < gust; turn++) await this.perform(clients, draws.next().value);
  }

  private async perform(clients: Callers, draw: Draw): Promise<void> {
    const { kind, caller, twice, withEtag } = draw;
    const target = this.targetOf(draw);
    const token = caller === undefined ? this.harness.ops.token : this.tokens[caller];
    const call = async (): Promise<Ending> => {
      const correlationId = randomUUID();
      const headers = { authorization: `Bearer ${token}`, "x-request-id": correlationId };
      try {
        const answer = await operations[kind].send(clients, target, { headers });
        return { correlationId, code: "OK", reason: "", answer };
      } catch (error) {
        const { code, reason } = await refusal(Promise.reject(error));
        return { correlationId, code, reason };
      }
    };
    const endings = await Promise.all(twice ? [call(), call()] : [call()]);
    this.outcomes.push({ ...draw, endings });
    const fair = fairTo(kind, caller === undefined, withEtag, twice);
    for (const { code, reason } of endings)
      if (code !== "OK" && !fair.includes(reason)) this.alarm(`${kind}: ${code} ${reason}`);
    const answer = endings.find((ending) => ending.answer)?.answer;
    if (!answer) return;
    this.missing.delete(kind);
    await this.learn(draw, answer);
  }

  private targetOf({ org, person, withEtag, withRequestId, force }: Draw): Target {
    const { orgId, teamId } = this.orgs[org] ?? { orgId: "", teamId: "" };
    const userId = this.userIds[person] ?? "";
    const etagOf = (id: string): string => (withEtag && this.etags.get(id)) || "";
    const etag = { org: etagOf(orgId), user: etagOf(userId), member: etagOf(`${orgId}/${userId}`) };
    const requestId = withRequestId ? randomUUID() : "";
    return { orgId, teamId, userId, requestId, force, slug: slug(), etag };
  }

  private async learn(draw: Draw, { org, user, member }: Answer): Promise<void> {
    if (org) this.etags.set(org.id, org.etag);
    if (user) this.etags.set(user.id, user.etag);
    if (member) this.etags.set(`${member.orgId}/${member.userId}`, member.etag);
    if (org && draw.kind === "createOrg") await this.place(draw.org, org.id);
  }

  /** Lets the purge time come of something that is deleted, purges it, and fills the places of all that is gone. */
  private async renew(): Promise<void> {
    const { harness, userIds, orgs } = this;
    for (const [table, ids] of [
      ["users", userIds],
      ["orgs", orgs.map(({ orgId }) => orgId)],
    ] as const) {
      const isDue = `update roster.${table} set purge_time = now() - interval '3 minutes'
        where delete_time is not null
          and id = (select id from roster.${table} where delete_time is not null and id = any ($1) limit 1)`;
      await asAdmin(harness, isDue, [ids]);
    }
    await purge(harness.urls.worker);
    const isThere = async (table: string, id: string): Promise<boolean> =>
      (await harness.admin.query(`select from roster.${table} where id = $1`, [id])).rowCount === 1;
    for (const [place, id] of userIds.entries()) {
      if (await isThere("users", id)) continue;
      const userId = await harness.user();
      this.tokens[place] = await tokenFor(userId);
      userIds[place] = userId;
    }
    for (const [place, { orgId }] of orgs.entries()) {
      if (await isThere("orgs", orgId)) continue;
      const org = { name: "Org", slug: slug() };
      const made = await harness.ops.orgs.createOrg({ org, ownerUserId: await harness.user() });
      await this.place(place, made.org?.id ?? "");
    }
  }

  private async look(): Promise<void> {
    const { rows } = await this.harness.admin.query<{ id: string }>(ownerless);
    this.looks++;
    for (const { id } of rows) this.alarm(`org ${id} has no owner`);
  }

  private alarm(what: string): void {
    this.alarms.push(`${what}, after ${this.outcomes.length} operations`);
  }
}
