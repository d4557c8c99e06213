import { randomUUID } from "node:crypto";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { slug, useHarness } from "./harness.ts";

const harness = useHarness();

interface Page {
  readonly pageSize: number;
  readonly pageToken: string;
  readonly orderBy: string;
  readonly filter: string;
}

/** Things that a list shows, and all that may happen to them while it is walked. */
interface World {
  readonly list: (page: Page) => Promise<{ ids: string[]; next: string }>;
  readonly add: (name: string) => Promise<string>;
  readonly remove: (id: string) => Promise<unknown>;
  /** Changes what neither filter nor order looks at. */
  readonly touch: (id: string) => Promise<unknown>;
}

const address = (name: string): string => `${name}.${randomUUID()}@example.com`;
const idsOf = (items: readonly { id: string }[]): string[] => items.map(({ id }) => id);
const labels = (): Record<string, string> => ({ turn: randomUUID() });

const person = async (name: string): Promise<string> => {
  const { users } = harness.current.ops;
  const { user } = await users.createUser({ user: { name, email: address(name) } });
  return user?.id ?? "";
};
const touchUser = (id: string) =>
  harness.current.ops.users.updateUser({ user: { id, labels: labels() } });

const everyone = async (): Promise<World> => {
  const { users } = harness.current.ops;
  return {
    list: async (page) => {
      const { users: found, nextPageToken } = await users.listUsers(page);
      return { ids: idsOf(found), next: nextPageToken };
    },
    add: person,
    remove: (userId) => users.deleteUser({ userId }),
    touch: touchUser,
  };
};

/** An org, whose people come and go by membership and as users in turns. */
const crowd = async (): Promise<Omit<World, "list"> & { readonly orgId: string }> => {
  const { orgs, users } = harness.current.ops;
  const { orgId } = await harness.current.tenant();
  let turn = 0;
  return {
    orgId,
    add: async (name) => {
      const userId = await person(name);
      await orgs.addOrgMember({ orgId, userId, role: "guest" });
      return userId;
    },
    remove: (userId) =>
      turn++ % 2 ? orgs.removeOrgMember({ orgId, userId }) : users.deleteUser({ userId }),
    touch: touchUser,
  };
};

const worlds: Record<string, () => Promise<World>> = {
  "ListUsers of the platform": everyone,
  "ListUsers of an org": async () => {
    const { orgId, ...rest } = await crowd();
    const { users } = harness.current.ops;
    const list = async (page: Page) => {
      const { users: found, nextPageToken } = await users.listUsers({ ...page, orgId });
      return { ids: idsOf(found), next: nextPageToken };
    };
    return { ...rest, list };
  },
  ListOrgMembers: async () => {
    const { orgId, ...rest } = await crowd();
    const { orgs } = harness.current.ops;
    const list = async (page: Page) => {
      const { members, nextPageToken } = await orgs.listOrgMembers({ ...page, orgId });
      return { ids: members.map(({ userId }) => userId), next: nextPageToken };
    };
    const touch = async (userId: string) => {
      const { member } = await orgs.getOrgMember({ orgId, userId });
      const role = member?.role === "guest" ? "member" : "guest";
      await orgs.updateOrgMember({ member: { orgId, userId, role } });
    };
    return { ...rest, list, touch };
  },
  ListOrgs: async () => {
    const { orgs } = harness.current.ops;
    const ownerUserId = await harness.current.user();
    return {
      list: async (page) => {
        const { orgs: found, nextPageToken } = await orgs.listOrgs(page);
        return { ids: idsOf(found), next: nextPageToken };
      },
      add: async (name) => {
        const { org } = await orgs.createOrg({ org: { name, slug: slug() }, ownerUserId });
        return org?.id ?? "";
      },
      remove: (orgId) => orgs.deleteOrg({ orgId }),
      touch: (id) => orgs.updateOrg({ org: { id, labels: labels() } }),
    };
  },
  ListTeams: async () => {
    const { teams } = harness.current.ops;
    const { orgId } = await harness.current.tenant();
    return {
      list: async (page) => {
        const { teams: found, nextPageToken } = await teams.listTeams({ ...page, orgId });
        return { ids: idsOf(found), next: nextPageToken };
      },
      add: async (name) => {
        const { team } = await teams.createTeam({ team: { orgId, name: name + randomUUID() } });
        return team?.id ?? "";
      },
      remove: (teamId) => teams.deleteTeam({ orgId, teamId }),
      touch: (id) => teams.updateTeam({ team: { orgId, id, labels: labels() } }),
    };
  },
};

