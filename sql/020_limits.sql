-- How much an organisation may have, and how much it has. Two tables: what it may have changes once in a while,
-- under an etag and into the log; what it has changes with every new member and is nobody's reading but GetOrg's. In
-- the organisation's own row the counts would change its etag all the time, and make who renames it wait for who joins.

-- What the platform allows one organisation; null, and a row that is not there, for what it allows every one.
create table roster.org_limits (
  org_id uuid constraint org_limits_pkey primary key
    constraint org_limits_org_id_fkey references roster.orgs on delete cascade,
  members int,
  teams int,
  pending_invitations int,
  roles int,
  -- Walks up from a team go no further.
  team_depth int constraint org_limits_team_depth_check check (team_depth <= 16),
  audit_retention_days int,
  version bigint not null default 1,
  update_time timestamptz not null default now()
);

create trigger org_limits_touch before update on roster.org_limits
  for each row execute function roster.touch();
call roster.audit_table('roster.org_limits', 'org_limits', 'org_id');

call roster.protect_org_table('roster.org_limits');
-- The gate refuses what would exceed a limit.
create policy org_limits_gate on roster.org_limits for select to roster_gate using (true);

grant select, insert,
  update (members, teams, pending_invitations, roles, team_depth, audit_retention_days) on roster.org_limits
  to roster_app;
grant select on roster.org_limits to roster_gate;

-- The limits in force. The only place that says what every organisation may have.
create function roster.org_limits_of(org uuid)
  returns table (
    members int, teams int, pending_invitations int, roles int, team_depth int, audit_retention_days int,
    version bigint, update_time timestamptz)
  language sql stable
  begin atomic
    select coalesce(l.members, 100000), coalesce(l.teams, 10000), coalesce(l.pending_invitations, 1000),
      coalesce(l.roles, 100), coalesce(l.team_depth, 16), coalesce(l.audit_retention_days, 0),
      coalesce(l.version, 0), l.update_time
    from (values (org)) asked (id) left join roster.org_limits l on l.org_id = asked.id;
  end;
grant execute on function roster.org_limits_of(uuid) to roster_app, roster_gate;

-- How much an organisation has: memberships of live users, expired ones included, live teams, roles of its own,
-- and pending invitations, expired ones included. Triggers alone write here. The row is the last that a statement
-- locks, and those of several organisations are locked in the order of their ids. It is rewritten often, hence the
-- room on its page.
create table roster.org_counts (
  org_id uuid constraint org_counts_pkey primary key
    constraint org_counts_org_id_fkey references roster.orgs on delete cascade,
  members int not null default 0,
  teams int not null default 0,
  pending_invitations int not null default 0,
  roles int not null default 0
) with (fillfactor = 50);

call roster.protect_org_table('roster.org_counts');
-- The gate counts, whichever organisation or none is entered.
create policy org_counts_gate on roster.org_counts to roster_gate using (true) with check (true);

grant select on roster.org_counts to roster_app;
grant select, insert, update (members, teams, pending_invitations, roles) on roster.org_counts to roster_gate;

-- Time alone ends a membership too. Those few are taken off when somebody reads.
create index org_members_org_id_expire_time_idx on roster.org_members (org_id, expire_time)
  where expire_time is not null;

-- Those of the current organisation, whose users it does not see any more.
create function roster.expired_members() returns int
  language sql stable security definer set search_path = ''
  return (
    select count(*)::int from roster.org_members m join roster.users u on u.id = m.user_id
    where m.org_id = roster.current_org() and m.expire_time <= now() and u.delete_time is null);

create function roster.make_org_counts() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  insert into roster.org_counts (org_id) values (new.id);
  return null;
end
$$;

create trigger orgs_counts after insert on roster.orgs
  for each row execute function roster.make_org_counts();

-- Adds to what an organisation has of one kind, a column of org_counts. Whoever adds holds the count until the end, so
-- that of many at once no one sees room that another takes. Adding nothing asks whether there is room for what came
-- back to life by itself.
create function roster.add_to_count(org uuid, kind text, added int) returns void
  language plpgsql volatile set search_path = ''
  as $$
declare
  held int;
  allowed int;
begin
  update roster.org_counts c set
    members = c.members + case kind when 'members' then added else 0 end,
    teams = c.teams + case kind when 'teams' then added else 0 end,
    pending_invitations = c.pending_invitations + case kind when 'pending_invitations' then added else 0 end,
    roles = c.roles + case kind when 'roles' then added else 0 end
  where c.org_id = org
  returning case kind
    when 'members' then c.members
    when 'teams' then c.teams
    when 'pending_invitations' then c.pending_invitations
    when 'roles' then c.roles end
  into held;
  -- The count goes with its organisation, perhaps before what is counted does.
  if added < 0 or held is null then
    return;
  end if;

  select case kind
    when 'members' then l.members
    when 'teams' then l.teams
    when 'pending_invitations' then l.pending_invitations
    when 'roles' then l.roles end
  into allowed from roster.org_limits_of(org) l;
  if held > allowed and kind = 'members' then
    held := held - roster.expired_members();
  elsif held > allowed and kind = 'pending_invitations' then
    held := held - (
      select count(*) from roster.invitations i
      where i.org_id = org and i.state = 'PENDING' and i.expire_time <= now());
  end if;
  if held > allowed then
    raise exception 'ORG_LIMIT_REACHED' using errcode = 'RS001',
      detail = jsonb_build_object('org_id', org, 'limit', kind, 'value', allowed::text)::text;
  end if;
