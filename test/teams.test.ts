import { randomUUID } from "node:crypto";
import { describe, expect, test } from "vitest";
import { refusal, useHarness } from "./harness.ts";

const harness = useHarness();

describe("TeamService.CreateTeam", () => {
  test("makes a team that GetTeam reads back", async () => {
    const { orgId, owner } = await harness.current.tenant();
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
    expect(team).toMatchObject({ orgId, name: "Crew", type: "team", etag: '"1"' });
    const read = await owner.teams.getTeam({ orgId, teamId: team?.id ?? "" });
    expect(read.team).toEqual(team);
  });

  test("ALREADY_EXISTS when the name is taken, whatever its case", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
    const refused = await refusal(owner.teams.createTeam({ team: { orgId, name: "CREW" } }));
    expect(refused).toMatchObject({ code: "AlreadyExists", reason: "TEAM_NAME_TAKEN" });
  });
});

describe("TeamService.GetTeam", () => {
  test("NOT_FOUND for a team of another org, like for one that never was", async () => {
    const one = await harness.current.tenant();
    const other = await harness.current.tenant();
    const { team } = await other.owner.teams.createTeam({
      team: { orgId: other.orgId, name: "Crew" },
    });
    const foreign = await refusal(
      one.owner.teams.getTeam({ orgId: one.orgId, teamId: team?.id ?? "" }),
    );
    const random = randomUUID();
    const absent = await refusal(one.owner.teams.getTeam({ orgId: one.orgId, teamId: random }));
    expect(foreign).toMatchObject({ code: "NotFound", reason: "TEAM_NOT_FOUND" });
    expect(absent.message).toBe(foreign.message.replace(team?.id ?? "", random));
  });

  test("PERMISSION_DENIED for who is not in the org", async () => {
    const { orgId, outsider } = await harness.current.tenant();
    const refused = await refusal(outsider.teams.getTeam({ orgId, teamId: randomUUID() }));
    expect(refused).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
  });
});
