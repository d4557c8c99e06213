/** What is told of others' rights, and to whom. */
import { type Guard, inRoutine, inSource } from "./guard.ts";

const agreement = "access-agreement";
const checks = "access-checks";
const inReason = inRoutine("access_reason");
const inCheck = inRoutine("check_access");
const inChecks = inSource("src/services/access.ts");

/** The rules, which one question and many share. PostgreSQL writes them down in its own way. */
const rules: readonly Guard[] = [
  inReason(
    "a team that the caller does not see",
    "WHEN (on_team AND (team_open IS NULL)) THEN",
    "WHEN false THEN",
    checks,
    "a team gets the same answer",
  ),
  inReason(
    "the user is active",
    "(user_state <> 'ACTIVE'::text)",
    "false",
    agreement,
    "a suspended user who tries",
  ),
  inReason(
    "the membership is active",
    "(member_state <> 'ACTIVE'::text)",
    "false",
    agreement,
    "membership is suspended who tries",
  ),
  inReason(
    "the org is active",
    "(org_state <> 'ACTIVE'::text)",
    "false",
    checks,
    "tells a suspended membership, user and org",
  ),
  inReason(
    "the team is there for the user",
    "WHEN (on_team AND (team_role IS NULL)",
    "WHEN (false",
    agreement,
    "is what happens to member who tries",
  ),
  inReason(
    "a secret team is closed to others",
    "(team_open AND ('teams.get'::text = ANY (granted)))",
    "('teams.get'::text = ANY (granted))",
    agreement,
    "is what happens to member who tries",
  ),
  inReason(
    "without teams.get there are only teams of one's own",
    "(team_open AND ('teams.get'::text = ANY (granted)))",
    "team_open",
    agreement,
    "is what happens to guest who tries",
  ),
  inReason(
    "guests make no teams",
    "(role = 'guest'::text)",
    "false",
    agreement,
    "is what happens to guest who maintains",
  ),
];

/** One question. */
const single: readonly Guard[] = [
  inCheck(
    "the user is live",
    " and u.delete_time is null",
    "",
    agreement,
    "a deleted user who tries",
  ),
  inCheck(
    "the membership lasts",
    "and (m.expire_time is null or m.expire_time > now())",
    "",
    agreement,
    "has expired who tries",
  ),
  inCheck(
    "it is of this org",
    "on m.org_id = org and m.user_id = person and",
    "on m.user_id = person and",
    checks,
    "calls whoever is not in the org no member",
  ),
  inCheck("the team is live", " and t.delete_time is null", "", checks, "a team gets the same"),
  inCheck(
    "the caller sees the team",
    "(roster.team_sight() in ('all', 'deleted')",
    "(true",
    checks,
    "a team gets the same answer",
  ),
  inCheck(
    "the role of this org",
    "where r.org_id = org and r.name",
    "where r.name",
    checks,
    "follows a custom role",
  ),
  inCheck(
    "a member's role ends at a secret team",
    "joined is not null and team_open",
    "joined is not null",
    agreement,
    "is what happens to guest at the top",
  ),
  inCheck(
    "who belongs to a team below a secret one belongs to it",
    " or facts.secrets <@ roster.known_teams(person)",
    "",
    agreement,
    "is what happens to member at the top and in the cell",
  ),
];

/** Many questions, and lists. */
const many: readonly Guard[] = [
  inChecks(
    "the user is live",
    "join roster.users u on u.id = m.user_id and u.delete_time is null",
    "join roster.users u on u.id = m.user_id",
    agreement,
    "says too, of a deleted user",
  ),
  inChecks(
    "the team is live",
    " and t.id = a.team_id and t.delete_time is null",
    " and t.id = a.team_id",
    checks,
    "a team gets the same answer",
  ),
  inChecks(
    "a secret team is closed to others",
    "then t.secrets <@ roster.known_teams(a.user_id)",
    "then true",
    agreement,
    "says too, of member",
  ),
  inChecks(
    "a member's role ends at a secret team",
    "j.joined is not null and k.is_open",
    "j.joined is not null",
    agreement,
    "says too, of guest at the top",
  ),
  inChecks(
    "teams of an expired membership do not count",
    "where p.role is not null) j",
    ") j",
    agreement,
    "says too, of one whose membership has expired",
  ),
  inChecks(
    "a list holds what is granted",
    "in ('ORG_ROLE', 'TEAM_ROLE')",
    "<> ''",
    agreement,
    "lists, of guest who maintains",
  ),
  inChecks(
    "a list holds no role that a secret team ends",
    "(m.role = 'MAINTAINER' or k.is_open)",
    "true",
    checks,
    "leaves out a role that ends above it",
  ),
];

export const access: readonly Guard[] = [...rules, ...single, ...many];
