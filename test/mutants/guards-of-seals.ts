/** That the log is only ever added to, and that seals prove it. */
import { type Guard, inRoutine, inSource, sql } from "./guard.ts";

const inDigest = (
  routine: string,
  table: string,
  ...columns: readonly string[]
): readonly Guard[] =>
  columns.map((column) =>
    inRoutine(routine)(
      `the digest covers ${column}`,
      column,
      "null",
      "seals",
      `finds an edit of any column of ${table}`,
    ),
  );

export const seals: readonly Guard[] = [
  ...["audit_entries", "audit_changes", "audit_seals"].flatMap((table) => [
    sql(
      `${table}: rows are kept by a trigger`,
      `drop trigger ${table}_keep on roster.${table}`,
      "append-only",
      "also for the owner",
    ),
    sql(
      `${table}: rows are kept by grants`,
      `grant update, delete on roster.${table} to roster_worker`,
      "append-only",
      "for every other role",
    ),
  ]),
  sql(
    "audit_seals: no truncation",
    "drop trigger audit_seals_keep_all on roster.audit_seals",
    "append-only",
    "also for the owner",
  ),
  ...["audit_entries", "audit_changes"].map((table) =>
    sql(
      `${table}: no truncation`,
      `do $$ begin
         execute format('drop trigger ${table}_%1$s_keep_all on roster.${table}_%1$s',
           to_char(now() at time zone 'UTC', 'YYYY_MM'));
       end $$`,
      "append-only",
      "also for the owner",
    ),
  ),
  inRoutine("keep_log")(
    "an erasure only blanks",
    "if new.before is null and new.after is null and new.salt is null then",
    "if true then",
    "append-only",
    "may only blank",
  ),
  sql(
    "retention removes what is over and nothing else",
    "alter policy audit_entries_gate_remove on roster.audit_entries using (true)",
    "audit-retention",
    "removes no seal that holds anything younger",
  ),
  inRoutine("attach_partition")(
    "new partitions are not truncated either",
    "call roster.keep_from_truncation(('roster.' || child)::regclass);",
    "",
    "append-only",
    "fails no write",
  ),
  inRoutine("seal_audit")(
    "nothing is sealed that could still get something before it",
    "pg_snapshot_xmin(",
    "pg_snapshot_xmax(",
    "seals",
    "waits for a transaction under way",
  ),
  inRoutine("seal_audit")(
    "each seal is bound to the one before",
    "seal.previous_root := coalesce(last.root, '');",
    "seal.previous_root := '';",
    "seals",
    "in one chain for each org",
  ),
  inRoutine("seal_root")(
    "the root before is part of the root",
    "s.previous_root, ",
    "",
    "seals",
    "finds seals that were edited",
  ),
  inRoutine("check_seals")(
    "the root before is compared",
    "(seal.previous_root, seal.after_xid) is distinct from (last.root, last.until_xid)",
    "false",
    "seals",
    "finds seals that were edited",
  ),
  inRoutine("check_seals")(
    "no seal is skipped",
    "if seal.number <> last.number + 1 then",
    "if false then",
    "seals",
    "finds seals that were edited",
  ),
  inRoutine("check_seals")(
    "what is late is found",
    "a.xid > last.until_xid",
    "false",
    "seals",
    "finds seals that were edited",
  ),
  inRoutine("check_seals")(
    "what is early is found",
    "where a.xid <= case",
    "where false and a.xid <= case",
    "audit-retention",
    "put where it has left nothing",
  ),
  ...inDigest(
    "entry_digest",
    "audit_entries",
    "convert_to(e.subject, 'UTF8')",
    "convert_to(e.kind, 'UTF8')",
    "convert_to(to_jsonb(e.on_behalf_of)::text, 'UTF8')",
    "convert_to(e.method, 'UTF8')",
    "convert_to(e.correlation_id, 'UTF8')",
    "convert_to(e.outcome, 'UTF8')",
    "convert_to(e.reason, 'UTF8')",
    "e.salt",
    "timestamptz_send(e.create_time)",
  ),
  ...inDigest(
    "change_digest",
    "audit_changes",
    "boolsend(c.copied)",
    "boolsend(c.apart)",
    "uuid_send(c.entry_id)",
    "convert_to(c.subject, 'UTF8')",
    "convert_to(c.method, 'UTF8')",
    "convert_to(c.correlation_id, 'UTF8')",
    "convert_to(c.resource_type, 'UTF8')",
    "convert_to(c.resource_id, 'UTF8')",
    "convert_to(c.kind, 'UTF8')",
    "convert_to(to_jsonb(c.changed_fields)::text, 'UTF8')",
    "timestamptz_send(c.create_time)",
    "case when not blank then c.payload_digest end",
  ),
  ...inDigest(
    "payload_digest",
    "audit_changes",
    "uuid_send(person)",
    "convert_to(before::text, 'UTF8')",
    "convert_to(after::text, 'UTF8')",
  ),
  inRoutine("change_digest")(
    "only a blank row speaks of what it was",
    "c.before is null and c.after is null and c.salt is null",
    "c.payload_digest is not null",
    "seals",
    "in place of a blanked one",
  ),
  sql(
    "seals are shown to their org alone",
    "alter policy audit_seals_guard on roster.audit_seals using (true)",
    "verify-audit",
    "nothing of it to those of others",
  ),
  inSource("src/services/audit-proofs.ts")(
    "the log that was asked for is verified",
    "const log = orgId || noOrg;",
    "const log = noOrg;",
    "verify-audit",
    "names the first fault",
  ),
];
