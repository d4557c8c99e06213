-- How far a server of the cluster has come. By that a response says how fresh it is, and a standby whether it is as
-- fresh as somebody's last response.

-- The history that positions here belong to: the cluster, and the timeline that a promotion begins. Positions of
-- another history cannot be compared, whatever their numbers. What a standby has noted of its timeline may lag behind
-- a promotion elsewhere, and until it has caught up its history is another one.
create function roster.wal_history() returns text
  language plpgsql volatile set search_path = ''
  as $$
begin
  return (select system_identifier::text from pg_control_system()) || '-' || case
    when pg_is_in_recovery() then upper(lpad(to_hex(greatest(
      (select timeline_id from pg_control_checkpoint()),
      (select min_recovery_end_timeline from pg_control_recovery()))), 8, '0'))
    else left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
  end;
end
$$;

-- A position behind all that a statement before has seen, with its history; null where that is not known.
-- A transaction is seen once its commit is in the log, so on a primary that is where the log ends. On a standby it is
-- seen a moment before the position of replay says so, and not before it was received.
create function roster.wal_position() returns text
  language plpgsql volatile set search_path = ''
  as $$
begin
  return roster.wal_history() || ' ' || case
    when not pg_is_in_recovery() then pg_current_wal_insert_lsn()
    when pg_last_wal_receive_lsn() >= pg_last_wal_replay_lsn() then pg_last_wal_receive_lsn()
  end;
end
$$;

-- Refuses unless this is a standby of that history (SQLSTATE RS011) which has replayed that far (RS010). What was sent
-- behind it is then skipped, so it never reads what is older. Who was promoted goes its own way and is refused. Later
-- statements of the transaction see what was replayed only if each looks anew, which READ COMMITTED means.
create function roster.require_replay(history text, lsn pg_lsn) returns void
  language plpgsql volatile set search_path = ''
  as $$
begin
  if (pg_is_in_recovery()
      and roster.wal_history() = history
      and current_setting('transaction_isolation') = 'read committed') is not true then
    raise exception 'REPLICA_STRANGE' using errcode = 'RS011';
  elsif (pg_last_wal_replay_lsn() >= lsn) is not true then
    raise exception 'REPLICA_BEHIND' using errcode = 'RS010';
  end if;
end
$$;

grant execute on function roster.wal_history() to roster_app, roster_directory;
grant execute on function roster.wal_position() to roster_app, roster_directory;
grant execute on function roster.require_replay(text, pg_lsn) to roster_app;
