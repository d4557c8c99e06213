-- Proof that the log is as it was written. The background work seals, some seconds after they were committed, each
-- organisation's new entries and changes: it digests the rows, makes one root of the digests and binds it to the root
-- before. Whoever has kept a root elsewhere sees whether anything up to it was altered, by anybody.

-- A row of the log, as it is sealed. Its digest covers every column; a column that is added later joins the end of
-- the list, and of rows from before it must be null. What an erasure blanks is digested apart. Digests of rows begin
-- with 0, those of pairs of digests with 1, those of seals with 2, so that none passes for another. The functions set
-- no search_path, which would cost more than the digest.
create function roster.entry_digest(e roster.audit_entries) returns bytea
  language plpgsql stable parallel safe
  as $$
begin
  return sha256('\x00' || roster.framed(
    convert_to('audit_entries', 'UTF8'), uuid_send(e.id), uuid_send(e.org_id), convert_to(e.subject, 'UTF8'),
    convert_to(e.kind, 'UTF8'), convert_to(to_jsonb(e.on_behalf_of)::text, 'UTF8'), convert_to(e.method, 'UTF8'),
    convert_to(e.correlation_id, 'UTF8'), convert_to(e.outcome, 'UTF8'), convert_to(e.reason, 'UTF8'),
    xid8send(e.xid), e.salt, timestamptz_send(e.create_time), convert_to(e.operator_reason, 'UTF8')));
end
$$;

create function roster.change_digest(c roster.audit_changes) returns bytea
  language plpgsql stable parallel safe
  as $$
declare
  blank constant boolean := c.before is null and c.after is null and c.salt is null;
  payload constant bytea := roster.payload_digest(c.salt, c.person, c.before, c.after);
begin
  return sha256('\x00' || roster.framed(
    convert_to('audit_changes', 'UTF8'), uuid_send(c.id), uuid_send(c.org_id), boolsend(c.copied), boolsend(c.apart),
    uuid_send(c.entry_id), convert_to(c.subject, 'UTF8'), convert_to(c.method, 'UTF8'),
    convert_to(c.correlation_id, 'UTF8'), convert_to(c.resource_type, 'UTF8'), convert_to(c.resource_id, 'UTF8'),
    convert_to(c.kind, 'UTF8'), convert_to(to_jsonb(c.changed_fields)::text, 'UTF8'), xid8send(c.xid),
    timestamptz_send(c.create_time),
    -- Only a blank row may speak of what it was.
    case when blank then coalesce(c.payload_digest, payload) else payload end,
    case when not blank then c.payload_digest end));
end
$$;

-- The root of a tree of digests: each two make one, the last of an odd number goes up as it is.
create function roster.merkle_root(digests bytea[]) returns bytea
  language plpgsql immutable parallel safe set search_path = ''
  as $$
declare
  level bytea := (
    select string_agg(d.digest, '' order by d.place) from unnest(digests) with ordinality d (digest, place));
begin
  while length(level) > 32 loop
    level := (
      select string_agg(case length(p.pair) when 64 then sha256('\x01'::bytea || p.pair) else p.pair end, ''
        order by p.place)
      from (
        select place, substring(level from place * 64 + 1 for 64) as pair
        from generate_series(0, (length(level) - 1) / 64) place) p);
  end loop;
  return level;
end
$$;

-- Seals are of one organisation, or under the zero id of the log that belongs to none. One covers what the
-- organisation's transactions behind `after_xid` and up to `until_xid` left in the log, listed by transaction: entries
-- (1) before changes (2), each by id. What retention has removed is listed no more; its roots stay.
create table roster.audit_seals (
  org_id uuid not null,
  number bigint not null,
  after_xid xid8 not null,
  until_xid xid8 not null,
  sources smallint[],
  ids uuid[],
  digests bytea[],
  size int not null,
  -- That of the newest row.
  newest_time timestamptz not null,
  merkle_root bytea not null,
  previous_root bytea not null,
  root bytea not null,
  create_time timestamptz not null default now(),
  constraint audit_seals_pkey primary key (org_id, number)
);
-- Digests do not compress.
alter table roster.audit_seals alter ids set storage external, alter digests set storage external;

