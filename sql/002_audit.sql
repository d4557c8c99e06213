-- What happened, by whom, and which rows it changed. Both tables are append-only and cut by month, so that
-- retention drops whole partitions. They come before every other table, whose triggers write here.

-- One entry per mutating call, written by `roster.enter` before the first change, or by
-- `roster.record_denial` for an attempt that was refused. `org_id` is null for work across organisations.
create table roster.audit_entries (
  id uuid not null,
  org_id uuid,
  subject text not null,
  kind text not null constraint audit_entries_kind_check check (kind in ('USER', 'SERVICE')),
  on_behalf_of text[] not null default '{}',
  method text not null,
  correlation_id text not null,
  outcome text not null default 'SUCCEEDED'
    constraint audit_entries_outcome_check check (outcome in ('SUCCEEDED', 'DENIED')),
  reason text not null default '',
  xid xid8 not null default pg_current_xact_id(),
  salt bytea default uuid_send(gen_random_uuid()),
  create_time timestamptz not null default now(),
  constraint audit_entries_pkey primary key (create_time, id)
) partition by range (create_time);

create index audit_entries_org_id_idx on roster.audit_entries (org_id, create_time desc, id desc);
create index audit_entries_id_idx on roster.audit_entries (id);
create index audit_entries_xid_idx on roster.audit_entries (xid, id);

call roster.protect('roster.audit_entries');
-- Operators read every log.
create policy audit_entries_directory on roster.audit_entries for select to roster_directory
  using ((select roster.is_platform()));
-- The gate writes entries and never reads them.
create policy audit_entries_gate on roster.audit_entries for insert to roster_gate with check (true);

grant select on roster.audit_entries to roster_app, roster_directory;
grant insert on roster.audit_entries to roster_gate;

-- One row per changed row and organisation that may see it, written by triggers alone. A change of a user
-- or of a default profile, which belong to no organisation, is kept once without `org_id`, and copied to
-- each organisation of which the user is a member (`copied`), without what only the platform may see. A row
-- is `apart` when its entry belongs to no organisation; that of the row then sees the entry too.
create table roster.audit_changes (
  id uuid not null default gen_random_uuid(),
  org_id uuid,
  copied boolean not null default false,
  apart boolean not null default false,
  entry_id uuid not null,
  subject text not null,
  method text not null,
  correlation_id text not null,
  resource_type text not null,
  resource_id text not null,
  kind text not null constraint audit_changes_kind_check
    check (kind in ('CREATED', 'UPDATED', 'DELETED', 'UNDELETED', 'PURGED')),
  before jsonb,
  after jsonb,
  changed_fields text[] not null,
  xid xid8 not null default pg_current_xact_id(),
  salt bytea default uuid_send(gen_random_uuid()),
  create_time timestamptz not null default now(),
  constraint audit_changes_pkey primary key (create_time, id)
) partition by range (create_time);

create index audit_changes_entry_id_idx on roster.audit_changes (entry_id, org_id);
create index audit_changes_org_id_idx on roster.audit_changes (org_id, create_time desc, id desc);
create index audit_changes_apart_idx on roster.audit_changes (org_id, create_time desc, entry_id desc)
  where apart;
create index audit_changes_xid_idx on roster.audit_changes (xid, id);

call roster.protect('roster.audit_changes');
-- The same three readers and writers as for entries; here the audit role writes.
create policy audit_changes_guard on roster.audit_changes as restrictive to roster_app
  using (org_id = (select roster.current_org()));
create policy audit_changes_app on roster.audit_changes for select to roster_app using (true);
create policy audit_changes_directory on roster.audit_changes for select to roster_directory
  using ((select roster.is_platform()));
create policy audit_changes_audit on roster.audit_changes for insert to roster_audit with check (true);

grant select on roster.audit_changes to roster_app, roster_directory;
grant insert on roster.audit_changes to roster_audit;

