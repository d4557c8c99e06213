-- The end of things. What was deleted is removed for good when its `purge_time` has come, by the background work in
-- small batches, or before that by the platform. A person may also be erased: removed at once, and with them
-- what the log and the kept answers hold about them.
--
-- From its `purge_time` on a row counts as gone, whether or not it has been removed yet. An undelete that began in
-- time ends within a minute, so the background work lets two pass.

grant delete on roster.users, roster.orgs, roster.profiles, roster.roles, roster.org_members, roster.teams,
  roster.team_members, roster.invitations to roster_gate;
grant select on roster.profiles to roster_gate;
-- The gate removes what it judged to be over; users, orgs and invitations show themselves to it already.
create policy profiles_gate on roster.profiles to roster_gate using (true) with check (false);
create policy roles_gate_delete on roster.roles for delete to roster_gate using (true);
create policy org_members_gate_delete on roster.org_members for delete to roster_gate using (true);
create policy teams_gate_delete on roster.teams for delete to roster_gate using (true);
create policy team_members_gate_delete on roster.team_members for delete to roster_gate using (true);
-- It closes the organisations that an erased person leaves without an owner, and changes nothing else of them.
grant update (state) on roster.orgs to roster_gate;
create policy orgs_gate_suspend on roster.orgs for update to roster_gate
  using (true) with check (state = 'SUSPENDED');

-- Whether a row is there: a live one for everyone, a deleted one until its purge for who may see deleted ones.
create function roster.kept(delete_time timestamptz, purge_time timestamptz, deleted boolean)
  returns boolean
  language sql stable parallel safe
  return delete_time is null or (deleted and purge_time > now());
grant execute on function roster.kept(timestamptz, timestamptz, boolean)
  to roster_gate, roster_app, roster_directory;

-- A user who is removed while they are live must not be the last owner of anything either.
create or replace function roster.guard_user() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  org uuid;
  ownerless uuid[] := '{}';
begin
  for org in
    select m.org_id from roster.org_members m
    where m.user_id = old.id and m.role = 'owner' and m.state = 'ACTIVE' order by m.org_id
  loop
    if not roster.demand_owner(org, old.id) then
      ownerless := ownerless || org;
    end if;
  end loop;
  if cardinality(ownerless) > 0 then
    raise exception 'LAST_OWNER' using errcode = 'RS001',
      detail = jsonb_build_object('org_ids', array_to_string(ownerless, ','))::text;
  end if;
  return case tg_op when 'DELETE' then old else new end;
end
$$;

create trigger users_guard_delete before delete on roster.users
  for each row when (old.delete_time is null and old.state = 'ACTIVE')
  execute function roster.guard_user();

-- Removes one step of what hangs on a deleted organisation, the innermost first and the organisation last, at most
-- so many rows, and says how many; zero when nothing is left.
create function roster.purge_org_step(org uuid, most int) returns int
  language plpgsql volatile set search_path = ''
  as $$
declare
  step record;
  removed int;
begin
  for step in
    select * from (values
      (1, 'team_members', ''),
      (2, 'profiles', ''),
      (3, 'org_members', ''),
      -- Teams go from the leaves up.
      (4, 'teams', 'and not exists (
        select from roster.teams child where child.org_id = t.org_id and child.parent_team_id = t.id)'),
      (5, 'invitations', ''),
      (6, 'roles', '')) as steps (place, name, condition)
    order by place
  loop
    execute format(
      'delete from roster.%1$I where ctid = any (array(
        select t.ctid from roster.%1$I t where t.org_id = $1 %2$s limit $2))', step.name, step.condition)
      using org, most;
    get diagnostics removed = row_count;
    if removed > 0 then
      return removed;
    end if;
  end loop;
  delete from roster.orgs o where o.id = org;
  get diagnostics removed = row_count;
  return removed;
end
$$;

-- Removes a deleted user with all that hangs on them.
create function roster.purge_user(person uuid) returns void
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  found_user record;
begin
  perform roster.demand_platform();
  select u.delete_time, u.purge_time into found_user from roster.users u where u.id = person for update;
  if not found or not roster.kept(found_user.delete_time, found_user.purge_time, true) then
    raise exception 'USER_NOT_FOUND' using errcode = 'RS001',
      detail = jsonb_build_object('user_id', person)::text;
  elsif found_user.delete_time is null then
    raise exception 'STILL_LIVE' using errcode = 'RS001', detail = jsonb_build_object('user_id', person)::text;
  end if;
  delete from roster.users u where u.id = person;
