-- An invitation that is sent again needs room also when it had been written down as expired. It may take the place of
-- another to its address whose time is over: then the statement adds as many as it takes away, and nobody asked.
create or replace trigger invitations_count_renewed after update on roster.invitations
  for each row when (new.state = 'PENDING' and new.expire_time > now()
    and (old.state = 'EXPIRED' or (old.state = 'PENDING' and old.expire_time <= now())))
  execute function roster.count_renewed('pending_invitations');
