/** Which rows there are for whom, and which may not be written. */
import { type Guard, sql } from "./guard.ts";

const orgTables = [
  "teams",
  "team_members",
  "org_members",
  "org_member_keys",
  "roles",
  "org_slugs",
  "invitations",
  "org_limits",
  "org_counts",
];

/** The wall between tenants. */
const wall: readonly Guard[] = [
  ...orgTables.flatMap((table) => [
    sql(
      `${table}: what is read`,
      `alter policy ${table}_guard on roster.${table} using (true)`,
      "wall",
      "if roster_app were granted every table > is not read",
    ),
    sql(
      `${table}: what is written`,
      `alter policy ${table}_guard on roster.${table} with check (true)`,
      "wall",
      "if roster_app were granted every table > takes no row by INSERT",
    ),
  ]),
  sql(
    "orgs: what is read",
    "alter policy orgs_guard on roster.orgs using (true)",
    "wall",
    "as it is granted > is not read",
  ),
  sql(
    "profiles: what is read",
    "alter policy profiles_guard on roster.profiles using (true)",
    "wall",
    "as it is granted > is not read",
  ),
  sql(
    "profiles: default ones are not made in an org",
    "alter policy profiles_app_insert on roster.profiles with check (true)",
    "entered",
    "lets nobody write a default profile",
  ),
  sql(
    "profiles: default ones are not changed in an org",
    "alter policy profiles_app_update on roster.profiles using (true)",
    "entered",
    "lets nobody write a default profile",
  ),
  sql(
    "users: members alone",
    "alter policy users_app on roster.users using (true)",
    "entered",
    "shows its members' users",
  ),
  sql(
    "profiles: of members alone",
    "alter policy profiles_app on roster.profiles using (true)",
    "entered",
    "shows its members' users",
  ),
  sql(
    "audit_entries: an org's own",
    "alter policy audit_entries_guard on roster.audit_entries using (true)",
    "wall",
    "as it is granted > is not read",
  ),
  sql(
    "audit_changes: an org's own",
    "alter policy audit_changes_guard on roster.audit_changes using (true)",
    "wall",
    "as it is granted > is not read",
  ),
  sql(
    "idempotency_keys: the gate's alone",
    `grant select on roster.idempotency_keys to roster_app;
     create policy idempotency_keys_app on roster.idempotency_keys to roster_app using (true)`,
    "wall",
    "as it is granted > is not read",
  ),
  sql(
    "FORCE",
    "alter table roster.teams no force row level security",
    "privileges",
    "row-level security is enabled and forced on each table and partition > is so",
  ),
  sql(
    "ENABLE",
    "alter table roster.teams disable row level security",
    "wall",
    "as it is granted > is not read",
  ),
];

/** What a user sees and changes outside any org. */
const directory: readonly Guard[] = [
  ...["users", "profiles", "org_members", "team_members", "audit_entries", "audit_changes"].map(
    (table): Guard =>
      sql(
        `${table}: outside any org their own alone`,
        `alter policy ${table}_directory on roster.${table} using (true)`,
        "entered",
        "shows their own user",
      ),
  ),
  sql(
    "orgs: outside any org those of a member alone",
    "alter policy orgs_directory on roster.orgs using (true)",
    "lookups",
    "NOT_FOUND for an org of others",
  ),
  ...[
    ["users", "users_directory", "a user"],
    ["profiles", "profiles_directory", "someone's profile"],
    ["org_members", "org_members_directory", "a membership"],
    ["orgs", "orgs_directory_insert", "an org"],
  ].map(([table, policy, what]) =>
    sql(
      `${table}: outside any org nobody makes ${what}`,
      `alter policy ${policy} on roster.${table} with check (true)`,
      "entered",
      `cannot make ${what}`,
    ),
  ),
];

/** What must be unique, and what refers to what. */
const keys: readonly Guard[] = [
  sql(
    "e-mails",
    "drop index roster.users_email_key_key",
    "users",
    "ALREADY_EXISTS when a live user has the email",
  ),
  sql(
    "external ids of users",
    "drop index roster.users_external_id_key",
    "users",
    "ALREADY_EXISTS when a live user has the external_id",
  ),
  sql(
    "external ids of orgs",
    "drop index roster.orgs_external_id_key",
    "orgs",
    "ALREADY_EXISTS when the slug or external_id is taken",
  ),
  sql(
    "names of teams",
    "drop index roster.teams_org_id_parent_team_id_name_key_key",
    "teams",
    "ALREADY_EXISTS when a live sibling has the name",
  ),
  sql(
    "one pending invitation for an address",
    `alter table roster.invitations alter column email_key drop expression;
     alter table roster.invitations alter column email_key set default gen_random_uuid()::text`,
    "invitations",
    "ALREADY_EXISTS while the address has a pending one",
  ),
  sql(
    "a role stays while members have it",
    "alter table roster.org_members drop constraint org_members_org_id_custom_role_fkey",
    "custom-roles",
    "FAILED_PRECONDITION while a member has the role",
  ),
  sql(
    "a role stays while invitations promise it",
    "alter table roster.invitations drop constraint invitations_org_id_custom_role_fkey",
    "custom-roles",
    "FAILED_PRECONDITION while an invitation promises the role",
  ),
  sql(
    "who is in a team is in the org",
    "alter table roster.team_members drop constraint team_members_org_id_user_id_fkey",
    "entered",
    "team_members_org_id_user_id_fkey",
  ),
  sql(
    "a team is in a team of its org",
    "alter table roster.teams drop constraint teams_org_id_parent_team_id_fkey",
    "entered",
    "teams_org_id_parent_team_id_fkey",
  ),
  sql(
    "an owner's membership does not expire",
    "alter table roster.org_members drop constraint org_members_owner_expire_time_check",
    "owners",
    "INVALID_ARGUMENT with an expire_time",
  ),
  sql(
    "a role holds no more than an owner",
    "alter table roster.roles drop constraint roles_permissions_check",
    "roles",
    "cannot hold a permission that owners lack",
  ),
  sql(
    "no role has the name of a built-in one",
    "alter table roster.roles drop constraint roles_name_check",
    "custom-roles",
    "or that is built in",
  ),
];

export const rows: readonly Guard[] = [...wall, ...directory, ...keys];
