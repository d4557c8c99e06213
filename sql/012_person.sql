-- The user whose data `before` and `after` of a change hold; null where they hold nobody's.
alter table roster.audit_changes add column person uuid;
create index audit_changes_person_idx on roster.audit_changes (person, create_time, id) where person is not null;

create or replace function roster.audit() returns trigger
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
      resource_id, person, kind, after, changed_fields)
    select c.org_id, c.org_id is not null and entry_org is null, entry,
      current_setting('roster.subject'), current_setting('roster.method'),
      current_setting('roster.correlation_id'), resource, c.resource_id, c.person::uuid,
      'CREATED', c.after, '{}'
    from (
      select roster.audited_org(resource, n.image) as org_id,
        concat_ws('/', n.image ->> key1, n.image ->> key2) as resource_id,
        case resource when 'user' then n.image ->> 'id' when 'profile' then n.image ->> 'user_id' end as person,
        n.image - hidden as after
      from (select to_jsonb(r) as image from new_rows r) n) c;
  elsif tg_op = 'DELETE' then
    insert into roster.audit_changes (org_id, apart, entry_id, subject, method, correlation_id, resource_type,
      resource_id, person, kind, before, changed_fields)
    select c.org_id, c.org_id is not null and entry_org is null, entry,
      current_setting('roster.subject'), current_setting('roster.method'),
      current_setting('roster.correlation_id'), resource, c.resource_id, c.person::uuid,
      case when c.before ? 'delete_time' or resource = 'profile' then 'PURGED' else 'DELETED' end, c.before, '{}'
    from (
      select roster.audited_org(resource, o.image) as org_id,
        concat_ws('/', o.image ->> key1, o.image ->> key2) as resource_id,
        case resource when 'user' then o.image ->> 'id' when 'profile' then o.image ->> 'user_id' end as person,
        o.image - hidden as before
      from (select to_jsonb(r) as image from old_rows r) o) c;
  else
    insert into roster.audit_changes (org_id, copied, apart, entry_id, subject, method, correlation_id,
      resource_type, resource_id, person, kind, before, after, changed_fields)
    select place.org_id, place.copied,
      place.org_id is not null and entry_org is null, entry, current_setting('roster.subject'),
      current_setting('roster.method'), current_setting('roster.correlation_id'), resource, c.resource_id,
      c.person::uuid,
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