const users = ["", "name", "email desc", "create_time desc"];
const ways: [world: string, field: string, orderBy: string][] = [
  ...users.map((by): [string, string, string] => ["ListUsers of the platform", "name", by]),
  ...users.map((by): [string, string, string] => ["ListUsers of an org", "email", by]),
  ...["", "user_id", "user.email", "join_time desc"].map((by): [string, string, string] => [
    "ListOrgMembers",
    "user.name",
    by,
  ]),
  ...["", "slug", "create_time"].map((by): [string, string, string] => ["ListOrgs", "name", by]),
  ...["", "name desc", "create_time"].map((by): [string, string, string] => [
    "ListTeams",
    "name",
    by,
  ]),
];

type Turn = "add" | "addOther" | "remove" | "touch";

/** Walks a list while turns are taken, and gives what the pages showed. */
const walk = async (
  { list, add, remove, touch }: World,
  page: Omit<Page, "pageToken">,
  word: string,
  turns: readonly Turn[],
): Promise<{ seen: string[]; staying: string[]; others: string[] }> => {
  const [staying, going, others]: string[][] = [[], [], []];
  for (let i = 0; i < 9; i++) {
    const [kind, name] = [[staying, going, others][i % 3], i % 3 === 2 ? `x${word}` : word];
    kind?.push(await add(name));
  }
  const seen: string[] = [];
  let walking = true;
  const take: Record<Turn, () => Promise<unknown>> = {
    add: () => add(word),
    addOther: async () => others?.push(await add(`x${word}`)),
    remove: async () => {
      const id = going?.pop();
      if (id !== undefined) await remove(id);
    },
    touch: async () => {
      for (const id of staying ?? []) await touch(id);
    },
  };
  const happen = async (): Promise<void> => {
    for (const turn of turns) if (walking) await take[turn]();
  };
  const look = async (): Promise<void> => {
    let pageToken = "";
    do {
      const { ids, next } = await list({ ...page, pageToken });
      seen.push(...ids);
      pageToken = next;
    } while (pageToken !== "" && seen.length < 200);
    walking = false;
  };
  await Promise.all([look(), happen()]);
  return { seen, staying: staying ?? [], others: others ?? [] };
};

describe("A walk of a chosen list under load", () => {
  test.each(ways)(
    "%s by %s in the order of %j shows each row that stays once, and none of others",
    async (name, field, orderBy) => {
      const world = (await worlds[name]?.()) ?? expect.fail(name);
      const turn = fc.constantFrom<Turn>("add", "addOther", "remove", "touch");
      const turns = fc.array(turn, { minLength: 4, maxLength: 12 });
      await fc.assert(
        fc.asyncProperty(fc.integer({ min: 1, max: 3 }), turns, async (pageSize, taken) => {
          const word = `w${randomUUID().slice(0, 8)}`;
          const page = { pageSize, orderBy, filter: `${field} = "${word}*"` };
          const { seen, staying, others } = await walk(world, page, word, taken);
          expect(new Set(seen).size).toBe(seen.length);
          expect(seen).toEqual(expect.arrayContaining(staying));
          expect(seen.filter((id) => others.includes(id))).toEqual([]);
        }),
        { numRuns: 2, endOnFailure: true },
      );
    },
  );
});
