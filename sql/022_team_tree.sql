-- Where a team lies in its organisation's tree. Each team carries its path, so that no question about teams above or
-- below walks the tree: who is above is in the array, who is below is one range of an index.

-- `path` are the ids from the top down to the team itself. `secrets` are those of them that are secret: a team under a
-- secret one is as hidden as that, or its parent's id would tell. Triggers alone write both.
alter table roster.teams add column path uuid[], add column secrets uuid[];

alter table roster.teams disable trigger user;
with recursive tree as (
  select t.org_id, t.id, array[t.id] as path,
    case t.visibility when 'SECRET' then array[t.id] else '{}' end as secrets
  from roster.teams t where t.parent_team_id is null
  union all
  select t.org_id, t.id, tree.path || t.id,
    case t.visibility when 'SECRET' then tree.secrets || t.id else tree.secrets end
  from tree join roster.teams t on t.org_id = tree.org_id and t.parent_team_id = tree.id)
update roster.teams t set path = tree.path, secrets = tree.secrets
from tree where tree.org_id = t.org_id and tree.id = t.id;
alter table roster.teams enable trigger user;

alter table roster.teams
  alter column path set not null, alter column secrets set not null, alter column secrets set default '{}';

-- Arrays compare item by item: what begins with a path lies behind it, and before the path with the highest id added.
create index teams_path_idx on roster.teams (org_id, path);
create index teams_secrets_idx on roster.teams (org_id) where secrets <> '{}';

create function roster.path_end(path uuid[]) returns uuid[]
  language sql immutable parallel safe
  return path || 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid;
grant execute on function roster.path_end(uuid[]) to roster_gate;

grant update (parent_team_id) on roster.teams to roster_app;
-- The gate moves a team's subtree along.
create policy teams_gate_update on roster.teams for update to roster_gate using (true) with check (true);
grant update (path, secrets) on roster.teams to roster_gate;

-- The teams of the current organisation in which someone has a role of their own; with `as_role`, just that role.
create function roster.teams_of(person uuid, as_role text default null) returns uuid[]
  language sql stable security definer set search_path = ''
  return (
    select coalesce(array_agg(m.team_id), '{}')
    from roster.team_members m
    where m.org_id = roster.current_org() and m.user_id = person and m.role = coalesce(as_role, m.role));

-- Those, and all above them. Who belongs to a team belongs to the teams above it, secret ones too.
create function roster.known_teams(person uuid) returns uuid[]
  language sql stable security definer set search_path = ''
  return (
    select coalesce(array_agg(distinct up.id), '{}')
    from roster.team_members m
    join roster.teams t on t.org_id = m.org_id and t.id = m.team_id and t.delete_time is null
    cross join unnest(t.path) up (id)
    where m.org_id = roster.current_org() and m.user_id = person);

-- Whether someone with this sight sees the team of this path; `roster.team_sight` has the words. Maintainers see
-- everything below their teams. A secret team is open to who belongs to it or to a team below it, and not to mere
-- members of a team above it. The policy below says the same of many rows.
create function roster.sees_team(person uuid, sight text, path uuid[], secrets uuid[]) returns boolean
  language sql stable security definer set search_path = ''
  return case
    when sight in ('all', 'deleted') then true
    when sight = 'visible' and secrets = '{}' then true
    when path && roster.teams_of(person, 'MAINTAINER') then true
    else (sight = 'visible' or path && roster.teams_of(person))
      and (secrets = '{}' or secrets <@ roster.known_teams(person))
  end;

alter policy teams_sight on roster.teams
  using (
    (select roster.team_sight()) in ('all', 'deleted')
    or ((select roster.team_sight()) = 'visible' and secrets = '{}')
    or path && (select roster.teams_of(roster.current_actor(), 'MAINTAINER'))
    or (((select roster.team_sight()) = 'visible' or path && (select roster.teams_of(roster.current_actor())))
      and (secrets = '{}' or secrets <@ (select roster.known_teams(roster.current_actor())))));

drop function roster.team_role(uuid, uuid, uuid);

-- The caller's best role in a team or in one above it; null without any. A member's role ends at a secret team.
create function roster.team_role(org uuid, team uuid) returns text
  language sql stable security definer set search_path = ''
  return (
    select case
      when min(m.role) = 'MAINTAINER' then 'MAINTAINER' -- It sorts before 'MEMBER'.
      when t.secrets = '{}' or t.secrets <@ roster.known_teams(roster.current_actor()) then min(m.role)
    end
    from roster.teams t
    cross join unnest(t.path) way (id)
    -- Each team of the path is one probe, however many teams the caller is in.
    cross join lateral (
      select i.role from roster.team_members i
      where i.org_id = org and i.team_id = way.id and i.user_id = roster.current_actor() limit 1) m
    where t.org_id = org and t.id = team
    group by t.secrets);

-- How many live secret teams the organisation hides from the caller.
create function roster.hidden_teams() returns int
  language sql stable security definer set search_path = ''
  return (
    select count(*)::int from roster.teams t
    where (select roster.team_sight()) not in ('all', 'deleted')
      and t.org_id = roster.current_org() and t.delete_time is null and t.secrets <> '{}'
      and not (t.path && (select roster.teams_of(roster.current_actor(), 'MAINTAINER'))
        or t.secrets <@ (select roster.known_teams(roster.current_actor()))));