create index audit_seals_until_xid_idx on roster.audit_seals (until_xid);

call roster.keep_from_truncation('roster.audit_seals');
create trigger audit_seals_keep before update or delete on roster.audit_seals
  for each row execute function roster.keep_log('list');

call roster.protect_org_table('roster.audit_seals');
create policy audit_seals_directory on roster.audit_seals for select to roster_directory
  using ((select roster.is_platform()));
-- The gate seals, and strikes the lists of what it removes.
create policy audit_seals_gate on roster.audit_seals to roster_gate using (true) with check (true);

grant select on roster.audit_seals to roster_app, roster_directory;
grant select, insert, update (sources, ids, digests) on roster.audit_seals to roster_gate;

-- Up to which seal and transaction retention has removed an organisation's log, and from when on the rest is.
create table roster.audit_removals (
  org_id uuid constraint audit_removals_pkey primary key,
  number bigint not null,
  until_xid xid8 not null,
  kept_from timestamptz not null,
  -- Whether rows are left to be removed.
  pending boolean not null default true
);

call roster.protect_org_table('roster.audit_removals');
create policy audit_removals_directory on roster.audit_removals for select to roster_directory
  using ((select roster.is_platform()));
create policy audit_removals_gate on roster.audit_removals to roster_gate using (true) with check (true);

grant select on roster.audit_removals to roster_app, roster_directory;
grant select, insert, update (number, until_xid, kept_from, pending) on roster.audit_removals to roster_gate;

-- The log as it is sealed, of its readers' rows.
create view roster.audit_leaves with (security_invoker = true) as
  select e.org_id, e.xid, 1::smallint as source, e.id, e.create_time, roster.entry_digest(e) as digest
  from roster.audit_entries e
  union all
  select c.org_id, c.xid, 2::smallint, c.id, c.create_time, roster.change_digest(c)
  from roster.audit_changes c;

-- That of one organisation, or under the zero id the log that belongs to none.
create function roster.audit_leaves_of(org uuid)
  returns table (xid xid8, source smallint, id uuid, create_time timestamptz, digest bytea)
  language sql stable
  begin atomic
    select l.xid, l.source, l.id, l.create_time, l.digest from roster.audit_leaves l where l.org_id = org
    union all
    select l.xid, l.source, l.id, l.create_time, l.digest from roster.audit_leaves l
    where l.org_id is null and org = '00000000-0000-0000-0000-000000000000';
  end;

create index audit_entries_org_id_xid_idx on roster.audit_entries (org_id, xid, id);
create index audit_changes_org_id_xid_idx on roster.audit_changes (org_id, xid, id);

-- The gate wrote entries only; now it reads the log, to seal it and to prove it.
create policy audit_entries_gate_read on roster.audit_entries for select to roster_gate using (true);
create policy audit_changes_gate_read on roster.audit_changes for select to roster_gate using (true);
grant select on roster.audit_entries, roster.audit_changes to roster_gate;
grant select on roster.audit_leaves to roster_gate, roster_app, roster_directory;

create function roster.seal_root(s roster.audit_seals) returns bytea
  language plpgsql stable parallel safe set search_path = ''
  as $$
begin
  return sha256('\x02'::bytea || roster.framed(
    uuid_send(s.org_id), int8send(s.number), s.previous_root, xid8send(s.after_xid), xid8send(s.until_xid),
    int4send(s.size), timestamptz_send(s.newest_time), timestamptz_send(s.create_time), s.merkle_root));
end
$$;

-- Up to which transaction all of the log is sealed.
create function roster.sealed_until() returns xid8
  language sql stable security definer set search_path = ''
  return coalesce((select s.until_xid from roster.audit_seals s order by s.until_xid desc limit 1), '0');

-- Refuses to go on where transactions are numbered anew: what is new would pass for sealed, or for removed.
create function roster.demand_history() returns void
  language plpgsql stable set search_path = ''
  as $$
declare
  horizon constant xid8 := pg_snapshot_xmin(pg_current_snapshot());
  done constant xid8 := roster.sealed_until();
begin
  if done >= horizon then
    raise exception 'the log was sealed up to transaction %, and this server is only at %', done, horizon
      using hint = 'It was restored from a dump. Stop the server and advance its transactions: pg_resetwal --epoch';
  end if;
