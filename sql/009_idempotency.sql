-- Requests that callers may send again: what each was answered, for a day. A key belongs to one caller, one RPC
-- and one organisation, so that nobody meets another's. Only the functions below touch the table; they are
-- called in a transaction that `enter` or `enter_directory` opened.

create table roster.idempotency_keys (
  -- The selected organisation, or zero for a call outside any. No reference: a key outlives what it made.
  org_id uuid not null,
  subject text not null,
  method text not null,
  request_id uuid not null,
  request_hash bytea not null,
  -- The response message. Null only inside the transaction that claimed the key.
  response bytea,
  expire_time timestamptz not null default now() + interval '24 hours',
  constraint idempotency_keys_pkey primary key (org_id, subject, method, request_id)
);

create index idempotency_keys_expire_time_idx on roster.idempotency_keys (expire_time);

call roster.protect('roster.idempotency_keys');
-- The gate claims keys, fills them, and reads them for a replay.
create policy idempotency_keys_gate on roster.idempotency_keys to roster_gate using (true) with check (true);

grant select, insert, update, delete on roster.idempotency_keys to roster_gate;

-- The organisation under which the current call keeps its keys: the one it entered, or zero for a call outside
-- any, also where that makes an organisation, whose id is another at each try. Told by who logged in, so that
-- roster_app reaches no key but those of its current organisation.
create function roster.request_org() returns uuid
  language sql stable set search_path = ''
  return case when pg_has_role(session_user, 'roster_directory', 'member')
    then '00000000-0000-0000-0000-000000000000' else roster.current_org() end;

-- Claims a key before anything else is written: whoever comes second waits here until the first has committed or
-- given up. Raises REPLAY (RS002) when the request was answered before, REQUEST_ID_REUSED (RS003) when that was
-- another request.
create function roster.claim_request(subject text, method text, request uuid, hash bytea)
  returns void
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  org constant uuid := roster.request_org();
  before bytea;
begin
  insert into roster.idempotency_keys as k (org_id, subject, method, request_id, request_hash)
  values (org, claim_request.subject, claim_request.method, request, hash)
  on conflict on constraint idempotency_keys_pkey do update
    set request_hash = excluded.request_hash, response = null, expire_time = excluded.expire_time
    where k.expire_time <= now();
  if found then
    return;
  end if;
  select k.request_hash into before from roster.idempotency_keys k
  where k.org_id = org and k.subject = claim_request.subject and k.method = claim_request.method
    and k.request_id = request;
  if not found then
    -- It expired and was removed between the two statements.
    raise exception 'the key went meanwhile' using errcode = 'serialization_failure';
  elsif before <> hash then
    raise exception 'REQUEST_ID_REUSED' using errcode = 'RS003';
  end if;
  raise exception 'REPLAY' using errcode = 'RS002';
end
$$;

-- Keeps the response under the key that this transaction claimed.
create function roster.store_response(subject text, method text, request uuid, response bytea)
  returns void
  language plpgsql volatile security definer set search_path = ''
  as $$
begin
  update roster.idempotency_keys k set response = store_response.response
  where k.org_id = roster.request_org() and k.subject = store_response.subject
    and k.method = store_response.method and k.request_id = request and k.response is null;
  if not found then
    raise exception 'no key was claimed for this response';
  end if;
end
$$;

-- What a request was answered; null when it was not, or the answer has expired.
create function roster.stored_response(subject text, method text, request uuid, hash bytea)
  returns bytea
  language sql stable security definer set search_path = ''
  return (
    select k.response from roster.idempotency_keys k
    where k.org_id = roster.request_org() and k.subject = stored_response.subject
      and k.method = stored_response.method and k.request_id = request and k.request_hash = hash
      and k.expire_time > now());

-- Removes some expired keys and says how many; zero when none are left. Several processes may do so at once.
create function roster.remove_expired_keys(most int) returns int
  language plpgsql volatile security definer set search_path = ''
  as $$
declare
  removed int;
begin
  delete from roster.idempotency_keys k using (
    select org_id, subject, method, request_id from roster.idempotency_keys
    where expire_time <= now()
    order by expire_time limit most
    for update skip locked) expired
  where (k.org_id, k.subject, k.method, k.request_id)
    = (expired.org_id, expired.subject, expired.method, expired.request_id);
  get diagnostics removed = row_count;
  return removed;
end
$$;

grant create on schema roster to roster_gate;
alter function roster.claim_request(text, text, uuid, bytea) owner to roster_gate;
alter function roster.store_response(text, text, uuid, bytea) owner to roster_gate;
alter function roster.stored_response(text, text, uuid, bytea) owner to roster_gate;
alter function roster.remove_expired_keys(int) owner to roster_gate;
revoke create on schema roster from roster_gate;

grant execute on function roster.request_org() to roster_gate;
grant execute on function
  roster.claim_request(text, text, uuid, bytea),
  roster.store_response(text, text, uuid, bytea),
  roster.stored_response(text, text, uuid, bytea)
  to roster_app, roster_directory;
grant execute on function roster.remove_expired_keys(int) to roster_worker;
