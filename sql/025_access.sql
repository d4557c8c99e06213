-- What a user may do, and why, when somebody else asks. `roster.enter` judges who calls; this foretells it.

-- Why a user may do what needs a permission, or may not: by the rules of `enter` for a token without scope, and by
-- those of `sees_team`.
--   granted        what the user's role in the organisation permits
--   role           that role; null for who is no member, or no longer
--   member_state, user_state, org_state   of the membership, the user and the organisation
--   on_team        it is asked of a team
--   team_open      no secret above the team, nor the team itself, is closed to the user; null: no such team
--   team_role      the user's best role on the team, as `roster.team_role` has it
create function roster.access_reason(
  permission text, granted text[], role text, member_state text, user_state text, org_state text, on_team boolean,
  team_open boolean, team_role text
) returns text
  language sql immutable parallel safe
  return case
    when on_team and team_open is null then 'TEAM_NOT_FOUND'
    when role is null then 'NOT_A_MEMBER'
    when user_state <> 'ACTIVE' then 'USER_SUSPENDED'
    when member_state <> 'ACTIVE' then 'MEMBERSHIP_SUSPENDED'
    when org_state <> 'ACTIVE' then 'ORG_SUSPENDED'
    when on_team and team_role is null
        and not (granted && array['teams.update', 'teams.delete'] or (team_open and 'teams.get' = any (granted)))
      then 'TEAM_NOT_VISIBLE'
    when permission = any (granted) then 'ORG_ROLE'
    when permission = any (roster.team_permissions(team_role)) and not (permission = 'teams.create' and role = 'guest')
      then 'TEAM_ROLE'
    else 'PERMISSION_MISSING'
  end;
grant execute on function roster.access_reason(text, text[], text, text, text, text, boolean, boolean, text)
  to roster_gate, roster_app;

-- Whether a user of the current organisation may do what needs a permission, on a team if one is named: the reason,
-- the role or '', the role on the team, and, where that is what permits, the path from the team that has it. It goes
-- step by step, and answers with one array, because both cost less; for many questions src/services/access.ts has one
-- statement. Left to itself, PostgreSQL takes a short path for cheaper than any path, and plans anew at each call.
create function roster.check_access(person uuid, permission text, team uuid) returns text[]
  language plpgsql stable security definer set search_path = '' set plan_cache_mode = 'force_generic_plan'
  as $$
declare
  org constant uuid := roster.current_org();
  org_state text := 'ACTIVE';
  facts record;
  granted text[];
  team_open boolean;
  team_role text;
  reason text;
begin
  -- `enter` lets no person into an organisation that is not active.
  if roster.current_actor() is null then
    select o.state into org_state from roster.orgs o where o.id = org;
  end if;

  select m.role, m.custom_role, m.state as member_state, u.state as user_state, t.path, t.secrets,
    reach.maintained, reach.joined
  into facts
  from (select) here
  left join (roster.org_members m join roster.users u on u.id = m.user_id and u.delete_time is null)
    on m.org_id = org and m.user_id = person and (m.expire_time is null or m.expire_time > now())
  left join roster.teams t on t.org_id = org and t.id = team and t.delete_time is null
  -- The lowest levels of the path where the user has a role: one probe each, however many teams the user is in.
  cross join lateral (
    select max(way.level) filter (where m.role = 'MAINTAINER') as maintained, max(way.level) as joined
    from unnest(t.path) with ordinality way (id, level)
    cross join lateral (
      select i.role from roster.team_members i
      where i.org_id = org and i.team_id = way.id and i.user_id = person limit 1) m) reach;

  if facts.custom_role is null then
    granted := roster.built_in_permissions(facts.role);
  else
    select r.permissions into granted from roster.roles r where r.org_id = org and r.name = facts.custom_role;
  end if;
  if facts.path is not null and (roster.team_sight() in ('all', 'deleted')
      or roster.sees_team(roster.current_actor(), roster.team_sight(), facts.path, facts.secrets)) then
    team_open := facts.secrets = '{}' or facts.secrets <@ roster.known_teams(person);
    team_role := case
      when facts.role is null then null
      when facts.maintained is not null then 'MAINTAINER'
      when facts.joined is not null and team_open then 'MEMBER'
    end;
  end if;

  reason := roster.access_reason(permission, granted, facts.role, facts.member_state, facts.user_state,
    org_state, team is not null, team_open, team_role);
  return array[reason, coalesce(facts.role, ''), coalesce(team_role, 'UNSPECIFIED')]
    || case reason when 'TEAM_ROLE' then facts.path[coalesce(facts.maintained, facts.joined) :]::text[] end;
end
$$;

grant create on schema roster to roster_gate;
alter function roster.check_access(uuid, text, uuid) owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function roster.check_access(uuid, text, uuid) to roster_app;
