/** Who calls, and what they may. */
import { type Guard, inRoutine, inSource } from "./guard.ts";

const inEnter = inRoutine("enter");
const inEnterDirectory = inRoutine("enter_directory");
const inAccess = inSource("src/interceptors/access.ts");
const inIdentity = inSource("src/interceptors/identity.ts");

/** The door. */
const door: readonly Guard[] = [
  inEnter(
    "the caller is active",
    "u.delete_time is null and u.state = 'ACTIVE'",
    "u.delete_time is null",
    "identity",
    "CALLER_INACTIVE from the very call",
  ),
  inEnter(
    "the caller is live",
    "u.delete_time is null and u.state = 'ACTIVE'",
    "u.state = 'ACTIVE'",
    "user-deletes",
    "PERMISSION_DENIED for the deleted user",
  ),
  inEnter(
    "the membership is active",
    "m.state = 'ACTIVE' and (m.expire_time is null or m.expire_time > now()) as live",
    "(m.expire_time is null or m.expire_time > now()) as live",
    "org-member-changes",
    "that is suspended or has expired",
  ),
  inEnter(
    "the membership lasts",
    "m.state = 'ACTIVE' and (m.expire_time is null or m.expire_time > now()) as live",
    "m.state = 'ACTIVE' as live",
    "org-member-changes",
    "that is suspended or has expired",
  ),
  inEnter(
    "there is a membership",
    "elsif caller.org_state is null or not caller.live then",
    "elsif false then",
    "orgs",
    "PERMISSION_DENIED for an org of others",
  ),
  inEnter(
    "the org is open to its people",
    "elsif caller.org_state <> 'ACTIVE' then",
    "elsif false then",
    "org-deletes",
    "A suspended org",
  ),
  inEnter(
    "the org is open to services",
    "elsif not platform and caller.org_state <> 'ACTIVE' then",
    "elsif false then",
    "org-deletes",
    "A suspended org",
  ),
  inEnter(
    "a deleted org is closed to writers",
    "not (platform and deleted)",
    "false",
    "org-deletes",
    "to nobody for writing",
  ),
  inEnter(
    "an absent org is like a foreign one",
    "if pinned then",
    "if false then",
    "identity",
    "that is deleted, or never was",
  ),
  inEnter(
    "a token's scope narrows",
    "if scope is not null and permission <> '' and permission <> all (string_to_array(scope, ' ')) then",
    "if false then",
    "identity",
    "is narrowed by the scope",
  ),
  inEnter(
    "a token's scope narrows what is seen",
    "and (scope is null or 'teams.delete' = any (string_to_array(scope, ' '))) then 'deleted'",
    "then 'deleted'",
    "team-sight",
    "narrowed to reading",
  ),
  inEnter(
    "a token's scope narrows what is handed out",
    "when platform or (owner and scope is null) then '*'",
    "when platform or owner then '*'",
    "roles",
    "binds users to what their token is narrowed to",
  ),
  inEnter(
    "the permission is held",
    "if not (self or permission = '' or coalesce(permission = any (granted), false)) then",
    "if false then",
    "orgs",
    "is for admins and owners",
  ),
  inEnter(
    "a guest makes no team",
    "and not (permission = 'teams.create' and caller.role = 'guest')",
    "",
    "team-sight",
    "A guest > who is a maintainer",
  ),
  inEnter(
    "a service's scope",
    "and not (permission = any (string_to_array(coalesce(scope, ''), ' '))",
    "and not (true",
    "org-members",
    "services without members.add",
  ),
  inEnter(
    "what is closed to services",
    "and roster.open_to_services(permission)) then",
    "and true) then",
    "org-deletes",
    "for services whatever their scope",
  ),
  inEnter(
    "a session ends with its transaction",
    "set_config('roster.org_id', org::text, true)",
    "set_config('roster.org_id', org::text, false)",
    "entered",
    "ends with its transaction",
  ),
  inEnter(
    "a read changes nothing",
    "set_config('transaction_read_only', 'on', true)",
    "''",
    "database",
    "pipelined driver > is as new after a write in a read",
  ),
  inEnterDirectory(
    "the caller is active",
    "and u.delete_time is null and u.state = 'ACTIVE'",
    "",
    "life-cycle",
    "keep a user out of everything",
  ),
  inEnterDirectory("reach", "if not (reach or self)", "if false", "lists", "for users outside one"),
  inEnterDirectory(
    "a token's scope narrows",
    "or (actor is not null and scope is not null and permission <> ''",
    "or (false",
    "batch-gets",
    "tokens narrowed below it",
  ),
  inEnterDirectory(
    "a new org is new",
    "if new_org is not null and exists",
    "if false and exists",
    "entered",
    "Nobody enters an org that is there",
  ),
  inRoutine("demand_platform")(
    "platform",
    "if not roster.is_platform() then",
    "if false then",
    "erasure",
    "is the platform's alone in the database too",
  ),
];

/** What the credential and the request say before the database is asked. */
const credentials: readonly Guard[] = [
  inAccess(
    "a pinned credential",
    "caller.orgId !== undefined && orgId !== caller.orgId",
    "false",
    "identity",
    "for any org but the one of the credential",
  ),
  inAccess(
    "a pinned operator",
    "caller.orgId === undefined &&\n    (caller.platform",
    "(caller.platform",
    "identity",
    "outside its org for a pinned operator",
  ),
  inAccess("header and body agree", "named !== narrowed", "false", "wire", "ORG_MISMATCH"),
  inAccess(
    "what self may change",
    "rule.withinSelf(message)",
    "true",
    "user-changes",
    "lets users change their own name and nothing else",
  ),
  inAccess(
    "a mutation's request says in which org it is",
    'rule.mutates && rule.org?.(message) === ""',
    "false",
    "audit-changes",
    "whichever org the token names",
  ),
  inAccess(
    "a user answers an invitation for nobody else",
    '(caller.userId !== undefined && subject === "")',
    "caller.userId !== undefined",
    "invitation-answers",
    "whoever they name",
  ),
  inAccess(
    "a service answers invitations by its scope",
    "caller.userId === undefined && caller.scope?.includes(rule.permission) === true",
    "caller.userId === undefined",
    "invitation-answers",
    "whoever they name",
  ),
  inIdentity("the audience", "        audience,\n", "", "identity", "for a foreign audience"),
  inIdentity("the issuer", "        issuer,\n", "", "identity", "from a foreign issuer"),
  inIdentity(
    "the expiry of who is known",
    "found.expiresMs > Date.now()",
    "true",
    "keys",
    "expires on time all the same",
  ),
  inIdentity(
    "who is known is forgotten with their key",
    "this.forget();\n    } catch",
    "} catch",
    "keys",
    "are replaced while the server runs",
  ),
  inIdentity(
    "a user is no operator",
    "platform: service && ",
    "platform: ",
    "identity",
    "is no operator as a user",
  ),
];

export const rights: readonly Guard[] = [...door, ...credentials];
