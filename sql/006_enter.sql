-- The door. Every statement of a call runs in a transaction that `enter` or `enter_directory` opened: it
-- says who the transaction speaks for, judges whether they may, and writes the audit entry of a mutation
-- before its first change. A refusal raises, and the server then skips what was sent behind it.
--
-- Refusals carry SQLSTATE RS001, the name of an ErrorReason as message and its metadata as JSON detail.

-- Opens an organisation.
--   org            the organisation, selected by body, header or claim
--   actor          the user who calls; null for a service
--   platform       a service with scope roster.platform
--   pinned         the credential names this org, so an absent one is not told apart from a foreign one
--   scope          space-separated permissions: all that a service has, or what a user's token is narrowed
--                  to; null for a user's token without scope
--   permission     what the call needs; '' for membership alone
--   self           the call is about the caller, for whom membership alone suffices
--   team           the team whose roles may grant the permission
--   deleted        a platform caller may enter a deleted org
--   timeout_ms     milliseconds that the next statement may take
--   entry          id of the audit entry; null makes the transaction read-only
--   the rest       what the entry tells
create function roster.enter(
  org uuid, actor uuid, platform boolean, pinned boolean, scope text, permission text, self boolean,
  team uuid, deleted boolean, timeout_ms int, entry uuid, subject text, on_behalf_of text[],
  method text, correlation_id text
) returns void
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  s text;
  caller record;
  granted text[];
  sight text;
  team_role text;
  owner boolean := false;
begin
  s := set_config('roster.org_id', org::text, true)
    || set_config('roster.actor', coalesce(actor::text, ''), true)
    || set_config('statement_timeout', timeout_ms::text, true);

  if actor is not null then
    select m.role, m.custom_role, o.state as org_state,
      m.state = 'ACTIVE' and (m.expire_time is null or m.expire_time > now()) as live
    into caller
    from roster.users u
    left join roster.org_members m on m.org_id = enter.org and m.user_id = u.id
    left join roster.orgs o on o.id = m.org_id and o.delete_time is null
    where u.id = enter.actor and u.delete_time is null and u.state = 'ACTIVE';
    if not found then
      raise exception 'CALLER_INACTIVE' using errcode = 'RS001';
    elsif caller.org_state is null or not caller.live then
      raise exception 'ORG_NOT_ALLOWED' using errcode = 'RS001';
    elsif caller.org_state <> 'ACTIVE' then
      raise exception 'ORG_SUSPENDED' using errcode = 'RS001',
        detail = jsonb_build_object('org_id', org)::text;
    end if;

    owner := caller.role = 'owner';
    if caller.custom_role is null then
      granted := roster.built_in_permissions(caller.role);
    else
      select r.permissions into granted from roster.roles r
        where r.org_id = enter.org and r.name = caller.custom_role;
    end if;
    -- A narrowed token sees with the rights that it was left.
    sight := case
      when 'teams.delete' = any (granted)
        and (scope is null or 'teams.delete' = any (string_to_array(scope, ' '))) then 'deleted'
      when 'teams.update' = any (granted)
        and (scope is null or 'teams.update' = any (string_to_array(scope, ' '))) then 'all'
      when 'teams.get' = any (granted) then 'visible'
      else 'own'
    end;

    if scope is not null and permission <> '' and permission <> all (string_to_array(scope, ' ')) then
      raise exception 'PERMISSION_MISSING' using errcode = 'RS001',
        detail = jsonb_build_object('permission', permission)::text;
    end if;
    if not (self or permission = '' or coalesce(permission = any (granted), false)) then
      if team is not null then
        team_role := roster.team_role(org, team);
      end if;
      -- A guest reads the teams they are in, listing shows them, and makes none.
      if not coalesce(permission = any (roster.team_permissions(team_role))
            and not (permission = 'teams.create' and caller.role = 'guest'),
          permission = 'teams.get' and team is null) then
        raise exception 'PERMISSION_MISSING' using errcode = 'RS001',
          detail = jsonb_build_object('permission', permission)::text;
      end if;
    end if;
  else
    select o.state as org_state, o.delete_time into caller from roster.orgs o where o.id = enter.org;
    if not found or (caller.delete_time is not null and not (platform and deleted)) then
      if pinned then
        raise exception 'ORG_NOT_ALLOWED' using errcode = 'RS001';
      end if;
      raise exception 'ORG_NOT_FOUND' using errcode = 'RS001',
        detail = jsonb_build_object('org_id', org)::text;
    elsif not platform and caller.org_state <> 'ACTIVE' then
      raise exception 'ORG_SUSPENDED' using errcode = 'RS001',
        detail = jsonb_build_object('org_id', org)::text;
    elsif not platform and permission <> ''
        and not (permission = any (string_to_array(coalesce(scope, ''), ' '))
          and roster.open_to_services(permission)) then
      raise exception 'PERMISSION_MISSING' using errcode = 'RS001',
        detail = jsonb_build_object('permission', permission, 'where', 'in the token''s scope')::text;
    end if;
    sight := case
      when platform or 'teams.delete' = any (string_to_array(scope, ' ')) then 'deleted' else 'all' end;
  end if;

  if entry is null then
    s := set_config('roster.team_sight', sight, true) || set_config('transaction_read_only', 'on', true);
    return;
  end if;

  -- A process that stalls between two statements gives its locks back.
  s := set_config('roster.team_sight', sight, true)
    || set_config('idle_in_transaction_session_timeout', timeout_ms::text, true)
    || set_config('roster.held_permissions',
      case
        when platform or (owner and scope is null) then '*'
        when actor is null then coalesce(scope, '')
        when scope is null then array_to_string(granted, ' ')
        else array_to_string(array(
          select p from unnest(granted) p where p = any (string_to_array(scope, ' '))), ' ')
      end, true);
  perform roster.write_entry(org, entry, actor, subject, on_behalf_of, method, correlation_id);
