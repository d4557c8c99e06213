import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { TeamVisibility } from "../src/gen/roster/v1/team_pb.ts";
import { refusal, useHarness } from "./harness.ts";
import { makeTeam, type TeamInit, tenantWithTeam } from "./made-team.ts";
import { overlap } from "./overlap.ts";

const harness = useHarness();

/** A new org with one team, and UpdateTeam as its owner; a mask makes the difference between absent and cleared. */
const withTeam = async (init?: TeamInit) => {
  const tenant = await tenantWithTeam(harness.current, init);
  const { orgId, owner, team } = tenant;
  const update = async (change: TeamInit, ...paths: string[]) => {
    const mask = paths.length > 0 ? { updateMask: { paths } } : {};
    const named = { orgId, id: team.id, ...change } as TeamInit;
    return (await owner.teams.updateTeam({ team: named, ...mask })).team;
  };
  return { ...tenant, update };
};

const notFound = { code: "NotFound", reason: "TEAM_NOT_FOUND" };
const denied = { code: "PermissionDenied", reason: "PERMISSION_MISSING" };

describe("TeamService.UpdateTeam", () => {
  const full = {
    type: "crew",
    description: "They bake.",
    visibility: TeamVisibility.SECRET,
    labels: { a: "1" },
  };

  test("changes the populated fields without a mask, never parent or org, and counts the version", async () => {
    const { orgId, team, update, owner } = await withTeam(full);
    const changed = await update({
      name: "Bakers",
      parentTeamId: team.id,
      deleteTime: { nanos: 1 },
    });
    expect(changed).toMatchObject({ ...full, name: "Bakers", parentTeamId: "", etag: '"2"' });
    expect(changed?.createTime).toEqual(team.createTime);
    expect(changed?.updateTime).not.toEqual(team.updateTime);
    expect(changed?.deleteTime).toBeUndefined();
    expect((await owner.teams.getTeam({ orgId, teamId: team.id })).team).toEqual(changed);
  });

  test("changes just the masked fields and clears those that are not set, to their defaults", async () => {
    const { update } = await withTeam(full);
    const masked = await update({ name: "Not this" }, "description", "type");
    expect(masked).toMatchObject({ ...full, name: "Crew", description: "", type: "team" });
    const cleared = { type: "team", visibility: TeamVisibility.VISIBLE, labels: {} };
    expect(await update({ name: "All" }, "*")).toMatchObject({ name: "All", ...cleared });
  });

  test("merges labels: an empty value removes its label, an empty map in the mask all of them", async () => {
    const { update } = await withTeam({ labels: { keep: "1", change: "1", drop: "1" } });
    const after = { keep: "1", change: "2", add: "3" };
    const labels = { change: "2", drop: "", add: "3" };
    expect((await update({ labels }))?.labels).toEqual(after);
    expect((await update({ labels }, "labels"))?.labels).toEqual(after);
    const many = Object.fromEntries(Array.from({ length: 62 }, (_, i) => [`k${i}`, "v"]));
    const refused = await refusal(update({ labels: many }));
    expect(refused).toMatchObject({ reason: "VALUE_TOO_LARGE", fields: ["team.labels"] });
    expect((await update({}, "labels"))?.labels).toEqual({});
  });

  test("INVALID_ARGUMENT for a mask path that is unknown or output only, and for a name cleared", async () => {
    const { team, update } = await withTeam();
    for (const path of ["parent_team_id", "org_id", "id", "etag", "create_time", "labels.a", "x"]) {
      expect(await refusal(update({ name: "A" }, "name", path))).toMatchObject({
        code: "InvalidArgument",
        reason: "UPDATE_MASK_INVALID",
        metadata: { path },
        fields: ["update_mask"],
      });
    }
    for (const path of ["name", "*"]) {
      const refused = await refusal(update({}, path));
      expect(refused).toMatchObject({ reason: "FIELD_REQUIRED", fields: ["team.name"] });
    }
    expect((await refusal(update({ id: "" }, "type"))).fields).toEqual(["team.id"]);
    expect((await update({ name: "Same" }))?.etag).toBe(team.etag.replace("1", "2"));
  });

  test("ALREADY_EXISTS when a live sibling has the name; one's own is no conflict", async () => {
    const { orgId, owner, team, update } = await withTeam();
    const other = await makeTeam(owner, { orgId, name: "Bakers" });
    const taken = { code: "AlreadyExists", reason: "TEAM_NAME_TAKEN" };
    expect(await refusal(update({ name: "BAKERS" }))).toMatchObject(taken);
    expect((await update({ name: "CREW" }))?.name).toBe("CREW");
    await owner.teams.deleteTeam({ orgId, teamId: other.id });
    expect((await update({ name: "Bakers" }))?.id).toBe(team.id);
  });

  test("ABORTED with the current etag when the one sent is stale; malformed ones are INVALID_ARGUMENT", async () => {
    const { team, update } = await withTeam();
    expect((await update({ name: "Two", etag: team.etag }))?.etag).toBe('"2"');
    expect(await refusal(update({ name: "Three", etag: team.etag }))).toMatchObject({
      code: "Aborted",
      reason: "ETAG_STALE",
      metadata: { etag: '"2"' },
    });
    expect((await refusal(update({ name: "Three", etag: "2" }))).fields).toEqual(["team.etag"]);
    const race = Array.from({ length: 6 }, (_, i) => update({ name: `N${i}`, etag: '"2"' }));
    const done = await Promise.allSettled(race);
    expect(done.filter(({ status }) => status === "fulfilled")).toHaveLength(1);
  });

  test("NOT_FOUND for a team that is deleted or another org's, like for one that never was", async () => {
    const { orgId, owner, team, update } = await withTeam();
    const foreign = await withTeam();
    await owner.teams.deleteTeam({ orgId, teamId: team.id });
    const random = randomUUID();
    const absent = await refusal(update({ id: random, name: "A" }));
    for (const etag of ["", '"1"']) {
      for (const id of [team.id, foreign.team.id, random]) {
        const refused = await refusal(update({ id, name: "A", etag }));
        expect(refused).toMatchObject(notFound);
        expect(refused.message).toBe(absent.message.replace(random, id));
      }
    }
  });
});

