-- A process that stalls between two statements gives its locks back, and loses its connection by it. That comes five
-- seconds behind the deadline: a call that was given up rolls back by itself, and its connection serves the next.
do $$
declare
  entering regprocedure;
  before text;
begin
  for entering in
    select p.oid from pg_proc p
    where p.pronamespace = 'roster'::regnamespace and p.proname in ('enter', 'enter_directory', 'enter_invitation')
  loop
    before := pg_get_functiondef(entering);
    if before !~ 'idle_in_transaction_session_timeout'', timeout_ms::text' then
      raise exception '% sets another limit', entering;
    end if;
    execute replace(before, 'idle_in_transaction_session_timeout'', timeout_ms::text',
      'idle_in_transaction_session_timeout'', (timeout_ms + 5000)::text');
  end loop;
end
$$;
