-- Organisations, the names they are found by, their members and their own roles.

create table roster.orgs (
  id uuid constraint orgs_pkey primary key,
  name text not null,
  slug text not null,
  state text not null default 'ACTIVE' constraint orgs_state_check check (state in ('ACTIVE', 'SUSPENDED')),
  external_id text,
  labels jsonb not null default '{}' constraint orgs_labels_check check (jsonb_typeof(labels) = 'object'),
  version bigint not null default 1,
  create_time timestamptz not null default now(),
  update_time timestamptz not null default now(),
  delete_time timestamptz,
  purge_time timestamptz,
  constraint orgs_delete_time_check check ((delete_time is null) = (purge_time is null))
);

create unique index orgs_external_id_key on roster.orgs (external_id) where delete_time is null;
create index orgs_purge_time_idx on roster.orgs (purge_time) where purge_time is not null;

create trigger orgs_touch before update on roster.orgs for each row execute function roster.touch();
call roster.audit_table('roster.orgs', 'org', 'id');

call roster.protect('roster.orgs');
-- The template's guard, on the id: an organisation belongs to itself.
create policy orgs_guard on roster.orgs as restrictive to roster_app
  using (id = (select roster.current_org())) with check (id = (select roster.current_org()));
create policy orgs_app on roster.orgs to roster_app using (true);
-- The gate judges by an organisation's state and locks it before it counts its owners.
create policy orgs_gate on roster.orgs to roster_gate using (true) with check (false);

grant select on roster.orgs to roster_app, roster_directory;
grant update (name, slug, state, external_id, labels, delete_time, purge_time) on roster.orgs to roster_app;
grant insert on roster.orgs to roster_directory;
grant select, update (version) on roster.orgs to roster_gate;

-- Every slug that leads to an organisation, under the one unique key. A second table for former slugs
-- would lose a race between a rename and a new organisation.
create table roster.org_slugs (
  slug_key text collate "C" constraint org_slugs_pkey primary key,
  org_id uuid not null constraint org_slugs_org_id_fkey references roster.orgs on delete cascade
);

create index org_slugs_org_id_idx on roster.org_slugs (org_id);

call roster.protect_org_table('roster.org_slugs');
-- The platform looks organisations up by slug and claims the slug of a new one.
create policy org_slugs_directory on roster.org_slugs to roster_directory
  using ((select roster.is_platform())) with check ((select roster.is_platform()));

grant select, insert, delete on roster.org_slugs to roster_app;
grant select, insert on roster.org_slugs to roster_directory;

-- Roles that an organisation made for itself. The built-in ones are in roster.built_in_permissions.
create table roster.roles (
  org_id uuid not null constraint roles_org_id_fkey references roster.orgs on delete cascade,
  name text not null
    constraint roles_name_check check (name not in ('owner', 'admin', 'member', 'guest')),
  title text not null default '',
  -- No more than an owner has; a null or a blank among them would break the comparisons that guard grants.
  permissions text[] not null default '{}'
    constraint roles_permissions_check check (permissions <@ roster.built_in_permissions('owner')),
  version bigint not null default 1,
  create_time timestamptz not null default now(),
  update_time timestamptz not null default now(),
  constraint roles_pkey primary key (org_id, name)
);

create trigger roles_touch before update on roster.roles for each row execute function roster.touch();
call roster.audit_table('roster.roles', 'role', 'name');

call roster.protect_org_table('roster.roles');
-- The gate reads what a member's role permits.
create policy roles_gate on roster.roles for select to roster_gate using (true);

grant select on roster.roles to roster_app, roster_gate;

-- Who belongs to an organisation, with which role. A membership is live while its user and org are live.
create table roster.org_members (
  org_id uuid not null constraint org_members_org_id_fkey references roster.orgs on delete cascade,
  user_id uuid not null constraint org_members_user_id_fkey references roster.users on delete cascade,
  role text not null default 'member',
  -- The role where it is the organisation's own; null for a built-in one, which needs no row to refer to.
  custom_role text generated always as (
    case when role in ('owner', 'admin', 'member', 'guest') then null else role end) stored,
  state text not null default 'ACTIVE'
    constraint org_members_state_check check (state in ('ACTIVE', 'SUSPENDED')),
  expire_time timestamptz,
  version bigint not null default 1,
  join_time timestamptz not null default now(),
  update_time timestamptz not null default now(),
  constraint org_members_pkey primary key (org_id, user_id),
  constraint org_members_org_id_custom_role_fkey foreign key (org_id, custom_role) references roster.roles,
  constraint org_members_owner_expire_time_check check (role <> 'owner' or expire_time is null)
);

create index org_members_user_id_idx on roster.org_members (user_id, org_id);
create index org_members_custom_role_idx on roster.org_members (org_id, custom_role)
  where custom_role is not null;
create index org_members_owner_idx on roster.org_members (org_id, user_id)
  where role = 'owner' and state = 'ACTIVE';

