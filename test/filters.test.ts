import { randomUUID } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { type Callers, refusal, type Tenant, useHarness } from "./harness.ts";

const harness = useHarness();

const invalid = { code: "InvalidArgument", reason: "FILTER_INVALID" };

/** A word that no other test uses. */
const mark = (): string => `m${randomUUID().slice(0, 8)}`;
const word = mark();

let tenant: Tenant;
/** The ids of what was made, by the name that tests call it. */
const ids: Record<string, string> = {};
/** Times between the makings. */
const between: string[] = [];

const namesOf = (found: readonly string[]): string[] =>
  Object.entries(ids)
    .filter(([, id]) => found.includes(id))
    .map(([name]) => name)
    .sort();

/** What a list finds by a filter, by the names above. */
type Find = (by: Callers, filter: string) => Promise<string[]>;

const finds = {
  users: async (by, filter) => {
    const { users } = await by.users.listUsers({ orgId: tenant.orgId, filter });
    return namesOf(users.map(({ id }) => id));
  },
  allUsers: async (by, filter) => {
    const { users } = await by.users.listUsers({ filter, pageSize: 1_000 });
    return namesOf(users.map(({ id }) => id));
  },
  orgs: async (by, filter) => {
    const { orgs } = await by.orgs.listOrgs({ filter, pageSize: 1_000 });
    return namesOf(orgs.map(({ id }) => id));
  },
  members: async (by, filter) => {
    const { members } = await by.orgs.listOrgMembers({ orgId: tenant.orgId, filter });
    return namesOf(members.map(({ userId }) => userId));
  },
  teams: async (by, filter) => {
    const { teams } = await by.teams.listTeams({ orgId: tenant.orgId, filter });
    return namesOf(teams.map(({ id }) => id));
  },
} satisfies Record<string, Find>;

const person = async (name: string, role: string, more: object = {}): Promise<string> => {
  const { users, orgs } = harness.current.ops;
  const user = { email: `${word}.${name}@example.com`, name: `${word} ${name}`, ...more };
  const made = await users.createUser({ user });
  const userId = made.user?.id ?? "";
  await orgs.addOrgMember({ orgId: tenant.orgId, userId, role });
  ids[name.toLowerCase()] = userId;
  between.push(new Date(Date.now() + 1).toISOString());
  await new Promise((resolve) => setTimeout(resolve, 5));
  return userId;
};

beforeAll(async () => {
  tenant = await harness.current.tenant();
  const { ops } = harness.current;
  const { orgId, owner } = tenant;
  await person("Grace", "admin", { labels: { plan: "pro", "cost centre": "7" } });
  await person("Émile", "member", { externalId: `${word}-x1`, labels: { plan: "free" } });
  const gregory = await person("Gregory", "guest");
  await ops.orgs.updateOrgMember({
    member: { orgId, userId: gregory, state: OrgMemberState.SUSPENDED },
    updateMask: { paths: ["state"] },
  });
  for (const [name, more] of [
    ["Red", { labels: { plan: "pro" } }],
    ["Reduced", { externalId: `${word}-o1` }],
  ] as const) {
    const org = { name: `${word} ${name}`, slug: `${word}-${name.toLowerCase()}`, ...more };
    const made = await ops.orgs.createOrg({ org, ownerUserId: ids.grace ?? "" });
    ids[name.toLowerCase()] = made.org?.id ?? "";
  }
  let parentTeamId = "";
  for (const [name, more] of [
    ["Engines", { type: "squad", labels: { area: "steam" } }],
    ["Looms", { visibility: TeamVisibility.SECRET }],
  ] as const) {
    const made = await owner.teams.createTeam({ team: { orgId, name, parentTeamId, ...more } });
    parentTeamId = made.team?.id ?? "";
    ids[name.toLowerCase()] = parentTeamId;
  }
});

const everyone = ["gregory", "grace", "émile"].sort();