end
$$;

-- Removes a deleted organisation with all that hangs on it.
create function roster.purge_org(org uuid) returns void
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  found_org record;
begin
  perform roster.demand_platform();
  select o.delete_time, o.purge_time into found_org from roster.orgs o where o.id = org for update;
  if not found or not roster.kept(found_org.delete_time, found_org.purge_time, true) then
    raise exception 'ORG_NOT_FOUND' using errcode = 'RS001', detail = jsonb_build_object('org_id', org)::text;
  elsif found_org.delete_time is null then
    raise exception 'STILL_LIVE' using errcode = 'RS001', detail = jsonb_build_object('org_id', org)::text;
  end if;
  while roster.purge_org_step(org, 100000) > 0 loop
  end loop;
end
$$;

-- Backs the access option of the RPCs that remove for good.
create function roster.demand_platform() returns void
  language plpgsql stable set search_path = ''
  as $$
begin
  if not roster.is_platform() then
    raise exception 'PERMISSION_MISSING' using errcode = 'RS001',
      detail = jsonb_build_object('permission', 'roster.platform')::text;
  end if;
end
$$;

-- What the background work may remove: every deleted organisation, and how many users and teams, with how many rows
-- hang on them and since when they are due.
create function roster.purgeable()
  returns table (resource_type text, resource_id uuid, due_time timestamptz, items bigint, rows bigint)
  language sql stable security definer set search_path = ''
  begin atomic
    select 'org', o.id, o.purge_time, 1,
      (select count(*) from roster.org_members m where m.org_id = o.id)
        + (select count(*) from roster.teams t where t.org_id = o.id)
        + (select count(*) from roster.team_members m where m.org_id = o.id)
    from roster.orgs o where o.purge_time <= now() - interval '2 minutes'
    union all
    select 'user', null, min(u.purge_time), count(*),
      (select count(*) from roster.org_members m join roster.users d on d.id = m.user_id
        where d.purge_time <= now() - interval '2 minutes')
    from roster.users u where u.purge_time <= now() - interval '2 minutes'
    having count(*) > 0
    union all
    select 'team', null, min(t.purge_time), count(*),
      (select count(*) from roster.team_members m join roster.teams d on d.org_id = m.org_id and d.id = m.team_id
        where d.purge_time <= now() - interval '2 minutes')
    from roster.teams t where t.purge_time <= now() - interval '2 minutes'
    having count(*) > 0
    order by 1, 3;
  end;

-- Removes one batch of what is due: rows of one organisation, or some users, or some teams of one organisation. Says
-- of what and how much; no row when nothing is due, 'busy' while another process is at it. A purge that is broken off
-- goes on where it was.
--   most           how many rows at most
--   entry          id of the audit entry
create function roster.purge(most int, entry uuid)
  returns table (resource_type text, resource_id uuid, items int, rows int)
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  due constant timestamptz := now() - interval '2 minutes';
  ids uuid[];
begin
  if not pg_try_advisory_xact_lock(5118620947) then
    resource_type := 'busy';
    return next;
    return;
  end if;

  select o.id into resource_id from roster.orgs o where o.purge_time <= due
    order by o.purge_time limit 1 for update skip locked;
  if found then
    perform roster.open_work(resource_id, entry, 'purge');
    resource_type := 'org';
    rows := roster.purge_org_step(resource_id, most);
    items := (not exists (select from roster.orgs o where o.id = resource_id))::int;
    return next;
    return;
  end if;

  ids := array(
    select u.id from roster.users u where u.purge_time <= due
    order by u.purge_time limit least(most, 50) for update skip locked);
  if cardinality(ids) > 0 then
    perform roster.open_work(null, entry, 'purge');
    resource_type := 'user';
    delete from roster.users u where u.id = any (ids);
    get diagnostics items = row_count;
    rows := items;
    return next;
    return;
  end if;

  -- An undelete holds the organisation as well. Teams go from the leaves up, their members first.
  select o.id into resource_id from roster.orgs o
    where o.id = (
      select t.org_id from roster.teams t
      where t.purge_time <= due and not exists (
        select from roster.teams child where child.org_id = t.org_id and child.parent_team_id = t.id)
      order by t.purge_time limit 1)
    for no key update skip locked;
  ids := array(
    select t.id from roster.teams t
    where t.org_id = resource_id and t.purge_time <= due and not exists (
      select from roster.teams child where child.org_id = t.org_id and child.parent_team_id = t.id)
    limit most);
  if cardinality(ids) > 0 then
    perform roster.open_work(resource_id, entry, 'purge');
    resource_type := 'team';
    items := 0;
    delete from roster.team_members where ctid = any (array(
      select m.ctid from roster.team_members m where m.org_id = resource_id and m.team_id = any (ids) limit most));
    get diagnostics rows = row_count;
    if rows = 0 then
      delete from roster.teams t where t.org_id = resource_id and t.id = any (ids);
      get diagnostics items = row_count;
      rows := items;
    end if;
    return next;
  end if;
