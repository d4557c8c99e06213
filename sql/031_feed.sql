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

-- One row: from which history positions in the feed are.
create table roster.audit_feed (
  epoch uuid constraint audit_feed_pkey primary key default gen_random_uuid()
);

call roster.protect('roster.audit_feed');
create policy audit_feed_gate on roster.audit_feed for select to roster_gate using (true);

grant select on roster.audit_feed to roster_gate;

insert into roster.audit_feed default values;

-- What is true of the feed of the current organisation, or of all. Changes up to the transaction `removed` may be
-- gone by retention: a reader whose position lies before it is told to take a snapshot again. The epoch is the
-- history in which transaction ids mean something: they do not survive a dump, and after a restore to an earlier
-- time, or a failover, the same id may stand for another transaction. It fails on a replica, where transactions
-- become visible in another order.
create function roster.feed_state() returns table (epoch text, removed xid8)
  language sql stable security definer set search_path = ''
  begin atomic
    select md5(concat_ws(' ', f.epoch, (select system_identifier from pg_control_system()),
      (select oid from pg_database where datname = current_database()),
      substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))),
      coalesce((
        select r.until_xid from roster.audit_removals r
        where roster.current_org() is null or r.org_id = roster.current_org()
        order by r.until_xid desc limit 1), '0')
    from roster.audit_feed f;
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
alter function roster.hold_profile() owner to roster_gate;
revoke create on schema roster from roster_gate;
grant execute on function roster.feed_state(), roster.unaudited_columns() to roster_app, roster_directory;
grant execute on function roster.unaudited_columns() to roster_gate;
grant execute on function roster.told_teams(uuid, int) to roster_app;
