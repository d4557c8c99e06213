import { randomUUID } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { explain, faultsOf, names, nodesOfCall, useTenTimes } from "./explained.ts";
import { type Tenant, useHarness } from "./harness.ts";

const harness = useHarness({ poolSize: 1, pipeline: true });

/** How many there are of each; a tenth of the users are members of one org. */
const userCount = 40_000;
const memberCount = userCount / 10;
const teamCount = 20_000;

/** Letters that look drawn and are the same each time. */
const letters = (seed: string): string => `translate(md5(${seed}), '0123456789', 'ghijklmnop')`;

/** Fills a database without triggers: people whose names and addresses begin in many ways. */
const load = (orgId: string): string => `
  begin;
  set local session_replication_role = replica;
  create temporary table people on commit drop as
    select n, md5('user' || n)::uuid as id,
      case when n <= ${memberCount} then '${orgId}' else md5('org' || n % 1000)::uuid end as org_id
    from generate_series(1, ${userCount}) n;
  insert into roster.users (id, email, name, external_id, labels)
    select id, ${letters("'mail' || n")} || '@example.com',
      initcap(substr(${letters("'first' || n % 400")}, 1, 6)) || ' '
        || initcap(substr(${letters("'last' || n")}, 1, 8)),
      'x' || n, jsonb_build_object('plan', case when n % 3 = 0 then 'pro' else 'free' end)
    from people;
  insert into roster.profiles (id, user_id) select md5('profile' || n)::uuid, id from people;
  insert into roster.orgs (id, name, slug)
    select md5('org' || n)::uuid, initcap(substr(${letters("'org' || n")}, 1, 8)) || ' Works',
      'o' || ${letters("'slug' || n")}
    from generate_series(0, ${userCount / 5}) n;
  insert into roster.org_members (org_id, user_id, join_time)
    select org_id, id, now() - make_interval(mins => (n % 10000) * 7919 % 100000) from people;
  insert into roster.org_member_keys (org_id, user_id, name_key, email_key)
    select m.org_id, m.user_id, u.name_key, u.email_key
    from roster.org_members m join roster.users u on u.id = m.user_id
    on conflict do nothing;
  insert into roster.teams (org_id, id, path, name)
    select '${orgId}', md5('team' || n)::uuid, array[md5('team' || n)::uuid], initcap(${letters("'team' || n")})
    from generate_series(1, ${teamCount}) n;
  commit;
  analyze`;

let tenant: Tenant;

beforeAll(async () => {
  const { admin } = harness.current;
  await explain(admin);
  tenant = await harness.current.tenant();
  await admin.query(load(tenant.orgId));
});

interface Page {
  readonly pageSize: number;
  readonly pageToken: string;
  readonly filter: string;
  readonly orderBy: string;
}
type List = (page: Page) => Promise<{ readonly nextPageToken: string }>;

const view = View.FULL;
const inOrg: Record<string, List> = {
  ListUsers: (page) => tenant.member.users.listUsers({ orgId: tenant.orgId, ...page }),
  "ListUsers FULL": (page) => tenant.member.users.listUsers({ orgId: tenant.orgId, view, ...page }),
  ListOrgMembers: (page) => tenant.member.orgs.listOrgMembers({ orgId: tenant.orgId, ...page }),
  "ListOrgMembers FULL": (page) =>
    tenant.member.orgs.listOrgMembers({ orgId: tenant.orgId, view, ...page }),
  ListTeams: (page) => tenant.member.teams.listTeams({ orgId: tenant.orgId, ...page }),
};
const ofAll: Record<string, List> = {
  ListUsers: (page) => harness.current.ops.users.listUsers(page),
  "ListUsers FULL": (page) => harness.current.ops.users.listUsers({ view, ...page }),
  ListOrgs: (page) => harness.current.ops.orgs.listOrgs(page),
};

type Case = [list: string, filter: string, orderBy: string];
const few = "mb*";
const many = "m*";
/** With the users beside them, or their profiles, a few of the cases stand for all: the page before is the same. */
const somewhat = ([list = ""]: readonly string[], index: number): boolean =>
  !list.endsWith("FULL") || index % 4 === 0;
