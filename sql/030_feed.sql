-- The change feed reads roster.audit_changes: each row was written in the transaction of the change it tells.

-- Of two changes of one row the later one has the greater id: whoever changes a row holds it until the end of their
-- transaction, and takes the id while they hold it. Transactions are numbered as they begin, which tells nothing of
-- who came first.
create sequence roster.audit_changes_place_seq;

create function roster.next_change_id() returns uuid
  language sql volatile
  return encode(int8send(nextval('roster.audit_changes_place_seq'))
    || substr(uuid_send(gen_random_uuid()), 9), 'hex')::uuid;

alter table roster.audit_changes alter column id set default roster.next_change_id();

grant usage on sequence roster.audit_changes_place_seq to roster_audit;
grant execute on function roster.next_change_id() to roster_audit;

-- A reader who comes back to one organisation reads what its log got since.
create index audit_changes_org_xid_idx on roster.audit_changes (org_id, xid, id);

-- One row: from which history positions in the feed are, and from which transaction on all changes are kept.
create table roster.audit_feed (
  epoch uuid constraint audit_feed_pkey primary key default gen_random_uuid(),
  oldest xid8 not null default '0'
);

call roster.protect('roster.audit_feed');
create policy audit_feed_gate on roster.audit_feed to roster_gate using (true) with check (true);

grant select on roster.audit_feed to roster_gate;
grant update (oldest) on roster.audit_feed to roster_gate;

insert into roster.audit_feed default values;

-- What is true of the feed as a whole. Its epoch is the history in which transaction ids mean something: they do not
-- survive a dump, and after a restore to an earlier time, or a failover, the same id may stand for another transaction.
-- It fails on a replica, where transactions become visible in another order.
create function roster.feed_state() returns table (epoch text, oldest xid8)
  language sql stable security definer set search_path = ''
  begin atomic
    select md5(concat_ws(' ', f.epoch, (select system_identifier from pg_control_system()),
      (select oid from pg_database where datname = current_database()),
      substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))), f.oldest
    from roster.audit_feed f;
  end;

-- Says that changes of transactions before this one may be gone. Retention calls it before it drops them, in the
-- transaction that does: a reader whose position is older is told to take a snapshot again.
create function roster.set_feed_floor(oldest xid8) returns void
  language sql volatile security definer set search_path = ''
  begin atomic
    update roster.audit_feed f set oldest = greatest(f.oldest, set_feed_floor.oldest);
  end;

-- A page of the organisation's teams behind one, for the snapshot of whoever may read its changes, which tell of secret
-- teams as well.
create function roster.told_teams(after uuid, most int) returns table (id uuid, image jsonb)
  language sql stable security definer set search_path = ''
  begin atomic
    select t.id, to_jsonb(t) - roster.unaudited_columns() from roster.teams t
    where t.org_id = roster.current_org() and t.id > told_teams.after
    order by t.id limit told_teams.most;
  end;

-- A new member's user and default profile are told to the organisation with the membership, as they are when it is
-- told. Whoever changes the profile at the same instant is waited for, or waits and then sees the membership.
grant update (version) on roster.profiles to roster_gate;

create function roster.hold_profile() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  perform from roster.profiles p where p.user_id = new.user_id and p.org_id is null for share;
  return new;
end
$$;

create trigger org_members_hold_profile before insert on roster.org_members
  for each row execute function roster.hold_profile();

grant create on schema roster to roster_gate;
alter function roster.feed_state() owner to roster_gate;
alter function roster.told_teams(uuid, int) owner to roster_gate;
alter function roster.set_feed_floor(xid8) owner to roster_gate;
alter function roster.hold_profile() owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function roster.set_feed_floor(xid8) to roster_worker;
grant execute on function roster.feed_state(), roster.unaudited_columns() to roster_app, roster_directory;
grant execute on function roster.unaudited_columns() to roster_gate;
grant execute on function roster.told_teams(uuid, int) to roster_app;
