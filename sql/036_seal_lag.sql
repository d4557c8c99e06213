-- Milliseconds since the oldest row was written that is in the log and not sealed; 0 when all is. A transaction that is
-- under way holds seals back, however small the log.
create function roster.seal_lag() returns float8
  language sql stable security definer set search_path = ''
  return coalesce(greatest(0, extract(epoch from clock_timestamp() - least(
    (select e.create_time from roster.audit_entries e where e.xid > roster.sealed_until() order by e.xid, e.id limit 1),
    (select c.create_time from roster.audit_changes c where c.xid > roster.sealed_until() order by c.xid, c.id limit 1)
  )) * 1000), 0)::float8;

grant create on schema roster to roster_gate;
alter function roster.seal_lag() owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function roster.seal_lag() to roster_worker;