const casesInOrg = [
  ...["ListUsers", "ListUsers FULL"].flatMap((list): Case[] => [
    [list, `name = "${many}"`, ""],
    [list, `email = "${few}"`, ""],
    [list, `name = "${many}" AND state = ACTIVE`, "email"],
    [list, "state = ACTIVE", ""],
    [list, "", "name"],
    [list, "", "email desc"],
    [list, "", "create_time desc"],
  ]),
  ...["ListOrgMembers", "ListOrgMembers FULL"].flatMap((list): Case[] => [
    [list, `user.name = "${many}"`, ""],
    [list, `user.email = "${few}" AND state = ACTIVE`, ""],
    [list, "state = ACTIVE", ""],
    [list, "", "user.name desc"],
    [list, "", "user.email"],
    [list, "", "join_time"],
    [list, "", "join_time desc"],
  ]),
  ["ListTeams", `name = "${many}"`, ""],
  ["ListTeams", "type = team", ""],
  ["ListTeams", "", "name"],
  ["ListTeams", "", "name desc"],
].filter(somewhat);
const casesOfAll = [
  ...["ListUsers", "ListUsers FULL"].flatMap((list): Case[] => [
    [list, `name = "${many}"`, ""],
    [list, `email = "${many}"`, ""],
    [list, `email = "${many}" AND state = ACTIVE`, ""],
    [list, "state = ACTIVE", ""],
    [list, "", "name"],
    [list, "", "name desc"],
    [list, "", "email"],
    [list, "", "create_time desc"],
  ]),
  ["ListOrgs", `name = "${many}"`, ""],
  ["ListOrgs", 'slug = "om*"', ""],
  ["ListOrgs", "", "name desc"],
  ["ListOrgs", "", "slug"],
].filter(somewhat);

// A page asks for one row more than it holds, and PostgreSQL may look at some that it leaves out.
const most = (pageSize: number): number => 3 * (pageSize + 1);

/** Looks at the first page, and at one behind so many rows. None is prepared, so their tenth use is as their first. */
const judge = async (list: List, filter: string, orderBy: string, depth: number): Promise<void> => {
  const asked = { filter, orderBy, pageToken: "" };
  const first = () => list({ ...asked, pageSize: 20 });
  expect(faultsOf(await nodesOfCall(first), most(20))).toEqual([]);
  const { nextPageToken: pageToken } = await list({ ...asked, pageSize: depth });
  expect(pageToken).not.toBe("");
  const later = () => list({ ...asked, pageToken, pageSize: 20 });
  expect(faultsOf(await nodesOfCall(later), most(20))).toEqual([]);
};

describe("a chosen page costs the same at any depth and reads no more than it shows", () => {
  const depthOf = (filter: string): number =>
    filter.includes("m*") ? 100 : filter.includes("*") ? 10 : 900;

  test.each(casesInOrg as Case[])(
    "in a large org: %s of %j by %j",
    async (list, filter, orderBy) => {
      const sorts = filter.includes("*") && orderBy !== "";
      if (sorts) return judgeSorted(inOrg[list] ?? expect.fail(), filter, orderBy);
      await judge(inOrg[list] ?? expect.fail(), filter, orderBy, depthOf(filter));
    },
  );

  test.each(casesOfAll as Case[])(
    "of the platform: %s of %j by %j",
    async (list, filter, orderBy) => {
      await judge(ofAll[list] ?? expect.fail(), filter, orderBy, depthOf(filter));
    },
  );

  /** An order that is not that of what the filter fixes: the rows that it fixes may be read and sorted. */
  const judgeSorted = async (list: List, filter: string, orderBy: string): Promise<void> => {
    const call = () => list({ filter, orderBy, pageToken: "", pageSize: 20 });
    await useTenTimes(call);
    expect(faultsOf(await nodesOfCall(call), memberCount / 10)).toEqual([]);
  };
});

describe("one thing is found by a few probes", () => {
  test.each<[name: string, call: () => Promise<unknown>]>([
    [
      "a member by address",
      () =>
        tenant.member.users.listUsers({
          orgId: tenant.orgId,
          filter: `email = ${tenant.memberId}@x`,
        }),
    ],
    [
      "a user by external id",
      () => harness.current.ops.users.listUsers({ filter: "external_id = x77" }),
    ],
    [
      "a user by name",
      () => harness.current.ops.users.listUsers({ filter: `name = ${randomUUID()}` }),
    ],
    ["an org by slug", () => harness.current.ops.orgs.listOrgs({ filter: "slug = oabc" })],
  ])("%s", async (_, call) => {
    await useTenTimes(call);
    expect(faultsOf(await nodesOfCall(call), 5)).toEqual([]);
  });
});

// A caller could otherwise fill each connection with statements, one for each shape of filter.
test("a chosen page is never prepared, and a plain one always", async () => {
  for (const list of [...Object.values(inOrg), ...Object.values(ofAll)])
    for (const [filter, name] of [
      ["update_time:* OR state = ACTIVE", /^<unnamed>$/],
      ["", /^(?!<unnamed>)/],
    ] as const) {
      names.length = 0;
      const isTeams = list === inOrg.ListTeams;
      const asked = isTeams ? filter.replace("state = ACTIVE", "type = team") : filter;
      await list({ filter: asked, orderBy: "", pageSize: 1, pageToken: "" });
      expect(names).toEqual([expect.stringMatching(name)]);
    }
  names.length = 0;
  await ofAll.ListUsers?.({ filter: "", orderBy: "name desc", pageSize: 1, pageToken: "" });
  expect(names).toEqual(["<unnamed>"]);
});
