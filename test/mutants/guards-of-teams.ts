/** Where teams lie, who sees them, and who changes them by a role in them. */
import { type Guard, inRoutine, inSource, sql } from "./guard.ts";

/** The shape of the tree. */
const tree: readonly Guard[] = [
  inRoutine("place_team")(
    "a parent is live",
    "and t.id = new.parent_team_id and t.delete_time is null",
    "and t.id = new.parent_team_id",
    "teams",
    "NOT_FOUND under a parent that is deleted",
  ),
  inRoutine("place_team")(
    "a parent is seen",
    "and roster.sees_team(roster.current_actor(), roster.team_sight(), t.path, t.secrets)",
    "",
    "team-sight",
    "is no parent for who does not see it",
  ),
  inRoutine("place_team")(
    "no cycle",
    "new.id = any (parent.path)",
    "false",
    "team-tree",
    "TEAM_CYCLE under itself",
  ),
  inRoutine("place_team")(
    "depth of a new team",
    "(tg_op = 'INSERT' or ",
    "(",
    "limits",
    "for a team deeper than the org's teams may nest",
  ),
  inRoutine("place_team")(
    "depth of what is moved along",
    "cardinality(new.path) + levels > allowed",
    "cardinality(new.path) > allowed",
    "team-tree",
    "when a live team below it would lie too deep",
  ),
  sql(
    "depth of what comes back",
    "drop trigger teams_judge_depth on roster.teams",
    "team-tree",
    "when a live team below it would lie too deep",
  ),
  sql(
    "one move after the other",
    "drop trigger teams_hold_tree on roster.teams",
    "team-tree",
    "Teams that are moved at the same time",
  ),
  inRoutine("hold_tree")(
    "no team of an org that is deleted meanwhile",
    "and o.delete_time is null for no key update",
    "for no key update",
    "team-races",
    "of an org that is deleted meanwhile",
  ),
  inRoutine("hold_org")(
    "nobody makes a team while one is moved",
    "and o.delete_time is null for share",
    "and o.delete_time is null",
    "team-changes",
    "TeamService.CreateTeam beside TeamService.DeleteTeam",
  ),
  inRoutine("place_subtree")(
    "the subtree goes along",
    "path = new.path || t.path[cardinality(old.path) + 1 :]",
    "path = t.path",
    "team-tree",
    "where the roles above it hold",
  ),
  inRoutine("place_subtree")(
    "the subtree is hidden with it",
    "secrets = new.secrets || t.secrets[cardinality(old.secrets) + 1 :]",
    "secrets = t.secrets",
    "team-tree",
    "keep every team below as hidden",
  ),
  sql(
    "the subtree stays as it is otherwise",
    `drop trigger teams_touch on roster.teams;
    create trigger teams_touch before update on roster.teams for each row execute function roster.touch()`,
    "team-tree",
    "leaves the teams below it as they were",
  ),
  inRoutine("unaudited_columns")(
    "the log tells of moves alone",
    ", 'path'::text, 'secrets'::text",
    "",
    "team-tree",
    "leaves the teams below it as they were",
  ),
];

/** Secrecy. */
const sight: readonly Guard[] = [
  sql(
    "secret teams",
    "alter policy teams_sight on roster.teams using (true)",
    "team-sight",
    "does not exist for others",
  ),
  inRoutine("place_team")(
    "what lies below a secret team is secret",
    "new.secrets := parent.secrets;",
    "",
    "team-tree",
    "no team is seen by who does not see that one",
  ),
  inRoutine("known_teams")(
    "whose team is deleted does not belong to those above",
    " AND (t.delete_time IS NULL)",
    "",
    "team-tree",
    "is no way to see another one",
  ),
  inRoutine("team_role")(
    "a member's role ends at a secret team",
    "t.secrets <@ roster.known_teams(roster.current_actor())",
    "true",
    "team-sight",
    "sees just the teams where they have a role",
  ),
  inRoutine("hidden_teams")(
    "hidden teams are not counted",
    "(count(*))::integer",
    "0",
    "team-tree",
    "no team is seen by who does not see that one",
  ),
  inSource("src/services/orgs.ts")(
    "hidden teams are not counted",
    "c.teams - roster.hidden_teams()",
    "c.teams",
    "team-tree",
    "no team is seen by who does not see that one",
  ),
];

/** Rights by a role in a team. */
const roles: readonly Guard[] = [
  sql(
    "who loses the role makes no team any more",
    "drop trigger teams_rights on roster.teams",
    "team-races",
    "changes no team that was moved away",
  ),
  sql(
    "who loses the role changes no team any more",
    "drop trigger teams_rights_again on roster.teams",
    "team-races",
    "changes no team that was moved away",
  ),
  sql(
    "nobody makes a team that they would not see",
    "drop trigger teams_sight on roster.teams",
    "team-sight",
    "is not made by who would not see it",
  ),
  sql(
    "who loses the role does not take it back",
    "drop trigger team_members_rights on roster.team_members",
    "team-races",
    "does not take the role back",
  ),
  inSource("src/services/team-member-sets.ts")(
    "who sets a list has the right to it, also where nothing changes",
    " where roster.hold_team(id)",
    "",
    "team-races",
    "sets no list",
  ),
  inRoutine("hold_maintainer")(
    "the role is held until the end",
    "limit 1 for share;",
    "limit 1;",
    "team-races",
    "does not remove, nor is removed by",
  ),
  inSource("src/services/team-members.ts")(
    "who adds comes before or after who sets the list",
    " for share of t",
    "",
    "team-races",
    "adds nobody whom the list that ends the role leaves out",
  ),
];

export const teams: readonly Guard[] = [...tree, ...sight, ...roles];