describe("A filter of ListUsers", () => {
  test.each<[filter: string, found: string[]]>([
    [`name = "${word} grace"`, ["grace"]],
    [`name = "${word} GRA*"`, ["grace"]],
    [`name = "${word} gr*"`, ["grace", "gregory"]],
    [`name = "${word} e\u0301MILE"`, ["émile"]],
    [`name != "${word} gr*" AND name = "${word}*"`, ["émile"]],
    [`email = "${word.toUpperCase()}.Grace@EXAMPLE.com"`, ["grace"]],
    [`email:"${word}.g*"`, ["grace", "gregory"]],
    [`email = ${word}.g* AND NOT email = "*y@example.com"`, ["grace"]],
    [`name = "*egor*"`, ["gregory"]],
    [`name = "*E"`, ["grace", "émile"]],
    [`name > "${word} h" AND name < "${word} \uffff"`, ["émile"]],
    [`name <= "${word} grace" AND name >= "${word}"`, ["grace"]],
    [`state = ACTIVE AND name = "${word}*"`, everyone],
    [`state != ACTIVE AND name = "${word}*"`, []],
    [`name = "${word}" OR name = "${word} grace"`, ["grace"]],
    [`delete_time:* AND name = "${word}*"`, []],
    [`NOT delete_time:* name = "${word}*"`, everyone],
    [`name = "${word}_%"`, []],
    [`name = "%*"`, []],
    [`name = "${word} grace' or 'a' = 'a"`, []],
    [`name = "${word} \\*"`, []],
  ])("%s", async (filter, found) => {
    const own = [tenant.member, tenant.owner, harness.current.ops];
    for (const by of own) expect(await finds.users(by, filter)).toEqual([...found].sort());
    if (!/"\*/.test(filter))
      expect(await finds.allUsers(harness.current.ops, filter)).toEqual([...found].sort());
  });

  test.each<[filter: string, found: string[]]>([
    [`labels.plan = pro`, ["grace"]],
    [`labels.plan:*`, ["grace", "émile"]],
    [`labels:plan`, ["grace", "émile"]],
    [`labels:* AND name = "${word}*"`, ["grace", "émile"]],
    [`labels."cost centre" = 7`, ["grace"]],
    [`labels.plan = "fr*"`, ["émile"]],
    [`labels.plan != pro AND name = "${word}*"`, ["gregory", "émile"]],
    [`labels.plan > g AND name = "${word}*"`, ["grace"]],
    [`external_id = ${word}-x1`, ["émile"]],
    [`external_id = ${word.toUpperCase()}-X1`, []],
    [`external_id:${word}*`, ["émile"]],
    [`external_id:* AND name = "${word}*"`, ["émile"]],
    [`external_id = "" AND name = "${word}*"`, ["gregory", "grace"]],
    [`external_id != "${word}-x1" AND name = "${word}*"`, ["gregory", "grace"]],
  ])("%s, by platform and services", async (filter, found) => {
    const { ops } = harness.current;
    const scope = "members.get users.get";
    const service = await harness.current.as("service:crm", { scope });
    for (const by of [ops, service]) {
      expect(await finds.users(by, filter)).toEqual([...found].sort());
      expect(await finds.allUsers(by, filter)).toEqual([...found].sort());
    }
  });

  test("sees of others no labels and no external id when a user asks, and the user's own", async () => {
    const grace = await harness.current.as(ids.grace ?? "");
    const émile = await harness.current.as(ids.émile ?? "");
    for (const filter of ["labels.plan:*", "labels:plan", `labels.plan = "*"`, "labels:*"]) {
      expect(await finds.users(tenant.owner, filter)).toEqual([]);
      expect(await finds.users(grace, filter)).toEqual(["grace"]);
    }
    for (const filter of [
      `external_id = ${word}-x1`,
      `external_id = "*x1"`,
      "external_id:*",
      `external_id > a`,
    ]) {
      expect(await finds.users(tenant.owner, filter)).toEqual([]);
      expect(await finds.users(émile, filter)).toEqual(["émile"]);
    }
    // What is not shown is as if it were not there, on both sides of NOT.
    const others = `NOT external_id:* AND NOT labels:* AND name = "${word}*"`;
    expect(await finds.users(tenant.owner, others)).toEqual(everyone);
  });

  test("compares times exactly, in any zone", async () => {
    const [first = ""] = between;
    const mine = `name = "${word}*"`;
    const { ops } = harness.current;
    expect(await finds.users(ops, `${mine} create_time <= ${first}`)).toEqual(["grace"]);
    expect(await finds.users(ops, `${mine} create_time > "${first}"`)).toEqual(
      everyone.filter((name) => name !== "grace"),
    );
    const { users } = await ops.users.listUsers({ filter: `name = "${word} grace"` });
    const { seconds = 0n, nanos = 0 } = users[0]?.createTime ?? {};
    const shifted = new Date(Number(seconds + 7200n) * 1000).toISOString().slice(0, 19);
    const exact = `${shifted}.${String(nanos).padStart(9, "0")}+02:00`;
    expect(await finds.allUsers(ops, `create_time = ${exact}`)).toEqual(["grace"]);
  });

  test("finds deleted users by platform that shows them", async () => {
    const { ops } = harness.current;
    const name = mark();
    const userId = await harness.current.user(name);
    await ops.users.deleteUser({ userId });
    const list = async (by: Callers, showDeleted: boolean) =>
      (await by.users.listUsers({ showDeleted, filter: `name = ${name} AND delete_time:*` })).users;
    expect(await list(ops, true)).toMatchObject([{ id: userId }]);
    expect(await list(ops, false)).toEqual([]);
    const service = await harness.current.as("service:crm", { scope: "users.get" });
    expect(await list(service, true)).toEqual([]);
  });

  test("follows a member's new name and address, into every org", async () => {
    const { ops } = harness.current;
    const [old, later] = [mark(), mark()];
    const userId = await harness.current.user(old);
    const other = await harness.current.tenant();
    const lists = [tenant, other].map(({ orgId, member }) => async (filter: string) => {
      const { users } = await member.users.listUsers({ orgId, filter });
      return users.map(({ id }) => id);
    });
    for (const { orgId } of [tenant, other]) await ops.orgs.addOrgMember({ orgId, userId });
    for (const find of lists) expect(await find(`name = ${old}`)).toEqual([userId]);
    await ops.users.updateUser({
      user: { id: userId, name: later, email: `${later}@example.com` },
    });
    for (const find of lists) {
      expect(await find(`name = ${old}`)).toEqual([]);
      expect(await find(`name = ${later}`)).toEqual([userId]);
      expect(await find(`email = ${later}@*`)).toEqual([userId]);
    }
    await ops.orgs.removeOrgMember({ orgId: other.orgId, userId });
    expect(await lists[1]?.(`name = ${later}`)).toEqual([]);
    expect(await lists[0]?.(`name = ${later}`)).toEqual([userId]);
  });
});

describe("A filter of ListOrgMembers", () => {
  test.each<[filter: string, found: string[]]>([
    ["role = admin", ["grace"]],
    ["role = ad*", ["grace"]],
    [`state = SUSPENDED`, ["gregory"]],
    [`user.name = "${word} gr*"`, ["grace", "gregory"]],
    [`user.email = "${word}.*" AND role != admin`, ["gregory", "émile"]],
    [`user.name = "*MILE"`, ["émile"]],
    [`expire_time:*`, []],
    [
      `user.name = "${word}*" AND NOT expire_time:* AND update_time > 2020-01-01T00:00:00Z`,
      everyone,
    ],
  ])("%s", async (filter, found) => {
    expect(await finds.members(tenant.member, filter)).toEqual([...found].sort());
  });

  test("compares the time of joining", async () => {
    const [first = "", second = ""] = between;
    const filter = `join_time > ${first} AND join_time < ${second}`;
    expect(await finds.members(tenant.member, filter)).toEqual(["émile"]);
  });
});

describe("A filter of ListOrgs", () => {
  test.each<[filter: string, found: string[]]>([
    [`name = "${word} RED"`, ["red"]],
    [`name = "${word} red*"`, ["red", "reduced"]],
    [`slug = ${word}-red`, ["red"]],
    [`slug:${word}-*`, ["red", "reduced"]],
    [`slug:${word}-* AND labels.plan = pro`, ["red"]],
    [`external_id = ${word}-o1`, ["reduced"]],
    [
      `slug:${word}-* AND state = ACTIVE AND create_time > 2020-01-01T00:00:00Z`,
      ["red", "reduced"],
    ],
    [`slug:${word}-* AND (state = SUSPENDED OR delete_time:*)`, []],
  ])("%s", async (filter, found) => {
    expect(await finds.orgs(harness.current.ops, filter)).toEqual(found);
  });
});

describe("A filter of ListTeams", () => {
  test.each<[filter: string, found: string[]]>([
    ["name = engines", ["engines"]],
    ["name = E*", ["engines"]],
    ['name = "*ngin*" OR name = "*s"', ["engines", "looms"]],
    ["type = squad", ["engines"]],
    ["visibility = SECRET", ["looms"]],
    ['parent_team_id = ""', ["engines"]],
    ["parent_team_id:*", ["looms"]],
    ["labels.area = steam", ["engines"]],
    ["-labels.area = steam", ["looms"]],
    ["create_time > 2020-01-01T00:00:00Z AND NOT delete_time:*", ["engines", "looms"]],
  ])("%s", async (filter, found) => {
    expect(await finds.teams(tenant.owner, filter)).toEqual(found);
  });

  test("finds teams under one, and tells nobody of secret ones", async () => {
    const filter = `parent_team_id = ${ids.engines}`;
    expect(await finds.teams(tenant.owner, filter)).toEqual(["looms"]);
    for (const asked of [filter, "visibility = SECRET", "name = looms"])
      expect(await finds.teams(tenant.member, asked)).toEqual([]);
  });
});

describe("A filter of ListAuditEntries", () => {
  test("asks for actor, method, outcome, reason, correlation id, time and what was changed", async () => {
    const { orgId, memberId, adminId, owner, member } = await harness.current.tenant();
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "One" } });
    const teamId = team?.id ?? "";
    await owner.teams.updateTeam({ team: { orgId, id: teamId, name: "Two" } });
    await refusal(member.teams.deleteTeam({ orgId, teamId }));
    await harness.current.ops.users.updateUser({ user: { id: adminId, name: "Renamed" } });
    const { auditEntries: all } = await owner.audit.listAuditEntries({ orgId });
    const find = async (filter: string) => {
      const { auditEntries } = await owner.audit.listAuditEntries({ orgId, filter });
      return auditEntries.map(({ method }) => method.split("/").at(-1));
    };
    const [, refused] = all;
    expect(await find(`actor.subject = ${memberId}`)).toEqual(["DeleteTeam"]);
    expect(await find("actor.kind = SERVICE")).toHaveLength(5);
    expect(await find("outcome = DENIED")).toEqual(["DeleteTeam"]);
    expect(await find("outcome != SUCCEEDED AND reason = PERMISSION_*")).toEqual(["DeleteTeam"]);
    expect(await find('method = "*/UpdateTeam"')).toEqual(["UpdateTeam"]);
    expect(await find("method = roster.v1.TeamService/*")).toHaveLength(3);
    expect(await find(`correlation_id = ${refused?.correlationId}`)).toEqual(["DeleteTeam"]);
    expect(await find("create_time < 2020-01-01T00:00:00Z")).toEqual([]);
    expect(await find(`changes.resource_id:${teamId}`)).toEqual(["UpdateTeam", "CreateTeam"]);
    expect(await find(`changes.resource_id:${teamId} AND -method = "*Update*"`)).toEqual([
      "CreateTeam",
    ]);
    // The change of a user belongs to no org, and stands in the log of each of theirs.
    expect(await find("changes.resource_type:user")).toEqual(["UpdateUser"]);
    expect(await find("changes.resource_type != user AND outcome = SUCCEEDED")).toHaveLength(
      all.length - 2,
    );
    const { auditEntries } = await harness.current.ops.audit.listAuditEntries({
      filter: `changes.resource_id:${teamId}`,
    });
    expect(auditEntries).toHaveLength(2);
  });

  test("learns nothing of other orgs", async () => {
    const one = await harness.current.tenant();
    const filter = `changes.resource_id:"${one.orgId}" OR actor.subject:"${one.ownerId}"`;
    await one.owner.teams.createTeam({ team: { orgId: one.orgId, name: "One" } });
    const { auditEntries } = await tenant.owner.audit.listAuditEntries({
      orgId: tenant.orgId,
      filter,
    });
    expect(auditEntries).toEqual([]);
  });
});

