import { columns, exactly, ofOrg, query, tables, useLints } from "./catalogue.ts";

const lint = useLints();

const policies = `(
  select polrelid as table_oid, polname::text as name, polcmd as command,
    case when polpermissive then 'permissive' else 'restrictive' end as kind,
    array(select pg_get_userbyid(r) from unnest(polroles) r)::text[] as roles, 0 = any (polroles) as everyone,
    pg_get_expr(polqual, polrelid) as qual, pg_get_expr(polwithcheck, polrelid) as checks
  from pg_policy) p`;
const routines = `(
  select proname::text as name, prosecdef as definer, pg_get_userbyid(proowner) as owner,
    coalesce(proacl, acldefault('f', proowner)) as acl, coalesce(proconfig, '{}') as settings
  from pg_proc where pronamespace = 'roster'::regnamespace) f`;
const grantee = "case g.grantee when 0 then 'public' else pg_get_userbyid(g.grantee) end";
/** Whether table `t` is protected by the template of 001_foundation.sql. */
const templated = `(
  not t.partition and ${ofOrg} and 
  t.name not in ('profiles', 'audit_entries', 'audit_changes', 'idempotency_keys'))`;

lint(
  "row-level security is enabled and forced on each table and partition",
  {
    "alter table roster.teams no force row level security": "teams",
    "alter table roster.teams disable row level security": "teams",
    "alter table roster.audit_changes_default no force row level security": "audit_changes_default",
    "create table roster.strays (id int)": "strays",
  },
  query(`select name as finding from ${tables} where not walled`),
);

lint(
  "roster_owner owns each table and partition, and sees its rows",
  {
    "drop policy teams_owner on roster.teams": "teams",
    "alter policy teams_owner on roster.teams using (org_id is null)": "teams",
    "drop policy audit_changes_default_owner on roster.audit_changes_default":
      "audit_changes_default",
    "alter table roster.teams owner to current_user": "teams",
  },
  query(`
    select t.name as finding from ${tables}
    left join ${policies} on p.table_oid = t.oid and p.name = t.name || '_owner' and p.kind = 'permissive'
      and p.command = '*' and p.roles = '{roster_owner}' and p.qual = 'true' and p.checks = 'true'
    where p.name is null or t.owner <> 'roster_owner'::regrole`),
);

const guard = "(org_id = ( SELECT roster.current_org() AS current_org))";
lint(
  "each org table has the template's guard and policy; the others are named in the next rule",
  {
    "drop policy teams_guard on roster.teams": "teams",
    "drop policy teams_app on roster.teams": "teams",
    "alter policy teams_guard on roster.teams using (true)": "teams",
    "alter policy teams_guard on roster.teams with check (true)": "teams",
    "alter policy teams_guard on roster.teams to roster_worker": "teams",
    "alter policy teams_guard on roster.teams using (org_id = roster.current_org())": "teams",
    "create table roster.strays (org_id uuid)": "strays",
  },
  query(`
    select t.name as finding from ${tables}
    where ${templated} and 2 <> (
      select count(*) from ${policies}
      where p.table_oid = t.oid and p.roles = '{roster_app}' and p.command = '*' and (
        (p.name, p.kind, p.qual, p.checks) = (t.name || '_guard', 'restrictive', '${guard}', '${guard}')
        or (p.name, p.kind, p.qual) = (t.name || '_app', 'permissive', 'true')))`),
);

lint(
  "no policy for roster_app or everyone stands outside the template, but those named here",
  {
    "drop policy orgs_guard on roster.orgs": "orgs_guard restrictive *",
    "drop policy audit_entries_guard on roster.audit_entries": "audit_entries_guard restrictive *",
    "create policy users_all on roster.users using (true)": "users_all permissive *",
    "create policy users_add on roster.users for insert to roster_app with check (true)":
      "users_add permissive a",
  },
  exactly(
    [
      // An org belongs to itself.
      "orgs_app permissive *",
      "orgs_guard restrictive *",
      // Users and default profiles belong to the platform, and show where the user is a member.
      "users_app permissive r",
      "profiles_app permissive r",
      "profiles_app_insert permissive a",
      "profiles_app_update permissive w",
      "profiles_guard restrictive *",
      // Secret teams are hidden inside their own org.
      "teams_sight restrictive r",
      // Work across orgs shows in the logs of those where it changed something.
      "audit_changes_app permissive r",
      "audit_changes_guard restrictive *",
      "audit_entries_app permissive r",
      "audit_entries_guard restrictive *",
      // Says nothing of anyone.
      "schema_migrations_read permissive r",
    ],
    query(`
      select concat_ws(' ', p.name, p.kind, p.command) as finding
      from ${tables} join ${policies} on p.table_oid = t.oid
      where (p.everyone or 'roster_app' = any (p.roles))
        and not (${templated} and p.name in (t.name || '_guard', t.name || '_app'))`),
  ),
);

