import { randomUUID } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { refusal, type Tenant, useHarness } from "./harness.ts";

const harness = useHarness();
const invalid = { code: "InvalidArgument", reason: "ORDER_BY_INVALID", fields: ["order_by"] };
const word = `m${randomUUID().slice(0, 8)}`;

/** With names that differ in case alone, and one that is there three times. */
const names = [
  "beta",
  "Alpha",
  "ÉTÉ",
  "été",
  "gamma",
  "zeta",
  "BETA",
  "Zeta",
  "same",
  "same",
  "same",
];

interface Thing {
  readonly id: string;
  readonly name: string;
  readonly other: string;
}

let tenant: Tenant;
const people: Thing[] = [];
const orgs: Thing[] = [];
const teams: Thing[] = [];

beforeAll(async () => {
  tenant = await harness.current.tenant();
  const { ops } = harness.current;
  const { orgId, owner } = tenant;
  for (const [index, bare] of names.entries()) {
    const name = `${word} ${bare}`;
    const other = `${word}-${(index * 7) % names.length}x${index}`;
    const { user } = await ops.users.createUser({ user: { name, email: `${other}@example.com` } });
    const id = user?.id ?? "";
    people.push({ id, name, other: `${other}@example.com` });
    const made = await ops.orgs.createOrg({ org: { name, slug: other }, ownerUserId: id });
    orgs.push({ id: made.org?.id ?? "", name, other });
    // Each under the one before, since siblings cannot share a name.
    const parentTeamId = teams.at(-1)?.id ?? "";
    const { team } = await owner.teams.createTeam({ team: { orgId, name, parentTeamId } });
    teams.push({ id: team?.id ?? "", name, other: "" });
  }
  // They join in another order than they were made in.
  for (const { id } of [...people].reverse())
    await ops.orgs.addOrgMember({ orgId, userId: id, role: "guest" });
});

type Page = { readonly pageToken: string; readonly pageSize: number };
type Ask = { readonly filter: string; readonly orderBy: string };
interface Answer {
  readonly ids: readonly string[];
  readonly next: string;
}

const idsOf = (items: readonly { id: string }[]): string[] => items.map(({ id }) => id);

const lists: Record<string, (request: Page & Ask) => Promise<Answer>> = {
  "ListUsers of the platform": async (request) => {
    const { users, nextPageToken } = await harness.current.ops.users.listUsers(request);
    return { ids: idsOf(users), next: nextPageToken };
  },
  "ListUsers of an org": async (request) => {
    const { orgId, member } = tenant;
    const asked = { ...request, orgId, view: View.FULL };
    const { users, nextPageToken } = await member.users.listUsers(asked);
    return { ids: idsOf(users), next: nextPageToken };
  },
  ListOrgMembers: async (request) => {
    const { orgId, member } = tenant;
    const { members, nextPageToken } = await member.orgs.listOrgMembers({ ...request, orgId });
    return { ids: members.map(({ userId }) => userId), next: nextPageToken };
  },
  "ListOrgMembers FULL": async (request) => {
    const { orgId, member } = tenant;
    const asked = { ...request, orgId, view: View.FULL };
    const { members, nextPageToken } = await member.orgs.listOrgMembers(asked);
    return { ids: members.map(({ user }) => user?.id ?? ""), next: nextPageToken };
  },
  ListOrgs: async (request) => {
    const { orgs: found, nextPageToken } = await harness.current.ops.orgs.listOrgs(request);
    return { ids: idsOf(found), next: nextPageToken };
  },
  ListTeams: async (request) => {
    const { orgId, owner } = tenant;
    const { teams: found, nextPageToken } = await owner.teams.listTeams({ ...request, orgId });
    return { ids: idsOf(found), next: nextPageToken };
  },
};

/** All pages of a list, two rows each. */
const walk = async (list: string, ask: Ask): Promise<string[]> => {
  const found: string[] = [];
  let pageToken = "";
  do {
    const { ids, next } =
      (await lists[list]?.({ ...ask, pageToken, pageSize: 2 })) ?? expect.fail();
    expect(ids.length).toBeLessThanOrEqual(2);
    found.push(...ids);
    pageToken = next;
  } while (pageToken !== "");
  return found;
};

const bytes = (a: string, b: string): number => Buffer.compare(Buffer.from(a), Buffer.from(b));
const sorted = (things: readonly Thing[], key: (thing: Thing) => string): string[] =>
  [...things].sort((a, b) => bytes(key(a), key(b)) || bytes(a.id, b.id)).map(({ id }) => id);
const byName = (things: readonly Thing[]) => sorted(things, ({ name }) => name.toLowerCase());
const byOther = (things: readonly Thing[]) => sorted(things, ({ other }) => other);
const byId = (things: readonly Thing[]) => sorted(things, () => "");

/** List, order, the field of the filter that finds ours, and what is expected. */
const orders: [list: string, orderBy: string, field: string, expected: () => string[]][] = [
  ["ListUsers of the platform", "create_time", "email", () => byId(people)],
  ["ListUsers of the platform", "name", "email", () => byName(people)],
  ["ListUsers of the platform", "email", "name", () => byOther(people)],
  ["ListUsers of an org", "create_time", "email", () => byId(people)],
  ["ListUsers of an org", "name", "name", () => byName(people)],
  ["ListUsers of an org", "email", "name", () => byOther(people)],
  ["ListOrgMembers", "user_id", "user.name", () => byId(people)],
  ["ListOrgMembers", "user.name", "user.email", () => byName(people)],
  ["ListOrgMembers", "user.email", "user.email", () => byOther(people)],
  ["ListOrgMembers", "join_time", "user.email", () => idsOf(people).reverse()],
  ["ListOrgMembers FULL", "join_time", "user.email", () => idsOf(people).reverse()],
  ["ListOrgMembers FULL", "user.name", "user.name", () => byName(people)],
  ["ListOrgs", "create_time", "slug", () => byId(orgs)],
  ["ListOrgs", "name", "slug", () => byName(orgs)],
  ["ListOrgs", "slug", "name", () => byOther(orgs)],
  ["ListTeams", "create_time", "name", () => byId(teams)],
  ["ListTeams", "name", "name", () => byName(teams)],
];