create trigger org_members_touch before update on roster.org_members
  for each row execute function roster.touch();
call roster.audit_table('roster.org_members', 'org_member', 'user_id');

call roster.protect_org_table('roster.org_members');
-- Outside an organisation: the platform sees every membership, a user their own.
create policy org_members_directory on roster.org_members to roster_directory
  using ((select roster.is_platform()) or user_id = (select roster.current_actor()))
  with check ((select roster.is_platform()));
-- The gate judges by memberships.
create policy org_members_gate on roster.org_members for select to roster_gate using (true);
-- The audit trigger finds the organisations whose log tells of a user's change.
create policy org_members_audit on roster.org_members for select to roster_audit using (true);

grant select, insert, update (role, state, expire_time), delete on roster.org_members to roster_app;
grant select, insert on roster.org_members to roster_directory;
grant select on roster.org_members to roster_gate, roster_audit;

-- Outside an organisation: the platform sees every org, a user those of which they are a member now.
create policy orgs_directory on roster.orgs for select to roster_directory
  using ((select roster.is_platform()) or (
    select true from roster.org_members m
    where m.org_id = orgs.id and m.user_id = (select roster.current_actor())
      and m.state = 'ACTIVE' and (m.expire_time is null or m.expire_time > now())));
-- Only the platform makes an organisation, and only the one it entered for.
create policy orgs_directory_insert on roster.orgs for insert to roster_directory
  with check ((select roster.is_platform()) and id = (select roster.current_org()));

-- A user exists for an organisation while they are its member. A scalar subquery is one index probe; the
-- same as `exists` becomes a hashed subplan that reads the whole membership.
create policy users_app on roster.users for select to roster_app
  using ((select true from roster.org_members m
    where m.org_id = (select roster.current_org()) and m.user_id = users.id));

-- Profiles of the organisation's members: their default one, and the one made for this organisation.
alter table roster.profiles add constraint profiles_org_id_user_id_fkey
  foreign key (org_id, user_id) references roster.org_members on delete cascade;
create policy profiles_guard on roster.profiles as restrictive to roster_app
  using (org_id is null or org_id = (select roster.current_org()))
  with check (org_id is null or org_id = (select roster.current_org()));
create policy profiles_app on roster.profiles for select to roster_app
  using ((select true from roster.org_members m
    where m.org_id = (select roster.current_org()) and m.user_id = profiles.user_id));
-- A default profile shows in every organisation of its user, so no one organisation may write it.
create policy profiles_app_insert on roster.profiles for insert to roster_app
  with check (org_id = (select roster.current_org()));
create policy profiles_app_update on roster.profiles for update to roster_app
  using (org_id = (select roster.current_org()));

-- Owners. Every live, active organisation has an active owner whose user is active. Whoever may take one
-- away locks the organisation first and looks afterwards; then the other owners' users are held, so that
-- nobody can suspend or delete them before this transaction ends.
create function roster.demand_owner(org uuid, without uuid) returns boolean
  language plpgsql security definer set search_path = ''
  as $$
begin
  perform from roster.orgs o
    where o.id = org and o.delete_time is null and o.state = 'ACTIVE' for no key update;
  if not found then
    return true;
  end if;
  perform from roster.org_members m join roster.users u on u.id = m.user_id
    where m.org_id = org and m.role = 'owner' and m.state = 'ACTIVE' and m.user_id <> without
      and u.delete_time is null and u.state = 'ACTIVE'
    order by m.user_id
    limit 1
    for share of u;
  return found;
end
$$;

-- Guards a change of a membership. Nobody hands out, changes or takes away a role whose permissions they
-- do not hold, `owner` least of all; leaving by oneself is free. A new member must be a live, active user,
-- held until the end, and the last owner stays.
create function roster.guard_org_member() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  held constant text := coalesce(current_setting('roster.held_permissions', true), '');
  leaves boolean := false;
  user_state text;
  role_name text;
  needed text[];
