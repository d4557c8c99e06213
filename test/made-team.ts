import type { MessageInitShape } from "@bufbuild/protobuf";
import { expect } from "vitest";
import type { Team, TeamSchema } from "../src/gen/roster/v1/team_pb.ts";
import type { Callers, Harness, Tenant } from "./harness.ts";

export type TeamInit = MessageInitShape<typeof TeamSchema>;

/** A team that these callers make. */
export const makeTeam = async ({ teams }: Callers, team: TeamInit): Promise<Team> =>
  (await teams.createTeam({ team })).team ?? expect.fail("no team came back");

/** A new org with one team, made by its owner and called `Crew` unless the test wants another. */
export const tenantWithTeam = async (
  harness: Harness,
  init: TeamInit = {},
): Promise<Tenant & { readonly team: Team }> => {
  const tenant = await harness.tenant();
  const { orgId, owner } = tenant;
  return { ...tenant, team: await makeTeam(owner, { name: "Crew", ...init, orgId } as TeamInit) };
};
