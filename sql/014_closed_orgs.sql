-- Whoever may take an owner away holds the organisation also while it is closed. Before, a suspended or deleted one
-- was passed over: its last owner could go while it was opened again, each unseen by the other.
create or replace function roster.demand_owner(org uuid, without uuid) returns boolean
  language plpgsql security definer set search_path = ''
  as $$
declare
  open boolean;
begin
  select o.delete_time is null and o.state = 'ACTIVE' into open from roster.orgs o
    where o.id = org for no key update;
  if open is not true then
    return true;
  end if;
  perform from roster.org_members m join roster.users u on u.id = m.user_id
    where m.org_id = org and m.role = 'owner' and m.state = 'ACTIVE' and m.user_id <> without
      and u.delete_time is null and u.state = 'ACTIVE'
    order by m.user_id
    limit 1
    for share of u;
  return found;
end
$$;
