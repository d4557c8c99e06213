import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { type Team, TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { byHand } from "./console.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";
import { told } from "./samples.ts";
import { treeFaults } from "./tree-faults.ts";

const harness = useHarness();

const { SECRET, VISIBLE } = TeamVisibility;
const { MEMBER, MAINTAINER } = TeamRole;

/** An org with teams, each under the one named before the slash, by their names. */
const orgWith = async (...paths: readonly string[]) => {
  const tenant = await harness.current.tenant();
  const { orgId, owner } = tenant;
  const teams: Record<string, Team> = {};
  for (const path of paths) {
    const [name = "", parent = ""] = path.split("/").reverse();
    teams[name] = await makeTeam(owner, { orgId, name, parentTeamId: teams[parent]?.id ?? "" });
  }
  const id = (name: string): string => teams[name]?.id ?? expect.fail(`no team ${name}`);
  const move = ({ teams }: Callers, name: string, parent: string) =>
    teams.moveTeam({ orgId, teamId: id(name), parentTeamId: parent && id(parent) });
  /** A new member of the org with a role in a team. */
  const joined = async (name: string, role: TeamRole) => {
    const userId = await harness.current.user();
    await harness.current.ops.orgs.addOrgMember({ orgId, userId });
    await owner.teams.addTeamMember({ orgId, teamId: id(name), userId, role });
    return harness.current.as(userId);
  };
  const names = async (caller: Callers) =>
    (await caller.teams.listTeams({ orgId })).teams.map(({ name }) => name).join(" ");
  return { ...tenant, id, move, joined, names };
};

/** A chain of teams, each under the one before: their names, written as orgWith takes them. */
const chain = (prefix: string, count: number): string[] =>
  Array.from({ length: count }, (_, n) =>
    n === 0 ? `${prefix}0` : `${prefix}${n - 1}/${prefix}${n}`,
  );

describe("TeamService.MoveTeam", () => {
  test("puts a team with all below it under another one, where the roles above it hold", async () => {
    const { orgId, owner, id, move, joined } = await orgWith("A", "A/Squad", "Squad/Pair", "B");
    const [ofA, ofB] = [await joined("A", MAINTAINER), await joined("B", MAINTAINER)];
    const describes = ({ teams }: Callers) =>
      teams.updateTeam({ team: { orgId, id: id("Pair"), description: randomUUID() } });
    await describes(ofA);
    expect(await refusal(describes(ofB))).toMatchObject({ reason: "PERMISSION_MISSING" });
    const { team } = await move(owner, "Squad", "B");
    expect(team).toMatchObject({ name: "Squad", parentTeamId: id("B") });
    await describes(ofB);
    expect(await refusal(describes(ofA))).toMatchObject({ reason: "PERMISSION_MISSING" });
    expect((await move(owner, "Squad", "")).team?.parentTeamId).toBe("");
    expect(await refusal(describes(ofB))).toMatchObject({ reason: "PERMISSION_MISSING" });
    expect(await treeFaults(harness.current, orgId)).toEqual([]);
  });

  test("leaves the teams below it as they were to who reads them and their log", async () => {
    const { orgId, owner, id, move } = await orgWith("A", "A/Squad", "Squad/Pair", "B");
    const pair = () => owner.teams.getTeam({ orgId, teamId: id("Pair") });
    const before = await pair();
    await move(owner, "Squad", "B");
    expect((await pair()).team).toEqual(before.team);
    const { auditEntries } = await owner.audit.listAuditEntries({ orgId, pageSize: 1 });
    expect(auditEntries[0]).toMatchObject({
      method: "roster.v1.TeamService/MoveTeam",
      changes: [{ resourceId: id("Squad"), changedFields: ["parent_team_id"] }],
    });
  });

  test("FAILED_PRECONDITION TEAM_CYCLE under itself or a team below it", async () => {
    const { orgId, owner, id, move } = await orgWith("A", "A/B", "B/C");
    for (const parent of ["A", "B", "C"])
      expect(await refusal(move(owner, "A", parent))).toMatchObject({
        code: "FailedPrecondition",
        reason: "TEAM_CYCLE",
        metadata: { team_id: id("A") },
      });
    expect(await treeFaults(harness.current, orgId)).toEqual([]);
  });

  test("FAILED_PRECONDITION TEAM_TOO_DEEP when a live team below it would lie too deep", async () => {
    const { orgId, owner, id, move } = await orgWith(...chain("a", 15), "B", "B/C", "C/D");
    expect(await refusal(move(owner, "B", "a14"))).toMatchObject({
      code: "FailedPrecondition",
      reason: "TEAM_TOO_DEEP",
      metadata: { depth: "16" },
    });
    // A deleted team does not count, and does not come back too deep.
    await owner.teams.deleteTeam({ orgId, teamId: id("C"), force: true });
    await move(owner, "B", "a14");
    expect(await refusal(owner.teams.undeleteTeam({ orgId, teamId: id("C") }))).toMatchObject({
      reason: "TEAM_TOO_DEEP",
    });
    await move(owner, "B", "a13");
    expect(await refusal(owner.teams.undeleteTeam({ orgId, teamId: id("C") }))).toMatchObject({
      reason: "TEAM_TOO_DEEP",
    });
    await move(owner, "B", "");
    await owner.teams.undeleteTeam({ orgId, teamId: id("C") });
    await harness.current.ops.orgs.updateOrgLimits({ limits: { orgId, teamDepth: 4 } });
    expect(await refusal(move(owner, "B", "a2"))).toMatchObject({ metadata: { depth: "4" } });
    await move(owner, "B", "a0");
    // What has been deeper may come up, and stay too deep.
    await move(owner, "a5", "a3");
    expect(await treeFaults(harness.current, orgId)).toEqual([]);
  });

  test("ALREADY_EXISTS TEAM_NAME_TAKEN beside a live team of that name", async () => {
    const { orgId, owner, id, move } = await orgWith("A", "B", "A/crew");
    const other = await makeTeam(owner, { orgId, name: "CREW", parentTeamId: id("B") });
    expect(await refusal(move(owner, "crew", "B"))).toMatchObject({
      code: "AlreadyExists",
      reason: "TEAM_NAME_TAKEN",
      metadata: { field: "parent_team_id" },
    });
    await owner.teams.deleteTeam({ orgId, teamId: other.id });
    await move(owner, "crew", "B");
    expect(await refusal(owner.teams.undeleteTeam({ orgId, teamId: other.id }))).toMatchObject({
      reason: "TEAM_NAME_TAKEN",
    });
  });

  test("NOT_FOUND under or of a team that is absent, deleted or another org's, byte for byte", async () => {
    const { orgId, owner, id, move } = await orgWith("A", "B");
    const other = await orgWith("Other");
    await owner.teams.deleteTeam({ orgId, teamId: id("B") });
    const random = randomUUID();
    for (const place of ["teamId", "parentTeamId"] as const) {
      const call = (given: string) =>
        refusal(owner.teams.moveTeam({ orgId, teamId: id("A"), parentTeamId: "", [place]: given }));
      const absent = await call(random);
      expect(absent).toMatchObject({ code: "NotFound", reason: "TEAM_NOT_FOUND" });
      for (const given of [id("B"), other.id("Other")])
        expect(told(await call(given), given)).toBe(told(absent, random));
    }
    await move(owner, "A", "");
  });

  test("ABORTED with a stale etag, and for who may delete teams alone", async () => {
    const { orgId, owner, admin, id, joined, move } = await orgWith("A", "A/B");
    const teamId = id("B");
    expect(await refusal(owner.teams.moveTeam({ orgId, teamId, etag: '"7"' }))).toMatchObject({
      code: "Aborted",
      reason: "ETAG_STALE",
    });
    const maintainer = await joined("A", MAINTAINER);
    expect(await refusal(move(maintainer, "B", ""))).toMatchObject({
      reason: "PERMISSION_MISSING",
    });
    await move(admin, "B", "");
  });
});

describe("Teams that are moved at the same time", () => {
  test("never end in a cycle or too deep, whoever comes first", async () => {
    const { orgId, owner, id, move } = await orgWith(
      "A",
      "B",
      "C",
      ...chain("a", 16),
      ...chain("b", 10),
    );
    const names = ["A", "B", "C", "a0", "b0", "b4", "b7", ""];
    const outcomes = new Set<string>();
    for (let round = 0; round < 12; round++) {
      const calls = Array.from({ length: 8 }, (_, n) => {
        const name = names[(round + n * 3) % 7] ?? "A";
        const parent = names[(round * 5 + n * 2 + 1) % 8] ?? "";
        if (n === 7)
          return makeTeam(owner, {
            orgId,
            name: `${round}`,
            parentTeamId: id(round % 2 ? "b9" : "a15"),
          });
        return move(owner, name, parent);
      });
      for (const result of await Promise.allSettled(calls))
        outcomes.add(
          result.status === "fulfilled"
            ? "DONE"
            : (await refusal(Promise.reject(result.reason))).reason,
        );
      expect(await treeFaults(harness.current, orgId)).toEqual([]);
    }
    expect([...outcomes].sort()).toEqual(["DONE", "TEAM_CYCLE", "TEAM_TOO_DEEP"]);
  });

  test("and hidden and shown, keep every team below as hidden as those above it", async () => {
    const { orgId, owner, id, move } = await orgWith("A", "A/B", "B/C", "C/D", "E", "E/F");
    const show = (name: string, visibility: TeamVisibility) =>
      owner.teams.updateTeam({ team: { orgId, id: id(name), visibility } });
    for (let round = 0; round < 8; round++) {
      const visibility = round % 2 === 0 ? SECRET : VISIBLE;
      await Promise.all([
        show("B", visibility),
        move(owner, "C", round % 2 === 0 ? "F" : "B"),
        show("F", visibility),
        makeTeam(owner, { orgId, name: `${round}`, parentTeamId: id("D") }),
        owner.teams.updateTeam({ team: { orgId, id: id("D"), description: `${round}` } }),
      ]);
      expect(await treeFaults(harness.current, orgId)).toEqual([]);
    }
  });

  test("a thousand of them at once, while others rename them and join them", async () => {
    const { orgId, owner, id, move, memberId: userId } = await orgWith("A", "B", "B/C", "A/Big");
    await byHand(
      harness.current.admin,
      `insert into roster.teams (org_id, id, parent_team_id, name)
        select $1, gen_random_uuid(), $2, 'Team ' || n from generate_series(1, 1000) n`,
      [orgId, id("Big")],
    );
    const { teams } = await owner.teams.listTeams({
      orgId,
      filter: `parent_team_id = ${id("Big")}`,
      pageSize: 50,
    });
    await Promise.all([
      move(owner, "Big", "C"),
      ...teams.map(({ id }) => owner.teams.updateTeam({ team: { orgId, id, description: "On" } })),
      ...teams.map(({ id: teamId }) => owner.teams.addTeamMember({ orgId, teamId, userId })),
      move(owner, "B", ""),
    ]);
    expect(await treeFaults(harness.current, orgId)).toEqual([]);
  });
});

describe("Below a secret team", () => {
  test("no team is seen by who does not see that one, and all are by who belongs to one of them", async () => {
    const { orgId, owner, id, joined, names, member, move } = await orgWith("A", "A/B", "B/C", "D");
    const [inC, overA, inA] = [
      await joined("C", MEMBER),
      await joined("A", MAINTAINER),
      await joined("A", MEMBER),
    ];
    const show = (name: string, visibility: TeamVisibility) =>
      owner.teams.updateTeam({ team: { orgId, id: id(name), visibility } });
    await show("B", SECRET);
    for (const caller of [member, inA]) expect(await names(caller)).toBe("A D");
    for (const caller of [inC, overA, owner]) expect(await names(caller)).toBe("A B C D");
    const count = async ({ orgs }: Callers) =>
      (await orgs.getOrg({ orgId, view: 2 })).org?.teamCount;
    expect(await Promise.all([member, inA, inC, overA, owner].map(count))).toEqual([2, 2, 4, 4, 4]);
    // Where a team is moved to decides anew.
    await move(owner, "D", "C");
    expect([await names(member), await names(inC)]).toEqual(["A", "A B C D"]);
    await move(owner, "C", "");
    expect(await names(member)).toBe("A C D");
    await show("B", VISIBLE);
    expect(await names(member)).toBe("A B C D");
    expect(await treeFaults(harness.current, orgId)).toEqual([]);
  });

  test("a team of one's own is no way to see another one that is secret for itself", async () => {
    const { orgId, owner, id, joined, names } = await orgWith("A", "A/B", "A/C", "C/D");
    for (const name of ["A", "C"])
      await owner.teams.updateTeam({ team: { orgId, id: id(name), visibility: SECRET } });
    const inB = await joined("B", MEMBER);
    expect(await names(inB)).toBe("A B");
    expect(await names(await joined("D", MEMBER))).toBe("A B C D");
    // Who has left, and whose team is deleted, does not belong to those above it any more.
    await owner.teams.deleteTeam({ orgId, teamId: id("B") });
    expect(await names(inB)).toBe("");
  });
});
