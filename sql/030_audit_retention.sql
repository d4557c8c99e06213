-- What of the log is kept no longer. An organisation keeps it for its limit `audit_retention_days`, the platform the
-- log that belongs to none and those of organisations that are gone for days of its own; without a number both keep it
-- for good. Only what is sealed goes, whole seals from the first one on, so that the rest can still be proved.

create index audit_seals_first_idx on roster.audit_seals (org_id) where number = 1;
create index audit_removals_pending_idx on roster.audit_removals (org_id) where pending;

create function roster.is_removed(org uuid, xid xid8) returns boolean
  language plpgsql stable set search_path = ''
  as $$
begin
  return exists (
    select from roster.audit_removals r
    where r.org_id = coalesce(org, '00000000-0000-0000-0000-000000000000') and is_removed.xid <= r.until_xid);
end
$$;
grant execute on function roster.is_removed(uuid, xid8) to roster_gate;

create policy audit_entries_gate_remove on roster.audit_entries for delete to roster_gate
  using (roster.is_removed(org_id, xid));
create policy audit_changes_gate_remove on roster.audit_changes for delete to roster_gate
  using (roster.is_removed(org_id, xid));
grant delete on roster.audit_entries, roster.audit_changes to roster_gate;

-- Marks, of each log, at most so many seals whose time is over, and says how many; zero when none are left. Of what is
-- marked the rows are to be removed, and the seals list them no more.
--   platform_days  how long the platform keeps what is no live organisation's; 0: for good
create function roster.expire_audit(platform_days int, most int) returns int
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  log record;
  removed record;
  seal record;
  expired int := 0;
begin
  if not pg_try_advisory_xact_lock(5118620950) then
    return 0;
  end if;
  perform roster.demand_history();
  for log in
    select l.org_id, now() - make_interval(days => l.audit_retention_days) as until_time
    from roster.org_limits l where l.audit_retention_days > 0
    union all
    select s.org_id, now() - make_interval(days => platform_days)
    from roster.audit_seals s
    where platform_days > 0 and s.number = 1 and not exists (select from roster.orgs o where o.id = s.org_id)
    order by 1
  loop
    select r.number, r.kept_from into removed from roster.audit_removals r where r.org_id = log.org_id;
    for seal in
      select s.number, s.until_xid, s.newest_time from roster.audit_seals s
      where s.org_id = log.org_id and s.number > coalesce(removed.number, 0)
      order by s.number limit most - expired
    loop
      exit when seal.newest_time >= log.until_time;
      update roster.audit_seals s set sources = null, ids = null, digests = null
      where s.org_id = log.org_id and s.number = seal.number;
      insert into roster.audit_removals (org_id, number, until_xid, kept_from)
      values (log.org_id, seal.number, seal.until_xid, seal.newest_time)
      on conflict (org_id) do update set number = excluded.number, until_xid = excluded.until_xid,
        kept_from = greatest(audit_removals.kept_from, excluded.kept_from), pending = true;
      expired := expired + 1;
    end loop;
  end loop;
  return expired;
end
$$;

-- Drops the past months of which every row is marked, and says how many tables those were. A day later: what a last
-- transaction left there is seen by then. Readers and writers wait
-- meanwhile, so it gives up soon when it would have to wait itself.
create function roster.drop_expired_months() returns int
  language plpgsql security definer set search_path = '' set timezone = 'UTC' set lock_timeout = '2s'
  as $$
declare
  child text;
  needed boolean;
  dropped int := 0;
begin
  if not pg_try_advisory_xact_lock(5118620950) then
    return 0;
  end if;
  for child in
    select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent in ('roster.audit_entries'::regclass, 'roster.audit_changes'::regclass)
      and c.relname ~ '_\d{4}_\d\d$' and right(c.relname, 7) < to_char(now() - interval '1 day', 'YYYY_MM')
    order by c.relname
  loop
    execute format('select exists (select from roster.%I where not roster.is_removed(org_id, xid))', child) into needed;
    if not needed then
      execute format('drop table roster.%I', child);
      dropped := dropped + 1;
    end if;
  end loop;
  return dropped;
end
$$;

-- Removes at most so many rows that are marked, and says how many.
create function roster.remove_expired_audit(most int) returns int
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  log record;
  gone int;
  removed int := 0;
begin
  perform roster.demand_history();
  for log in
    select r.org_id, r.until_xid from roster.audit_removals r where r.pending
    order by r.org_id for update skip locked
  loop
    delete from roster.audit_changes c
    using (
      select l.create_time, l.id from roster.audit_leaves_of(log.org_id) l
      where l.source = 2 and l.xid <= log.until_xid limit most - removed) l
    where c.create_time = l.create_time and c.id = l.id;
    get diagnostics gone = row_count;
    removed := removed + gone;
    delete from roster.audit_entries e
    using (
      select l.create_time, l.id from roster.audit_leaves_of(log.org_id) l
      where l.source = 1 and l.xid <= log.until_xid limit most - removed) l
    where e.create_time = l.create_time and e.id = l.id;
    get diagnostics gone = row_count;
    removed := removed + gone;
    if removed >= most then
      return removed;
    end if;
    update roster.audit_removals r set pending = false where r.org_id = log.org_id;
  end loop;
  return removed;
end
$$;

grant create on schema roster to roster_gate;
alter function roster.expire_audit(int, int) owner to roster_gate;
alter function roster.remove_expired_audit(int) owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function roster.expire_audit(int, int), roster.drop_expired_months(), roster.remove_expired_audit(int)
  to roster_worker;
