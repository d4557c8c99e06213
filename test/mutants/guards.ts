/** The guards of Roster, each with how it is weakened and the test files of which one must notice. */
import type { Weakness } from "./weakness.ts";

export interface Guard {
  readonly guard: string;
  readonly weakness: Weakness;
  /** Names of test files, without their ending. */
  readonly tests: readonly string[];
}

const sql = (guard: string, text: string, ...tests: string[]): Guard => ({
  guard,
  weakness: { sql: text },
  tests,
});
const inRoutine =
  (routine: string) =>
  (guard: string, find: string, instead: string, ...tests: string[]): Guard => ({
    guard: `${routine}: ${guard}`,
    weakness: { routine, find, instead },
    tests,
  });
const inSource =
  (file: string) =>
  (guard: string, find: string, instead: string, ...tests: string[]): Guard => ({
    guard: `${file}: ${guard}`,
    weakness: { file, find, instead },
    tests,
  });

/** The wall between tenants. */
const wall: readonly Guard[] = [
  ...["teams", "team_members", "org_members", "org_member_keys", "roles", "org_slugs"].flatMap(
    (table) => [
      sql(
        `${table}: what is read`,
        `alter policy ${table}_guard on roster.${table} using (true)`,
        "wall",
      ),
      sql(
        `${table}: what is written`,
        `alter policy ${table}_guard on roster.${table} with check (true)`,
        "privileges",
      ),
    ],
  ),
  sql("orgs: what is read", "alter policy orgs_guard on roster.orgs using (true)", "wall"),
  sql(
    "profiles: what is read",
    "alter policy profiles_guard on roster.profiles using (true)",
    "wall",
  ),
  sql("users: members alone", "alter policy users_app on roster.users using (true)", "wall"),
  sql(
    "users: outside any org themselves alone",
    "alter policy users_directory on roster.users using (true) with check (true)",
    "wall",
  ),
  sql(
    "orgs: outside any org those of a member alone",
    "alter policy orgs_directory on roster.orgs using (true)",
    "lookups",
  ),
  sql(
    "audit_entries: an org's own",
    "alter policy audit_entries_guard on roster.audit_entries using (true)",
    "wall",
  ),
  sql(
    "audit_changes: an org's own",
    "alter policy audit_changes_guard on roster.audit_changes using (true)",
    "wall",
  ),
  sql(
    "idempotency_keys: the gate's alone",
    `grant select on roster.idempotency_keys to roster_app;
     create policy idempotency_keys_app on roster.idempotency_keys to roster_app using (true)`,
    "privileges",
  ),
  sql("FORCE", "alter table roster.teams no force row level security", "privileges"),
  sql("ENABLE", "alter table roster.teams disable row level security", "wall"),
  sql("secret teams", "alter policy teams_sight on roster.teams using (true)", "team-sight"),
];

/** What must be unique. */
const keys: readonly Guard[] = [
  sql("e-mails", "drop index roster.users_email_key_key", "users"),
  sql("external ids of users", "drop index roster.users_external_id_key", "users"),
  sql("external ids of orgs", "drop index roster.orgs_external_id_key", "orgs"),
  sql(
    "names of teams",
    "drop index roster.teams_org_id_parent_team_id_name_key_key",
    "teams",
    "team-changes",
  ),
];

/** The last owner. */
const owners: readonly Guard[] = [
  inRoutine("demand_owner")("the org is held", "for no key update", "", "owner-races"),
  inRoutine("demand_owner")("other owners are held", "for share of u", "", "owner-races"),
  inRoutine("lock_owned_orgs")(
    "orgs are held before their owner",
    "perform from roster.orgs o where o.id = any (owned) order by o.id for no key update;",
    "",
    "owner-races",
  ),
  inRoutine("guard_org_member")(
    "the last owner stays",
    "if leaves and not",
    "if false and not",
    "owners",
  ),
  inRoutine("guard_user")(
    "the user stays who is one",
    "if cardinality(ownerless) > 0 then",
    "if false then",
    "owners",
  ),
  sql(
    "an org opens for an active owner alone",
    "drop trigger orgs_guard_owner_again on roster.orgs",
    "life-cycle",
  ),
  sql("a user is not removed by hand", "drop trigger users_guard_delete on roster.users", "owners"),
];