end
$$;

-- How many more members or pending invitations the current organisation may have now, and how many in all: for who adds
-- many at once, to know which of them there is room for. Others may take it before they are added.
create function roster.room_for(kind text) returns table (room int, allowed int)
  language plpgsql stable security definer set search_path = ''
  as $$
begin
  if kind = 'members' then
    return query
      select l.members - c.members + roster.expired_members(), l.members
      from roster.org_counts c cross join roster.org_limits_of(c.org_id) l
      where c.org_id = roster.current_org();
  else
    return query
      select l.pending_invitations - c.pending_invitations + (
          select count(*)::int from roster.invitations i
          where i.org_id = c.org_id and i.state = 'PENDING' and i.expire_time <= now()),
        l.pending_invitations
      from roster.org_counts c cross join roster.org_limits_of(c.org_id) l
      where c.org_id = roster.current_org();
  end if;
end
$$;

-- Counts the rows of a table that a statement added and took away. Arguments: the column of org_counts; then, where
-- not every live row counts, the column that decides and the value by which a row does. A new row always does.
create function roster.count_rows() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  decider constant text := coalesce(tg_argv[1], 'delete_time');
  counted constant text := tg_argv[2];
  change record;
begin
  if tg_op = 'INSERT' then
    for change in
      select n.org_id, count(*)::int as added from new_rows n group by n.org_id order by n.org_id
    loop
      perform roster.add_to_count(change.org_id, tg_argv[0], change.added);
    end loop;
  elsif tg_op = 'DELETE' then
    for change in
      select o.org_id, count(*)::int as lost from old_rows o
      where to_jsonb(o) ->> decider is not distinct from counted
      group by o.org_id order by o.org_id
    loop
      perform roster.add_to_count(change.org_id, tg_argv[0], -change.lost);
    end loop;
  else
    for change in
      select r.org_id, sum(r.added)::int as added
      from (
        select n.org_id, 1 as added from new_rows n where to_jsonb(n) ->> decider is not distinct from counted
        union all
        select o.org_id, -1 from old_rows o where to_jsonb(o) ->> decider is not distinct from counted) r
      group by r.org_id having sum(r.added) <> 0 order by r.org_id
    loop
      perform roster.add_to_count(change.org_id, tg_argv[0], change.added);
    end loop;
  end if;
  return null;
end
$$;

-- Puts a table under count_rows, with its arguments. The names let the triggers fire behind those of the audit.
create procedure roster.count_table(t regclass, variadic arguments text[])
  language plpgsql
  as $$
declare
  name text := (select relname from pg_class where oid = t);
  list text := (select string_agg(quote_literal(a), ', ') from unnest(arguments) a);