describe("TeamService.DeleteTeam", () => {
  test("returns the team with its delete and purge time and frees the name at once", async () => {
    const { orgId, owner, team } = await withTeam();
    const { team: gone } = await owner.teams.deleteTeam({
      orgId,
      teamId: team.id,
      etag: team.etag,
    });
    expect(gone).toMatchObject({ id: team.id, name: "Crew", etag: '"2"' });
    const days = Number(gone?.purgeTime?.seconds) - Number(gone?.deleteTime?.seconds);
    expect(days).toBe(30 * 24 * 3600);
    const again = await makeTeam(owner, { orgId, name: "Crew" });
    expect(again.id).not.toBe(team.id);
    const refused = await refusal(owner.teams.deleteTeam({ orgId, teamId: team.id }));
    expect(refused).toMatchObject(notFound);
  });

  test("FAILED_PRECONDITION with live sub-teams; with force the subtree goes at one time", async () => {
    const { orgId, owner, team } = await withTeam();
    const child = await makeTeam(owner, { orgId, name: "A", parentTeamId: team.id });
    const grandchild = await makeTeam(owner, { orgId, name: "A", parentTeamId: child.id });
    const early = await makeTeam(owner, { orgId, name: "B", parentTeamId: team.id });
    const beside = await makeTeam(owner, { orgId, name: "C" });
    const { team: before } = await owner.teams.deleteTeam({ orgId, teamId: early.id });
    expect(await refusal(owner.teams.deleteTeam({ orgId, teamId: team.id }))).toMatchObject({
      code: "FailedPrecondition",
      reason: "TEAM_HAS_CHILDREN",
    });
    const force = { orgId, teamId: team.id, force: true };
    const { team: gone } = await owner.teams.deleteTeam(force);
    const { teams } = await owner.teams.listTeams({ orgId, showDeleted: true });
    const times = new Map(teams.map(({ id, deleteTime }) => [id, deleteTime]));
    for (const { id } of [team, child, grandchild]) expect(times.get(id)).toEqual(gone?.deleteTime);
    expect(times.get(early.id)).toEqual(before?.deleteTime);
    expect(times.get(beside.id)).toBeUndefined();
    expect(times.size).toBe(5);
  });

  test("ABORTED with the current etag when the one sent is stale, whether or not it has sub-teams", async () => {
    const { orgId, owner, team, update } = await withTeam();
    await update({ name: "Two" });
    const stale = { code: "Aborted", reason: "ETAG_STALE", metadata: { etag: '"2"' } };
    const remove = (etag: string) => owner.teams.deleteTeam({ orgId, teamId: team.id, etag });
    expect(await refusal(remove(team.etag))).toMatchObject(stale);
    await makeTeam(owner, { orgId, name: "Child", parentTeamId: team.id });
    expect(await refusal(remove(team.etag))).toMatchObject(stale);
    expect(await refusal(remove('"2"'))).toMatchObject({ reason: "TEAM_HAS_CHILDREN" });
    expect((await refusal(remove("two"))).fields).toEqual(["etag"]);
  });

  test("NOT_FOUND for a team of another org, like for one that never was", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { team } = await withTeam();
    const random = randomUUID();
    const absent = await refusal(owner.teams.deleteTeam({ orgId, teamId: random }));
    const foreign = await refusal(owner.teams.deleteTeam({ orgId, teamId: team.id, force: true }));
    expect(foreign).toMatchObject(notFound);
    expect(foreign.message).toBe(absent.message.replace(random, team.id));
  });

  test("PERMISSION_DENIED for all but owners, admins and who holds teams.delete", async () => {
    const { orgId, owner, member, memberId, guest, team } = await withTeam();
    const maintainer = { orgId, teamId: team.id, userId: memberId, role: TeamRole.MAINTAINER };
    await owner.teams.addTeamMember(maintainer);
    const service = (scope: string) => harness.current.as("service:crm", { org: orgId, scope });
    for (const { teams } of [member, guest, await service("teams.get teams.update")]) {
      expect(await refusal(teams.deleteTeam({ orgId, teamId: team.id }))).toMatchObject(denied);
    }
    const { teams } = await service("teams.delete");
    expect((await teams.deleteTeam({ orgId, teamId: team.id })).team?.id).toBe(team.id);
  });
});

