/** Calls at the same instant of which one takes the role in a team that another one stands on. */
import fc from "fast-check";
import { removeOrgMember, updateOrgMember } from "./members.ts";
import {
  addTeamMember,
  createTeam,
  moveTeam,
  removeTeamMember,
  setTeamMembers,
  updateTeam,
  updateTeamMember,
} from "./teams.ts";
import { platform } from "./world.ts";

/** In the first org, where a member is maintainer of the first team. */
const user = 4;
const taking = { by: platform, org: 0 };
const acting = { by: user, org: 0 };
const pick = fc.constantFrom(0, 0, 1, 2);
const role = fc.constantFrom<"MEMBER" | "MAINTAINER">("MEMBER", "MAINTAINER");
const name = fc.constantFrom("Ant", "Bee", "Elk");
const member = { user, isMember: false };

const losses = fc.oneof(
  pick.map((pick) => updateTeamMember.with({ ...taking, ...member, pick, role: "MEMBER" })),
  pick.map((pick) => removeTeamMember.with({ ...taking, ...member, pick, leaves: false })),
  pick.map((pick) =>
    setTeamMembers.with({ ...taking, pick, wanted: [{ user: 0, role: "MEMBER" }] }),
  ),
  pick.map((pick) => moveTeam.with({ ...taking, pick, isTop: true, under: 0 })),
  fc.constant(updateOrgMember.with({ ...taking, user, change: { role: "guest" } })),
  fc.constant(removeOrgMember.with({ ...taking, user })),
);
const acts = fc.oneof(
  fc
    .tuple(pick, name)
    .map(([pick, name]) => createTeam.with({ ...acting, pick, isTop: false, name, secret: false })),
  fc
    .tuple(pick, name)
    .map(([pick, name]) => updateTeam.with({ ...acting, pick, change: { name } })),
  pick.map((pick) => updateTeam.with({ ...acting, pick, change: { secret: true } })),
  fc
    .tuple(pick, role)
    .map(([pick, role]) => addTeamMember.with({ ...acting, pick, user: 3, role })),
  fc
    .tuple(pick, role)
    .map(([pick, role]) => updateTeamMember.with({ ...acting, ...member, pick, role })),
  pick.map((pick) => removeTeamMember.with({ ...acting, ...member, pick, leaves: true })),
  fc.tuple(pick, role).map(([pick, role]) =>
    setTeamMembers.with({
      ...acting,
      pick,
      wanted: [
        { user: 3, role },
        { user, role },
      ],
    }),
  ),
);

/** Two maintainers each of whom takes the other's role, or gives it again: only one can come first. */
const rivals = fc
  .array(fc.constantFrom("removes", "demotes", "sets"), { minLength: 2, maxLength: 2 })
  .map((ways) =>
    ways.map((way, place) => {
      const [by = 0, user = 0] = place === 0 ? [1, 5] : [5, 1];
      const about = { by, org: 1, pick: 1 };
      if (way === "sets")
        return setTeamMembers.with({ ...about, wanted: [{ user: by, role: "MEMBER" }] });
      const other = { ...about, user, isMember: false };
      return way === "removes"
        ? removeTeamMember.with({ ...other, leaves: false })
        : updateTeamMember.with({ ...other, role: "MEMBER" });
    }),
  );

export const usurpers = fc.oneof(
  fc
    .tuple(losses, fc.array(acts, { minLength: 1, maxLength: 2 }))
    .map(([loss, acts]) => [loss, ...acts]),
  rivals,
);