lint(
  "roster_directory and roster_worker see other people's rows as the platform alone",
  {
    "alter policy users_directory on roster.users using (true)": "users_directory",
    "alter policy users_directory on roster.users with check (true)": "users_directory",
    "alter policy orgs_directory_insert on roster.orgs with check (true)": "orgs_directory_insert",
  },
  query(`
    select p.name as finding from ${policies}
    where p.roles && '{roster_directory, roster_worker}' and p.name <> 'schema_migrations_read'
      and exists (select from unnest(array[coalesce(p.qual, p.checks), coalesce(p.checks, p.qual)]) rule
        where rule !~ 'is_platform\\(\\)')`),
);

lint(
  "nobody may touch partitions, truncate, refer to, put triggers on or pass on a table",
  {
    "grant select on roster.audit_changes_default to roster_app":
      "SELECT on audit_changes_default to roster_app",
    "grant truncate on roster.teams to roster_app": "TRUNCATE on teams to roster_app",
    "grant references on roster.teams to roster_app": "REFERENCES on teams to roster_app",
    "grant references (id) on roster.teams to roster_app": "REFERENCES on teams to roster_app",
    "grant trigger on roster.teams to roster_directory": "TRIGGER on teams to roster_directory",
    "grant select (name) on roster.teams to public": "SELECT on teams to public",
    "grant delete on roster.roles to roster_worker with grant option":
      "DELETE on roles to roster_worker",
  },
  query(`
    select format('%s on %s to %s', g.privilege_type, t.name, ${grantee}) as finding
    from ${tables} cross join lateral (
      select * from aclexplode(t.acl)
      union all
      select x.* from ${columns} cross join lateral aclexplode(a.acl) x where a.table_oid = t.oid) g
    where g.grantee <> t.owner and (t.partition or g.grantee = 0 or g.is_grantable
      or g.privilege_type not in ('SELECT', 'INSERT', 'UPDATE', 'DELETE'))`),
);

lint(
  "no caller may update keys, owners, versions or times",
  {
    "grant update (org_id) on roster.teams to roster_app": "teams.org_id by roster_app",
    "grant update (create_time) on roster.users to roster_directory":
      "users.create_time by roster_directory",
    "grant update on roster.org_slugs to roster_app": "org_slugs.slug_key by roster_app",
  },
  query(`
    select format('%s.%s by %s', t.name, a.name, role) as finding
    from ${tables} join ${columns} on a.table_oid = t.oid, unnest('{roster_app, roster_directory}'::text[]) role
    where has_column_privilege(role, t.oid, a.number, 'update') and (
      a.name in ('org_id', 'user_id', 'team_id', 'create_time', 'join_time', 'update_time', 'version')
      or exists (select from pg_index where indrelid = t.oid and indisprimary and a.number = any (indkey)))`),
);

lint(
  "the audit log is only ever added to, by the gate and the audit trigger",
  {
    "grant insert on roster.audit_entries to roster_app": "INSERT on audit_entries to roster_app",
    "grant update on roster.audit_changes to roster_audit":
      "UPDATE on audit_changes to roster_audit",
    "grant delete on roster.audit_entries to roster_worker":
      "DELETE on audit_entries to roster_worker",
  },
  query(`
    select format('%s on %s to %s', g.privilege_type, t.name, ${grantee}) as finding
    from ${tables} cross join lateral aclexplode(t.acl) g
    where t.name ~ '^audit_' and g.grantee <> t.owner and g.privilege_type <> 'SELECT'
      and (g.privilege_type, t.name, ${grantee}) not in (
        ('INSERT', 'audit_entries', 'roster_gate'), ('INSERT', 'audit_changes', 'roster_audit'),
        -- It seals, and removes what policies say is kept no longer.
        ('INSERT', 'audit_seals', 'roster_gate'), ('INSERT', 'audit_removals', 'roster_gate'),
        ('DELETE', 'audit_entries', 'roster_gate'), ('DELETE', 'audit_changes', 'roster_gate'))`),
);

// These two must own what they make and drop, and change no row.
lint(
  "definer functions have an empty search_path and an owner whom row-level security binds",
  {
    "alter function roster.lock_org() reset search_path": "lock_org",
    "alter function roster.lock_org() set search_path = 'roster'": "lock_org",
    "alter function roster.lock_org() owner to roster_owner": "lock_org",
    "alter function roster.touch() security definer": "touch",
  },
  query(`
    select f.name as finding from ${routines}
    where f.definer and not ('search_path=""' = any (f.settings) and (
      f.owner in ('roster_gate', 'roster_audit')
      or (f.owner = 'roster_owner' and f.name in ('make_partitions', 'drop_expired_months'))))`),
);