begin
  -- A purge removes memberships by cascade, when their organisation or user is gone already.
  if tg_op = 'DELETE' and pg_trigger_depth() > 1 then
    return old;
  end if;

  if held <> '*' and not (tg_op = 'DELETE' and old.user_id is not distinct from roster.current_actor()) then
    foreach role_name in array case tg_op
      when 'INSERT' then array[new.role]
      when 'DELETE' then array[old.role]
      else array[old.role, new.role] end
    loop
      needed := coalesce(
        roster.built_in_permissions(role_name),
        (select r.permissions from roster.roles r
          where r.org_id = roster.current_org() and r.name = role_name));
      if needed is null then
        raise exception 'ROLE_UNKNOWN' using errcode = 'RS001',
          detail = jsonb_build_object('field', 'role', 'role', role_name)::text;
      elsif role_name = 'owner' or not needed <@ string_to_array(held, ' ') then
        raise exception 'ROLE_NOT_GRANTABLE' using errcode = 'RS001',
          detail = jsonb_build_object('role', role_name)::text;
      end if;
    end loop;
  end if;

  if tg_op = 'INSERT' or (tg_op = 'UPDATE' and new.role = 'owner' and new.state = 'ACTIVE'
      and (old.role <> 'owner' or old.state <> 'ACTIVE')) then
    select u.state into user_state from roster.users u
      where u.id = new.user_id and u.delete_time is null for share;
    if tg_op = 'UPDATE' then
      if user_state is distinct from 'ACTIVE' then
        raise exception 'OWNER_INACTIVE' using errcode = 'RS001',
          detail = jsonb_build_object('user_id', new.user_id)::text;
      end if;
    -- Inside an organisation a suspended user is like an absent one, or adding would tell who is
    -- suspended. The platform, which makes an organisation with its owner, may know.
    elsif user_state = 'SUSPENDED' and roster.is_platform() then
      raise exception 'OWNER_INACTIVE' using errcode = 'RS001',
        detail = jsonb_build_object('user_id', new.user_id)::text;
    elsif user_state is distinct from 'ACTIVE' then
      raise exception 'USER_NOT_FOUND' using errcode = 'RS001',
        detail = jsonb_build_object('user_id', new.user_id)::text;
    end if;
  end if;

  if tg_op <> 'INSERT' then
    leaves := old.role = 'owner' and old.state = 'ACTIVE'
      and (tg_op = 'DELETE' or new.role <> 'owner' or new.state <> 'ACTIVE');
  end if;
  if leaves and not roster.demand_owner(old.org_id, old.user_id) then
    raise exception 'LAST_OWNER' using errcode = 'RS001',
      detail = jsonb_build_object('org_ids', old.org_id)::text;
  end if;
  return case when tg_op = 'DELETE' then old else new end;
end
$$;

create trigger org_members_guard before insert or update or delete on roster.org_members
  for each row execute function roster.guard_org_member();

-- Locks the organisations that a user owns, in the order of their ids, and then the user: the order in
-- which every path locks. A caller that meets an organisation added meanwhile starts over.
create function roster.lock_owned_orgs(person uuid) returns void
  language plpgsql security definer set search_path = ''
  as $$
declare
  owned constant uuid[] := array(
    select m.org_id from roster.org_members m
    where m.user_id = person and m.role = 'owner' and m.state = 'ACTIVE');
begin
  perform from roster.orgs o where o.id = any (owned) order by o.id for no key update;
  perform from roster.users u where u.id = person for no key update;
  if exists (select from roster.org_members m
    where m.user_id = person and m.role = 'owner' and m.state = 'ACTIVE' and m.org_id <> all (owned)) then
    raise exception 'became an owner meanwhile' using errcode = 'serialization_failure';
  end if;
end
$$;

-- Refuses to take away a user who is the last active owner of an organisation, and names all of those.
create function roster.guard_user() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  org uuid;
  ownerless uuid[] := '{}';
begin
  for org in
    select m.org_id from roster.org_members m
    where m.user_id = new.id and m.role = 'owner' and m.state = 'ACTIVE' order by m.org_id
  loop
    if not roster.demand_owner(org, new.id) then
      ownerless := ownerless || org;
    end if;
  end loop;
  if cardinality(ownerless) > 0 then
    raise exception 'LAST_OWNER' using errcode = 'RS001',
      detail = jsonb_build_object('org_ids', array_to_string(ownerless, ','))::text;
  end if;
  return new;
end
$$;

create trigger users_guard before update on roster.users
  for each row
  when (old.delete_time is null and old.state = 'ACTIVE'
    and (new.delete_time is not null or new.state <> 'ACTIVE'))
  execute function roster.guard_user();

-- An organisation never comes into being, or back to life, without an active owner. Checked at commit,
-- because its first owner is written after it.
create function roster.guard_org() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  if not roster.demand_owner(new.id, '00000000-0000-0000-0000-000000000000') then
    raise exception 'LAST_OWNER' using errcode = 'RS001',
      detail = jsonb_build_object('org_ids', new.id)::text;
  end if;
  return null;
end
$$;

create constraint trigger orgs_guard_owner after insert on roster.orgs
  deferrable initially deferred
  for each row execute function roster.guard_org();
create constraint trigger orgs_guard_owner_again after update on roster.orgs
  deferrable initially deferred
  for each row
  when ((old.delete_time is not null and new.delete_time is null) or (old.state <> 'ACTIVE' and new.state = 'ACTIVE'))
  execute function roster.guard_org();

grant create on schema roster to roster_gate;
alter function roster.demand_owner(uuid, uuid) owner to roster_gate;
alter function roster.guard_org_member() owner to roster_gate;
alter function roster.lock_owned_orgs(uuid) owner to roster_gate;
alter function roster.guard_user() owner to roster_gate;
alter function roster.guard_org() owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function roster.lock_owned_orgs(uuid) to roster_directory;