begin
  execute format('create trigger %I after insert on %s referencing new table as new_rows
    for each statement execute function roster.count_rows(%s)', name || '_count_insert', t, list);
  execute format('create trigger %I after update on %s referencing old table as old_rows new table as new_rows
    for each statement execute function roster.count_rows(%s)', name || '_count_update', t, list);
  execute format('create trigger %I after delete on %s referencing old table as old_rows
    for each statement execute function roster.count_rows(%s)', name || '_count_delete', t, list);
end
$$;

call roster.count_table('roster.teams', 'teams');
call roster.count_table('roster.roles', 'roles');
call roster.count_table('roster.invitations', 'pending_invitations', 'state', 'PENDING');

-- Counts members. A new one's user is live, or the guard had refused.
create function roster.count_new_members() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  change record;
begin
  for change in select m.org_id, count(*)::int as added from new_rows m group by m.org_id order by m.org_id loop
    perform roster.add_to_count(change.org_id, 'members', change.added);
  end loop;
  return null;
end
$$;

create trigger org_members_count_insert after insert on roster.org_members
  referencing new table as new_rows
  for each statement execute function roster.count_new_members();

-- A membership that ends counts while its user is live, who may be deleted or brought back at the same moment. Each
-- side takes the count first and looks at the other afterwards, so that one of them, and not both, sees both.
create function roster.count_former_members() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  org uuid;
  lost int;
begin
  for org in select distinct m.org_id from old_rows m order by m.org_id loop
    perform from roster.org_counts c where c.org_id = org for no key update;
    -- It goes with its organisation, perhaps before the memberships do.
    continue when not found;
    -- Of a user who is gone the memberships went by cascade, and were counted off with the user.
    -- The limit makes each member one probe, however many the statement that was planned first had.
    select count(*) into lost from old_rows m
    cross join lateral (select * from roster.users where id = m.user_id limit 1) u
    where m.org_id = org and u.delete_time is null;
    if lost > 0 then
      perform roster.add_to_count(org, 'members', -lost);
    end if;
  end loop;
  return null;
end
$$;

create trigger org_members_count_delete after delete on roster.org_members
  referencing old table as old_rows
  for each statement execute function roster.count_former_members();

-- An invitation that had expired and is sent again needs room like a new one.
create function roster.count_renewed() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  perform roster.add_to_count(new.org_id, tg_argv[0], 0);
  return null;
end
$$;

create trigger invitations_count_renewed after update on roster.invitations
  for each row when (old.state = 'PENDING' and new.state = 'PENDING' and old.expire_time <= now()
    and new.expire_time > now())
  execute function roster.count_renewed('pending_invitations');

-- Counts a user's memberships as the user is deleted, brought back or erased. What comes back with a user is let in
-- whatever the limit: the platform's undelete must not fail for want of room in one organisation. By row, because
-- users are deleted one by one, and all other changes of them pay nothing.
create function roster.count_memberships() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  change constant int := case when tg_op = 'UPDATE' and new.delete_time is null then 1 else -1 end;
  org uuid;
begin
  for org in select m.org_id from roster.org_members m where m.user_id = old.id order by m.org_id loop
    perform from roster.org_counts c where c.org_id = org for no key update;
    update roster.org_counts c set members = c.members + change
    where c.org_id = org
      and exists (select from roster.org_members m where m.org_id = org and m.user_id = old.id);
  end loop;
  return case tg_op when 'DELETE' then old else new end;
end
$$;

create trigger users_memberships_update after update on roster.users
  for each row when ((old.delete_time is null) <> (new.delete_time is null))
  execute function roster.count_memberships();
-- Before the memberships go with the user, and behind the guard of owners, which locks organisations.
create trigger users_memberships_delete before delete on roster.users
  for each row when (old.delete_time is null)
  execute function roster.count_memberships();

-- A team is placed under a live parent that the caller sees, no deeper than its organisation may nest. The organisation
-- is held while looking, so that the parent cannot be deleted or moved meanwhile.
create or replace function roster.guard_team_parent() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  levels int;
  allowed int;
begin
  perform from roster.orgs o where o.id = new.org_id for share;
  with recursive up (id, parent_team_id, depth) as (
    select t.id, t.parent_team_id, 2 from roster.teams t
    where t.org_id = new.org_id and t.id = new.parent_team_id and t.delete_time is null
      and (roster.team_sight() in ('all', 'deleted')
        or (roster.team_sight() = 'visible' and t.visibility = 'VISIBLE')
        or roster.team_role(t.org_id, t.id) is not null)
    union all
    select t.id, t.parent_team_id, up.depth + 1
    from up join roster.teams t on t.org_id = new.org_id and t.id = up.parent_team_id
    where up.depth <= 17
  )
  select max(depth) into levels from up;
  select l.team_depth into allowed from roster.org_limits_of(new.org_id) l;
  if levels is null then
    raise exception 'TEAM_NOT_FOUND' using errcode = 'RS001',
      detail = jsonb_build_object('team_id', new.parent_team_id)::text;
  elsif levels > allowed then
    raise exception 'TEAM_TOO_DEEP' using errcode = 'RS001',
      detail = jsonb_build_object('depth', allowed::text)::text;
  end if;
  return new;
end
$$;

-- Behind the triggers, which keep everyone else from writing until this migration ends.
insert into roster.org_counts (org_id, members, teams, roles, pending_invitations)
select o.id,
  (select count(*) from roster.org_members m join roster.users u on u.id = m.user_id
    where m.org_id = o.id and u.delete_time is null),
  (select count(*) from roster.teams t where t.org_id = o.id and t.delete_time is null),
  (select count(*) from roster.roles r where r.org_id = o.id),
  (select count(*) from roster.invitations i where i.org_id = o.id and i.state = 'PENDING')
from roster.orgs o;

grant create on schema roster to roster_gate;
alter function roster.expired_members() owner to roster_gate;
alter function roster.room_for(text) owner to roster_gate;
alter function roster.make_org_counts() owner to roster_gate;
alter function roster.add_to_count(uuid, text, int) owner to roster_gate;
alter function roster.count_rows() owner to roster_gate;
alter function roster.count_new_members() owner to roster_gate;
alter function roster.count_former_members() owner to roster_gate;
alter function roster.count_renewed() owner to roster_gate;
alter function roster.count_memberships() owner to roster_gate;
revoke create on schema roster from roster_gate;

grant execute on function roster.expired_members(), roster.room_for(text) to roster_app;
