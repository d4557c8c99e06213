-- Membership rises: who is in a team belongs to the teams above it.

-- A page of those who are in a team or in a live team below it, as far as the caller sees it, behind a user: each with
-- their nearest membership (the fewest levels below, then the lowest id), and the path from the asked team down to that
-- one's. Array operators are not leakproof, so that under a policy they would use no index.
create function roster.effective_members(team uuid, after uuid, most int)
  returns table (user_id uuid, team_id uuid, path uuid[])
  language plpgsql stable security definer rows 50 set search_path = ''
  as $$
declare
  org constant uuid := roster.current_org();
  actor constant uuid := roster.current_actor();
  sight constant text := roster.team_sight();
  asked uuid[];
  -- Of the teams below one that the caller sees, they see those in which nothing hides from them.
  sees_all boolean;
  maintained uuid[] := '{}';
  known uuid[] := '{}';
  -- How many teams are asked one by one at most, and the user from which on that is done anyway.
  few int;
  reached uuid := after;
  walked int := 0;
  expired int;
begin
  select t.path into asked from roster.teams t
    where t.org_id = org and t.id = team and t.delete_time is null
      and roster.sees_team(actor, sight, t.path, t.secrets);
  if not found then
    return;
  end if;
  sees_all := sight in ('all', 'deleted');
  if not sees_all then
    maintained := roster.teams_of(actor, 'MAINTAINER');
    known := roster.known_teams(actor);
  end if;

  -- Asking each team costs as much as there are teams; walking all memberships of the organisation costs the more, the
  -- fewer of them are in these teams. Where the teams are many, walking comes first, as far as it is the cheaper one.
  select ceil(sqrt(most::float8 * c.teams / 3)) into few from roster.org_counts c where c.org_id = org;
  perform from roster.teams t
    where t.org_id = org and t.path >= asked and t.path < roster.path_end(asked)
    offset few limit 1;
  if found then
    select m.user_id into reached from roster.team_members m
      where m.org_id = org and m.user_id > after
      order by m.user_id, m.team_id offset 8 * few limit 1;
    return query
      select w.user_id, w.id, w.path
      from (
        select distinct on (m.user_id) m.user_id, t.id, t.path[cardinality(asked) :] as path
        from roster.team_members m
        cross join lateral (
          select b.id, b.path from roster.teams b
          where b.org_id = org and b.id = m.team_id and b.delete_time is null and team = any (b.path)
            and (sees_all or b.path && maintained or b.secrets <@ known)
          limit 1) t
        where m.org_id = org and m.user_id > after
          and m.user_id < coalesce(reached, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
        order by m.user_id, cardinality(t.path), t.id) w
      where (select true from roster.org_members o
        where o.org_id = org and o.user_id = w.user_id and (o.expire_time is null or o.expire_time > now()))
      limit most;
    get diagnostics walked = row_count;
    if walked = most or reached is null then
      return;
    end if;
  end if;
  select count(*) into expired from roster.org_members o where o.org_id = org and o.expire_time <= now();
  return query
    select g.user_id, g.id, g.path
    from (
      select distinct on (m.user_id) m.user_id, t.id, t.path[cardinality(asked) :] as path
      from roster.teams t
      cross join lateral (
        select i.user_id from roster.team_members i
        where i.org_id = org and i.team_id = t.id and i.user_id > after and i.user_id >= reached
        order by i.user_id limit most - walked + expired) m
      where t.org_id = org and t.path >= asked and t.path < roster.path_end(asked) and t.delete_time is null
        and (sees_all or t.path && maintained or t.secrets <@ known)
      order by m.user_id, cardinality(t.path), t.id) g
    where (select true from roster.org_members o
      where o.org_id = org and o.user_id = g.user_id and (o.expire_time is null or o.expire_time > now()))
    limit most - walked;
end
$$;

grant create on schema roster to roster_gate;
alter function roster.effective_members(uuid, uuid, int) owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function roster.effective_members(uuid, uuid, int) to roster_app;
