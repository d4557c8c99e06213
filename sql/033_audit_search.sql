-- An auditor asks what somebody did and what became of something. Without an index of its own each of these would read
-- on through the org's whole log until a page is full.

create index audit_entries_org_id_subject_idx on roster.audit_entries (org_id, subject, create_time desc, id desc);
create index audit_changes_org_id_resource_id_idx on roster.audit_changes (org_id, resource_id, create_time desc);
