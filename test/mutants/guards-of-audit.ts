/** What operators leave behind, what an org's auditors see, and how much of refusals is kept. */
import { type Guard, inSource, sql } from "./guard.ts";

const inAudit = inSource("src/interceptors/audit.ts");
const inDenials = inSource("src/interceptors/denials.ts");
const inExports = inSource("src/services/audit-exports.ts");

export const audit: readonly Guard[] = [
  inSource("src/interceptors/unit-of-work.ts")(
    "operators' reads are on record",
    "isOperators(caller, access) ? recording : undefined",
    "undefined",
    "operator-reads",
    "of an org is in its log",
  ),
  inSource("src/interceptors/unit-of-work.ts")(
    "no read changes anything, an operator's neither",
    ", set_config('transaction_read_only', 'on', true)",
    "",
    "operator-reads",
    "can change nothing",
  ),
  inAudit(
    "operators say why where they must",
    'reason === "" && demand === "required"',
    "false",
    "operator-reads",
    "names the metadata",
  ),
  inAudit(
    "what they say is no more than an entry holds",
    'reason !== "" && !sound.test(reason)',
    "false",
    "operator-reads",
    "too long",
  ),
  inAudit(
    "who is no operator gives no reason",
    "platform && own === undefined &&",
    "",
    "operator-reads",
    "nothing that members and services do",
  ),
  sql(
    "an org's auditors see the changes of their org",
    "alter policy audit_changes_guard on roster.audit_changes using (true)",
    "audit-exports",
    "of an org has nothing of others",
  ),
  sql(
    "work across orgs is told to those that it changed",
    "alter policy audit_entries_guard on roster.audit_entries using (true)",
    "audit-exports",
    "shows an org its own changes",
  ),
  inExports(
    "a position is its org's",
    `\\n\${orgId ?? ""}`,
    "",
    "audit-exports",
    "for a position that was made up",
  ),
  inExports(
    "no entry is overtaken for ever",
    "place?.[2]\n    ?",
    "false && place\n    ?",
    "audit-exports",
    "misses no call that took so long",
  ),
  inDenials(
    "who is refused all the time fills no log",
    "if (passedOver === undefined) return;",
    "",
    "denials",
    "is on record ten times",
  ),
  inDenials(
    "no more callers are remembered than there is room for",
    "this.callers.size > mostCallers",
    "false",
    "denials",
    "remembers ten thousand",
  ),
];
