-- The log is only ever added to, whoever tries, and its months are made ahead.

-- Of a change whose payload was blanked with its salt, because it told of a person who was erased: the digest that the
-- payload had. What was sealed can be proved with it, and without the salt it tells nothing.
alter table roster.audit_changes add column payload_digest bytea;

-- Bytes that no other list of values has: each value behind its length, and one that is absent as a length of -1.
create function roster.framed(variadic fields bytea[]) returns bytea
  language plpgsql immutable parallel safe
  as $$
declare
  field bytea;
  framed bytea := '';
begin
  foreach field in array fields loop
    framed := framed || int4send(coalesce(length(field), -1)) || coalesce(field, '');
  end loop;
  return framed;
end
$$;

create function roster.payload_digest(salt bytea, person uuid, before jsonb, after jsonb) returns bytea
  language plpgsql stable parallel safe
  as $$
begin
  return sha256(roster.framed(
    salt, uuid_send(person), convert_to(before::text, 'UTF8'), convert_to(after::text, 'UTF8')));
end
$$;

grant execute on function
  roster.framed(variadic bytea[]), roster.payload_digest(bytea, uuid, jsonb, jsonb)
  to roster_gate, roster_audit, roster_app, roster_directory;

-- Refuses to change or remove what the log holds, also to the owner of its tables. Three things may happen to a row: an
-- erasure blanks the payload of a change, retention removes it, and what a seal lists goes with its rows. The policies
-- of the two roles that may say of which rows. Argument: what may be blanked here, 'payload' or 'list', if anything.
create function roster.keep_log() returns trigger
  language plpgsql set search_path = ''
  as $$
begin
  if tg_op = 'UPDATE' and tg_argv[0] = 'payload' and current_user = 'roster_audit' then
    if new.before is null and new.after is null and new.salt is null then
      new.payload_digest := coalesce(old.payload_digest,
        roster.payload_digest(old.salt, old.person, old.before, old.after));
      return new;
    end if;
  elsif tg_op = 'UPDATE' and tg_argv[0] = 'list' and current_user = 'roster_gate' then
    if new.sources is null and new.ids is null and new.digests is null then
      return new;
    end if;
  elsif tg_op = 'DELETE' and current_user = 'roster_gate' then
    return old;
  end if;
  raise exception 'the audit log is only ever added to' using errcode = 'insufficient_privilege';
end
$$;

-- Triggers for rows go over to the partitions of a table by themselves, those for its truncation do not: each
-- partition has one, which fires for its parent as well.
create procedure roster.keep_from_truncation(t regclass)
  language plpgsql set search_path = ''
  as $$
begin
  execute format('create trigger %I before truncate on %s for each statement execute function roster.keep_log()',
    (select relname from pg_class where oid = t) || '_keep_all', t);
end
$$;

create trigger audit_entries_keep before update or delete on roster.audit_entries
  for each row execute function roster.keep_log();
create trigger audit_changes_keep before update or delete on roster.audit_changes
  for each row execute function roster.keep_log('payload');
do $$
declare
  t regclass;
begin
  for t in
    select oid from pg_class
    where relnamespace = 'roster'::regnamespace and relkind = 'r' and relname ~ '^audit_(entries|changes)'
  loop
    call roster.keep_from_truncation(t);
  end loop;
end
$$;

-- Makes a partition of the log apart and then attaches it, because `partition of` would queue every writer behind
-- running readers.
create procedure roster.attach_partition(parent text, child text, bounds text)
  language plpgsql set search_path = ''
  as $$
begin
  execute format('create table roster.%I (like roster.%I including defaults including constraints)', child, parent);
  call roster.protect(('roster.' || child)::regclass);
  call roster.keep_from_truncation(('roster.' || child)::regclass);
  execute format('alter table roster.%I attach partition roster.%I %s', parent, child, bounds);
end
$$;

-- Makes the partitions of the coming months that are not there yet. Rows that have landed in the default partition
-- go to partitions of their months. Writers wait meanwhile, so it gives up soon when it would have to wait itself.
create or replace function roster.make_partitions(months int) returns int
  language plpgsql security definer set search_path = '' set timezone = 'UTC' set lock_timeout = '2s'
  as $$
declare
  parent text;
  first date;
  spilt boolean;
  made int := 0;
begin
  -- Of several processes one does it.
  if not pg_try_advisory_xact_lock(5118620948) then
    return 0;
  end if;
  foreach parent in array array['audit_entries', 'audit_changes'] loop
    execute format('select exists (select from roster.%I)', parent || '_default') into spilt;
    if spilt then
      execute format('alter table roster.%I detach partition roster.%I', parent, parent || '_default');
    end if;
    for first in execute format(
      'select (date_trunc(''month'', now()) + make_interval(months => i))::date from generate_series(0, $1) i
       union select distinct date_trunc(''month'', create_time)::date from roster.%I order by 1', parent || '_default')
      using months
    loop
      continue when to_regclass(format('roster.%s_%s', parent, to_char(first, 'YYYY_MM'))) is not null;
      call roster.attach_partition(parent, format('%s_%s', parent, to_char(first, 'YYYY_MM')),
        format('for values from (%L) to (%L)', first, (first + interval '1 month')::date));
      made := made + 1;
    end loop;
    if spilt then
      execute format('insert into roster.%I select * from roster.%I', parent, parent || '_default');
      execute format('drop table roster.%I', parent || '_default');
      call roster.attach_partition(parent, parent || '_default', 'default');
    end if;
  end loop;
  return made;
end
$$;