-- An organisation's auditors read its own log, and of work across organisations the entries that changed
-- something of theirs. A scalar subquery is one index probe for such an entry.
create policy audit_entries_guard on roster.audit_entries as restrictive to roster_app
  using (
    org_id = (select roster.current_org())
    or (org_id is null and (
      select true from roster.audit_changes c
      where c.create_time = audit_entries.create_time and c.entry_id = audit_entries.id
        and c.org_id = (select roster.current_org())
      limit 1)));
create policy audit_entries_app on roster.audit_entries for select to roster_app using (true);

-- Rows of a month without a partition land here, so that a write never fails for want of one.
create table roster.audit_entries_default (like roster.audit_entries including defaults including constraints);
alter table roster.audit_entries attach partition roster.audit_entries_default default;
create table roster.audit_changes_default (like roster.audit_changes including defaults including constraints);
alter table roster.audit_changes attach partition roster.audit_changes_default default;
call roster.protect('roster.audit_entries_default');
call roster.protect('roster.audit_changes_default');

-- Makes the partitions of the coming months that are not there yet. A partition is made apart and then
-- attached, because `partition of` would queue every writer behind running readers.
create function roster.make_partitions(months int) returns int
  language plpgsql security definer set search_path = '' set timezone = 'UTC'
  as $$
declare
  parent text;
  child text;
  first date;
  made int := 0;
begin
  foreach parent in array array['audit_entries', 'audit_changes'] loop
    for i in 0 .. months loop
      first := date_trunc('month', now())::date + make_interval(months => i);
      child := parent || '_' || to_char(first, 'YYYY_MM');
      continue when to_regclass('roster.' || child) is not null;
      execute format('create table roster.%I (like roster.%I including defaults including constraints)', child, parent);
      call roster.protect(('roster.' || child)::regclass);
      execute format(
        'alter table roster.%I attach partition roster.%I for values from (%L) to (%L)',
        parent, child, first, (first + interval '1 month')::date);
      made := made + 1;
    end loop;
  end loop;
  return made;
end
$$;
grant execute on function roster.make_partitions(int) to roster_worker;
select roster.make_partitions(12);

-- Records the rows that a statement changed under the entry in force; a write without an entry raises.
-- Arguments: resource type; the columns, one or two, that identify a row; then, after an empty string, the
-- columns that organisations do not see. Columns that say nothing to a reader are left out.
create function roster.audit() returns trigger
  language plpgsql security definer set search_path = '' set timezone = 'UTC'
  as $$
declare
  entry constant uuid := nullif(current_setting('roster.entry_id', true), '')::uuid;
  entry_org constant uuid := roster.current_org();
  resource constant text := tg_argv[0];
  key1 constant text := tg_argv[1];
  key2 constant text := nullif(tg_argv[2], '');
  private constant text[] := coalesce(string_to_array(tg_argv[3], ','), '{}');
  hidden constant text[] := array['version', 'email_key', 'name_key', 'custom_role'];
