-- Invitations: an organisation offers membership to whoever has an address, and they answer by a token. The
-- token is derived from the invitation and how often it was sent; no table holds it.
create table roster.invitations (
  org_id uuid not null constraint invitations_org_id_fkey references roster.orgs on delete cascade,
  id uuid not null,
  email text not null,
  -- What an address is compared by, as for users.
  email_key text collate "C" not null generated always as (lower(normalize(email, nfc))) stored,
  role text not null default 'member',
  -- No references: a team that is gone when the invitation is accepted is left out.
  team_ids uuid[] not null default '{}',
  -- One that is pending past its `expire_time` counts as expired, and is written down as such when another
  -- takes its place.
  state text not null default 'PENDING'
    constraint invitations_state_check check (state in ('PENDING', 'ACCEPTED', 'DECLINED', 'REVOKED', 'EXPIRED')),
  -- The role where it is the organisation's own and still to be given: a pending invitation holds it.
  custom_role text generated always as (
    case when state <> 'PENDING' or role in ('owner', 'admin', 'member', 'guest') then null else role end) stored,
  -- Null when a service invited. No reference: an invitation outlives its inviter.
  inviter_id uuid,
  resend_count int not null default 0,
  version bigint not null default 1,
  create_time timestamptz not null default now(),
  update_time timestamptz not null default now(),
  expire_time timestamptz not null,
  resolve_time timestamptz,
  constraint invitations_pkey primary key (org_id, id),
  constraint invitations_org_id_custom_role_fkey foreign key (org_id, custom_role) references roster.roles,
  constraint invitations_resolve_time_check
    check ((resolve_time is null) = (state in ('PENDING', 'EXPIRED')))
);

create unique index invitations_org_id_email_key_key
  on roster.invitations (org_id, email_key) where state = 'PENDING';
create index invitations_custom_role_idx on roster.invitations (org_id, custom_role)
  where custom_role is not null;
create index invitations_email_key_idx on roster.invitations (org_id, email_key, id);
-- In whichever organisation: for exporting and erasing what is held about a person.
create index invitations_address_idx on roster.invitations (email_key, org_id, id);

create trigger invitations_touch before update on roster.invitations
  for each row execute function roster.touch();
call roster.audit_table('roster.invitations', 'invitation', 'id');

call roster.protect_org_table('roster.invitations');
-- The gate verifies an invitation and resolves it for whoever answers.
create policy invitations_gate on roster.invitations to roster_gate using (true) with check (true);
-- It makes members, of teams too, of those who accept: in the one organisation that they were let into.
create policy org_members_gate_insert on roster.org_members for insert to roster_gate
  with check (org_id = (select roster.current_org()));
create policy team_members_gate_insert on roster.team_members for insert to roster_gate
  with check (org_id = (select roster.current_org()));

grant select, insert, update (state, resend_count, expire_time, resolve_time) on roster.invitations to roster_app;
grant select, update (state, resolve_time) on roster.invitations to roster_gate;
grant insert on roster.org_members, roster.team_members to roster_gate;

-- Why the caller may not invite to a role, into teams and until a time: a reason with its metadata; null when
-- they may. Nobody invites to a role whose permissions they do not hold, `owner` least of all, nor into
-- teams that they could not change.
create function roster.invitation_refusal(org uuid, role text, team_ids uuid[], expire_time timestamptz)
  returns jsonb
  language plpgsql stable set search_path = ''
  as $$
declare
  held constant text := coalesce(current_setting('roster.held_permissions', true), '');
  needed constant text[] := coalesce(
    roster.built_in_permissions(role),
    (select r.permissions from roster.roles r
      where r.org_id = invitation_refusal.org and r.name = invitation_refusal.role));
  missing uuid;
