import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { type Team, TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { refusal, useHarness } from "./harness.ts";
import { makeTeam, type TeamInit, tenantWithTeam } from "./made-team.ts";

const harness = useHarness();

const withTeam = (init?: TeamInit) => tenantWithTeam(harness.current, init);

const notFound = { code: "NotFound", reason: "TEAM_NOT_FOUND" };

describe("TeamService.CreateTeam", () => {
  test("makes a visible team of type team that GetTeam reads back", async () => {
    const { orgId, owner, team } = await withTeam();
    expect(team).toMatchObject({
      orgId,
      parentTeamId: "",
      name: "Crew",
      type: "team",
      description: "",
      visibility: TeamVisibility.VISIBLE,
      labels: {},
      etag: '"1"',
    });
    expect(team.id).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-7/);
    expect(team.createTime).toEqual(team.updateTime);
    expect((await owner.teams.getTeam({ orgId, teamId: team.id })).team).toEqual(team);
  });

  test("keeps what it is given, text as NFC, and makes id and etag itself", async () => {
    const { orgId, owner, team } = await withTeam();
    const init = {
      orgId,
      parentTeamId: team.id,
      type: "night-shift-2",
      visibility: TeamVisibility.SECRET,
      labels: { floor: "3" },
    };
    const words = { name: "Cafe\u0301", description: "A\u030angstrom\n\tand more" };
    const made = await makeTeam(owner, { ...init, ...words, id: randomUUID(), etag: '"7"' });
    expect(made).toMatchObject({ ...init, etag: '"1"' });
    expect([made.name, made.description]).toEqual(["Caf\u00e9", "\u00c5ngstrom\n\tand more"]);
    expect((await owner.teams.getTeam({ orgId, teamId: made.id })).team).toEqual(made);
  });

  test("ALREADY_EXISTS when a live sibling has the name in other case or spelling", async () => {
    const { orgId, owner, team } = await withTeam({ name: "Caf\u00e9" });
    const below = { orgId, parentTeamId: team.id };
    await makeTeam(owner, { ...below, name: "CAF\u00c9" });
    for (const parent of [{ orgId }, below]) {
      for (const name of ["Caf\u00e9", "cAFE\u0301"]) {
        expect(await refusal(makeTeam(owner, { ...parent, name }))).toMatchObject({
          code: "AlreadyExists",
          reason: "TEAM_NAME_TAKEN",
          metadata: { field: "team.name" },
        });
      }
    }
    const other = await harness.current.tenant();
    await makeTeam(other.owner, { orgId: other.orgId, name: "Caf\u00e9" });
  });

  test("of many calls with one name at once a single one succeeds", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const calls = Array.from({ length: 8 }, (_, i) =>
      makeTeam(owner, { orgId, name: i % 2 ? "A" : "a" }),
    );
    const done = await Promise.allSettled(calls);
    expect(done.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
    expect((await owner.teams.listTeams({ orgId })).teams).toHaveLength(1);
  });

  test("FAILED_PRECONDITION below the sixteenth level", async () => {
    const { orgId, owner } = await harness.current.tenant();
    let parentTeamId = "";
    for (let level = 1; level <= 16; level++) {
      parentTeamId = (await makeTeam(owner, { orgId, name: "Level", parentTeamId })).id;
    }
    expect(await refusal(makeTeam(owner, { orgId, name: "Level", parentTeamId }))).toMatchObject({
      code: "FailedPrecondition",
      reason: "TEAM_TOO_DEEP",
      metadata: { depth: "16" },
    });
  });

  test("NOT_FOUND under a parent that is deleted or another org's, like under one that never was", async () => {
    const { orgId, owner, team } = await withTeam();
    const foreign = await withTeam();
    await owner.teams.deleteTeam({ orgId, teamId: team.id });
    const random = randomUUID();
    const absent = await refusal(makeTeam(owner, { orgId, name: "A", parentTeamId: random }));
    expect(absent).toMatchObject(notFound);
    for (const id of [team.id, foreign.team.id]) {
      const refused = await refusal(makeTeam(owner, { orgId, name: "A", parentTeamId: id }));
      expect(refused).toMatchObject(notFound);
      expect(refused.message).toBe(absent.message.replace(random, id));
    }
  });

  test("INVALID_ARGUMENT names the field that breaks a rule", async () => {
    const { orgId, owner, ownerId } = await harness.current.tenant();
    const faults: [string, TeamInit][] = [
      ["team.name", { orgId }],
      ["team.name", { orgId, name: "n".repeat(201) }],
      ["team.name", { orgId, name: "two\nlines" }],
      ["team.type", { orgId, name: "A", type: "Team" }],
      ["team.type", { orgId, name: "A", type: "t".repeat(33) }],
      ["team.description", { orgId, name: "A", description: "d".repeat(2001) }],
      ["team.description", { orgId, name: "A", description: "bell\u0007" }],
      ["team.visibility", { orgId, name: "A", visibility: 7 as TeamVisibility }],
      ["team.parent_team_id", { orgId, name: "A", parentTeamId: "top" }],
      ['team.labels[""]', { orgId, name: "A", labels: { "": "v" } }],
      ['team.labels["k"]', { orgId, name: "A", labels: { k: "v".repeat(256) } }],
    ];
    for (const [field, team] of faults) {
      const refused = await refusal(owner.teams.createTeam({ team }));
      expect(refused, field).toMatchObject({ code: "InvalidArgument", fields: [field] });
    }
    const pinned = await harness.current.as(ownerId, { org: orgId });
    expect((await refusal(pinned.teams.createTeam({}))).fields).toEqual(["team"]);
  });
});

