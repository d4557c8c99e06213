-- Whose personal data a change holds, by which they are found when the person asks for them or is erased: the user of
-- a user's row or of a profile, and of an invitation what its address makes. Everything else speaks of people by
-- their ids alone.
alter table roster.audit_changes add column person uuid;

-- Invitations are to an address, whoever has it.
create function roster.invited_person(email_key text) returns uuid
  language sql immutable parallel safe
  return md5('invited ' || email_key)::uuid;

create function roster.audited_person(resource text, image jsonb) returns uuid
  language sql immutable parallel safe
  return case resource
    when 'user' then (image ->> 'id')::uuid
    when 'profile' then (image ->> 'user_id')::uuid
    when 'invitation' then roster.invited_person(lower(normalize(image ->> 'email', nfc)))
  end;

grant execute on function roster.audited_person(text, jsonb), roster.invited_person(text) to roster_audit;

update roster.audit_changes set person = roster.audited_person(resource_type, coalesce(after, before))
where resource_type in ('user', 'profile');

create index audit_changes_person_idx on roster.audit_changes (person, create_time, id) where person is not null;

-- Records the rows that a statement changed under the entry in force; a write without an entry raises.
-- Arguments: resource type; the columns, one or two, that identify a row; then, after an empty string, the
-- columns that organisations do not see. Columns that say nothing to a reader are left out.
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
    insert into roster.audit_changes (org_id, person, apart, entry_id, subject, method, correlation_id,
      resource_type, resource_id, kind, after, changed_fields)
    select c.org_id, roster.audited_person(resource, c.after), c.org_id is not null and entry_org is null, entry,
      current_setting('roster.subject'), current_setting('roster.method'),
      current_setting('roster.correlation_id'), resource, c.resource_id, 'CREATED', c.after, '{}'
    from (
      select roster.audited_org(resource, n.image) as org_id,
        concat_ws('/', n.image ->> key1, n.image ->> key2) as resource_id, n.image - hidden as after
      from (select to_jsonb(r) as image from new_rows r) n) c;
  elsif tg_op = 'DELETE' then
    insert into roster.audit_changes (org_id, person, apart, entry_id, subject, method, correlation_id,
      resource_type, resource_id, kind, before, changed_fields)
    select c.org_id, roster.audited_person(resource, c.before), c.org_id is not null and entry_org is null, entry,
      current_setting('roster.subject'), current_setting('roster.method'),
      current_setting('roster.correlation_id'), resource, c.resource_id,
      case when c.before ? 'delete_time' or resource = 'profile' then 'PURGED' else 'DELETED' end, c.before, '{}'
    from (
      select roster.audited_org(resource, o.image) as org_id,
        concat_ws('/', o.image ->> key1, o.image ->> key2) as resource_id, o.image - hidden as before
      from (select to_jsonb(r) as image from old_rows r) o) c;
  else
    insert into roster.audit_changes (org_id, person, copied, apart, entry_id, subject, method, correlation_id,
      resource_type, resource_id, kind, before, after, changed_fields)
    select place.org_id, c.person, place.copied,
      place.org_id is not null and entry_org is null, entry, current_setting('roster.subject'),
      current_setting('roster.method'), current_setting('roster.correlation_id'), resource, c.resource_id,
      case
        when c.before ->> 'delete_time' is null and c.after ->> 'delete_time' is not null then 'DELETED'
        when c.before ->> 'delete_time' is not null and c.after ->> 'delete_time' is null then 'UNDELETED'
        else 'UPDATED'
      end,
      c.before - place.private, c.after - place.private, diff.fields
    from (
      select roster.audited_org(resource, pair.new_image) as org_id,
        concat_ws('/', pair.new_image ->> key1, pair.new_image ->> key2) as resource_id,
        roster.audited_person(resource, pair.new_image) as person,
        pair.old_image - hidden as before, pair.new_image - hidden as after
      from (
        -- Grouped, not joined: a join that was planned for one row compares each of a thousand with each.
        select (array_agg(i.image) filter (where not i.is_new))[1] as old_image,
          (array_agg(i.image) filter (where i.is_new))[1] as new_image
        from (
          select to_jsonb(r) as image, false as is_new from old_rows r
          union all
          select to_jsonb(r), true from new_rows r) i
        group by i.image ->> key1, i.image ->> key2, i.image ->> 'org_id') pair) c
    cross join lateral (
      select c.org_id, false as copied, '{}'::text[] as private
      union all
      select m.org_id, true, private from roster.org_members m
      where c.org_id is null and m.user_id = c.person) place
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