end
$$;
grant execute on function roster.demand_history() to roster_gate;

-- Seals about so many rows, whole transactions, the oldest first, and says how many; zero when none are left, null
-- while another process is at it. A transaction that is under way holds back all that began after it: it will take
-- its place in the order, and nothing may be sealed that could still get something before it.
create function roster.seal_audit(most int) returns int
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  horizon xid8;
  done xid8;
  upto xid8;
  part record;
  last record;
  seal roster.audit_seals;
  sealed int := 0;
begin
  if not pg_try_advisory_xact_lock(5118620949) then
    return null;
  end if;
  perform roster.demand_history();
  horizon := pg_snapshot_xmin(pg_current_snapshot());
  done := roster.sealed_until();
  select r.xid into upto
  from (
    select u.xid
    from (
      (select e.xid from roster.audit_entries e where e.xid > done and e.xid < horizon order by e.xid limit most)
      union all
      (select c.xid from roster.audit_changes c where c.xid > done and c.xid < horizon order by c.xid limit most)) u
    order by u.xid limit most) r
  order by r.xid desc limit 1;
  if upto is null then
    return 0;
  end if;

  for part in
    select coalesce(l.org_id, '00000000-0000-0000-0000-000000000000') as org_id,
      count(*)::int as size, max(l.create_time) as newest_time,
      array_agg(l.source order by l.xid, l.source, l.id) as sources,
      array_agg(l.id order by l.xid, l.source, l.id) as ids,
      array_agg(l.digest order by l.xid, l.source, l.id) as digests
    from roster.audit_leaves l where l.xid > done and l.xid <= upto
    group by l.org_id
  loop
    select s.number, s.until_xid, s.root into last
    from roster.audit_seals s where s.org_id = part.org_id order by s.number desc limit 1;
    seal.org_id := part.org_id;
    seal.number := coalesce(last.number, 0) + 1;
    seal.after_xid := coalesce(last.until_xid, '0');
    seal.until_xid := upto;
    seal.sources := part.sources;
    seal.ids := part.ids;
    seal.digests := part.digests;
    seal.size := part.size;
    seal.newest_time := part.newest_time;
    seal.merkle_root := roster.merkle_root(part.digests);
    seal.previous_root := coalesce(last.root, '');
    seal.create_time := now();
    seal.root := roster.seal_root(seal);
    insert into roster.audit_seals values (seal.*);
    sealed := sealed + part.size;
  end loop;
  return sealed;
end
$$;

-- Examines at most so many seals of an organisation behind one, with the rows that they cover, and behind the last one
-- what should have been sealed. One row for each seal, and before it one for each fault, at most a hundred: source 1
-- is an entry, 2 a change, and of a fault of the seal itself there is none. EDITED, DELETED and INSERTED tell what
-- became of a row; SEAL_MISSING that a number is skipped, SEAL_BROKEN that a seal does not fit its content or the
-- seal before. What retention has removed is not looked at until it is gone, but its seals are.
create function roster.check_seals(org uuid, behind bigint, most int)
  returns table (
    number bigint, size int, create_time timestamptz, root text, removed boolean, fault text, source smallint, id uuid)
  language plpgsql stable set search_path = ''
  as $$
declare
  seal roster.audit_seals;
  last roster.audit_seals;
  removal roster.audit_removals;
  seen int := 0;
