/** Who is in a team by way of the teams below it, and lists that are set. */
import { type Guard, inRoutine, inSource } from "./guard.ts";

const inEffectiveMembers = inRoutine("effective_members");
const inMembers = inSource("src/services/team-members.ts");
const inSets = inSource("src/services/team-member-sets.ts");

export const teamMembers: readonly Guard[] = [
  inEffectiveMembers(
    "the asked team is in sight",
    "and roster.sees_team(actor, sight, t.path, t.secrets)",
    "",
    "effective-members",
    "does not see, whichever call",
  ),
  inEffectiveMembers(
    "the tenant",
    "roster.current_org()",
    "(select t.org_id from roster.teams t where t.id = team)",
    "effective-members",
    "does not see, whichever call",
  ),
  inEffectiveMembers(
    "what few teams hide",
    "and (sees_all or t.path && maintained or t.secrets <@ known)",
    "",
    "effective-members",
    "Through a secret team",
  ),
  inEffectiveMembers(
    "what many teams hide",
    "and (sees_all or b.path && maintained or b.secrets <@ known)",
    "",
    "effective-pages",
    "to a member without a team",
  ),
  inEffectiveMembers(
    "a walk that gives up says nothing of whom it met last",
    "and m.user_id < coalesce(reached, 'ffffffff-ffff-ffff-ffff-ffffffffffff')",
    "",
    "effective-pages",
    "to an owner",
  ),
  inMembers(
    "no page ends at a team that is hidden",
    "and id = up.id)",
    "and id = up.id or true limit 1)",
    "effective-members",
    "A guest",
  ),
  inSets(
    "one list after the other",
    "        for no key update`",
    "`",
    "set-team-members",
    "itself",
  ),
  inSets(
    "who is added stays in the org",
    "limit 1 for key share",
    "limit 1",
    "set-team-members",
    "RemoveOrgMember",
  ),
  inSets(
    "the caller comes last",
    "is distinct from",
    "is not null and null is distinct from",
    "set-team-members",
    "who may step down and take themselves out",
  ),
  inSets(
    "who stays is not touched",
    "          where m.role <> excluded.role",
    "",
    "set-team-members",
    "changes nothing when all is as it is to be",
  ),
];
