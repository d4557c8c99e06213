-- Who changes a team or its members by a role in the team still has that role when it is written. The role was read on
-- entering, and the team may have been moved, or the role taken away, while this change waited.

-- Whether the caller's right is a role in the team: services have none, and some roles in the organisation suffice.
create function roster.rests_on_team(permission text) returns boolean
  language sql stable
  return roster.current_actor() is not null
    and coalesce(current_setting('roster.held_permissions', true), '') <> '*'
    and permission <> all (
      string_to_array(coalesce(current_setting('roster.held_permissions', true), ''), ' '));

-- Holds the caller's role until the end, so that of two maintainers who remove each other one comes first. When it is
-- gone, the call starts over.
create function roster.hold_maintainer(way uuid[]) returns void
  language plpgsql set search_path = ''
  as $$
begin
  perform from roster.team_members m
    where m.org_id = roster.current_org() and m.user_id = roster.current_actor() and m.team_id = any (way)
      and m.role = 'MAINTAINER'
    limit 1 for share;
  if not found then
    raise exception 'the caller''s role in the team changed meanwhile' using errcode = 'serialization_failure';
  end if;
end
$$;

-- The same for who changes the members of a team, ahead of all rows, as there may be none. Always true.
create function roster.hold_team(team uuid) returns boolean
  language plpgsql security definer set search_path = ''
  as $$
begin
  if roster.rests_on_team('teams.update') then
    perform roster.hold_maintainer((
      select t.path from roster.teams t where t.org_id = roster.current_org() and t.id = team));
  end if;
  return true;
end
$$;

-- Goes ahead of each such row. Argument: the permission that makes a role in the team needless.
create function roster.hold_team_rights() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  way uuid[];
begin
  -- Everyone may leave, and a cascade belongs to a statement that was judged.
  if not roster.rests_on_team(tg_argv[0]) or pg_trigger_depth() > 1 then
    null;
  elsif tg_table_name = 'teams' then
    way := case tg_op when 'INSERT' then new.path else old.path end;
  elsif not (tg_op = 'DELETE' and old.user_id = roster.current_actor()) then
    select t.path into way from roster.teams t
      where t.org_id = roster.current_org()
        and t.id = case tg_op when 'DELETE' then old.team_id else new.team_id end;
  end if;
  if way is not null then
    perform roster.hold_maintainer(way);
  end if;
  return case when tg_op = 'DELETE' then old else new end;
end
$$;

-- Behind teams_place, which says where a new team lies.
create trigger teams_rights before insert on roster.teams
  for each row execute function roster.hold_team_rights('teams.create');
create trigger teams_rights_again before update of name on roster.teams
  for each row execute function roster.hold_team_rights('teams.update');

-- A new team that its maker would not see is refused: nobody could answer the call, and nobody of theirs would find it.
-- Behind teams_rights, by its name, which starts over for a maintainer whose role is gone.
create function roster.demand_sight() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  if roster.current_actor() is not null
      and not roster.sees_team(roster.current_actor(), roster.team_sight(), new.path, new.secrets) then
    raise exception 'PERMISSION_MISSING' using errcode = 'RS001', detail = jsonb_build_object(
      'permission', case when new.secrets = '{}' then 'teams.get' else 'teams.update' end)::text;
  end if;
  return new;
end
$$;
create trigger teams_sight before insert on roster.teams
  for each row execute function roster.demand_sight();

create trigger team_members_rights before insert or update or delete on roster.team_members
  for each row execute function roster.hold_team_rights('teams.update');

-- The gate holds memberships, and changes none.
create policy team_members_gate_hold on roster.team_members for update to roster_gate using (true) with check (false);
grant update (version) on roster.team_members to roster_gate;

grant create on schema roster to roster_gate;
alter function roster.hold_team_rights() owner to roster_gate;
alter function roster.hold_team(uuid) owner to roster_gate;
alter function roster.demand_sight() owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function roster.rests_on_team(text), roster.hold_maintainer(uuid[]) to roster_gate;
grant execute on function roster.hold_team(uuid) to roster_app;
