-- The roles of Roster. An administrator runs this file once per cluster and database, connected to the
-- database that will hold Roster; running it again changes nothing. It sets no passwords: give each of
-- the four LOGIN roles one with `alter role … password`, then run `npm run migrate`.
do $$
declare
  r record;
begin
  for r in
    select * from (values
      -- Owns the schema and every table. Nobody logs in as it.
      ('roster_owner', 'nologin'),
      -- Applies migrations by becoming roster_owner.
      ('roster_migrator', 'login'),
      -- Owns the functions that judge callers. Each reads just what its policies show.
      ('roster_gate', 'nologin'),
      -- Owns the audit trigger, and with it the only way to write an audit change.
      ('roster_audit', 'nologin'),
      -- Every call in which an organisation is selected.
      ('roster_app', 'login'),
      -- Calls outside any organisation.
      ('roster_directory', 'login'),
      -- Background work: purges, seals, partitions.
      ('roster_worker', 'login')
    ) as roles (name, login)
  loop
    if not exists (select from pg_roles where rolname = r.name) then
      -- Two databases of one cluster may be set up at the same instant.
      begin
        execute format('create role %I %s nosuperuser nocreatedb nocreaterole nobypassrls', r.name, r.login);
      exception when duplicate_object or unique_violation then null;
      end;
    end if;
  end loop;
end
$$;

-- The owner hands functions to the gate and to the audit role, which takes membership in both.
do $$
declare
  grants constant text[][] := array[
    ['roster_gate', 'roster_owner'], ['roster_audit', 'roster_owner'], ['roster_owner', 'roster_migrator']];
  i int;
begin
  for i in 1 .. array_length(grants, 1) loop
    if not pg_has_role(grants[i][2], grants[i][1], 'member') then
      execute format('grant %I to %I', grants[i][1], grants[i][2]);
    end if;
  end loop;
end
$$;

create schema if not exists roster authorization roster_owner;
revoke all on schema roster from public;
grant usage on schema roster to roster_gate, roster_audit, roster_app, roster_directory, roster_worker;

-- Functions are executable by everyone unless said otherwise; in this database nothing of ours is.
alter default privileges for role roster_owner revoke execute on functions from public;