begin
  if needed is null then
    return jsonb_build_object('reason', 'ROLE_UNKNOWN', 'field', 'role', 'role', role);
  elsif held <> '*' and (role = 'owner' or not needed <@ string_to_array(held, ' ')) then
    return jsonb_build_object('reason', 'ROLE_NOT_GRANTABLE', 'role', role);
  elsif expire_time <= now() or expire_time > now() + interval '90 days' then
    return jsonb_build_object('reason', 'FIELD_INVALID', 'field', 'expire_time',
      'rule', 'must be later than now, at most by 90 days');
  elsif cardinality(team_ids) = 0 then
    return null;
  elsif held <> '*' and 'teams.update' <> all (string_to_array(held, ' ')) then
    return jsonb_build_object('reason', 'PERMISSION_MISSING', 'permission', 'teams.update',
      'where', 'to invite into teams');
  end if;
  select asked.id into missing from unnest(team_ids) asked (id)
    where not exists (
      select from roster.teams t
      where t.org_id = invitation_refusal.org and t.id = asked.id and t.delete_time is null)
    limit 1;
  return case when missing is not null then jsonb_build_object('reason', 'TEAM_NOT_FOUND', 'team_id', missing) end;
end
$$;

-- Guards what an invitation promises, as it is made, sent again or taken back. Its teams were looked at when
-- it was made. A role that is gone since promises nothing, and hinders nobody to take it back.
create function roster.guard_invitation() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
declare
  refusal constant jsonb := roster.invitation_refusal(
    new.org_id, new.role,
    case tg_op when 'INSERT' then new.team_ids else '{}' end,
    case new.state when 'PENDING' then new.expire_time end);
begin
  if refusal is not null and not (new.state = 'REVOKED' and refusal ->> 'reason' = 'ROLE_UNKNOWN') then
    raise exception '%', refusal ->> 'reason' using errcode = 'RS001', detail = (refusal - 'reason')::text;
  end if;
  return new;
end
$$;

-- That one has expired is nobody's doing.
create trigger invitations_guard before insert or update on roster.invitations
  for each row when (new.state <> 'EXPIRED')
  execute function roster.guard_invitation();

-- Who invites holds their rights until that is written, as who adds a member does.
create trigger invitations_hold_rights before insert or update on roster.invitations
  for each statement execute function roster.hold_rights();

-- Opens the organisation that invites, to whoever answers: it judges the caller and no invitation, which the
-- functions below demand before they change anything. For members' calls there is `enter`.
--   reach          a service whose scope holds the permission
--   self           a user, for themselves
--   the rest       as for `enter`
create function roster.enter_invitation(
  org uuid, actor uuid, reach boolean, scope text, permission text, self boolean, timeout_ms int,
  entry uuid, subject text, on_behalf_of text[], method text, correlation_id text
) returns void
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  s text;
begin
  s := set_config('roster.actor', coalesce(actor::text, ''), true)
    || set_config('roster.org_id', org::text, true)
    || set_config('roster.platform', 'off', true)
    || set_config('statement_timeout', timeout_ms::text, true);

  if actor is not null then
    perform from roster.users u where u.id = enter_invitation.actor and u.delete_time is null and u.state = 'ACTIVE';
    if not found then
      raise exception 'CALLER_INACTIVE' using errcode = 'RS001';
    end if;
  end if;
  if not (reach or self)
      or (actor is not null and scope is not null and permission <> all (string_to_array(scope, ' '))) then
    raise exception 'PERMISSION_MISSING' using errcode = 'RS001',
      detail = jsonb_build_object('permission', permission)::text;
  end if;

  if entry is null then
    s := set_config('transaction_read_only', 'on', true);
    return;
  end if;
  s := set_config('roster.held_permissions', '', true)
    || set_config('idle_in_transaction_session_timeout', timeout_ms::text, true);
  perform roster.write_entry(org, entry, actor, subject, on_behalf_of, method, correlation_id);
end
$$;

-- The invitation that someone answers, held until the end. Whatever is wrong about the organisation, the
-- invitation, its token and the caller's address is one and the same refusal, so that nothing can be found
-- out by trying.
--   sent           how often the invitation had been sent again when the token was given; null for a false token
--   person         for whom it is answered: the caller, or whom a service names
create function roster.answerable_invitation(invitation uuid, sent int, person uuid) returns roster.invitations
  language plpgsql volatile set search_path = ''
  as $$
