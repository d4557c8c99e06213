-- What operators do is recorded with the reason they give, also when they only read: then `enter` writes the entry
-- as for a mutation, and the statement that enters makes the transaction read-only behind it.

alter table roster.audit_entries add column operator_reason text not null default '';

-- Writes the entry of a call and puts it in force for the audit triggers. The reason of an operator is what the
-- statement that enters has set.
create or replace function roster.write_entry(
  org uuid, entry uuid, actor uuid, subject text, on_behalf_of text[], method text, correlation_id text
) returns void
  language plpgsql volatile set search_path = ''
  as $$
declare
  s text;
begin
  s := set_config('roster.entry_id', entry::text, true)
    || set_config('roster.subject', subject, true)
    || set_config('roster.method', method, true)
    || set_config('roster.correlation_id', correlation_id, true);
  insert into roster.audit_entries (id, org_id, subject, kind, on_behalf_of, method, correlation_id, operator_reason)
  values (entry, org, subject, case when actor is null then 'SERVICE' else 'USER' end, on_behalf_of,
    method, correlation_id, coalesce(current_setting('roster.operator_reason', true), ''));
end
$$;
