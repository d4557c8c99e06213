-- What every table stands on: who the session speaks for, what the built-in roles may do, and the one
-- template by which a table is put under row-level security.

-- Who the session speaks for. `roster.enter` sets these for one transaction. After the first use in a
-- session an unset setting reads as '' instead of null, hence nullif.

create function roster.current_org() returns uuid
  language sql stable parallel safe
  return nullif(current_setting('roster.org_id', true), '')::uuid;

create function roster.current_actor() returns uuid
  language sql stable parallel safe
  return nullif(current_setting('roster.actor', true), '')::uuid;

-- True for a platform caller, and for a service outside any org whose scope holds the permission at hand.
create function roster.is_platform() returns boolean
  language sql stable parallel safe
  return coalesce(current_setting('roster.platform', true), '') = 'on';

-- Which teams the caller sees: 'deleted' (all, deleted ones on request), 'all' (live), 'visible' (and secret
-- ones where the caller has a team role) or 'own' (only those). Unset shows none.
create function roster.team_sight() returns text
  language sql stable parallel safe
  return coalesce(current_setting('roster.team_sight', true), '');

grant execute on function
  roster.current_org(), roster.current_actor(), roster.is_platform(), roster.team_sight()
  to roster_gate, roster_audit, roster_app, roster_directory, roster_worker;

-- Permissions of the built-in roles. The only place that says so: `roster.enter` judges by it, GetCaller
-- answers from it, and the README's table is generated from it.
create function roster.built_in_permissions(role text) returns text[]
  language sql immutable parallel safe
  return case role
    when 'guest' then array['org.get']
    when 'member' then array['org.get', 'members.get', 'teams.get']
    when 'admin' then array[
      'org.get', 'org.update', 'members.get', 'members.add', 'members.update', 'members.remove',
      'members.invite', 'teams.get', 'teams.create', 'teams.update', 'teams.delete', 'roles.manage',
      'access.check', 'audit.read', 'changes.read']
    when 'owner' then array[
      'org.get', 'org.update', 'org.delete', 'members.get', 'members.add', 'members.update',
      'members.remove', 'members.invite', 'teams.get', 'teams.create', 'teams.update', 'teams.delete',
      'roles.manage', 'access.check', 'audit.read', 'changes.read']
  end;

-- What a role in a team, or in a team above it, adds on that team.
create function roster.team_permissions(team_role text) returns text[]
  language sql immutable parallel safe
  return case team_role
    when 'MEMBER' then array['teams.get']
    when 'MAINTAINER' then array['teams.get', 'teams.create', 'teams.update']
  end;

-- Some things are for people and the platform, whatever a service's scope says.
create function roster.open_to_services(permission text) returns boolean
  language sql immutable parallel safe
  return permission <> all (array['org.delete', 'roles.manage']);

grant execute on function
  roster.built_in_permissions(text), roster.team_permissions(text), roster.open_to_services(text)
  to roster_gate, roster_app, roster_directory;

-- Every change of a row counts its version, which is its etag, and stamps its time.
create function roster.touch() returns trigger
  language plpgsql
  as $$
begin
  new.version := old.version + 1;
  new.update_time := now();
  return new;
end
$$;

-- Merges a patch into an object as RFC 7396 has it: null removes a key, objects merge, the rest replaces.
create function roster.merge_patch(target jsonb, patch jsonb) returns jsonb
  language plpgsql immutable parallel safe set search_path = ''
  as $$
declare
  merged jsonb := case jsonb_typeof(target) when 'object' then target else '{}' end;
  item record;
begin
  if jsonb_typeof(patch) <> 'object' then
    return patch;
  end if;
  for item in select key, value from jsonb_each(patch) loop
    merged := case jsonb_typeof(item.value)
      when 'null' then merged - item.key
      else merged || jsonb_build_object(item.key, roster.merge_patch(merged -> item.key, item.value))
    end;
  end loop;
  return merged;
end
$$;

grant execute on function roster.merge_patch(jsonb, jsonb) to roster_app, roster_directory;

-- Row-level security that also binds the owner, and the policy without which a migration would see no
-- rows: a backfill would change none, and a new foreign key would be validated over none.
create procedure roster.protect(t regclass)
  language plpgsql
  as $$
declare
  name text := (select relname from pg_class where oid = t);
begin
  execute format('alter table %s enable row level security', t);
  execute format('alter table %s force row level security', t);
  execute format('create policy %I on %s to roster_owner using (true) with check (true)', name || '_owner', t);
end
$$;

-- The template of every table that belongs to an organisation. The restrictive guard is the wall: whatever
-- else is granted or added later, rows of another organisation do not exist for roster_app. The `select`
-- makes PostgreSQL read the setting once per statement, not once per row.
create procedure roster.protect_org_table(t regclass)
  language plpgsql
  as $$
declare
  name text := (select relname from pg_class where oid = t);
begin
  call roster.protect(t);
  execute format(
    'create policy %I on %s as restrictive to roster_app
       using (org_id = (select roster.current_org())) with check (org_id = (select roster.current_org()))',
    name || '_guard', t);
  execute format('create policy %I on %s to roster_app using (true)', name || '_app', t);
end
$$;