end
$$;

-- Opens a transaction of the background work, which speaks for nobody: in an organisation or outside any, with an
-- audit entry of its own.
create function roster.open_work(org uuid, entry uuid, work text) returns void
  language plpgsql volatile set search_path = ''
  as $$
declare
  s text;
begin
  s := set_config('roster.org_id', coalesce(org::text, ''), true)
    || set_config('roster.held_permissions', '*', true);
  perform roster.write_entry(org, entry, null, 'roster', '{}', work, entry::text);
end
$$;

-- Under which addresses the log knows a person.
create function roster.addresses_of(person uuid) returns text[]
  language sql stable security definer set search_path = ''
  return array(
    select distinct lower(normalize(image ->> 'email', nfc))
    from roster.audit_changes c cross join lateral (values (c.before), (c.after)) v (image)
    where c.person = addresses_of.person and c.resource_type = 'user' and image ? 'email');

-- The addresses of a person, that of now and former ones, as they are compared. One that somebody else has by now is
-- theirs, and so are invitations to it.
create function roster.own_addresses(person uuid) returns text[]
  language sql stable set search_path = ''
  return array(
    select a.address
    from (
      select u.email_key from roster.users u where u.id = person
      union
      select unnest(roster.addresses_of(person))) a (address)
    where not exists (
      select from roster.users other
      where other.email_key = a.address and other.id <> person));
grant execute on function roster.own_addresses(uuid) to roster_gate;

-- Blanks what the log holds about a person and says how many changes that were, and which invitations to them it tells
-- of. The changes themselves stay: that there was one, when, by whom. Where nothing else in this transaction tells
-- that the person is gone, it notes that too.
--   addresses      those of the person, as they are compared
--   entry          the audit entry in force
create function roster.forget(
  person uuid, addresses text[], entry uuid, noted boolean, out forgotten int, out invitations text[]
)
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  -- An invitation is found by what its address makes.
  addressees constant uuid[] := array(
    select roster.invited_person(address) from unnest(addresses) a (address));
  invited int;
begin
  invitations := array(select distinct c.resource_id from roster.audit_changes c where c.person = any (addressees));
  update roster.audit_changes c set before = null, after = null, salt = null
  where c.person = forget.person and c.entry_id <> entry and c.salt is not null;
  get diagnostics forgotten = row_count;
  update roster.audit_changes c set before = null, after = null, salt = null
  where c.person = forget.person and c.entry_id = entry;
  -- What they are found by goes too.
  update roster.audit_changes c set person = null, before = null, after = null, salt = null
  where c.person = any (addressees);
  get diagnostics invited = row_count;
  forgotten := forgotten + invited;
  if forgotten > 0 and not noted then
    insert into roster.audit_changes (person, entry_id, subject, method, correlation_id, resource_type, resource_id,
      kind, changed_fields, salt)
    values (forget.person, entry, current_setting('roster.subject'), current_setting('roster.method'),
      current_setting('roster.correlation_id'), 'user', forget.person::text, 'PURGED', '{}', null);
  end if;
end
$$;

grant update (person, before, after, salt) on roster.audit_changes to roster_audit;
grant select on roster.audit_changes to roster_audit;
-- Whoever erases a person finds what tells of them, and leaves nothing of it.
create policy audit_changes_person on roster.audit_changes for select to roster_audit
  using (person is not null or (before is null and after is null));
create policy audit_changes_forget on roster.audit_changes for update to roster_audit
  using (person is not null) with check (before is null and after is null and salt is null);

