import { randomUUID } from "node:crypto";
import { NIL } from "uuid";
import { describe, expect, test } from "vitest";
import { type TeamMember, TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { type Team, TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { byHand } from "./console.ts";
import { type Callers, flushesOfRead, refusal, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { told } from "./samples.ts";
import { enter, useConnections, within } from "./sessions.ts";

const harness = useHarness();

const { SECRET } = TeamVisibility;
const { MEMBER, MAINTAINER } = TeamRole;
const effective = true;

/** An org with teams, each under the one named before the slash, by their names; a secret one ends in `!`. */
const orgWith = async (...paths: readonly string[]) => {
  const tenant = await harness.current.tenant();
  const { orgId, owner } = tenant;
  const teams: Record<string, Team> = {};
  for (const path of paths) {
    const [name = "", parent = ""] = path.split("/").reverse();
    teams[name] = await makeTeam(owner, {
      orgId,
      name,
      parentTeamId: teams[parent]?.id ?? "",
      ...(name.endsWith("!") ? { visibility: SECRET } : {}),
    });
  }
  const id = (name: string): string => teams[name]?.id ?? expect.fail(`no team ${name}`);
  const nameOf = (id: string): string =>
    Object.keys(teams).find((name) => teams[name]?.id === id) ?? expect.fail(`no team ${id}`);
  /** A new member of the org with a role in some teams. */
  const joined = async (names: string, { role = MEMBER as TeamRole, orgRole = "member" } = {}) => {
    const userId = await harness.current.user();
    await harness.current.ops.orgs.addOrgMember({ orgId, userId, role: orgRole });
    for (const name of names.split(" "))
      await owner.teams.addTeamMember({ orgId, teamId: id(name), userId, role });
    return { userId, ...(await harness.current.as(userId)) };
  };
  /** Who is in a team by which path, as the caller sees it. */
  const pathsOf = async ({ teams }: Callers, name: string): Promise<Record<string, string>> => {
    const ask = { orgId, teamId: id(name), effective };
    const { members } = await teams.listTeamMembers(ask);
    for (const member of members) {
      const { userId } = member;
      expect((await teams.getTeamMember({ ...ask, userId })).member).toEqual(member);
    }
    return Object.fromEntries(
      members.map(({ userId, viaTeamIds }) => [userId, viaTeamIds.map(nameOf).join(" ")]),
    );
  };
  /** In which teams a user is by which path, as the caller sees it. */
  const teamsOf = async ({ teams }: Callers, userId: string): Promise<string[]> => {
    const { userTeams } = await teams.listUserTeams({ orgId, userId, effective });
    return userTeams
      .map(({ team, viaTeamIds }) => `${team?.name}: ${viaTeamIds.map(nameOf).join(" ")}`)
      .sort();
  };
  const askOne = ({ teams }: Callers, name: string, userId: string) =>
    teams.getTeamMember({ orgId, teamId: id(name), userId, effective });
  return { ...tenant, id, joined, pathsOf, teamsOf, askOne };
};

const noMember = { code: "NotFound", reason: "TEAM_MEMBER_NOT_FOUND" };

/** Every page of this size. */
const walk = async ({ teams }: Callers, ask: object, pageSize: number): Promise<TeamMember[]> => {
  const all: TeamMember[] = [];
  let pageToken = "";
  do {
    const page = await teams.listTeamMembers({ ...ask, effective, pageSize, pageToken });
    all.push(...page.members);
    pageToken = page.nextPageToken;
  } while (pageToken !== "");
  return all;
};

describe("Who is in a team", () => {
  test("is in those above it, once in each, by the nearest membership and its path", async () => {
    const { orgId, owner, id, joined, pathsOf, teamsOf } = await orgWith(
      "A",
      "A/B",
      "B/C",
      "A/D",
      "E",
    );
    const deep = await joined("C");
    const twice = await joined("C B");
    const beside = await joined("C D");
    const direct = await joined("A C", { role: MAINTAINER });
    await joined("E");
    expect(await pathsOf(owner, "A")).toEqual({
      [deep.userId]: "C B A",
      [twice.userId]: "B A",
      [beside.userId]: "D A",
      [direct.userId]: "A",
    });
    expect(await pathsOf(owner, "B")).toEqual({
      [deep.userId]: "C B",
      [twice.userId]: "B",
      [beside.userId]: "C B",
      [direct.userId]: "C B",
    });
    expect(await teamsOf(owner, twice.userId)).toEqual(["A: B A", "B: B", "C: C"]);
    expect(await teamsOf(owner, beside.userId)).toEqual(["A: D A", "B: C B", "C: C", "D: D"]);
    const { userTeams } = await owner.teams.listUserTeams({
      orgId,
      userId: deep.userId,
      effective,
    });
    const { member } = await owner.teams.getTeamMember({
      orgId,
      teamId: id("C"),
      userId: deep.userId,
    });
    for (const userTeam of userTeams) expect(userTeam.member).toEqual(member);
  });

  test("of equally near teams by the one with the lowest id", async () => {
    const { owner, joined, pathsOf, teamsOf } = await orgWith("A", "A/B", "A/C", "A/D");
    const { userId } = await joined("D B C");
    expect(await pathsOf(owner, "A")).toEqual({ [userId]: "B A" });
    expect(await teamsOf(owner, userId)).toContain("A: B A");
  });

  test("is in that one alone where this was not asked", async () => {
    const { orgId, owner, id, joined, askOne } = await orgWith("A", "A/B");
    const [above, below] = [await joined("A"), await joined("B")];
    const ask = { orgId, teamId: id("A") };
    const { members } = await owner.teams.listTeamMembers(ask);
    expect(members).toMatchObject([{ userId: above.userId, viaTeamIds: [] }]);
    const { member } = await owner.teams.getTeamMember({ ...ask, userId: above.userId });
    expect(member?.viaTeamIds).toEqual([]);
    const plain = owner.teams.getTeamMember({ ...ask, userId: below.userId });
    expect(await refusal(plain)).toMatchObject(noMember);
    const { userTeams } = await owner.teams.listUserTeams({ orgId, userId: below.userId });
    expect(userTeams).toMatchObject([{ team: { name: "B" }, viaTeamIds: [] }]);
    expect((await askOne(owner, "A", below.userId)).member).toMatchObject({
      teamId: id("B"),
      viaTeamIds: [id("B"), id("A")],
    });
  });

  test("moves along with the team, and goes and comes with it", async () => {
    const { orgId, owner, id, joined, pathsOf, teamsOf, askOne } = await orgWith(
      "A",
      "A/B",
      "B/C",
      "D",
    );
    const { userId } = await joined("C");
    await owner.teams.moveTeam({ orgId, teamId: id("B"), parentTeamId: id("D") });
    expect([await pathsOf(owner, "A"), await pathsOf(owner, "D")]).toEqual([
      {},
      { [userId]: "C B D" },
    ]);
    await owner.teams.deleteTeam({ orgId, teamId: id("B"), force: true });
    expect([await pathsOf(owner, "D"), await teamsOf(owner, userId)]).toEqual([{}, []]);
    expect(await refusal(askOne(owner, "D", userId))).toMatchObject(noMember);
    await owner.teams.undeleteTeam({ orgId, teamId: id("B") });
    expect(await teamsOf(owner, userId)).toEqual(["B: C B", "C: C", "D: C B D"]);
  });

  test("is not when deleted, expired or out of the org, and then like one who never was", async () => {
    const { orgId, owner, joined, pathsOf, teamsOf, askOne, id } = await orgWith("A", "A/B");
    const [stays, deleted, expired, left, last] = [
      await joined("B"),
      await joined("B"),
      await joined("B"),
      await joined("B"),
      await joined("B"),
    ];
    await harness.current.ops.users.deleteUser({ userId: deleted.userId });
    await byHand(
      harness.current.admin,
      "update roster.org_members set expire_time = now() where user_id = $1",
      [expired.userId],
    );
    await owner.orgs.removeOrgMember({ orgId, userId: left.userId });
    expect(await pathsOf(owner, "A")).toEqual({ [stays.userId]: "B A", [last.userId]: "B A" });
    const members = await walk(owner, { orgId, teamId: id("A"), view: View.FULL }, 1);
    expect(members.map(({ user }) => user?.id)).toEqual([stays.userId, last.userId]);
    const random = randomUUID();
    const absent = await refusal(askOne(owner, "A", random));
    expect(absent).toMatchObject(noMember);
    for (const { userId } of [deleted, expired, left]) {
      expect(told(await refusal(askOne(owner, "A", userId)), userId)).toBe(told(absent, random));
      expect(await refusal(teamsOf(owner, userId))).toMatchObject({
        reason: "ORG_MEMBER_NOT_FOUND",
      });
    }
  });

  test("is told in one round trip, with profiles too", async () => {
    const { orgId, owner, id, joined } = await orgWith("A", "A/B");
    const { userId } = await joined("B");
    const ask = { orgId, teamId: id("A"), effective };
    for (const call of [
      () => owner.teams.listTeamMembers(ask),
      () => owner.teams.listTeamMembers({ ...ask, view: View.FULL }),
      () => owner.teams.getTeamMember({ ...ask, userId }),
      () => owner.teams.listUserTeams({ orgId, userId, effective }),
    ])
      expect(await harness.current.flushesOf(call)).toBe(flushesOfRead);
    const { members } = await owner.teams.listTeamMembers({ ...ask, view: View.FULL });
    expect(members).toMatchObject([{ userId, user: { id: userId, profile: { userId } } }]);
  });

  test("is not told of a team that is deleted, another org's or never was, all alike", async () => {
    const { orgId, owner, id, ownerId: userId } = await orgWith("A", "Gone");
    const other = await orgWith("Other");
    await owner.teams.deleteTeam({ orgId, teamId: id("Gone") });
    for (const call of [
      (teamId: string) => owner.teams.listTeamMembers({ orgId, teamId, effective }),
      (teamId: string) => owner.teams.getTeamMember({ orgId, teamId, userId, effective }),
    ]) {
      const random = randomUUID();
      const absent = await refusal(call(random));
      expect(absent).toMatchObject({ code: "NotFound", reason: "TEAM_NOT_FOUND" });
      for (const teamId of [id("Gone"), other.id("Other")])
        expect(told(await refusal(call(teamId)), teamId)).toBe(told(absent, random));
    }
  });
});

describe("Through a secret team", () => {
  test("nobody is seen by who does not see that one, and all are by who does", async () => {
    const { owner, admin, member, joined, pathsOf, teamsOf, askOne } = await orgWith(
      "A",
      "A/B!",
      "B!/C",
      "A/D",
    );
    const [mole, inC] = [await joined("B!"), await joined("C")];
    const both = await joined("C D");
    const [chief, fellow] = [await joined("A", { role: MAINTAINER }), await joined("A")];
    const open = { [fellow.userId]: "A", [chief.userId]: "A" };
    for (const caller of [member, fellow]) {
      expect(await pathsOf(caller, "A")).toEqual({ ...open, [both.userId]: "D A" });
      expect(await teamsOf(caller, both.userId)).toEqual(["A: D A", "D: D"]);
      for (const { userId } of [mole, inC]) {
        expect(await teamsOf(caller, userId)).toEqual([]);
        const random = randomUUID();
        expect(told(await refusal(askOne(caller, "A", userId)), userId)).toBe(
          told(await refusal(askOne(caller, "A", random)), random),
        );
      }
      expect(await refusal(pathsOf(caller, "B!"))).toMatchObject({ reason: "TEAM_NOT_FOUND" });
    }
    for (const caller of [owner, admin, chief, inC, both]) {
      expect(await pathsOf(caller, "A")).toEqual({
        ...open,
        [mole.userId]: "B! A",
        [inC.userId]: "C B! A",
        [both.userId]: "D A",
      });
      expect(await teamsOf(caller, inC.userId)).toEqual(["A: C B! A", "B!: C B!", "C: C"]);
    }
    // Who belongs to the secret team sees it, and what lies below it.
    expect(await pathsOf(mole, "B!")).toEqual({
      [mole.userId]: "B!",
      [inC.userId]: "C B!",
      [both.userId]: "C B!",
    });
  });

  test("that lies below it, who sees the one above still sees nobody", async () => {
    const { joined, pathsOf } = await orgWith("A", "A/B!", "B!/C!");
    const [mole, deep] = [await joined("B!"), await joined("C!")];
    expect(await pathsOf(mole, "A")).toEqual({ [mole.userId]: "B! A" });
    expect(Object.keys(await pathsOf(deep, "A"))).toEqual([mole.userId, deep.userId]);
  });
});

describe("A guest", () => {
  test("sees who is in their teams and below, and of nobody the teams above these", async () => {
    const { owner, joined, pathsOf, teamsOf, askOne } = await orgWith(
      "A",
      "A/B",
      "B/C",
      "A/D",
      "B/E!",
    );
    const guest = await joined("B", { orgRole: "guest" });
    const [deep, far, hidden] = [await joined("C"), await joined("A D"), await joined("E!")];
    expect(await pathsOf(guest, "B")).toEqual({ [guest.userId]: "B", [deep.userId]: "C B" });
    expect(await teamsOf(guest, deep.userId)).toEqual(["B: C B", "C: C"]);
    expect(await teamsOf(guest, guest.userId)).toEqual(["B: B"]);
    expect(await teamsOf(owner, guest.userId)).toEqual(["A: B A", "B: B"]);
    for (const { userId } of [far, hidden])
      expect(await refusal(teamsOf(guest, userId))).toMatchObject({
        reason: "ORG_MEMBER_NOT_FOUND",
      });
    for (const call of [pathsOf(guest, "A"), askOne(guest, "A", deep.userId)])
      expect(await refusal(call)).toMatchObject({ reason: "PERMISSION_MISSING" });
  });

  test("turns pages of the teams that they see", async () => {
    const { orgId, id, joined } = await orgWith("A", "A/B", "B/C", "C/D");
    const guest = await joined("B", { orgRole: "guest" });
    const { userId } = await joined("D");
    const seen: string[] = [];
    let pageToken = "";
    do {
      const ask = { orgId, userId, effective, pageSize: 1, pageToken };
      const page = await guest.teams.listUserTeams(ask);
      seen.push(...page.userTeams.map(({ team }) => team?.id ?? ""));
      pageToken = page.nextPageToken;
    } while (pageToken !== "");
    expect(seen).toEqual(["B", "C", "D"].map(id));
  });
});

describe("The function that finds them", () => {
  const connect = useConnections();

  test("finds nobody in a team that its caller does not see, whichever call lets them in", async () => {
    const { orgId, ownerId, guestId, id, joined } = await orgWith("A", "A/B");
    const { userId } = await joined("B");
    const other = await harness.current.tenant();
    const client = await connect(harness.current.urls.app);
    const find = async (entering: string) => {
      const { rows } = await within(
        client,
        entering,
        "select user_id from roster.effective_members($1, $2, 10)",
        [id("A"), NIL],
      );
      return rows.map((row) => row.user_id);
    };
    expect(await find(enter(orgId, ownerId))).toEqual([userId]);
    expect(await find(enter(orgId, guestId))).toEqual([]);
    expect(await find(enter(other.orgId, other.ownerId))).toEqual([]);
  });
});