describe("TeamService.CreateTeam beside TeamService.DeleteTeam", () => {
  test("NOT_FOUND under a parent that is being deleted", async () => {
    const { orgId, owner, admin, team } = await withTeam();
    const outcomes = await overlap(
      harness.current,
      () => admin.teams.deleteTeam({ orgId, teamId: team.id }),
      () => makeTeam(owner, { orgId, name: "A", parentTeamId: team.id }),
    );
    expect(outcomes.map(({ status }) => status)).toEqual(["fulfilled", "rejected"]);
    expect((await owner.teams.listTeams({ orgId })).teams).toEqual([]);
  });

  test("FAILED_PRECONDITION for a team under which one is being made; with force that goes along", async () => {
    const { orgId, owner, admin, team } = await withTeam();
    for (const force of [false, true]) {
      const outcomes = await overlap(
        harness.current,
        () => makeTeam(owner, { orgId, name: `${force}`, parentTeamId: team.id }),
        () => admin.teams.deleteTeam({ orgId, teamId: team.id, force }),
      );
      expect(outcomes.map(({ status }) => status)).toEqual([
        "fulfilled",
        force ? "fulfilled" : "rejected",
      ]);
      const { teams } = await owner.teams.listTeams({ orgId });
      expect(teams).toHaveLength(force ? 0 : 2);
    }
  });
});