describe("order_by", () => {
  test.each(orders)("%s by %s, both ways", async (list, orderBy, field, expected) => {
    const filter = `${field} = "${word}*"`;
    expect(expected()).toHaveLength(names.length);
    expect(await walk(list, { filter, orderBy })).toEqual(expected());
    expect(await walk(list, { filter, orderBy: ` ${orderBy}  asc ` })).toEqual(expected());
    expect(await walk(list, { filter, orderBy: `${orderBy} desc` })).toEqual(expected().reverse());
  });

  test.each(orders)(
    "%s by %s without a filter shows every row once",
    async (list, orderBy, _, expected) => {
      const all = await walk(list, { filter: "", orderBy });
      expect(new Set(all).size).toBe(all.length);
      expect([...all].sort()).toEqual((await walk(list, { filter: "", orderBy: "" })).sort());
      expect(all.filter((id) => expected().includes(id))).toEqual(expected());
    },
  );

  test.each<[list: string, field: string, expected: () => string[]]>([
    ["ListUsers of the platform", "name", () => byName(people)],
    ["ListUsers of the platform", "email", () => byOther(people)],
    ["ListUsers of an org", "email", () => byOther(people)],
    ["ListOrgMembers", "user.name", () => byName(people)],
    ["ListOrgs", "slug", () => byOther(orgs)],
    ["ListTeams", "name", () => byName(teams)],
  ])(
    "left out, %s come in the order of %s when the filter begins it",
    async (list, field, expected) => {
      const begins = `${field} = "${word}*"`;
      expect(await walk(list, { filter: begins, orderBy: "" })).toEqual(expected());
      const among = `create_time > 2020-01-01T00:00:00Z AND ${begins}`;
      if (!list.startsWith("ListOrgMembers"))
        expect(await walk(list, { filter: among, orderBy: "" })).toEqual(expected());
      // Neither of two beginnings holds for all rows, so the ids order them.
      const either = await walk(list, { filter: `${begins} OR ${field} = "${word}"`, orderBy: "" });
      expect(either).toEqual([...expected()].sort(bytes));
    },
  );

  test("ListAuditEntries, the newest or the oldest first", async () => {
    const { orgId, owner } = tenant;
    await harness.current.ops.users.updateUser({ user: { id: tenant.adminId, name: "Renamed" } });
    const all = async (orderBy: string, filter = "") => {
      const found: string[] = [];
      let pageToken = "";
      do {
        const asked = { orgId, orderBy, filter, pageToken, pageSize: 3 };
        const { auditEntries, nextPageToken } = await owner.audit.listAuditEntries(asked);
        found.push(...idsOf(auditEntries));
        pageToken = nextPageToken;
      } while (pageToken !== "");
      return found;
    };
    const newest = await all("");
    expect(newest.length).toBeGreaterThan(20);
    expect(await all("create_time desc")).toEqual(newest);
    expect(await all("create_time")).toEqual([...newest].reverse());
    const across = await all("create_time", "changes.resource_type:user OR method = *CreateTeam");
    expect(across).toHaveLength(names.length + 1);
    expect(across).toEqual(newest.filter((id) => across.includes(id)).reverse());
    const { audit } = harness.current.ops;
    const [first, second] = (await audit.listAuditEntries({ orderBy: "create_time" })).auditEntries;
    expect(first?.createTime?.seconds).toBeLessThanOrEqual(second?.createTime?.seconds ?? 0n);
  });

  test.each([
    ["nmae", "1", "nmae", /no such order; there is create_time, name, email/],
    ["state", "1", "state", /no such order/],
    ["__proto__", "1", "__proto__", /no such order/],
    ["name down", "6", "down", /desc/],
    ["name DESC", "6", "DESC", /desc/],
    ["name, email", "5", ",", /one field only/],
    ["name desc, email", "10", ",", /one field only/],
    ["name desc email", "11", "email", /one field only/],
    ["name; drop table users", "1", "name;", /no such order/],
  ])("INVALID_ARGUMENT for %j, at character %s", async (orderBy, position, token, message) => {
    const { orgId, member, guest } = tenant;
    const refused = await refusal(member.users.listUsers({ orgId, orderBy }));
    expect(refused).toMatchObject({ ...invalid, metadata: { position, token } });
    expect(refused.message).toMatch(message);
    expect((await refusal(guest.users.listUsers({ orgId, orderBy }))).code).toBe(
      "PermissionDenied",
    );
  });

  test("INVALID_ARGUMENT for a page token of another order", async () => {
    const { orgId, member } = tenant;
    const first = await member.users.listUsers({ orgId, orderBy: "name", pageSize: 1 });
    for (const orderBy of ["", "email", "name desc"]) {
      const moved = member.users.listUsers({ orgId, orderBy, pageToken: first.nextPageToken });
      expect(await refusal(moved)).toMatchObject({ reason: "PAGE_TOKEN_INVALID" });
    }
  });
});
