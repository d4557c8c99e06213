-- What lists are searched and ordered by. A name is compared like an address: one spelling, no case, in "C"
-- order, stored, so that a beginning of it is a range of an index under row-level security too. Behind each
-- key stands the id, which settles what the key leaves.

alter table roster.users add column name_key text collate "C" not null
  generated always as (lower(normalize(name, nfc))) stored;
create index users_name_key_idx on roster.users (name_key, id);
create index users_email_key_idx on roster.users (email_key, id);

alter table roster.orgs add column name_key text collate "C" not null
  generated always as (lower(normalize(name, nfc))) stored;
create index orgs_name_key_idx on roster.orgs (name_key, id);
create index orgs_slug_idx on roster.orgs ((slug collate "C"), id);

create index teams_name_key_idx on roster.teams (org_id, name_key, id);
create index org_members_join_time_idx on roster.org_members (org_id, join_time, user_id);

-- The keys of each member's user once more, by organisation: those of all users would lead a search in an
-- organisation through everyone else. Triggers alone write here.
create table roster.org_member_keys (
  org_id uuid not null,
  user_id uuid not null,
  name_key text collate "C" not null,
  email_key text collate "C" not null,
  constraint org_member_keys_pkey primary key (org_id, user_id),
  constraint org_member_keys_org_id_user_id_fkey foreign key (org_id, user_id)
    references roster.org_members on delete cascade
);

create index org_member_keys_name_key_idx on roster.org_member_keys (org_id, name_key, user_id);
create index org_member_keys_email_key_idx on roster.org_member_keys (org_id, email_key, user_id);

call roster.protect_org_table('roster.org_member_keys');
-- The gate keeps the keys, whichever organisation or none is entered.
create policy org_member_keys_gate on roster.org_member_keys to roster_gate using (true) with check (true);

grant select on roster.org_member_keys to roster_app;
grant select, insert, update (name_key, email_key) on roster.org_member_keys to roster_gate;

insert into roster.org_member_keys (org_id, user_id, name_key, email_key)
select m.org_id, m.user_id, u.name_key, u.email_key
from roster.org_members m join roster.users u on u.id = m.user_id;

-- A new member's user is held until the end by the guard, so the keys read here stay. The limit makes each
-- member one probe, however many the statement that was planned first had.
create function roster.add_org_member_keys() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  insert into roster.org_member_keys (org_id, user_id, name_key, email_key)
  select m.org_id, m.user_id, u.name_key, u.email_key
  from new_rows m
  cross join lateral (select * from roster.users where id = m.user_id limit 1) u;
  return null;
end
$$;

create trigger org_members_keys after insert on roster.org_members
  referencing new table as new_rows
  for each statement execute function roster.add_org_member_keys();

create function roster.change_org_member_keys() returns trigger
  language plpgsql security definer set search_path = ''
  as $$
begin
  update roster.org_member_keys k set name_key = new.name_key, email_key = new.email_key
  from roster.org_members m
  where m.user_id = new.id and k.org_id = m.org_id and k.user_id = m.user_id;
  return null;
end
$$;

create trigger users_keys after update on roster.users
  for each row when (old.name_key <> new.name_key or old.email_key <> new.email_key)
  execute function roster.change_org_member_keys();

grant create on schema roster to roster_gate;
alter function roster.add_org_member_keys() owner to roster_gate;
alter function roster.change_org_member_keys() owner to roster_gate;
revoke create on schema roster from roster_gate;
