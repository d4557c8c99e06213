-- Members who are added many at once, and memberships that end by themselves. One whose time has come counts as none
-- from that instant in every query; taking its row away is background work.

create index org_members_expire_time_idx on roster.org_members (expire_time) where expire_time is not null;

-- The gate takes away memberships that have expired, and no others.
create policy org_members_gate_expired on roster.org_members to roster_gate
  using (expire_time <= now()) with check (false);

grant update (version), delete on roster.org_members to roster_gate;

-- A user exists for an organisation until their membership expires.
alter policy users_app on roster.users
  using ((select true from roster.org_members m
    where m.org_id = (select roster.current_org()) and m.user_id = users.id
      and (m.expire_time is null or m.expire_time > now())));
alter policy profiles_app on roster.profiles
  using ((select true from roster.org_members m
    where m.org_id = (select roster.current_org()) and m.user_id = profiles.user_id
      and (m.expire_time is null or m.expire_time > now())));

-- Why who holds these permissions may not hand out a role of the current organisation; null when they may.
create function roster.role_fault(role_name text, held text) returns text
  language sql stable
  return (
    select case
      when needed is null then 'ROLE_UNKNOWN'
      when held <> '*' and (role_name = 'owner' or not needed <@ string_to_array(held, ' '))
        then 'ROLE_NOT_GRANTABLE'
    end
    from (select coalesce(roster.built_in_permissions(role_name), (
      select r.permissions from roster.roles r
      where r.org_id = roster.current_org() and r.name = role_name)) as needed) n);
grant execute on function roster.role_fault(text, text) to roster_gate;

-- Guards a change of a membership. Nobody hands out, changes or takes away a role whose permissions they
-- do not hold, `owner` least of all; leaving by oneself is free. A new member must be a live, active user,
-- held until the end, and takes the place of a membership that has expired. The last owner stays.
create or replace function roster.guard_org_member() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  held constant text := coalesce(current_setting('roster.held_permissions', true), '');
  leaves boolean := false;
  user_state text;
  role_name text;
  fault text;
begin
  -- A purge removes memberships by cascade, when their organisation or user is gone already; and the last lines of
  -- this function remove one that has expired.
  if tg_op = 'DELETE' and pg_trigger_depth() > 1 then
    return old;
  end if;

  -- Outside an organisation its foreign key says which roles there are.
  if (held <> '*' or roster.current_org() is not null)
      and not (tg_op = 'DELETE' and old.user_id is not distinct from roster.current_actor()) then
    foreach role_name in array case tg_op
      when 'INSERT' then array[new.role]
      when 'DELETE' then array[old.role]
      else array[old.role, new.role] end
    loop
      fault := roster.role_fault(role_name, held);
      if fault is not null then
        raise exception '%', fault using errcode = 'RS001',
          detail = jsonb_strip_nulls(jsonb_build_object('role', role_name,
            'field', case fault when 'ROLE_UNKNOWN' then 'role' end))::text;
      end if;
    end loop;
  end if;

  -- A membership that ends is not made longer by whose it is.
  if tg_op = 'UPDATE' and held <> '*' and old.user_id is not distinct from roster.current_actor()
      and (new.expire_time is null or new.expire_time > old.expire_time) and old.expire_time is not null then
    raise exception 'ROLE_NOT_GRANTABLE' using errcode = 'RS001',
      detail = jsonb_build_object('role', old.role)::text;
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

  if tg_op = 'INSERT' then
    perform from roster.org_members m
      where m.org_id = new.org_id and m.user_id = new.user_id and m.expire_time <= now();
    if found then
      delete from roster.org_members m
        where m.org_id = new.org_id and m.user_id = new.user_id and m.expire_time <= now();
    end if;
  end if;
  return case when tg_op = 'DELETE' then old else new end;
end
$$;

-- A role that only expired memberships have left is nobody's, and its delete takes them along.
create function roster.end_expired_holders() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  delete from roster.org_members m
  where m.org_id = old.org_id and m.custom_role = old.name and m.expire_time <= now();
  return old;
end
$$;

create trigger roles_end_expired_holders before delete on roster.roles
  for each row when (pg_trigger_depth() = 0) execute function roster.end_expired_holders();

-- Says of each of many new members what adding them alone would meet: what is wrong with the role, whether the user
-- is live and active, and whether they are a member now. Roles and users then stay as they are until the end. In an
-- organisation users cannot be seen before they are its members.
create function roster.judge_new_members(people uuid[], roles text[])
  returns table (role_fault text, user_is_active boolean, is_member boolean)
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  org constant uuid := roster.current_org();
  held constant text := current_setting('roster.held_permissions');
begin
  perform from roster.orgs o where o.id = org for share;
  perform from roster.users u
    where u.id = any (people) and u.delete_time is null and u.state = 'ACTIVE'
    order by u.id for share;
  return query
    select roster.role_fault(a.role, held),
      (select true from roster.users u
        where u.id = a.user_id and u.delete_time is null and u.state = 'ACTIVE') is not null,
      (select true from roster.org_members m
        where m.org_id = org and m.user_id = a.user_id
          and (m.expire_time is null or m.expire_time > now())) is not null
    from unnest(people, roles) with ordinality a (user_id, role, place)
    order by a.place;
end
$$;

-- Takes away some memberships that have expired, under one audit entry, and says how many; zero when none are left.
-- Several processes may do so at once.
create function roster.remove_expired_members(most int) returns int
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  entry constant uuid := gen_random_uuid();
  orgs uuid[];
  people uuid[];
  s text;
begin
  select array_agg(e.org_id), array_agg(e.user_id) into orgs, people
  from (
    select m.org_id, m.user_id from roster.org_members m
    where m.expire_time <= now()
    order by m.expire_time limit most
    for update skip locked) e;
  if orgs is null then
    return 0;
  end if;
  s := set_config('roster.held_permissions', '*', true);
  perform roster.write_entry(null, entry, null, 'roster', '{}', 'remove_expired_members', entry::text);
  delete from roster.org_members m using unnest(orgs, people) e (org_id, user_id)
  where (m.org_id, m.user_id) = (e.org_id, e.user_id);
  return cardinality(orgs);
end
$$;

-- Notes a refused mutation in the log of the caller's own organisation: the one they tried, if they are
-- its member, else the one their credential names, else the platform's.
create or replace function roster.record_denial(
  org uuid, claimed_org uuid, actor uuid, entry uuid, subject text, on_behalf_of text[], method text,
  correlation_id text, reason text
) returns void
  language plpgsql volatile security definer set search_path = ''
  as $$
begin
  insert into roster.audit_entries (id, org_id, subject, kind, on_behalf_of, method, correlation_id,
    outcome, reason)
  values (entry,
    coalesce(
      (select m.org_id from roster.org_members m
        where m.org_id = record_denial.org and m.user_id = record_denial.actor and m.state = 'ACTIVE'
          and (m.expire_time is null or m.expire_time > now())),
      (select o.id from roster.orgs o where o.id = claimed_org)),
    subject, case when actor is null then 'SERVICE' else 'USER' end, on_behalf_of, method, correlation_id,
    'DENIED', reason);
end
$$;

grant create on schema roster to roster_gate;
alter function roster.end_expired_holders() owner to roster_gate;
alter function roster.judge_new_members(uuid[], text[]) owner to roster_gate;
alter function roster.remove_expired_members(int) owner to roster_gate;
revoke create on schema roster from roster_gate;

grant execute on function roster.judge_new_members(uuid[], text[]) to roster_app;
grant execute on function roster.remove_expired_members(int) to roster_worker;
