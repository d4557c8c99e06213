-- The slugs that an organisation's delete set free, to be taken back by its undelete.
alter table roster.orgs add column freed_slugs text[] not null default '{}';
grant update (freed_slugs) on roster.orgs to roster_app;