describe("INVALID_ARGUMENT", () => {
  const users = (filter: string) => tenant.member.users.listUsers({ orgId: tenant.orgId, filter });

  test("for a field that the list lacks, and names those it has", async () => {
    const fields = "name, email, state, external_id, labels.KEY, create_time";
    for (const name of ["nmae", "user.name", "constructor", "__proto__", "labels.", "label.a"]) {
      const refused = await refusal(users(`state = ACTIVE AND ${name} = x`));
      expect(refused).toMatchObject(invalid);
      expect(refused.fields).toEqual(["filter"]);
      expect(refused.metadata).toMatchObject({ field: "filter", position: "20", token: name });
      expect(refused.metadata.allowed).toContain(fields);
      expect(refused.message).toMatch(/^filter: at character 20, .*no such field; there is name/);
    }
  });

  test.each([
    ["state = GONE", "9", /no such value/],
    ["state = active", "9", /no such value/],
    ["state > ACTIVE", "9", /no meaning/],
    ["state = A*", "9", /as a whole/],
    ["create_time > yesterday", "15", /must be a time/],
    ["create_time > 2026-01-31", "15", /must be a time/],
    ["create_time > 2026-02-31T00:00:00Z", "15", /must be a time/],
    ["create_time > 0000-01-01T00:00:00Z", "15", /must be a time/],
    ["create_time < *", "15", /as a whole|must be a time/],
    ["labels = x", "1", /name a label/],
    ["name < gra*", "8", /whole text/],
    ["Hugo", "1", /name a field/],
    ['name = "\0"', "9", /control/],
  ])("for %s, at character %s", async (filter, position, rule) => {
    const refused = await refusal(users(filter));
    expect(refused).toMatchObject({ ...invalid, metadata: { position } });
    expect(refused.message).toMatch(rule);
  });

  test("for an id that is none", async () => {
    const { orgId, member } = tenant;
    const refused = await refusal(member.teams.listTeams({ orgId, filter: "parent_team_id = x" }));
    expect(refused).toMatchObject({ ...invalid, metadata: { position: "18", token: "x" } });
  });

  test("for a star before the text outside an org", async () => {
    const { users: everyUser, orgs, audit } = harness.current.ops;
    for (const [list, position] of [
      [everyUser.listUsers({ filter: 'name = "*son"' }), "8"],
      [everyUser.listUsers({ filter: "labels.a = *x*" }), "12"],
      [orgs.listOrgs({ filter: "slug = *x" }), "8"],
      [audit.listAuditEntries({ filter: "changes.resource_id = *x" }), "23"],
    ] as const)
      expect(await refusal(list)).toMatchObject({ ...invalid, metadata: { position } });
  });

  test("for one of more than 2,000 characters", async () => {
    const refused = await refusal(users(`name = ${"x".repeat(2_000)}`));
    expect(refused).toMatchObject({ code: "InvalidArgument", reason: "FIELD_INVALID" });
    expect(await users(`name = ${"語".repeat(1_993)}`)).toMatchObject({ users: [] });
  });

  test("for a page of another filter", async () => {
    const { orgId, member } = tenant;
    const filter = `name = "${word}*"`;
    const { nextPageToken } = await member.users.listUsers({ orgId, filter, pageSize: 1 });
    const other = { orgId, filter: `${filter} state = ACTIVE`, pageToken: nextPageToken };
    const refused = await refusal(member.users.listUsers(other));
    expect(refused).toMatchObject({ code: "InvalidArgument", reason: "PAGE_TOKEN_INVALID" });
  });

  test("for none who may not list: PERMISSION_DENIED", async () => {
    const { orgId, guest } = tenant;
    expect(await refusal(guest.users.listUsers({ orgId, filter: "Hugo" }))).toMatchObject({
      code: "PermissionDenied",
      reason: "PERMISSION_MISSING",
    });
  });

  test("for nothing that a text could do to the statement", async () => {
    const { orgId, owner } = tenant;
    const sharp = ["'", "';", "$1", "$slonik_1", "\\", "--", "/*", "%", "?", ":a", "{}", "::uuid"];
    for (const text of sharp) {
      const name = `${word}${text}`;
      const filter = `name = ${JSON.stringify(name)} OR labels.${JSON.stringify(name)} = x`;
      expect((await owner.teams.listTeams({ orgId, filter })).teams).toEqual([]);
      await owner.teams.createTeam({ team: { orgId, name, labels: { [name]: "x" } } });
      expect((await owner.teams.listTeams({ orgId, filter })).teams).toHaveLength(1);
    }
  });
});
