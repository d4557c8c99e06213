/** Requests that come again, go on or come too late, and the end of things. */
import { type Guard, inRoutine, inSource } from "./guard.ts";

const inPage = inSource("src/database/page.ts");
const inDeadline = inSource("src/interceptors/deadline.ts");
const inUnitOfWork = inSource("src/interceptors/unit-of-work.ts");
const inPurge = inRoutine("purge");

/** Retries, pages, streams, and changes that meet others. */
export const requests: readonly Guard[] = [
  inRoutine("claim_request")(
    "another request",
    "before <> hash",
    "false",
    "idempotency",
    "REQUEST_ID_REUSED",
  ),
  inRoutine("claim_request")(
    "what is not answered yet is waited for",
    "raise exception 'REPLAY' using errcode = 'RS002';",
    "",
    "idempotency",
    "is done once and answered alike",
  ),
  inRoutine("stored_response")(
    "the same caller",
    "and k.subject = stored_response.subject",
    "",
    "idempotency",
    "elsewhere it is as new",
  ),
  inRoutine("request_org")(
    "keys of another org",
    "roster.current_org()",
    "'00000000-0000-0000-0000-000000000000'::uuid",
    "idempotency",
    "elsewhere it is as new",
  ),
  inSource("src/interceptors/idempotency.ts")(
    "no blind retry",
    "request.header.has(retryHeader)",
    "false",
    "retries",
    "without a request_id, which is not done twice",
  ),
  inUnitOfWork(
    "what is only asked is not done",
    "rehearsal: validateOnly === true",
    "rehearsal: false",
    "erasure",
    "says what it would do when it only validates",
  ),
  inUnitOfWork(
    "who may not is not told what is wrong",
    "!entered && failure?.code === Code.InvalidArgument",
    "false",
    "paging",
    "says nothing to who may not list",
  ),
  inSource("src/services/org-members.ts")(
    "a stale etag",
    'versionOf(member.etag, "member.etag")',
    'versionOf("", "member.etag")',
    "org-member-changes",
    "ABORTED with the current etag",
  ),
  inPage(
    "a page token is one caller's",
    "binding.subject, ",
    "",
    "paging",
    "INVALID_ARGUMENT in another RPC",
  ),
  inPage("and one org's", "binding.orgId, ", "", "paging", "INVALID_ARGUMENT in another RPC"),
  inPage("and one RPC's", "binding.method, ", "", "paging", "INVALID_ARGUMENT in another RPC"),
  inPage("and one selection's", ", fingerprint", "", "paging", "INVALID_ARGUMENT in another RPC"),
  inPage(
    "and for a day",
    "expires < Date.now() / 1000",
    "false",
    "paging",
    "once it is older than 24 hours",
  ),
  inDeadline(
    "a stream ends with its credential",
    "clock.expire(callerOf(values).expiresMs - Date.now());",
    "",
    "streams",
    "UNAUTHENTICATED when the credential expires",
  ),
  inDeadline(
    "a stream ends with its age",
    "Math.min(ms, streamMs)",
    "ms",
    "streams",
    "as old as a stream may be",
  ),
  inDeadline(
    "a statement of a stream ends",
    "Math.min(super.remainingMs(), this.statementMs)",
    "super.remainingMs()",
    "streams",
    "one statement takes longer",
  ),
  inSource("src/database/driver.ts")(
    "what nobody waits for is cancelled",
    "deadline?.onOver(() => exchange.abandon())",
    "deadline?.onOver(() => {})",
    "cancel",
    "who hangs up",
  ),
  inSource("src/database/exchange.ts")(
    "a cancel hits nobody else",
    "if (session.held)",
    "if (session.held && false)",
    "cancel",
    "comes late",
  ),
  inSource("src/database/unit-of-work.ts")(
    "who is hit is asked again",
    "error instanceof Unanswered || hit",
    "error instanceof Unanswered",
    "cancel",
    "hit in place of another",
  ),
  inSource("src/services/user-exports.ts")(
    "each page of a stream enters anew",
    "const pageSize = 500",
    "const pageSize = 1_000_000",
    "streams",
    "a statement for each page",
  ),
  inRoutine("lock_org")(
    "teams are held",
    "for no key update",
    "",
    "team-changes",
    "TeamService.CreateTeam beside TeamService.DeleteTeam",
  ),
];

/** What goes, when, and what of it stays. */
export const ends: readonly Guard[] = [
  inRoutine("keep_org_slugs")(
    "quarantine of slugs",
    "s.org_id = excluded.org_id or s.free_time <= now()",
    "true",
    "slugs",
    "a former slug leads on",
  ),
  inRoutine("kept")(
    "what is due counts as gone",
    "(purge_time > now())",
    "true",
    "purge",
    "What is past its purge time",
  ),
  inPurge(
    "one process purges",
    "if not pg_try_advisory_xact_lock(5118620947)",
    "if false",
    "purge",
    "waits while another process is at it",
  ),
  inPurge(
    "an undelete in time",
    "interval '2 minutes'",
    "interval '0'",
    "purge",
    "leaves two minutes to an undelete",
  ),
  inRoutine("purge_user")(
    "what is live stays",
    "elsif found_user.delete_time is null",
    "elsif false",
    "purge",
    "STILL_LIVE for a live user",
  ),
  inRoutine("purge_org")(
    "what is live stays",
    "elsif found_org.delete_time is null",
    "elsif false",
    "purge",
    "STILL_LIVE for a live org",
  ),
];