describe("TeamService.GetTeam", () => {
  test("NOT_FOUND for a team of another org, like for one that never was", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { team } = await withTeam();
    const random = randomUUID();
    const foreign = await refusal(owner.teams.getTeam({ orgId, teamId: team.id }));
    const absent = await refusal(owner.teams.getTeam({ orgId, teamId: random }));
    expect(foreign).toMatchObject(notFound);
    expect(absent.message).toBe(foreign.message.replace(team.id, random));
  });

  test("shows a deleted team to who may delete teams, and is NOT_FOUND for others", async () => {
    const { orgId, owner, admin, adminId, member, team } = await withTeam();
    await owner.teams.deleteTeam({ orgId, teamId: team.id });
    const { ops } = harness.current;
    const service = (scope: string) => harness.current.as("service:crm", { org: orgId, scope });
    for (const { teams } of [owner, admin, ops, await service("teams.get teams.delete")]) {
      const read = await teams.getTeam({ orgId, teamId: team.id });
      expect(read.team?.deleteTime).toBeDefined();
      const { teams: all } = await teams.listTeams({ orgId, showDeleted: true });
      expect(all.map(({ id }) => id)).toEqual([team.id]);
      expect((await teams.listTeams({ orgId })).teams).toEqual([]);
    }
    const narrowed = await harness.current.as(adminId, { scope: "teams.get" });
    for (const { teams } of [member, narrowed, await service("teams.get")]) {
      expect(await refusal(teams.getTeam({ orgId, teamId: team.id }))).toMatchObject(notFound);
      expect((await teams.listTeams({ orgId, showDeleted: true })).teams).toEqual([]);
    }
  });

  test("PERMISSION_DENIED for who is not in the org", async () => {
    const { orgId, outsider } = await harness.current.tenant();
    const refused = await refusal(outsider.teams.getTeam({ orgId, teamId: randomUUID() }));
    expect(refused).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
  });
});

describe("TeamService.ListTeams", () => {
  test("lists each team once over pages, also while teams come and go", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const names = Array.from({ length: 7 }, (_, i) => `Team ${i}`);
    const made: Team[] = [];
    for (const name of names) made.push(await makeTeam(owner, { orgId, name }));
    const seen: string[] = [];
    let pageToken = "";
    do {
      const page = await owner.teams.listTeams({ orgId, pageSize: 3, pageToken });
      expect(page.teams.length).toBeLessThanOrEqual(3);
      seen.push(...page.teams.map(({ name }) => name));
      pageToken = page.nextPageToken;
      if (seen.length === 3) {
        await owner.teams.deleteTeam({ orgId, teamId: made[2]?.id ?? "" });
        await owner.teams.deleteTeam({ orgId, teamId: made[5]?.id ?? "" });
        await makeTeam(owner, { orgId, name: "Late" });
      }
    } while (pageToken !== "");
    expect(seen).toEqual([...names.filter((name) => name !== "Team 5"), "Late"]);
  });

  test("INVALID_ARGUMENT for a page token of another caller, org or set of arguments", async () => {
    const { orgId, owner, member, ownerId } = await withTeam();
    const other = await withTeam();
    await harness.current.ops.orgs.addOrgMember({ orgId: other.orgId, userId: ownerId });
    await makeTeam(owner, { orgId, name: "Second" });
    const { nextPageToken: pageToken } = await owner.teams.listTeams({ orgId, pageSize: 1 });
    const forged = `${pageToken.startsWith("A") ? "B" : "A"}${pageToken.slice(1)}`;
    expect((await owner.teams.listTeams({ orgId, pageSize: 9, pageToken })).teams).toHaveLength(1);
    for (const call of [
      () => member.teams.listTeams({ orgId, pageToken }),
      () => owner.teams.listTeams({ orgId: other.orgId, pageToken }),
      () => owner.teams.listTeams({ orgId, pageToken, showDeleted: true }),
      () => owner.orgs.listOrgMembers({ orgId, pageToken }),
      () => owner.teams.listTeams({ orgId, pageToken: forged }),
      () => owner.teams.listTeams({ orgId, pageToken: "A" }),
    ]) {
      const refused = await refusal(call());
      expect(refused).toMatchObject({ code: "InvalidArgument", reason: "PAGE_TOKEN_INVALID" });
    }
  });
});