-- Removes a person at once, live or deleted, and what the log and the kept answers hold about them; also one who was
-- purged before. All organisations of the person are held first, since their memberships go too, and then the user.
--   force          suspends the organisations of which the person is the last owner, instead of refusing
create function roster.erase_user(person uuid, force boolean, entry uuid)
  returns table (suspended uuid[], changes int, answers int)
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  orgs constant uuid[] := array(select m.org_id from roster.org_members m where m.user_id = person);
  org uuid;
  there boolean;
  addresses text[];
  invitations text[];
begin
  perform roster.demand_platform();
  perform from roster.orgs o where o.id = any (orgs) order by o.id for no key update;
  perform roster.lock_owned_orgs(person);
  if exists (select from roster.org_members m where m.user_id = person and m.org_id <> all (orgs)) then
    raise exception 'became a member meanwhile' using errcode = 'serialization_failure';
  end if;
  -- Nobody gives the person another address from here on.
  addresses := roster.own_addresses(person);
  suspended := '{}';
  for org in
    select m.org_id from roster.org_members m
    where m.user_id = person and m.role = 'owner' and m.state = 'ACTIVE' order by m.org_id
  loop
    if not roster.demand_owner(org, person) then
      suspended := suspended || org;
    end if;
  end loop;
  if cardinality(suspended) > 0 and not force then
    raise exception 'LAST_OWNER' using errcode = 'RS001',
      detail = jsonb_build_object('org_ids', array_to_string(suspended, ','))::text;
  end if;
  update roster.orgs o set state = 'SUSPENDED' where o.id = any (suspended);

  delete from roster.users u where u.id = person;
  there := found;
  delete from roster.invitations i where i.email_key = any (addresses);
  select f.forgotten, f.invitations into changes, invitations
  from roster.forget(person, addresses, entry, there) f;
  if not there and changes = 0 then
    raise exception 'USER_NOT_FOUND' using errcode = 'RS001',
      detail = jsonb_build_object('user_id', person)::text;
  end if;
  -- An answer that tells of somebody has their id in it, or that of an invitation to them.
  update roster.idempotency_keys k set response = null
  where k.response is not null and (k.subject = person::text or exists (
    select from unnest(invitations || person::text) named (id)
    where position(convert_to(named.id, 'UTF8') in k.response) > 0));
  get diagnostics answers = row_count;
  return next;
end
$$;

-- What a request was answered; null when it was not, or the answer has expired. Raises ANSWER_ERASED when it told of a
-- person who was erased since.
drop function roster.stored_response(text, text, uuid, bytea);
create function roster.stored_response(subject text, method text, request uuid, hash bytea)
  returns bytea
  language plpgsql stable security definer set search_path = ''
  as $$
declare
  answer bytea;
begin
  select k.response into answer from roster.idempotency_keys k
  where k.org_id = roster.request_org() and k.subject = stored_response.subject
    and k.method = stored_response.method and k.request_id = request and k.request_hash = hash
    and k.expire_time > now();
  if found and answer is null then
    raise exception 'ANSWER_ERASED' using errcode = 'RS001';
  end if;
  return answer;
end
$$;

grant create on schema roster to roster_gate, roster_audit;
alter function roster.purge_org_step(uuid, int) owner to roster_gate;
alter function roster.purge_user(uuid) owner to roster_gate;
alter function roster.purge_org(uuid) owner to roster_gate;
alter function roster.demand_platform() owner to roster_gate;
alter function roster.purgeable() owner to roster_gate;
alter function roster.purge(int, uuid) owner to roster_gate;
alter function roster.open_work(uuid, uuid, text) owner to roster_gate;
alter function roster.erase_user(uuid, boolean, uuid) owner to roster_gate;
alter function roster.stored_response(text, text, uuid, bytea) owner to roster_gate;
alter function roster.addresses_of(uuid) owner to roster_audit;
alter function roster.forget(uuid, text[], uuid, boolean) owner to roster_audit;
revoke create on schema roster from roster_gate, roster_audit;

grant execute on function roster.forget(uuid, text[], uuid, boolean), roster.addresses_of(uuid) to roster_gate;
grant execute on function roster.purge_user(uuid), roster.purge_org(uuid), roster.erase_user(uuid, boolean, uuid)
  to roster_directory;
grant execute on function roster.stored_response(text, text, uuid, bytea) to roster_app, roster_directory;
grant execute on function roster.purgeable(), roster.purge(int, uuid) to roster_worker;
