-- A former slug leads on to its organisation, and for 90 days no other may take it. Afterwards it still does,
-- until another takes it. What a deleted organisation had is free at once.

-- From when on another organisation may take the slug; null while it is in use.
alter table roster.org_slugs add column free_time timestamptz;

update roster.org_slugs s set free_time = now() + interval '90 days'
from roster.orgs o where o.id = s.org_id and o.slug <> s.slug_key;

insert into roster.org_slugs (slug_key, org_id, free_time)
select freed.slug_key, o.id, o.delete_time
from roster.orgs o cross join unnest(o.freed_slugs) freed (slug_key)
where o.delete_time is not null
on conflict (slug_key) do nothing;
alter table roster.orgs drop column freed_slugs;

-- The gate keeps the slugs as their organisations have them.
create policy org_slugs_gate on roster.org_slugs to roster_gate using (true) with check (true);
grant select, insert, update on roster.org_slugs to roster_gate;
revoke insert, delete on roster.org_slugs from roster_app;
revoke insert on roster.org_slugs from roster_directory;

-- Keeps the slugs of an organisation that is made, renamed, deleted or brought back. One insert decides who has a
-- slug, so of two that want it at the same instant one gets it.
create function roster.keep_org_slugs() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  if new.delete_time is not null then
    update roster.org_slugs s set free_time = now()
    where s.org_id = new.id and (s.free_time is null or s.free_time > now());
    return null;
  end if;
  if tg_op = 'UPDATE' then
    -- An undelete takes back what that delete set free, if nobody took it meanwhile.
    update roster.org_slugs s set free_time = now() + interval '90 days'
    where s.org_id = new.id and (s.free_time is null or s.free_time = old.delete_time);
  end if;
  insert into roster.org_slugs as s (slug_key, org_id) values (new.slug, new.id)
  on conflict (slug_key) do update set org_id = excluded.org_id, free_time = null
    where s.org_id = excluded.org_id or s.free_time <= now();
  if not found then
    raise exception 'SLUG_TAKEN' using errcode = 'RS001', detail = jsonb_build_object('field', 'org.slug')::text;
  end if;
  return null;
end
$$;

create trigger orgs_slugs_insert after insert on roster.orgs
  for each row execute function roster.keep_org_slugs();
create trigger orgs_slugs_update after update on roster.orgs
  for each row when (old.slug <> new.slug or old.delete_time is distinct from new.delete_time)
  execute function roster.keep_org_slugs();

grant create on schema roster to roster_gate;
alter function roster.keep_org_slugs() owner to roster_gate;
revoke create on schema roster from roster_gate;