/** Who may. */
const rights: readonly Guard[] = [
  inRoutine("guard_org_member")("grants", "if held <> '*' and", "if false and", "roles"),
  inRoutine("guard_org_member")(
    "a member is a live, active user",
    "elsif user_state is distinct from 'ACTIVE' then",
    "elsif false then",
    "org-members",
  ),
  inRoutine("enter")(
    "the caller is active",
    "where u.id = enter.actor and u.delete_time is null and u.state = 'ACTIVE'",
    "where u.id = enter.actor",
    "life-cycle",
  ),
  inRoutine("enter")(
    "the membership is live",
    "caller.org_state is null or not caller.live",
    "caller.org_state is null",
    "org-member-changes",
    "entered",
  ),
  inRoutine("enter")("the org is open", "caller.org_state <> 'ACTIVE'", "false", "life-cycle"),
  inRoutine("enter")(
    "a token's scope narrows",
    "if scope is not null and permission <> '' and permission <> all (string_to_array(scope, ' ')) then",
    "if false then",
    "roles",
    "entered",
  ),
  inRoutine("enter")(
    "the permission is held",
    "if not (self or permission = '' or coalesce(permission = any (granted), false)) then",
    "if false then",
    "access-table",
  ),
  inRoutine("enter")(
    "a guest makes no team",
    "and not (permission = 'teams.create' and caller.role = 'guest')",
    "",
    "access-table",
  ),
  inRoutine("enter")(
    "a service's scope",
    "and roster.open_to_services(permission)) then",
    "or true) then",
    "access-table",
  ),
  inRoutine("enter_directory")("reach", "if not (reach or self)", "if false", "access-table"),
  inRoutine("demand_platform")(
    "platform",
    "if not roster.is_platform() then",
    "if false then",
    "erasure",
  ),
  inSource("src/interceptors/access.ts")(
    "a pinned credential",
    "caller.orgId !== undefined && orgId !== caller.orgId",
    "false",
    "access-table",
  ),
  inSource("src/interceptors/access.ts")(
    "header and body agree",
    "named !== narrowed",
    "false",
    "identity",
    "wire",
    "protocol",
  ),
  inSource("src/interceptors/access.ts")(
    "what self may change",
    "rule.withinSelf(message)",
    "true",
    "access-table",
  ),
  inSource("src/interceptors/identity.ts")("the audience", "        audience,\n", "", "identity"),
  inSource("src/interceptors/identity.ts")("the issuer", "        issuer,\n", "", "identity"),
  inSource("src/interceptors/identity.ts")(
    "the expiry of who is known",
    "found.expiresMs > Date.now()",
    "true",
    "identity",
  ),
];

/** The log, retries, pages, and the end of things. */
const rest: readonly Guard[] = [
  sql(
    "audit",
    "alter table roster.teams disable trigger teams_audit_update",
    "audit-changes",
    "schema",
  ),
  inRoutine("audit")(
    "no change without an entry",
    "if entry is null then",
    "if false then",
    "audit-changes",
    "wall",
  ),
  inSource("src/interceptors/denials.ts")(
    "denials are on record",
    "failure?.code === Code.PermissionDenied",
    "false",
    "every-rpc",
  ),
  inRoutine("enter")(
    "a read changes nothing",
    "set_config('transaction_read_only', 'on', true)",
    "''",
    "entered",
    "transactions",
  ),
  inRoutine("claim_request")("another request", "before <> hash", "false", "idempotency"),
  inRoutine("request_org")(
    "keys of another org",
    "roster.current_org()",
    "null",
    "idempotency",
    "keys",
  ),
  inSource("src/interceptors/idempotency.ts")(
    "no blind retry",
    "request.header.has(retryHeader)",
    "false",
    "retries",
  ),
  inSource("src/database/page.ts")(
    "a page token is one caller's",
    "binding.subject, ",
    "",
    "paging",
  ),
  inSource("src/database/page.ts")("and one org's", "binding.orgId, ", "", "paging"),
  inRoutine("guard_team_parent")("depth", "levels > 16", "false", "teams"),
  inRoutine("lock_org")("teams are held", "for no key update", "", "team-changes", "teams"),
  inRoutine("hold_org")("no team in a deleted org", "if not found", "if false", "org-delete-races"),
  inRoutine("hold_rights")(
    "nobody comes to a deleted org",
    "if gone and",
    "if false and",
    "org-delete-races",
  ),
  inSource("src/services/orgs.ts")(
    "a delete holds the org before it looks",
    "if (!force) await",
    "if (false) await",
    "org-delete-races",
  ),
  inRoutine("accept_invitation")(
    "what has expired is not accepted again",
    "and (m.expire_time is null or m.expire_time > now())",
    "",
    "invitation-answers",
  ),
  inRoutine("keep_org_slugs")(
    "quarantine of slugs",
    "s.org_id = excluded.org_id or s.free_time <= now()",
    "true",
    "purge",
  ),
  inRoutine("forget")(
    "the log forgets",
    "where c.person = forget.person and c.entry_id <> entry",
    "where false",
    "erasure",
  ),
  inRoutine("erase_user")(
    "kept answers are dropped",
    "where k.response is not null",
    "where false",
    "erasure",
  ),
  inRoutine("stored_response")(
    "nobody is made anew",
    "if found and answer is null",
    "if false",
    "erasure",
  ),
  inRoutine("purge")(
    "one process purges",
    "if not pg_try_advisory_xact_lock(5118620947)",
    "if false",
    "purge",
  ),
  inRoutine("purge")("an undelete in time", "interval '2 minutes'", "interval '0'", "purge"),
  inRoutine("purge_user")(
    "what is live stays",
    "elsif found_user.delete_time is null",
    "elsif false",
    "purge",
  ),
  inRoutine("purge_org")(
    "what is live stays",
    "elsif found_org.delete_time is null",
    "elsif false",
    "purge",
  ),
];

export const guards: readonly Guard[] = [...wall, ...keys, ...owners, ...rights, ...rest];
