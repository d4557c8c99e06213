-- Users belong to the platform, not to an organisation: one person may be a member of many.
create table roster.users (
  id uuid constraint users_pkey primary key,
  email text not null,
  -- What an address is compared by: one spelling, no case. Stored, because a function in a query would
  -- lose its index under row-level security, and in "C" order, so that a prefix is a range.
  email_key text collate "C" not null generated always as (lower(normalize(email, nfc))) stored,
  name text not null,
  state text not null default 'ACTIVE' constraint users_state_check check (state in ('ACTIVE', 'SUSPENDED')),
  external_id text,
  labels jsonb not null default '{}' constraint users_labels_check check (jsonb_typeof(labels) = 'object'),
  version bigint not null default 1,
  create_time timestamptz not null default now(),
  update_time timestamptz not null default now(),
  delete_time timestamptz,
  purge_time timestamptz,
  constraint users_delete_time_check check ((delete_time is null) = (purge_time is null))
);

create unique index users_email_key_key on roster.users (email_key) where delete_time is null;
create unique index users_external_id_key on roster.users (external_id) where delete_time is null;
create index users_purge_time_idx on roster.users (purge_time) where purge_time is not null;

create trigger users_touch before update on roster.users for each row execute function roster.touch();
call roster.audit_table('roster.users', 'user', 'id', '', 'external_id,labels');

call roster.protect('roster.users');
-- Outside an organisation: the platform sees everyone, a user only themselves.
create policy users_directory on roster.users to roster_directory
  using ((select roster.is_platform()) or id = (select roster.current_actor()))
  with check ((select roster.is_platform()) or id = (select roster.current_actor()));
-- The gate judges callers and locks the users it counts as owners; a row lock needs the update policy.
create policy users_gate on roster.users to roster_gate using (true) with check (false);

grant select, insert on roster.users to roster_directory;
grant update (email, name, state, external_id, labels, delete_time, purge_time) on roster.users
  to roster_directory;
grant select on roster.users to roster_app;
grant select, update (version) on roster.users to roster_gate;

-- How a user appears: one default profile without an organisation, and at most one for each organisation.
create table roster.profiles (
  id uuid constraint profiles_pkey primary key,
  user_id uuid not null constraint profiles_user_id_fkey references roster.users on delete cascade,
  org_id uuid,
  avatar text not null default '',
  bio text not null default '',
  settings jsonb not null default '{}'
    -- The service allows 64 KiB of compact JSON, which jsonb shows with a space after each comma and colon.
    constraint profiles_settings_check
    check (jsonb_typeof(settings) = 'object' and octet_length(settings::text) <= 131072),
  version bigint not null default 1,
  create_time timestamptz not null default now(),
  update_time timestamptz not null default now(),
  constraint profiles_user_id_org_id_key unique nulls not distinct (user_id, org_id)
);

create index profiles_org_id_idx on roster.profiles (org_id, user_id) where org_id is not null;

create trigger profiles_touch before update on roster.profiles
  for each row execute function roster.touch();
call roster.audit_table('roster.profiles', 'profile', 'id');

call roster.protect('roster.profiles');
-- Outside an organisation: the platform sees every profile, a user only their own.
create policy profiles_directory on roster.profiles to roster_directory
  using ((select roster.is_platform()) or user_id = (select roster.current_actor()))
  with check ((select roster.is_platform()) or user_id = (select roster.current_actor()));

grant select, insert, update (avatar, bio, settings) on roster.profiles to roster_directory;
grant select, insert, update (avatar, bio, settings) on roster.profiles to roster_app;
