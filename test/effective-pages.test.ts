import { randomUUID } from "node:crypto";
import { beforeAll, describe, expect, test } from "vitest";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { type Team, TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { byHand } from "./console.ts";
import { type Callers, type Tenant, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";

const harness = useHarness();

const effective = true;
const userCount = 40;

let tenant: Tenant;
/** Members of the org, in the order of their ids. */
let people: string[];
/** A tree of forty teams. Under one of them lie nine in which hardly anybody is but the last of the people. */
const teams: Team[] = [];

const nextOf = (seed: number) => () => {
  seed = (Math.imul(seed, 48_271) >>> 0) % 2_147_483_647;
  return seed;
};

beforeAll(async () => {
  const { current } = harness;
  tenant = await current.tenant();
  const { orgId, owner } = tenant;
  const made = await current.ops.users.batchCreateUsers({
    users: Array.from({ length: userCount }, () => ({
      user: { email: `${randomUUID()}@example.com`, name: "Some One" },
    })),
  });
  people = made.results.map(({ result }) => (result.case === "user" ? result.value.id : "")).sort();
  await owner.orgs.batchAddOrgMembers({ orgId, members: people.map((userId) => ({ userId })) });
  const next = nextOf(7);
  for (let n = 0; n < 40; n++) {
    const parent =
      n === 0 ? undefined : n === 30 ? teams[0] : n > 30 ? teams[30] : teams[next() % n];
    const secret = n !== 30 && n % 5 === 4;
    const visibility = secret ? TeamVisibility.SECRET : TeamVisibility.VISIBLE;
    const team = { orgId, name: `${n}`, parentTeamId: parent?.id ?? "", visibility };
    teams.push(await makeTeam(owner, team));
  }
  const [last = "", ...late] = people.slice(-3).reverse();
  const early = people.slice(0, -3);
  for (const [n, { id: teamId }] of teams.entries()) {
    const inIt =
      n < 30 ? early.filter(() => next() % 6 === 0) : late.filter(() => next() % 2 === 0);
    // One person is everywhere before the last.
    const all = n < 30 ? [...new Set([...inIt, early[5] ?? ""])] : inIt;
    if (n === 32) all.push(early[1] ?? "");
    // One is in a secret team alone.
    if (n === 34) all.push(last);
    const role: TeamRole = n % 7 === 3 ? TeamRole.MAINTAINER : TeamRole.MEMBER;
    const members = all.map((userId) => ({ userId, role }));
    // A guest sees all that lies below theirs.
    if (n === 30) members.push({ userId: tenant.guestId, role: TeamRole.MAINTAINER });
    await owner.teams.setTeamMembers({ orgId, teamId, members });
  }
  // Nobody is anywhere by a team that is deleted.
  const gone = await makeTeam(owner, { orgId, name: "Gone", parentTeamId: teams[0]?.id ?? "" });
  await owner.teams.addTeamMember({ orgId, teamId: gone.id, userId: tenant.adminId });
  await owner.teams.deleteTeam({ orgId, teamId: gone.id });
  for (const n of [12, 33])
    await owner.teams.deleteTeam({ orgId, teamId: teams[n]?.id ?? "", force: true });
  await owner.orgs.updateOrgMember({ member: { orgId, userId: people[8] ?? "", role: "guest" } });
  const expired = [early[2], early[9], early[17]];
  await byHand(
    current.admin,
    "update roster.org_members set expire_time = now() where user_id = any ($1)",
    [expired],
  );
  await current.ops.users.deleteUser({ userId: early[11] ?? "" });
});

/** Who is in each team that the caller sees, put together from what the caller sees of each team by itself. */
const puttogether = async (caller: Callers) => {
  const { orgId } = tenant;
  const seen = (await caller.teams.listTeams({ orgId, pageSize: 1_000 })).teams;
  const parents = new Map(seen.map(({ id, parentTeamId }) => [id, parentTeamId]));
  const found = new Map<string, Map<string, string[]>>(seen.map(({ id }) => [id, new Map()]));
  for (const { id: teamId } of seen) {
    const { members } = await caller.teams.listTeamMembers({ orgId, teamId, pageSize: 1_000 });
    for (const { userId } of members) {
      const path: string[] = [];
      for (let up = teamId; found.has(up); up = parents.get(up) ?? "") {
        path.push(up);
        const known = found.get(up)?.get(userId);
        const [first = ""] = known ?? [];
        if (
          !known ||
          path.length < known.length ||
          (path.length === known.length && teamId < first)
        )
          found.get(up)?.set(userId, [...path]);
      }
    }
  }
  return found;
};

const pagesOf = async (caller: Callers, teamId: string, pageSize: number) => {
  const all: [string, string[]][] = [];
  let pageToken = "";
  do {
    const ask = { orgId: tenant.orgId, teamId, effective, pageSize, pageToken };
    const page = await caller.teams.listTeamMembers(ask);
    all.push(
      ...page.members.map(({ userId, viaTeamIds }) => [userId, viaTeamIds] as [string, string[]]),
    );
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  return all;
};

// Of these sizes the first walks the org's memberships for all but small teams, the last asks each team.
const sizes = [2, 1_000];
const callers: Record<string, () => Promise<Callers> | Callers> = {
  "an owner": () => tenant.owner,
  "a member without a team": () => tenant.member,
  "a member of some teams, maintainer of others": () => harness.current.as(people[0] ?? ""),
  "one of the last": () => harness.current.as(people.at(-1) ?? ""),
};

describe("Members of a team and those below it, as they are put together one by one", () => {
  const guests: typeof callers = {
    "a guest": () => harness.current.as(people[8] ?? ""),
    "a guest who is a maintainer": () => tenant.guest,
  };
  test.each(Object.entries({ ...callers, ...guests }))(
    "come in pages of any size to %s",
    async (_name, as) => {
      const caller = await as();
      const all = await puttogether(caller);
      expect(all.size).toBeGreaterThan(2);
      for (const [teamId, members] of all) {
        const expected = [...members].sort(([a], [b]) => (a < b ? -1 : 1));
        for (const size of sizes)
          expect(await pagesOf(caller, teamId, size), `${size} of ${teamId}`).toEqual(expected);
      }
    },
  );

  test.each(Object.entries(callers))("are the teams of each user, to %s", async (_name, as) => {
    const { orgId } = tenant;
    const caller = await as();
    const all = await puttogether(caller);
    for (const userId of [people[5] ?? "", people[0] ?? "", people.at(-1) ?? ""]) {
      const expected = [...all]
        .flatMap(([teamId, members]) =>
          members.has(userId) ? [[teamId, members.get(userId)]] : [],
        )
        .sort(([a = ""], [b = ""]) => (a < b ? -1 : 1));
      for (const pageSize of sizes) {
        const pages: unknown[] = [];
        let pageToken = "";
        do {
          const ask = { orgId, userId, effective, pageSize, pageToken };
          const page = await caller.teams.listUserTeams(ask);
          pages.push(...page.userTeams.map(({ team, viaTeamIds }) => [team?.id, viaTeamIds]));
          pageToken = page.nextPageToken;
        } while (pageToken !== "");
        expect(pages).toEqual(expected);
      }
    }
  });
});