begin
  if entry is null then
    raise exception 'a change of %.% carries no audit entry', tg_table_schema, tg_table_name
      using errcode = 'RS000';
  end if;
  if tg_op = 'INSERT' then
    insert into roster.audit_changes (org_id, apart, entry_id, subject, method, correlation_id, resource_type,
      resource_id, kind, after, changed_fields)
    select c.org_id, c.org_id is not null and entry_org is null, entry,
      current_setting('roster.subject'), current_setting('roster.method'),
      current_setting('roster.correlation_id'), resource, c.resource_id, 'CREATED', c.after, '{}'
    from (
      select roster.audited_org(resource, n.image) as org_id,
        concat_ws('/', n.image ->> key1, n.image ->> key2) as resource_id, n.image - hidden as after
      from (select to_jsonb(r) as image from new_rows r) n) c;
  elsif tg_op = 'DELETE' then
    insert into roster.audit_changes (org_id, apart, entry_id, subject, method, correlation_id, resource_type,
      resource_id, kind, before, changed_fields)
    select c.org_id, c.org_id is not null and entry_org is null, entry,
      current_setting('roster.subject'), current_setting('roster.method'),
      current_setting('roster.correlation_id'), resource, c.resource_id,
      case when c.before ? 'delete_time' or resource = 'profile' then 'PURGED' else 'DELETED' end, c.before, '{}'
    from (
      select roster.audited_org(resource, o.image) as org_id,
        concat_ws('/', o.image ->> key1, o.image ->> key2) as resource_id, o.image - hidden as before
      from (select to_jsonb(r) as image from old_rows r) o) c;
  else
    insert into roster.audit_changes (org_id, copied, apart, entry_id, subject, method, correlation_id,
      resource_type, resource_id, kind, before, after, changed_fields)
    select place.org_id, place.copied,
      place.org_id is not null and entry_org is null, entry, current_setting('roster.subject'),
      current_setting('roster.method'), current_setting('roster.correlation_id'), resource, c.resource_id,
      case
        when c.before ->> 'delete_time' is null and c.after ->> 'delete_time' is not null then 'DELETED'
        when c.before ->> 'delete_time' is not null and c.after ->> 'delete_time' is null then 'UNDELETED'
        else 'UPDATED'
      end,
      c.before - place.private, c.after - place.private, diff.fields
    from (
      select roster.audited_org(resource, n.image) as org_id,
        concat_ws('/', n.image ->> key1, n.image ->> key2) as resource_id,
        case resource when 'user' then n.image ->> 'id' when 'profile' then n.image ->> 'user_id' end as person,
        o.image - hidden as before, n.image - hidden as after
      from (select to_jsonb(r) as image from old_rows r) o
      join (select to_jsonb(r) as image from new_rows r) n
        on o.image ->> key1 = n.image ->> key1 and (key2 is null or o.image ->> key2 = n.image ->> key2)
        and o.image ->> 'org_id' is not distinct from n.image ->> 'org_id') c
    cross join lateral (
      select c.org_id, false as copied, '{}'::text[] as private
      union all
      select m.org_id, true, private from roster.org_members m
      where c.org_id is null and m.user_id = c.person::uuid) place
    cross join lateral (
      select coalesce(array_agg(b.key order by b.key), '{}') as fields
      from jsonb_each(c.after) b
      where b.key <> all (place.private) and b.key <> 'update_time'
        and b.value is distinct from c.before -> b.key) diff
    where cardinality(diff.fields) > 0;
  end if;
  return null;
end
$$;

-- The organisation a row belongs to; none for users and default profiles.
create function roster.audited_org(resource text, image jsonb) returns uuid
  language sql immutable parallel safe
  return (case resource when 'org' then image ->> 'id' else image ->> 'org_id' end)::uuid;

grant execute on function roster.audited_org(text, jsonb) to roster_audit;

-- Puts a table under audit. Transition tables carry whole statements, so cascades and bulk writes are
-- recorded row by row at the price of one insert.
create procedure roster.audit_table(t regclass, variadic arguments text[])
  language plpgsql
  as $$
declare
  name text := (select relname from pg_class where oid = t);
  list text := (select string_agg(quote_literal(a), ', ') from unnest(arguments) a);
begin
  execute format('create trigger %I after insert on %s referencing new table as new_rows
    for each statement execute function roster.audit(%s)', name || '_audit_insert', t, list);
  execute format('create trigger %I after update on %s referencing old table as old_rows new table as new_rows
    for each statement execute function roster.audit(%s)', name || '_audit_update', t, list);
  execute format('create trigger %I after delete on %s referencing old table as old_rows
    for each statement execute function roster.audit(%s)', name || '_audit_delete', t, list);
end
$$;

-- A function may be handed over only to a role that may create in the schema; the right is taken back at once.
grant create on schema roster to roster_audit;
alter function roster.audit() owner to roster_audit;
revoke create on schema roster from roster_audit;
