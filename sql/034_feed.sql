-- A page of the feed costs what it returns, however much lies behind it.

-- The feed goes on in the order of changes, in all organisations or in one.
create index audit_changes_id_idx on roster.audit_changes (id);
create index audit_changes_org_id_id_idx on roster.audit_changes (org_id, id);

-- A transaction has its number before a change of it has its place.
create or replace function roster.next_change_id() returns uuid
  language sql volatile
  return case when pg_current_xact_id() is not null then
    encode(int8send(nextval('roster.audit_changes_place_seq')) || substr(uuid_send(gen_random_uuid()), 9), 'hex')::uuid
  end;

-- The next `most` changes that `seen` does not show, and `part` does if it is given: of an organisation, of all but
-- the copies that organisations got (`originals`), or of all. Transactions come in the order of their last changes in
-- that sight. It goes on behind the change `behind_id` of the transaction whose last one is `behind_last`.
--
-- It walks the changes in their order from a place that no wanted transaction ends before, and asks of each whether
-- another of its transaction follows. Changes of one transaction have one create_time, when it began. It looks into
-- those months only in which a transaction can have begun that was open for less than one.
create function roster.feed_page(
  org uuid, originals boolean, seen pg_snapshot, part pg_snapshot, behind_last uuid, behind_id uuid, most int)
  returns table (last uuid, id uuid, org_id uuid, copied boolean, resource_type text, resource_id text, kind text,
    after jsonb, entry_id uuid)
  language plpgsql stable
  set search_path = '' set plan_cache_mode = force_custom_plan set enable_sort = off
  as $$
#variable_conflict use_column
declare
  month constant interval := '32 days';
  until constant timestamptz := now() + month;
  -- Before places were counted ids were random, and most of them greater.
  counted constant uuid := '00000fff-ffff-ffff-ffff-ffffffffffff';
  since timestamptz;
  -- As many transactions as can be open at once.
  sessions constant int := current_setting('max_connections')::int + current_setting('max_worker_processes')::int
    + current_setting('max_prepared_transactions')::int;
  low uuid;
  own xid8;
  given int := 0;
begin
  -- Outside organisations one plan fits all pages, and no poll waits for another; within them another index is right.
  if org is null then
    perform set_config('plan_cache_mode', 'force_generic_plan', true);
  end if;
  if behind_last > '00000000-0000-0000-0000-000000000000' then
    select c.xid, c.create_time into own, since from roster.audit_changes c
    where (org is null or c.org_id = org) and c.id = behind_last;
    if behind_id < behind_last and own is not null then
      return query
        select behind_last, c.id, c.org_id, c.copied, c.resource_type, c.resource_id, c.kind, c.after, c.entry_id
        from roster.audit_changes c
        where (org is null or c.org_id = org) and not (originals and c.copied) and c.xid = own
          and c.create_time = since and c.id > behind_id
        order by c.id limit most;
      get diagnostics given = row_count;
      if given = most then
        return;
      end if;
    end if;
    since := since - month;
  else
    -- What was over before the snapshot has its places before all that began after it.
    foreach since in array array[now() - month, '-infinity'] loop
      select c.id, c.create_time - month into low, since from roster.audit_changes c
      where (org is null or c.org_id = org) and c.xid < pg_snapshot_xmax(seen)
        and pg_visible_in_snapshot(c.xid, seen) and c.id < counted and c.create_time >= since
        and c.create_time < until
      order by c.xid desc, c.id desc limit 1;
      exit when low is not null;
    end loop;
    since := coalesce(since, '-infinity');
    -- What was open then may have its last change before: what the snapshot lists, and the first behind its end, which
    -- is behind the last one that was over, not behind the last one that had begun.
    with recursive open (xid) as (
      select xid from (
        select c.xid from roster.audit_changes c
        where (org is null or c.org_id = org) and c.xid >= pg_snapshot_xmax(seen)
          and c.create_time >= since and c.create_time < until
        order by c.xid limit 1) first
      union all
      select (
        select c.xid from roster.audit_changes c
        where (org is null or c.org_id = org) and c.xid > o.xid
          and c.create_time >= since and c.create_time < until
        order by c.xid limit 1)
      from open o where o.xid is not null)
    select least(low, min(ending.id::text collate "C")::uuid) into low
    from ((select xid from open limit sessions) union all select pg_snapshot_xip(seen)) o
    cross join lateral (
      select c.id from roster.audit_changes c
      where (org is null or c.org_id = org) and c.xid = o.xid
        and c.create_time >= since and c.create_time < until
      order by c.id desc limit 1) ending;
  end if;
  since := coalesce(since, '-infinity');
  low := greatest(low, behind_last);
  return query
    select w.id, c.id, c.org_id, c.copied, c.resource_type, c.resource_id, c.kind, c.after, c.entry_id
    from (
      select c.id, c.xid, c.create_time
      from roster.audit_changes c
      where (org is null or c.org_id = org) and not (originals and c.copied)
        and c.id >= low and c.id > behind_last and c.id < counted
        and c.create_time >= since and c.create_time < until
        and not pg_visible_in_snapshot(c.xid, seen) and (part is null or pg_visible_in_snapshot(c.xid, part))
        and (
          select true from roster.audit_changes n
          where (org is null or n.org_id = org) and not (originals and n.copied)
            and n.xid = c.xid and n.create_time = c.create_time and n.id > c.id
            and n.create_time >= since and n.create_time < until
          order by n.id limit 1) is null
      order by c.id) w
    cross join lateral (
      select * from roster.audit_changes c
      where (org is null or c.org_id = org) and not (originals and c.copied)
        and c.xid = w.xid and c.create_time = w.create_time
        and c.create_time >= since and c.create_time < until
      order by c.id) c
    order by w.id, c.id limit most - given;
end
$$;

grant execute on function
  roster.feed_page(uuid, boolean, pg_snapshot, pg_snapshot, uuid, uuid, int) to roster_app, roster_directory;
