-- What an organisation's delete takes along is what was looked at: who brings a team holds the organisation, as who
-- brings a member does. Before, a team that came at the same time was not seen by a delete without force, and a call
-- that waited for the delete still wrote into the deleted organisation.

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
