-- What is exported of a person: their memberships in teams everywhere, the changes of their data, and what they did.

-- Outside an organisation: the platform sees every membership in a team, a user their own.
create policy team_members_directory on roster.team_members for select to roster_directory
  using ((select roster.is_platform()) or user_id = (select roster.current_actor()));
grant select on roster.team_members to roster_directory;

create index audit_entries_subject_idx on roster.audit_entries (subject, create_time, id) where kind = 'USER';

-- The gate reads of the log what the functions below export: all for the platform; for a user the entries of what
-- they did, and the changes that they made or that hold their data.
create policy audit_entries_gate_select on roster.audit_entries for select to roster_gate
  using ((select roster.is_platform()) or subject = (select roster.current_actor()::text));
create policy audit_changes_gate on roster.audit_changes for select to roster_gate
  using ((select roster.is_platform()) or person = (select roster.current_actor())
    or subject = (select roster.current_actor()::text));

grant select on roster.audit_entries, roster.audit_changes to roster_gate;

-- Refuses to whoever is neither the platform nor this person. `enter_directory` has judged the call; this binds
-- whichever statement comes behind it.
create function roster.demand_self(person uuid) returns void
  language plpgsql stable set search_path = ''
  as $$
begin
  if not (roster.is_platform() or person is not distinct from roster.current_actor()) then
    raise exception 'PERMISSION_MISSING' using errcode = 'RS001',
      detail = jsonb_build_object('permission', 'roster.platform', 'where', 'outside any org')::text;
  end if;
end
$$;
grant execute on function roster.demand_self(uuid) to roster_gate;

-- A page of the changes of a person's user and profiles, the oldest first, behind a time and an id. The copies that
-- organisations got say nothing more. A generic plan over all months would sort them for one page.
create function roster.exported_changes(person uuid, after_time timestamptz, after_id uuid, most int)
  returns table (
    id uuid, org_id uuid, resource_type text, resource_id text, kind text, before jsonb, after jsonb,
    changed_fields text[], create_time timestamptz)
  language plpgsql stable security definer set search_path = '' set plan_cache_mode = 'force_custom_plan'
  as $$
begin
  perform roster.demand_self(exported_changes.person);
  return query
    select c.id, c.org_id, c.resource_type, c.resource_id, c.kind, c.before, c.after, c.changed_fields, c.create_time
    from roster.audit_changes c
    where c.person = exported_changes.person and not c.copied
      and c.create_time >= after_time and (c.create_time, c.id) > (after_time, after_id)
    order by c.create_time, c.id limit most;
end
$$;

-- The same of the calls that a person made. Each is counted with its changes, which are not told.
create function roster.exported_entries(person uuid, after_time timestamptz, after_id uuid, most int)
  returns table (
    id uuid, org_id uuid, subject text, kind text, on_behalf_of text[], method text, correlation_id text,
    outcome text, reason text, create_time timestamptz, change_count int)
  language plpgsql stable security definer set search_path = '' set plan_cache_mode = 'force_custom_plan'
  as $$
begin
  perform roster.demand_self(exported_entries.person);
  return query
    select e.id, e.org_id, e.subject, e.kind, e.on_behalf_of, e.method, e.correlation_id, e.outcome, e.reason,
      e.create_time, (
        select count(*)::int from roster.audit_changes c
        where c.entry_id = e.id and c.create_time = e.create_time and not c.copied)
    from roster.audit_entries e
    where e.subject = exported_entries.person::text and e.kind = 'USER'
      and e.create_time >= after_time and (e.create_time, e.id) > (after_time, after_id)
    order by e.create_time, e.id limit most;
end
$$;

-- A page of the invitations to a person's address, whatever has become of them. A former address may be another's by
-- now, whose invitations are not theirs to see.
create function roster.exported_invitations(person uuid, after_org uuid, after_id uuid, most int)
  returns setof roster.invitations
  language plpgsql stable security definer set search_path = ''
  as $$
begin
  perform roster.demand_self(exported_invitations.person);
  return query
    select i.* from roster.invitations i
    where i.email_key = (select u.email_key from roster.users u where u.id = exported_invitations.person)
      and (i.org_id, i.id) > (after_org, after_id)
    order by i.org_id, i.id limit most;
end
$$;

grant create on schema roster to roster_gate;
alter function roster.exported_invitations(uuid, uuid, uuid, int) owner to roster_gate;
alter function roster.exported_changes(uuid, timestamptz, uuid, int) owner to roster_gate;
alter function roster.exported_entries(uuid, timestamptz, uuid, int) owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function
  roster.exported_changes(uuid, timestamptz, uuid, int), roster.exported_entries(uuid, timestamptz, uuid, int)
  to roster_directory;
grant execute on function roster.exported_invitations(uuid, uuid, uuid, int) to roster_directory;
