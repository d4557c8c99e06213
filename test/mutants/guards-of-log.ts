/** What the log tells, to whom, and what it forgets. */
import { type Guard, inRoutine, inSource, sql } from "./guard.ts";

const inAudit = inRoutine("audit");

export const log: readonly Guard[] = [
  sql(
    "every change is told",
    "alter table roster.teams disable trigger teams_audit_update",
    "schema",
    "each table is audited",
  ),
  inAudit(
    "no change without an entry",
    "if entry is null then",
    "if false then",
    "audit",
    "take note of every write",
  ),
  inAudit(
    "orgs are not told what the platform alone may see",
    "c.before - place.private, c.after - place.private",
    "c.before, c.after",
    "audit-changes",
    "without what only the platform may see",
  ),
  sql(
    "entries are not changed",
    `grant update on roster.audit_entries to roster_app`,
    "privileges",
    "the audit log is only ever added to",
  ),
  inSource("src/interceptors/denials.ts")(
    "denials are on record",
    "failure?.code === Code.PermissionDenied",
    "false",
    "audit",
    "is in the log of their org, with the reason",
  ),
  inRoutine("record_denial")(
    "a denial is in no log of others",
    "and m.user_id = record_denial.actor",
    "",
    "audit",
    "of an outsider is in no org's log",
  ),
  inRoutine("demand_self")(
    "an export is the person's and the platform's",
    "if not (roster.is_platform() or person is not distinct from roster.current_actor()) then",
    "if false then",
    "user-exports",
    "whatever statement is sent",
  ),
  ...["exported_changes", "exported_entries", "exported_invitations"].map((routine) =>
    inRoutine(routine)(
      "whoever asks is judged",
      `perform roster.demand_self(${routine}.person);`,
      "",
      "user-exports",
      "whatever statement is sent",
    ),
  ),
  inRoutine("forget")(
    "the log forgets",
    "where c.person = forget.person and c.entry_id <> entry",
    "where false",
    "erasure",
    "leaves no trace of a person",
  ),
  inRoutine("forget")(
    "the log forgets nobody else",
    "where c.person = forget.person and c.entry_id <> entry",
    "where c.person is not null and c.entry_id <> entry",
    "erasure",
    "blanks nothing that is other people's",
  ),
  inSource("src/services/user-exports.ts")(
    "who is past their purge time is exported no more",
    "and roster.kept(u.delete_time, u.purge_time, true)",
    "",
    "purge",
    "counts as gone although it has not been removed yet",
  ),
  sql(
    "erase_user: addresses are read once the person is held",
    `do $$ begin
       execute replace(replace(pg_get_functiondef('roster.erase_user'::regproc),
         'addresses := roster.own_addresses(person);', ''),
         'perform roster.demand_platform();',
         'perform roster.demand_platform(); addresses := roster.own_addresses(person);');
     end $$`,
    "erasure",
    "knows the address that the person was given at the same instant",
  ),
  ...["purge", "purge_org_step"].map((routine) =>
    inRoutine(routine)(
      "no team goes before those in it",
      "child.parent_team_id = t.id",
      "false",
      "purge",
      "takes teams from the leaves up",
    ),
  ),
  inRoutine("erase_user")(
    "kept answers are dropped",
    "where k.response is not null",
    "where false",
    "erasure",
    "leaves no trace of a person",
  ),
  inRoutine("erase_user")(
    "orgs are not closed unless asked",
    "and not force then",
    "and false then",
    "erasure",
    "LAST_OWNER names the orgs",
  ),
  inRoutine("stored_response")(
    "nobody is made anew",
    "if found and answer is null",
    "if false",
    "erasure",
    "ANSWER_ERASED when what told of them is sent again",
  ),
];
