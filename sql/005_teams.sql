-- Teams live in an organisation and may nest. Every key begins with org_id: a reference across
-- organisations cannot be written, and the same id in two organisations is no conflict.
create table roster.teams (
  org_id uuid not null constraint teams_org_id_fkey references roster.orgs on delete cascade,
  id uuid not null,
  parent_team_id uuid,
  name text not null,
  name_key text collate "C" not null generated always as (lower(normalize(name, nfc))) stored,
  type text not null default 'team',
  description text not null default '',
  visibility text not null default 'VISIBLE'
    constraint teams_visibility_check check (visibility in ('VISIBLE', 'SECRET')),
  labels jsonb not null default '{}' constraint teams_labels_check check (jsonb_typeof(labels) = 'object'),
  version bigint not null default 1,
  create_time timestamptz not null default now(),
  update_time timestamptz not null default now(),
  delete_time timestamptz,
  purge_time timestamptz,
  constraint teams_pkey primary key (org_id, id),
  constraint teams_org_id_parent_team_id_fkey foreign key (org_id, parent_team_id) references roster.teams,
  constraint teams_delete_time_check check ((delete_time is null) = (purge_time is null))
);

create unique index teams_org_id_parent_team_id_name_key_key
  on roster.teams (org_id, parent_team_id, name_key) nulls not distinct where delete_time is null;
create index teams_org_id_parent_team_id_idx on roster.teams (org_id, parent_team_id);
create index teams_purge_time_idx on roster.teams (purge_time) where purge_time is not null;

create trigger teams_touch before update on roster.teams for each row execute function roster.touch();
call roster.audit_table('roster.teams', 'team', 'id');

call roster.protect_org_table('roster.teams');
-- The gate walks up a team's parents.
create policy teams_gate on roster.teams for select to roster_gate using (true);

grant select, insert on roster.teams to roster_app;
grant update (name, type, description, visibility, labels, delete_time, purge_time) on roster.teams to roster_app;
grant select on roster.teams to roster_gate;

-- Who is in a team. The second foreign key makes a team member an org member without any code, and takes
-- them out of every team when they leave the organisation.
create table roster.team_members (
  org_id uuid not null,
  team_id uuid not null,
  user_id uuid not null,
  role text not null default 'MEMBER'
    constraint team_members_role_check check (role in ('MAINTAINER', 'MEMBER')),
  version bigint not null default 1,
  join_time timestamptz not null default now(),
  update_time timestamptz not null default now(),
  constraint team_members_pkey primary key (org_id, team_id, user_id),
  constraint team_members_org_id_team_id_fkey foreign key (org_id, team_id)
    references roster.teams on delete cascade,
  constraint team_members_org_id_user_id_fkey foreign key (org_id, user_id)
    references roster.org_members on delete cascade
);

create index team_members_org_id_user_id_idx on roster.team_members (org_id, user_id, team_id);

create trigger team_members_touch before update on roster.team_members
  for each row execute function roster.touch();
call roster.audit_table('roster.team_members', 'team_member', 'team_id', 'user_id');

call roster.protect_org_table('roster.team_members');
-- The gate judges by team roles.
create policy team_members_gate on roster.team_members for select to roster_gate using (true);

grant select, insert, update (role), delete on roster.team_members to roster_app;
grant select on roster.team_members to roster_gate;

-- The caller's best role in a team or in one above it; null without any. `parent` starts the walk there
-- too, for a team whose row is only just being written. Teams nest at most 16 deep.
create function roster.team_role(org uuid, team uuid, parent uuid default null) returns text
  language sql stable security definer set search_path = ''
  as $$
  with recursive up (id, depth) as (
    select s.id, 1 from (values (team), (parent)) s (id) where s.id is not null
    union all
    select t.parent_team_id, up.depth + 1
    from up join roster.teams t on t.org_id = org and t.id = up.id
    where t.parent_team_id is not null and up.depth <= 17
  )
  select min(m.role) -- 'MAINTAINER' sorts before 'MEMBER'.
  from up join roster.team_members m
    on m.org_id = org and m.team_id = up.id and m.user_id = roster.current_actor()
$$;

-- Teams that the caller may not see do not exist for them, whichever query asks.
create policy teams_sight on roster.teams as restrictive for select to roster_app
  using (
    (select roster.team_sight()) in ('all', 'deleted')
    or ((select roster.team_sight()) = 'visible' and visibility = 'VISIBLE')
    or ((select roster.team_sight()) in ('visible', 'own')
      and roster.team_role(org_id, id, parent_team_id) is not null));

-- A team is placed under a live parent that the caller sees, at most 16 levels deep. The organisation is held
-- while looking, so that the parent cannot be deleted or moved meanwhile.
create function roster.guard_team_parent() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  levels int;
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
  if levels is null then
    raise exception 'TEAM_NOT_FOUND' using errcode = 'RS001',
      detail = jsonb_build_object('team_id', new.parent_team_id)::text;
  elsif levels > 16 then
    raise exception 'TEAM_TOO_DEEP' using errcode = 'RS001', detail = jsonb_build_object('depth', '16')::text;
  end if;
  return new;
end
$$;

create trigger teams_guard_parent before insert on roster.teams
  for each row when (new.parent_team_id is not null) execute function roster.guard_team_parent();

-- Holds the organisation, so that no team can be made, moved or deleted while a subtree is looked at.
create function roster.lock_org() returns void
  language plpgsql security definer set search_path = ''
  as $$
begin
  perform from roster.orgs o where o.id = roster.current_org() for no key update;
end
$$;

grant create on schema roster to roster_gate;
alter function roster.team_role(uuid, uuid, uuid) owner to roster_gate;
alter function roster.guard_team_parent() owner to roster_gate;
alter function roster.lock_org() owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function roster.team_role(uuid, uuid, uuid), roster.lock_org() to roster_app;
