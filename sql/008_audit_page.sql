-- A page of an organisation's log is read in the order of the index, however long the log. The policy that
-- this replaces said the same with `or` and a subquery. PostgreSQL took its comparison of `org_id` and that of
-- the query for independent, guessed a fraction of the rows there are, and sorted the whole log for one page;
-- and it planned the subquery over all months once for each month.

-- Whether work across organisations, of which an entry tells, changed something of the current one.
create function roster.changed_in_org(entry uuid, create_time timestamptz) returns boolean
  language plpgsql stable set search_path = ''
  as $$
begin
  return exists (
    select from roster.audit_changes c
    where c.create_time = changed_in_org.create_time and c.entry_id = changed_in_org.entry
      and c.org_id = roster.current_org());
end
$$;
grant execute on function roster.changed_in_org(uuid, timestamptz) to roster_app;

alter policy audit_entries_guard on roster.audit_entries
  using (case
    when org_id is null then roster.changed_in_org(id, create_time)
    else org_id = (select roster.current_org())
  end);
