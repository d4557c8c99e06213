-- Outside an organisation: the platform finds every org by its slugs, a user those of which they are a member
-- now. To them the slugs of others do not exist. Claiming a slug there stays the platform's alone.
alter policy org_slugs_directory on roster.org_slugs
  using ((select roster.is_platform()) or (
    select true from roster.org_members m
    where m.org_id = org_slugs.org_id and m.user_id = (select roster.current_actor())
      and m.state = 'ACTIVE' and (m.expire_time is null or m.expire_time > now())));