end
$$;

-- Opens the directory: users and organisations outside any one organisation.
--   reach          the credential may see everyone: a platform caller, or an unpinned service whose scope
--                  holds the permission
--   self           the call is about the caller
--   new_org        the organisation that this call makes; it must not exist
--   the rest       as for `enter`
create function roster.enter_directory(
  actor uuid, reach boolean, scope text, permission text, self boolean, new_org uuid, timeout_ms int,
  entry uuid, subject text, on_behalf_of text[], method text, correlation_id text
) returns void
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  s text;
begin
  s := set_config('roster.actor', coalesce(actor::text, ''), true)
    || set_config('roster.org_id', coalesce(new_org::text, ''), true)
    || set_config('roster.platform', case when reach then 'on' else 'off' end, true)
    || set_config('statement_timeout', timeout_ms::text, true);

  if actor is not null then
    perform from roster.users u where u.id = enter_directory.actor and u.delete_time is null and u.state = 'ACTIVE';
    if not found then
      raise exception 'CALLER_INACTIVE' using errcode = 'RS001';
    end if;
  end if;
  if not (reach or self)
      or (actor is not null and scope is not null and permission <> ''
        and permission <> all (string_to_array(scope, ' '))) then
    raise exception 'PERMISSION_MISSING' using errcode = 'RS001',
      detail = jsonb_build_object('permission', permission, 'where', 'outside any org')::text;
  end if;
  if new_org is not null and exists (select from roster.orgs o where o.id = new_org) then
    raise exception 'organisation % exists', new_org;
  end if;

  if entry is null then
    s := set_config('transaction_read_only', 'on', true);
    return;
  end if;
  s := set_config('roster.held_permissions', case when reach then '*' else '' end, true)
    || set_config('idle_in_transaction_session_timeout', timeout_ms::text, true);
  perform roster.write_entry(new_org, entry, actor, subject, on_behalf_of, method, correlation_id);
end
$$;

-- Writes the entry of a mutation and puts it in force for the audit triggers.
create function roster.write_entry(
  org uuid, entry uuid, actor uuid, subject text, on_behalf_of text[], method text, correlation_id text
) returns void
  language plpgsql volatile set search_path = ''
  as $$
declare
  s text;
begin
  s := set_config('roster.entry_id', entry::text, true)
    || set_config('roster.subject', subject, true)
    || set_config('roster.method', method, true)
    || set_config('roster.correlation_id', correlation_id, true);
  insert into roster.audit_entries (id, org_id, subject, kind, on_behalf_of, method, correlation_id)
  values (entry, org, subject, case when actor is null then 'SERVICE' else 'USER' end, on_behalf_of,
    method, correlation_id);
end
$$;

-- Notes a refused mutation in the log of the caller's own organisation: the one they tried, if they are
-- its member, else the one their credential names, else the platform's.
create function roster.record_denial(
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
        where m.org_id = record_denial.org and m.user_id = record_denial.actor and m.state = 'ACTIVE'),
      (select o.id from roster.orgs o where o.id = claimed_org)),
    subject, case when actor is null then 'SERVICE' else 'USER' end, on_behalf_of, method, correlation_id,
    'DENIED', reason);
end
$$;

grant create on schema roster to roster_gate;
alter function roster.enter(
  uuid, uuid, boolean, boolean, text, text, boolean, uuid, boolean, int, uuid, text, text[], text, text)
  owner to roster_gate;
alter function roster.enter_directory(
  uuid, boolean, text, text, boolean, uuid, int, uuid, text, text[], text, text) owner to roster_gate;
alter function roster.write_entry(uuid, uuid, uuid, text, text[], text, text) owner to roster_gate;
alter function roster.record_denial(uuid, uuid, uuid, uuid, text, text[], text, text, text) owner to roster_gate;
revoke create on schema roster from roster_gate;

grant execute on function roster.enter(
  uuid, uuid, boolean, boolean, text, text, boolean, uuid, boolean, int, uuid, text, text[], text, text)
  to roster_app;
grant execute on function roster.enter_directory(
  uuid, boolean, text, text, boolean, uuid, int, uuid, text, text[], text, text) to roster_directory;
grant execute on function roster.record_denial(uuid, uuid, uuid, uuid, text, text[], text, text, text)
  to roster_directory;