lint(
  "callers may execute these definer functions and no others, and everyone no function at all",
  {
    "grant execute on function roster.is_platform() to public": "is_platform to public",
    "create function roster.stray() returns int language sql return 1": "stray to public",
    "grant execute on function roster.lock_org() to roster_worker": "lock_org to roster_worker",
    "grant execute on function roster.guard_org() to roster_app": "guard_org to roster_app",
  },
  exactly(
    [
      "accept_invitation to roster_directory",
      "audit_heads to roster_worker",
      "check_access to roster_app",
      "check_seals_of to roster_worker",
      "claim_request to roster_app",
      "claim_request to roster_directory",
      "decline_invitation to roster_directory",
      "drop_expired_months to roster_worker",
      "effective_members to roster_app",
      "enter to roster_app",
      "enter_directory to roster_directory",
      "enter_invitation to roster_directory",
      "erase_user to roster_directory",
      "expire_audit to roster_worker",
      "expired_members to roster_app",
      "exported_changes to roster_directory",
      "exported_entries to roster_directory",
      "exported_invitations to roster_directory",
      "feed_state to roster_app",
      "feed_state to roster_directory",
      // The log is written by the audit role alone, at the gate's word.
      "addresses_of to roster_gate",
      "forget to roster_gate",
      "hidden_teams to roster_app",
      "judge_new_members to roster_app",
      "known_teams to roster_app",
      "hold_team to roster_app",
      "lock_org to roster_app",
      "lock_owned_orgs to roster_directory",
      "make_partitions to roster_worker",
      "purge to roster_worker",
      "purge_org to roster_directory",
      "purge_user to roster_directory",
      "purgeable to roster_worker",
      "record_denial to roster_directory",
      "remove_expired_audit to roster_worker",
      "remove_expired_keys to roster_worker",
      "remove_expired_members to roster_worker",
      "room_for to roster_app",
      "seal_audit to roster_worker",
      "seal_lag to roster_worker",
      "sealed_until to roster_app",
      "sealed_until to roster_directory",
      "store_response to roster_app",
      "store_response to roster_directory",
      "stored_response to roster_app",
      "stored_response to roster_directory",
      "teams_of to roster_app",
      "told_teams to roster_app",
    ],
    query(`
      select format('%s to %s', f.name, ${grantee}) as finding
      from ${routines} cross join lateral aclexplode(f.acl) g
      where g.grantee = 0 or (f.definer and ${grantee} <> f.owner)`),
  ),
);

lint(
  "what a migration makes is nobody's to execute, until it is granted",
  {
    "alter default privileges for role roster_owner grant execute on functions to public": "public",
    "alter default privileges for role roster_owner grant execute on functions to roster_app":
      "roster_app",
  },
  query(`
    with d as (
      select * from pg_default_acl
      where defaclrole = 'roster_owner'::regrole and defaclobjtype = 'f')
    select ${grantee} as finding from d cross join lateral aclexplode(defaclacl) g where g.grantee <> defaclrole
    union all
    select 'public' where not exists (select from d where defaclnamespace = 0)`),
);

lint(
  "nobody but its owner may create in the schema, and not everyone may look into it",
  {
    "grant create on schema roster to roster_gate": "CREATE to roster_gate",
    "grant usage on schema roster to public": "USAGE to public",
  },
  query(`
    select format('%s to %s', g.privilege_type, ${grantee}) as finding
    from pg_namespace cross join lateral aclexplode(nspacl) g
    where nspname = 'roster' and g.grantee <> nspowner and (g.privilege_type <> 'USAGE' or g.grantee = 0)`),
);

lint(
  "no view reads with the rights of its owner",
  { "create view roster.everyone as select * from roster.users": "everyone" },
  query(`
    select relname::text as finding from pg_class
    where relnamespace = 'roster'::regnamespace and relkind in ('v', 'm')
      and 'security_invoker=true' <> all (coalesce(reloptions, '{}'))`),
);

lint(
  "each role has these attributes, and none may become another but those named here",
  {
    "alter role roster_gate login": "roster_gate login",
    "alter role roster_audit bypassrls": "roster_audit bypassrls",
    "alter role roster_owner createrole": "roster_owner createrole",
    "grant roster_owner to roster_app": "roster_app is roster_owner",
    "grant pg_read_all_data to roster_directory": "roster_directory is pg_read_all_data",
  },
  exactly(
    [
      "roster_app login",
      "roster_directory login",
      "roster_migrator login",
      "roster_worker login",
      "roster_migrator is roster_owner",
      // Who owns a schema hands its functions over as a member of their new owners.
      "roster_owner is roster_audit",
      "roster_owner is roster_gate",
    ],
    query(`
      with ours as (
        select * from pg_roles where rolname in ('roster_app', 'roster_audit', 'roster_directory', 'roster_gate',
          'roster_migrator', 'roster_owner', 'roster_worker'))
      select format('%s %s', rolname, attribute) as finding
      from ours cross join lateral (values (rolcanlogin, 'login'), (rolsuper, 'superuser'),
        (rolbypassrls, 'bypassrls'), (rolcreaterole, 'createrole'), (rolcreatedb, 'createdb'),
        (rolreplication, 'replication')) a (has, attribute)
      where has
      union all
      select format('%s is %s', pg_get_userbyid(member), pg_get_userbyid(roleid)) from pg_auth_members
      where (member in (select oid from ours)
          or pg_get_userbyid(roleid) in ('roster_owner', 'roster_gate', 'roster_audit'))
        -- Roles are the whole server's: these are of tests that run at the same time.
        and pg_get_userbyid(member) !~ '^test_[0-9a-f]{32}$'`),
  ),
);
