-- What an organisation's delete takes along is what was looked at. Before, a member or a team that came at the same
-- time was not seen by a delete without force, and a call that waited for the delete still wrote into the deleted
-- organisation. And whoever accepted an invitation again was answered with a membership that had expired.

-- Goes ahead of every change of memberships and roles, and of what invitations promise. Who adds one or invites shares
-- the organisation, who changes or takes away one has it alone: so no role and no right changes between being judged
-- and being written. The caller's
-- rights were read on entering, and another change may have come first, or the organisation may be deleted; then the
-- call starts over.
create or replace function roster.hold_rights() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  org constant uuid := roster.current_org();
  actor constant uuid := roster.current_actor();
  held constant text := coalesce(current_setting('roster.held_permissions', true), '');
  gone boolean;
begin
  -- A cascade, or the work of a trigger, belongs to a statement that came through here.
  if pg_trigger_depth() > 1 then
    return null;
  elsif tg_op = 'INSERT' or tg_table_name = 'invitations' then
    select o.delete_time is not null into gone from roster.orgs o where o.id = org for share;
  else
    select o.delete_time is not null into gone from roster.orgs o where o.id = org for no key update;
  end if;
  -- What a deleted organisation had, a purge and an erasure take away.
  if gone and not (tg_op = 'DELETE' and (
      pg_has_role(session_user, 'roster_worker', 'member')
      or pg_has_role(session_user, 'roster_directory', 'member'))) then
    raise exception 'the organisation was deleted meanwhile' using errcode = 'serialization_failure';
  end if;
  -- The scope of a service does not change, and outside an organisation nobody has a role.
  if actor is null or pg_has_role(session_user, 'roster_directory', 'member') then
    return null;
  end if;
  perform from roster.org_members m
    left join roster.roles r on r.org_id = m.org_id and r.name = m.custom_role
    where m.org_id = org and m.user_id = actor
      and m.state = 'ACTIVE' and (m.expire_time is null or m.expire_time > now())
      and (m.role = 'owner' or (held <> '*'
        and string_to_array(held, ' ') <@ coalesce(roster.built_in_permissions(m.role), r.permissions)));
  if not found then
    raise exception 'the caller''s rights changed meanwhile' using errcode = 'serialization_failure';
  end if;
  return null;
end
$$;

create trigger invitations_hold_rights before insert or update on roster.invitations
  for each statement execute function roster.hold_rights();

-- Goes ahead of every team that comes, or comes back: it shares the organisation, and starts over when that was
-- deleted since the caller entered.
create function roster.hold_org() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  perform from roster.orgs o where o.id = new.org_id and o.delete_time is null for share;
  if not found then
    raise exception 'the organisation was deleted meanwhile' using errcode = 'serialization_failure';
  end if;
  return new;
end
$$;

create trigger teams_hold_org before insert on roster.teams
  for each row execute function roster.hold_org();
create trigger teams_hold_org_again before update on roster.teams
  for each row when (old.delete_time is not null and new.delete_time is null)
  execute function roster.hold_org();

grant create on schema roster to roster_gate;
alter function roster.hold_org() owner to roster_gate;
revoke create on schema roster from roster_gate;

-- Accepts an invitation for a person. Two who accept at once meet on its row, and the second finds what the
-- first has made. A membership that is there already stays as it is: nobody's role or suspension is undone
-- by an old promise. One that has expired is none: it gives way, and who accepts again does not get it back. What
-- the inviter may by now is not asked, hence the wider rights for these rows. But nobody comes in by an invitation that
-- they made themselves.
create or replace function roster.accept_invitation(
  invitation uuid, sent int, person uuid, out accepted roster.invitations, out member roster.org_members
)
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  s text;
begin
  accepted := roster.answerable_invitation(invitation, sent, person);
  if accepted.inviter_id = person then
    accepted.state := 'REVOKED';
  end if;
  if accepted.state = 'PENDING' then
    s := set_config('roster.held_permissions', '*', true);
    insert into roster.org_members (org_id, user_id, role)
      values (accepted.org_id, person, accepted.role)
      on conflict on constraint org_members_pkey do nothing;
    insert into roster.team_members (org_id, team_id, user_id)
      select t.org_id, t.id, person from roster.teams t
      where t.org_id = accepted.org_id and t.id = any (accepted.team_ids) and t.delete_time is null
      order by t.id
      on conflict on constraint team_members_pkey do nothing;
    update roster.invitations i set state = 'ACCEPTED', resolve_time = now()
      where i.org_id = accepted.org_id and i.id = accepted.id
      returning i.* into accepted;
    s := set_config('roster.held_permissions', '', true);
  elsif accepted.state <> 'ACCEPTED' then
    perform roster.refuse_invitation(accepted);
  end if;
  select m.* into member from roster.org_members m
    where m.org_id = accepted.org_id and m.user_id = person
      and (m.expire_time is null or m.expire_time > now());
  if not found then
    perform roster.refuse_invitation(accepted);
  end if;
end
$$;
