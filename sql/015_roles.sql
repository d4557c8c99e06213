-- Roles that organisations make for themselves, and what keeps rights and their changes apart in time: whoever
-- hands out a right still holds it when that is written, and what is handed out is still the same.

grant insert (org_id, name, title, permissions), update (title, permissions), delete on roster.roles to roster_app;

-- Goes ahead of every change of memberships and roles, and of what invitations promise. Who adds one or invites shares
-- the organisation, who changes or takes away one has it alone: so no role and no right changes between being judged
-- and being written. The caller's rights were read on entering, and another change may have come first, or the
-- organisation may be deleted; then the call starts over.
create function roster.hold_rights() returns trigger
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

create trigger org_members_hold_rights before insert or update or delete on roster.org_members
  for each statement execute function roster.hold_rights();
create trigger roles_hold_rights before insert or update or delete on roster.roles
  for each statement execute function roster.hold_rights();

-- Nobody makes, changes or takes away a role that holds, before or after, a permission that they lack.
create function roster.guard_role() returns trigger
  language plpgsql set search_path = ''
  as $$
declare
  held constant text := coalesce(current_setting('roster.held_permissions', true), '');
  needed constant text[] := case tg_op
    when 'INSERT' then new.permissions
    when 'DELETE' then old.permissions
    else old.permissions || new.permissions end;
  role_name constant text := case tg_op when 'INSERT' then new.name else old.name end;
begin
  -- A purge removes roles by cascade, when their organisation is gone already.
  if held <> '*' and pg_trigger_depth() = 1 and not needed <@ string_to_array(held, ' ') then
    raise exception 'ROLE_NOT_GRANTABLE' using errcode = 'RS001',
      detail = jsonb_build_object('role', role_name)::text;
  end if;
  return case when tg_op = 'DELETE' then old else new end;
end
$$;

create trigger roles_guard before insert or update or delete on roster.roles
  for each row execute function roster.guard_role();

grant create on schema roster to roster_gate;
alter function roster.hold_rights() owner to roster_gate;
revoke create on schema roster from roster_gate;