declare
  found_one roster.invitations;
  is_active boolean;
begin
  -- Organisation, user, invitation: the order in which an erasure comes by them.
  perform from roster.orgs o where o.id = roster.current_org() for share;
  perform from roster.users u where u.id = person and u.delete_time is null and u.state = 'ACTIVE' for share;
  is_active := found;
  select i.* into found_one from roster.invitations i
  where i.org_id = roster.current_org() and i.id = invitation and i.resend_count = sent
    and (roster.current_actor() is null
      or i.email_key = (select u.email_key from roster.users u where u.id = roster.current_actor()))
    and (select true from roster.orgs o where o.id = i.org_id and o.delete_time is null)
  for no key update;
  if not found then
    raise exception 'INVITATION_NOT_FOUND' using errcode = 'RS001',
      detail = jsonb_build_object('invitation_id', invitation)::text;
  end if;
  perform from roster.orgs o where o.id = found_one.org_id and o.state = 'ACTIVE';
  if not found then
    raise exception 'ORG_SUSPENDED' using errcode = 'RS001',
      detail = jsonb_build_object('org_id', found_one.org_id)::text;
  end if;
  if not is_active and person = roster.current_actor() then
    raise exception 'CALLER_INACTIVE' using errcode = 'RS001';
  elsif not is_active then
    raise exception 'USER_NOT_FOUND' using errcode = 'RS001',
      detail = jsonb_build_object('user_id', person)::text;
  end if;
  if found_one.state = 'PENDING' and found_one.expire_time <= now() then
    found_one.state := 'EXPIRED';
  end if;
  return found_one;
end
$$;

-- Refuses an invitation of which something else has become.
create function roster.refuse_invitation(invitation roster.invitations) returns void
  language plpgsql immutable set search_path = ''
  as $$
begin
  raise exception '%', 'INVITATION_' || invitation.state using errcode = 'RS001',
    detail = jsonb_build_object('invitation_id', invitation.id)::text;
end
$$;

-- Accepts an invitation for a person. Two who accept at once meet on its row, and the second finds what the
-- first has made. A membership that is there already stays as it is: nobody's role or suspension is undone
-- by an old promise. One that has expired is none: it gives way, and who accepts again does not get it back. What
-- the inviter may by now is not asked, hence the wider rights for these rows. But nobody comes in by an invitation that
-- they made themselves.
create function roster.accept_invitation(
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

-- Declines an invitation for a person.
create function roster.decline_invitation(invitation uuid, sent int, person uuid) returns roster.invitations
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  s text;
  declined roster.invitations := roster.answerable_invitation(invitation, sent, person);
begin
  if declined.state = 'PENDING' then
    s := set_config('roster.held_permissions', '*', true);
    update roster.invitations i set state = 'DECLINED', resolve_time = now()
      where i.org_id = declined.org_id and i.id = declined.id
      returning i.* into declined;
    s := set_config('roster.held_permissions', '', true);
  elsif declined.state <> 'DECLINED' then
    perform roster.refuse_invitation(declined);
  end if;
  return declined;
end
$$;

grant create on schema roster to roster_gate;
alter function roster.guard_invitation() owner to roster_gate;
alter function roster.enter_invitation(
  uuid, uuid, boolean, text, text, boolean, int, uuid, text, text[], text, text) owner to roster_gate;
alter function roster.answerable_invitation(uuid, int, uuid) owner to roster_gate;
alter function roster.refuse_invitation(roster.invitations) owner to roster_gate;
alter function roster.accept_invitation(uuid, int, uuid) owner to roster_gate;
alter function roster.decline_invitation(uuid, int, uuid) owner to roster_gate;
revoke create on schema roster from roster_gate;

grant execute on function roster.invitation_refusal(uuid, text, uuid[], timestamptz) to roster_app, roster_gate;
grant execute on function roster.enter_invitation(
  uuid, uuid, boolean, text, text, boolean, int, uuid, text, text[], text, text) to roster_directory;
grant execute on function
  roster.accept_invitation(uuid, int, uuid),
  roster.decline_invitation(uuid, int, uuid)
  to roster_directory;
