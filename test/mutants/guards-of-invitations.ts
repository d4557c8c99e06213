/** What an invitation promises, and who answers it. */
import { type Guard, inRoutine, inSource, sql } from "./guard.ts";

const inRefusal = inRoutine("invitation_refusal");
const inAnswerable = inRoutine("answerable_invitation");
const inEntering = inRoutine("enter_invitation");
const inAccepting = inRoutine("accept_invitation");
const inInvitations = inSource("src/services/invitations.ts");

const alike = "OrgService.AcceptInvitation > NOT_FOUND, byte for byte alike";

export const invitations: readonly Guard[] = [
  inRoutine("guard_invitation")(
    "what is promised is judged",
    "if refusal is not null and",
    "if false and",
    "invitations",
    "admins invite to every role but owner",
  ),
  sql(
    "who invites holds their rights",
    "drop trigger invitations_hold_rights on roster.invitations",
    "invitation-races",
    "does nothing once they have lost their rights",
  ),
  ...["ROLE_UNKNOWN", "ROLE_NOT_GRANTABLE", "TEAM_NOT_FOUND"].map((reason) =>
    inSource("src/services/invitation-batches.ts")(
      `a batch is sorted anew by the roles and teams of then: ${reason}`,
      `  "${reason}",\n`,
      "",
      "invitation-races",
      "many answers for each by the roles and teams of then",
    ),
  ),
  inRefusal(
    "there is such a role",
    "if needed is null then",
    "if false then",
    "batch-create-invitations",
    "makes those that can be made",
  ),
  inRefusal(
    "nobody promises what they do not hold",
    "not needed <@ string_to_array(held, ' ')",
    "false",
    "invitations",
    "binds services to their scopes",
  ),
  inRefusal(
    "owners are invited by owners alone",
    "(role = 'owner' or",
    "(false or",
    "invitations",
    "binds services to their scopes",
  ),
  inRefusal(
    "no promise is for long",
    "or expire_time > now() + interval '90 days'",
    "",
    "invitations",
    "INVALID_ARGUMENT names the field",
  ),
  inRefusal(
    "teams are for who may change them",
    "'teams.update' <> all (string_to_array(held, ' '))",
    "false",
    "invitations",
    "invites into teams with teams.update alone",
  ),
  inRefusal(
    "teams are the org's, and live",
    "where t.org_id = invitation_refusal.org and t.id = asked.id and t.delete_time is null",
    "where t.id = asked.id",
    "invitations",
    "NOT_FOUND for a team",
  ),
  inEntering(
    "the caller is active",
    "and u.delete_time is null and u.state = 'ACTIVE'",
    "",
    "invitation-answers",
    "OrgService.AcceptInvitation > PERMISSION_DENIED",
  ),
  inEntering(
    "reach or self",
    "if not (reach or self)",
    "if false",
    "invitation-answers",
    "OrgService.AcceptInvitation > PERMISSION_DENIED",
  ),
  inEntering(
    "a token's scope narrows",
    "or (actor is not null and scope is not null and",
    "or (false and",
    "invitation-answers",
    "OrgService.AcceptInvitation > PERMISSION_DENIED",
  ),
  inAnswerable(
    "the org that was entered",
    "where i.org_id = roster.current_org() and i.id = invitation",
    "where i.id = invitation",
    "entered",
    "the session of an org that invites",
  ),
  inAnswerable(
    "the last token that was sent",
    "and i.resend_count = sent",
    "and sent is not null",
    "invitation-changes",
    "and voids the former",
  ),
  inAnswerable("a token of ours", "and i.resend_count = sent", "", "invitation-answers", alike),
  inAnswerable(
    "the caller's address",
    "i.email_key = (select u.email_key from roster.users u where u.id = roster.current_actor())",
    "true",
    "invitation-answers",
    "OrgService.AcceptInvitation > is for who has the address now",
  ),
  inAnswerable(
    "the org is live",
    "o.id = i.org_id and o.delete_time is null",
    "o.id = i.org_id",
    "invitation-answers",
    alike,
  ),
  inAnswerable(
    "the org is open",
    "o.id = found_one.org_id and o.state = 'ACTIVE'",
    "o.id = found_one.org_id",
    "invitation-answers",
    "OrgService.AcceptInvitation > FAILED_PRECONDITION in a suspended org",
  ),
  inAnswerable(
    "the person is live and active",
    "u.id = person and u.delete_time is null and u.state = 'ACTIVE'",
    "u.id = person",
    "invitation-answers",
    "OrgService.DeclineInvitation > is for whom a service names",
  ),
  inAnswerable(
    "the person is held until the end",
    "u.state = 'ACTIVE' for share",
    "u.state = 'ACTIVE'",
    "invitation-races",
    "as they are suspended is refused as someone inactive",
  ),
  inAnswerable(
    "its time is not over",
    "found_one.expire_time <= now()",
    "false",
    "invitation-answers",
    "OrgService.AcceptInvitation > FAILED_PRECONDITION with a reason each",
  ),
  inAnswerable(
    "it is held until the end",
    "for no key update",
    "",
    "invitation-races",
    "Who accepts an invitation at the same instant",
  ),
  inAccepting(
    "it was not declined or taken back",
    "elsif accepted.state <> 'ACCEPTED' then",
    "elsif false then",
    "invitation-answers",
    "OrgService.AcceptInvitation > FAILED_PRECONDITION with a reason each",
  ),
  inAccepting(
    "nobody is brought back who has left",
    "if accepted.state = 'PENDING' then",
    "if accepted.state in ('PENDING', 'ACCEPTED') then",
    "invitation-answers",
    "brings nobody back who has left",
  ),
  inAccepting(
    "no team that is gone",
    "and t.id = any (accepted.team_ids) and t.delete_time is null",
    "and t.id = any (accepted.team_ids)",
    "invitation-answers",
    "the teams that are there",
  ),
  inAccepting(
    "wider rights end",
    "s := set_config('roster.held_permissions', '', true);",
    "",
    "entered",
    "the session of an org that invites",
  ),
  inInvitations(
    "the signature of a token",
    "timingSafeEqual(given, expected)",
    "true",
    "invitation-answers",
    alike,
  ),
  inInvitations(
    "a token is one invitation's",
    "[org, id, resends]",
    "[org, resends]",
    "invitation-answers",
    alike,
  ),
  inInvitations(
    "what is answered is not taken back",
    "and i.state in ('PENDING', 'EXPIRED')",
    "",
    "invitation-changes",
    "FAILED_PRECONDITION with a reason each for one that is resolved",
  ),
];