begin
  select * into removal from roster.audit_removals r where r.org_id = org;
  select * into last from roster.audit_seals s where s.org_id = org and s.number = behind;
  last.number := behind;
  last.root := coalesce(last.root, '');
  last.until_xid := coalesce(last.until_xid, '0');
  for seal in
    select * from roster.audit_seals s where s.org_id = org and s.number > behind order by s.number limit most
  loop
    seen := seen + 1;
    number := seal.number;
    source := null;
    id := null;
    removed := seal.number <= coalesce(removal.number, 0);
    if seal.number <> last.number + 1 then
      fault := 'SEAL_MISSING';
      number := last.number + 1;
      return next;
      number := seal.number;
    elsif (seal.previous_root, seal.after_xid) is distinct from (last.root, last.until_xid) then
      fault := 'SEAL_BROKEN';
      return next;
    end if;
    if roster.seal_root(seal) <> seal.root
        or (not removed and (roster.merkle_root(seal.digests) is distinct from seal.merkle_root
          or (seal.size, seal.size) is distinct from (cardinality(seal.ids), cardinality(seal.sources)))) then
      fault := 'SEAL_BROKEN';
      return next;
    end if;
    if not removed then
      for source, id, fault in
        select coalesce(l.source, a.source), coalesce(l.id, a.id),
          case when a.digest is null then 'DELETED' when l.digest is null then 'INSERTED' else 'EDITED' end
        from unnest(seal.sources, seal.ids, seal.digests) with ordinality l (source, id, digest, place)
        full join (
          select a.source, a.id, a.digest from roster.audit_leaves_of(org) a
          where a.xid > seal.after_xid and a.xid <= seal.until_xid) a
          on a.source = l.source and a.id = l.id
        where l.digest is distinct from a.digest
        order by l.place, a.source, a.id limit 100
      loop
        return next;
      end loop;
    end if;
    fault := null;
    source := null;
    id := null;
    size := seal.size;
    create_time := seal.create_time;
    root := encode(seal.root, 'hex');
    return next;
    size := null;
    create_time := null;
    root := null;
    last := seal;
  end loop;
  if seen < most then
    fault := 'INSERTED';
    for number, source, id in
      -- Before all seals, or where retention has left nothing.
      select coalesce(removal.number, 0), a.source, a.id from roster.audit_leaves_of(org) a
      where a.xid <= case when removal.pending then '0' else coalesce(removal.until_xid, '0') end
      union all
      select last.number, a.source, a.id from roster.audit_leaves_of(org) a
      where a.xid > last.until_xid and a.xid <= roster.sealed_until()
      order by 1, 2, 3 limit 100
    loop
      return next;
    end loop;
  end if;
end
$$;

-- The same for the background work, of any organisation.
create function roster.check_seals_of(org uuid, behind bigint, most int)
  returns table (
    number bigint, size int, create_time timestamptz, root text, removed boolean, fault text, source smallint, id uuid)
  language sql stable security definer set search_path = ''
  begin atomic
    select * from roster.check_seals(org, behind, most);
  end;

-- Each log there is, that without an organisation included, with its last seal and from when on it is kept; all null
-- where there is none and nothing was removed.
create function roster.audit_heads()
  returns table (org_id uuid, number bigint, root text, create_time timestamptz, kept_from timestamptz)
  language sql stable security definer set search_path = ''
  begin atomic
    with recursive sealed (org_id) as (
      (select s.org_id from roster.audit_seals s order by s.org_id limit 1)
      union all
      select (select s.org_id from roster.audit_seals s where s.org_id > n.org_id order by s.org_id limit 1)
      from sealed n where n.org_id is not null)
    select o.org_id, s.number, encode(s.root, 'hex'), s.create_time, r.kept_from
    from (
      select n.org_id from sealed n where n.org_id is not null
      union
      select o.id from roster.orgs o
      union
      select '00000000-0000-0000-0000-000000000000') o
    left join lateral (
      select * from roster.audit_seals s where s.org_id = o.org_id order by s.number desc limit 1) s on true
    left join roster.audit_removals r on r.org_id = o.org_id
    order by o.org_id;
  end;

grant create on schema roster to roster_gate;
alter function roster.sealed_until() owner to roster_gate;
alter function roster.seal_audit(int) owner to roster_gate;
alter function roster.check_seals_of(uuid, bigint, int) owner to roster_gate;
alter function roster.audit_heads() owner to roster_gate;
revoke create on schema roster from roster_gate;

grant execute on function
  roster.entry_digest(roster.audit_entries), roster.change_digest(roster.audit_changes),
  roster.merkle_root(bytea[]), roster.seal_root(roster.audit_seals), roster.audit_leaves_of(uuid),
  roster.check_seals(uuid, bigint, int)
  to roster_gate, roster_app, roster_directory;
grant execute on function roster.sealed_until() to roster_app, roster_directory;
grant execute on function
  roster.seal_audit(int), roster.check_seals_of(uuid, bigint, int), roster.audit_heads()
  to roster_worker;
