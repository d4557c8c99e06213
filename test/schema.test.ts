import { constraints } from "../src/errors.ts";
import { exactly, ofOrg, query, tables, useLints } from "./catalogue.ts";

const lint = useLints();

/** Unique indexes, foreign keys and checks, under the names that an error reports. */
const rules = `(
  select t.name as table_name, i.relname::text as name,
    case when x.indisprimary then 'pkey' else 'key' end as kind, null::oid as target, null as target_key,
    array(select pg_get_indexdef(x.indexrelid, n, false) from generate_series(1, x.indnkeyatts) n) as columns
  from ${tables} join pg_index x on x.indrelid = t.oid join pg_class i on i.oid = x.indexrelid
  where x.indisunique and not t.partition
  union all
  select t.name, c.conname::text, case c.contype when 'f' then 'fkey' else 'check' end, c.confrelid,
    (select attname from pg_attribute where attrelid = c.confrelid and attnum = c.confkey[1]),
    array(select attname::text from unnest(c.conkey) with ordinality k (number, place)
      join pg_attribute on attrelid = c.conrelid and attnum = number order by place)
  from ${tables} join pg_constraint c on c.conrelid = t.oid
  where c.contype in ('f', 'c', 'x') and not t.partition) r`;

lint(
  "the columns of each foreign key are indexed",
  {
    "drop index roster.org_members_user_id_idx": "org_members_user_id_fkey",
    "drop index roster.org_members_custom_role_idx": "org_members_org_id_custom_role_fkey",
    "drop index roster.team_members_org_id_user_id_idx": "team_members_org_id_user_id_fkey",
  },
  query(`
    select r.name as finding from ${rules}
    where r.kind = 'fkey' and not exists (
      select from pg_index x
      where x.indrelid = ('roster.' || r.table_name)::regclass and x.indisvalid
        and r.columns <@
          array(select pg_get_indexdef(x.indexrelid, n, false) from generate_series(1, cardinality(r.columns)) n)
        and (x.indpred is null or pg_get_expr(x.indpred, x.indrelid) in (
          select format('(%s IS NOT NULL)', c) from unnest(r.columns) c)))`),
);

lint(
  "keys, unique indexes and foreign keys of org tables begin with org_id, but those named here",
  {
    "create unique index teams_id_key on roster.teams (id)": "teams_id_key",
    "alter table roster.team_members add constraint t foreign key (user_id) references roster.users":
      "t",
  },
  exactly(
    [
      // Users and their default profiles belong to the platform, and so does the space of slugs.
      "profiles_pkey",
      "profiles_user_id_org_id_key",
      "profiles_user_id_fkey",
      "org_members_user_id_fkey",
      "org_slugs_pkey",
      // The log is cut by month.
      "audit_changes_pkey",
      "audit_entries_pkey",
    ],
    query(`
      select r.name as finding from ${tables} join ${rules} on r.table_name = t.name
      where ${ofOrg} and r.kind <> 'check' and r.columns[1] <> 'org_id'`),
  ),
);

lint(
  "a foreign key to an org table ties a row to its own org",
  {
    "alter table roster.teams add constraint t foreign key (org_id, id) references roster.profiles (user_id, org_id)":
      "t",
    "alter table roster.teams add constraint t foreign key (parent_team_id) references roster.orgs":
      "t",
  },
  query(`
    select r.name as finding from ${rules} join ${tables} on t.oid = r.target
    where (r.columns[1], r.target_key) is distinct from ('org_id', case t.name when 'orgs' then 'id' else 'org_id' end)
      and (t.name = 'orgs' or ${ofOrg})`),
);

lint(
  "each constraint and unique index is known to the error table, and the other way round",
  {
    "create unique index orgs_name_key on roster.orgs (name)": "orgs_name_key",
    "alter table roster.orgs add constraint orgs_name_check check (name <> '')": "orgs_name_check",
    "alter table roster.orgs drop constraint orgs_state_check": "orgs_state_check",
  },
  exactly(
    Object.keys(constraints),
    query(`select r.name as finding from ${rules} where r.table_name <> 'schema_migrations'`),
  ),
);

lint(
  "constraints are named by table, columns and kind",
  {
    "alter table roster.teams rename constraint teams_pkey to teams_primary": "teams_primary",
    "alter table roster.teams rename constraint teams_org_id_fkey to teams_orgs": "teams_orgs",
    "alter index roster.users_email_key_key rename to users_email": "users_email",
    "alter table roster.users rename constraint users_state_check to users_valid_check":
      "users_valid_check",
  },
  query(`
    select r.name as finding from ${rules}
    where r.name !~ case r.kind
      when 'pkey' then format('^%s_pkey$', r.table_name)
      when 'check' then format('^%s_(.*_)?(%s)_check$', r.table_name, array_to_string(r.columns, '|'))
      else format('^%s_%s_%s$', r.table_name, array_to_string(r.columns, '_'), r.kind) end`),
);

// What a slug's row says, its org's row says too; what a member's keys say, their user's; and counts count rows.
lint(
  "each table is audited, but the log itself, slugs, keys, counts and migrations",
  {
    "drop trigger teams_audit_delete on roster.teams": "DELETE on teams",
    "alter table roster.users disable trigger users_audit_update": "UPDATE on users",
    "create table roster.strays (id int)": "INSERT on strays",
  },
  query(`
    select format('%s on %s', op, t.name) as finding
    from ${tables}, unnest('{INSERT, UPDATE, DELETE}'::text[]) op
    where t.name !~ '^audit_'
      and t.name not in ('org_slugs', 'org_member_keys', 'org_counts', 'idempotency_keys', 'schema_migrations')
      and not exists (
      select from pg_trigger g
      where g.tgrelid = t.oid and g.tgfoid = 'roster.audit()'::regprocedure and g.tgenabled = 'O'
        and pg_get_triggerdef(g.oid) ~ format('AFTER %s ON .* FOR EACH STATEMENT', op))`),
);

const now = new Date();
const inAYear = new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() + 12));
const lastMonth = inAYear.toISOString().slice(0, 7);
const lastPartition = `roster.audit_entries_${lastMonth.replace("-", "_")}`;
lint(
  "the audit log has partitions for this month and the next twelve",
  {
    [`drop table ${lastPartition}`]: `audit_entries of ${lastMonth}`,
    [`alter table roster.audit_entries detach partition ${lastPartition}`]: `audit_entries of ${lastMonth}`,
  },
  query(`
    select format('%s of %s', parent, to_char(month, 'YYYY-MM')) as finding
    from unnest('{audit_entries, audit_changes}'::text[]) parent, generate_series(0, 12) ahead
    cross join lateral (
      select date_trunc('month', now() at time zone 'UTC') + make_interval(months => ahead) as month) m
    where not exists (
      select from pg_inherits i join pg_class c on c.oid = i.inhrelid
      where i.inhparent = ('roster.' || parent)::regclass and pg_get_expr(c.relpartbound, c.oid) = format(
        'FOR VALUES FROM (%L) TO (%L)', month at time zone 'UTC', (month + interval '1 month') at time zone 'UTC'))`),
);