-- Goes ahead of what gives a whole subtree another place or sight: it has the organisation alone, so that nobody makes,
-- moves, deletes or hides a team meanwhile. It comes before any team is held, because who makes one holds the
-- organisation first.
create function roster.hold_tree() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  perform from roster.orgs o where o.id = roster.current_org() and o.delete_time is null for no key update;
  if not found then
    raise exception 'the organisation was deleted meanwhile' using errcode = 'serialization_failure';
  end if;
  return null;
end
$$;

create trigger teams_hold_tree before update of parent_team_id, visibility on roster.teams
  for each statement execute function roster.hold_tree();

-- Gives a team its place: under a live parent that the caller sees and that does not lie below it, no deeper than its
-- organisation may nest, with the live teams below it. The organisation is held by now.
create function roster.place_team() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  parent record;
  levels int := 0;
  allowed int;
begin
  if tg_op = 'UPDATE' and new.parent_team_id is not distinct from old.parent_team_id then
    new.secrets := array_remove(old.secrets, new.id);
  else
    new.path := array[new.id];
    new.secrets := '{}';
    if new.parent_team_id is not null then
      select t.path, t.secrets into parent from roster.teams t
        where t.org_id = new.org_id and t.id = new.parent_team_id and t.delete_time is null
          and roster.sees_team(roster.current_actor(), roster.team_sight(), t.path, t.secrets);
      if not found then
        raise exception 'TEAM_NOT_FOUND' using errcode = 'RS001',
          detail = jsonb_build_object('team_id', new.parent_team_id)::text;
      elsif new.id = any (parent.path) then
        raise exception 'TEAM_CYCLE' using errcode = 'RS001', detail = jsonb_build_object('team_id', new.id)::text;
      end if;
      new.path := parent.path || new.id;
      new.secrets := parent.secrets;
    end if;
    if tg_op = 'UPDATE' then
      select max(cardinality(t.path)) - cardinality(old.path) into levels from roster.teams t
        where t.org_id = new.org_id and t.path >= old.path and t.path < roster.path_end(old.path)
          and t.delete_time is null;
    end if;
    select l.team_depth into allowed from roster.org_limits_of(new.org_id) l;
    -- What lay deep before a limit was lowered may go up.
    if cardinality(new.path) + levels > allowed
        and (tg_op = 'INSERT' or cardinality(new.path) > cardinality(old.path)) then
      raise exception 'TEAM_TOO_DEEP' using errcode = 'RS001',
        detail = jsonb_build_object('depth', allowed::text)::text;
    end if;
  end if;
  if new.visibility = 'SECRET' then
    new.secrets := new.secrets || new.id;
  end if;
  return new;
end
$$;

drop trigger teams_guard_parent on roster.teams;
drop function roster.guard_team_parent();
-- Behind teams_hold_org, by its name.
create trigger teams_place before insert on roster.teams for each row execute function roster.place_team();
create trigger teams_place_again before update on roster.teams
  for each row when (new.parent_team_id is distinct from old.parent_team_id or new.visibility <> old.visibility)
  execute function roster.place_team();

-- The subtree follows, deleted teams in it too. To who reads them, those teams are the same as before.
create function roster.place_subtree() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  update roster.teams t set
    path = new.path || t.path[cardinality(old.path) + 1 :],
    secrets = new.secrets || t.secrets[cardinality(old.secrets) + 1 :]
  where t.org_id = new.org_id and t.path >= old.path and t.path < roster.path_end(old.path) and t.id <> new.id;
  return null;
end
$$;

create trigger teams_place_subtree after update on roster.teams
  for each row when (pg_trigger_depth() = 0
    and (new.path <> old.path or new.secrets <> old.secrets))
  execute function roster.place_subtree();

drop trigger teams_touch on roster.teams;
create trigger teams_touch before update on roster.teams
  for each row when (pg_trigger_depth() = 0) execute function roster.touch();

-- A team comes back no deeper than its organisation may nest now.
create function roster.judge_depth() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  allowed int;
begin
  select l.team_depth into allowed from roster.org_limits_of(new.org_id) l;
  if cardinality(new.path) > allowed then
    raise exception 'TEAM_TOO_DEEP' using errcode = 'RS001',
      detail = jsonb_build_object('depth', allowed::text)::text;
  end if;
  return new;
end
$$;

create trigger teams_judge_depth before update on roster.teams
  for each row when (old.delete_time is not null and new.delete_time is null)
  execute function roster.judge_depth();

-- Columns that say nothing to who reads a log.
create function roster.unaudited_columns() returns text[]
  language sql immutable parallel safe
  return array['version', 'email_key', 'name_key', 'custom_role', 'path', 'secrets'];
grant execute on function roster.unaudited_columns() to roster_audit;

-- Records the rows that a statement changed under the entry in force; a write without an entry raises.
-- Arguments: resource type; the columns, one or two, that identify a row; then, after an empty string, the
-- columns that organisations do not see.
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
  hidden constant text[] := roster.unaudited_columns();
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

grant create on schema roster to roster_gate;
alter function roster.teams_of(uuid, text) owner to roster_gate;
alter function roster.known_teams(uuid) owner to roster_gate;
alter function roster.sees_team(uuid, text, uuid[], uuid[]) owner to roster_gate;
alter function roster.team_role(uuid, uuid) owner to roster_gate;
alter function roster.hidden_teams() owner to roster_gate;
alter function roster.hold_tree() owner to roster_gate;
alter function roster.place_team() owner to roster_gate;
alter function roster.place_subtree() owner to roster_gate;
alter function roster.judge_depth() owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function roster.teams_of(uuid, text), roster.known_teams(uuid), roster.hidden_teams() to roster_app;
