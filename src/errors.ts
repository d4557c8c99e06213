/**
 * The vocabulary of failure: each reason with its code and its message, and the one place where an error of
 * the database, of validation or of ours becomes what a caller sees.
 */
import { create, type DescMessage, type MessageInitShape } from "@bufbuild/protobuf";
import { anyPack } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { DeadlinePassed, Overloaded } from "./database/pool.ts";
import { Overtaken } from "./database/sql.ts";
import type { DatabaseError } from "./database/unit-of-work.ts";
import { HistoryChanged, TooManyWatchers } from "./database/watchers.ts";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  PreconditionFailureSchema,
  QuotaFailureSchema,
  ResourceInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.ts";
import { type Status, StatusSchema } from "./gen/google/rpc/status_pb.ts";
import type { ErrorReason } from "./gen/roster/v1/error_pb.ts";

export type Reason = Exclude<keyof typeof ErrorReason, "UNSPECIFIED">;

/** Values of the message's variables. `field` is the path of the request field at fault. */
export type Metadata = Readonly<Record<string, string>>;

interface Rule {
  readonly code: Code;
  readonly message: (m: Metadata) => string;
  /** For NOT_FOUND: what kind of resource, and which metadata key holds the id that was asked. */
  readonly resource?: readonly [type: string, key: string];
  /** When to try again, where that is not at once. */
  readonly retrySeconds?: bigint;
}

const unauthenticated = (text: string): Rule => ({
  code: Code.Unauthenticated,
  message: () => text,
});
const denied = (message: (m: Metadata) => string): Rule => ({
  code: Code.PermissionDenied,
  message,
});
const invalid = (message: (m: Metadata) => string): Rule => ({
  code: Code.InvalidArgument,
  message,
});
const absent = (type: string, key: string): Rule => ({
  code: Code.NotFound,
  message: (m) => `there is no ${type} ${m[key] ?? `with this ${m.field}`}`,
  resource: [type, key],
});
/** A fault in a text of the request, with its place and, where they can be listed, the right words. */
const misread = invalid(({ field, position, token, rule, allowed }) => {
  const place = `${field}: at character ${position}${token ? `, ${token}` : ""}`;
  return `${place}: ${rule}${allowed ? `; there is ${allowed}` : ""}`;
});
const taken = (text: string): Rule => ({ code: Code.AlreadyExists, message: () => text });
const unmet = (message: (m: Metadata) => string): Rule => ({
  code: Code.FailedPrecondition,
  message,
});

const rules: Readonly<Record<Reason, Rule>> = {
  CREDENTIAL_MISSING: unauthenticated("send metadata `authorization: Bearer TOKEN`"),
  CERTIFICATE_INVALID: unauthenticated("the client certificate must have exactly one SPIFFE URI"),
  CERTIFICATE_UNKNOWN: unauthenticated(
    "the client certificate is not one that may call this server",
  ),
  CREDENTIAL_INVALID: unauthenticated("the credential is not one that this server accepts"),
  CREDENTIAL_EXPIRED: unauthenticated("the credential has expired; get a new one"),
  PERMISSION_MISSING: denied(
    (m) => `this needs the permission ${m.permission}${m.where ? ` ${m.where}` : ""}`,
  ),
  ORG_NOT_ALLOWED: denied(
    () =>
      "no such org for you: it is absent, you are no active member of it, or your token is pinned to another",
  ),
  CALLER_INACTIVE: denied(() => "the calling user is unknown, deleted or suspended"),
  ROLE_NOT_GRANTABLE: denied((m) => `the role ${m.role} holds more than you do`),
  ORG_REQUIRED: invalid(() => "name an org, in the request or as metadata `roster-org-id`"),
  ORG_MALFORMED: invalid(() => "metadata `roster-org-id` must be one UUID, sent once"),
  ORG_MISMATCH: invalid(() => "the request and metadata `roster-org-id` name different orgs"),
  FIELD_INVALID: invalid((m) => `${m.field}: ${m.rule}`),
  FIELD_REQUIRED: invalid((m) => `${m.field}: must be set`),
  UPDATE_MASK_INVALID: invalid((m) => `update_mask: ${m.path} is not a field that can be updated`),
  PAGE_TOKEN_INVALID: invalid(
    () => "page_token: not valid for this request; start with the first page",
  ),
  CONSISTENCY_TOKEN_INVALID: invalid(
    (m) =>
      `metadata \`${m.field}\` must be a token as a response of this service brought it, sent once`,
  ),
  EXPORT_POSITION_INVALID: invalid(
    () => "position: not one that an export of this log sent; start with an empty one",
  ),
  EXPORT_POSITION_OUT_OF_RANGE: {
    code: Code.OutOfRange,
    message: () =>
      "retention has removed entries behind this position; start with an empty one to get what is left",
  },
  OPERATOR_REASON_REQUIRED: invalid((m) => `say why you call, in metadata \`${m.key}\``),
  OPERATOR_REASON_INVALID: invalid(
    (m) => `metadata \`${m.key}\` must be at most 200 characters of printable ASCII`,
  ),
  FILTER_INVALID: misread,
  ORDER_BY_INVALID: misread,
  VALUE_TOO_LARGE: invalid((m) => `${m.field}: ${m.rule}`),
  ANSWER_TOO_LARGE: invalid(
    (m) => `${m.field}: the answer would exceed ${m.limit}; ask for fewer at once`,
  ),
  REQUEST_ID_REUSED: invalid(
    (m) => `${m.field}: was used for another request; make a new id for each new request`,
  ),
  ETAG_MALFORMED: invalid(
    (m) => `${m.field}: must be an etag as the server sent it, with its quotes`,
  ),
  SLUG_RESERVED: invalid((m) => `${m.field}: this slug is reserved`),
  ROLE_UNKNOWN: invalid((m) => `${m.field}: the org has no such role`),
  USER_NOT_FOUND: absent("user", "user_id"),
  ORG_NOT_FOUND: absent("org", "org_id"),
  ORG_MEMBER_NOT_FOUND: absent("org member", "user_id"),
  PROFILE_NOT_FOUND: absent("profile of user", "user_id"),
  TEAM_NOT_FOUND: absent("team", "team_id"),
  TEAM_MEMBER_NOT_FOUND: absent("team member", "user_id"),
  AUDIT_ENTRY_NOT_FOUND: absent("audit entry", "audit_entry_id"),
  INVITATION_NOT_FOUND: absent("invitation", "invitation_id"),
  ROLE_NOT_FOUND: absent("role", "role"),
  EMAIL_TAKEN: taken("a user with this email exists"),
  USER_EXTERNAL_ID_TAKEN: taken("a user with this external_id exists"),
  SLUG_TAKEN: taken("this slug is taken"),
  ORG_EXTERNAL_ID_TAKEN: taken("an org with this external_id exists"),
  TEAM_NAME_TAKEN: taken("a team with this name exists under the same parent"),
  ORG_MEMBER_EXISTS: taken("the user is a member of the org"),
  TEAM_MEMBER_EXISTS: taken("the user is a member of the team"),
  INVITATION_EXISTS: taken("the org has a pending invitation to this address"),
  ROLE_NAME_TAKEN: taken("a role with this name exists"),
  ETAG_STALE: {
    code: Code.Aborted,
    message: (m) => `the resource changed; its etag is now ${m.etag}`,
  },
  CONFLICT_RETRY: {
    code: Code.Aborted,
    message: () => "lost against concurrent changes; try again",
  },
  RETRY_WITHOUT_REQUEST_ID: {
    code: Code.Aborted,
    message: () =>
      "an earlier try may have taken effect; see whether it did, and send a request_id with mutations",
  },
  LAST_OWNER: unmet((m) => `no active owner would be left in org ${m.org_ids}`),
  ORG_HAS_CHILDREN: unmet(
    () => "the org has teams, or members beside its owners; delete with force",
  ),
  TEAM_HAS_CHILDREN: unmet(() => "the team has sub-teams; delete with force"),
  TEAM_PARENT_DELETED: unmet((m) => `the team lies under the deleted team ${m.team_id}`),
  ORG_MEMBER_NOT_OWNER: unmet(() => "this member is no active owner of the org"),
  ROLE_IN_USE: unmet((m) => `a member has the role ${m.role}; give them another one first`),
  ROLE_BUILT_IN: unmet((m) => `the role ${m.role} is built in and stays as it is`),
  NOT_DELETED: taken("this is not deleted"),
  STILL_LIVE: unmet(
    (m) => `the ${m.user_id ? "user" : "org"} is live; delete first what is to be purged`,
  ),
  ANSWER_ERASED: unmet(
    () => "this was done before, and its answer told of a person who was erased since",
  ),
  ORG_SUSPENDED: unmet(() => "the org is suspended"),
  TEAM_CYCLE: unmet(() => "a team cannot lie under itself or a team below it"),
  TEAM_TOO_DEEP: unmet((m) => `teams nest at most ${m.depth} deep`),
  OWNER_INACTIVE: unmet(() => "an owner must be an active user with an active membership"),
  INVITATION_EXPIRED: unmet(() => "the invitation has expired"),
  INVITATION_REVOKED: unmet(() => "the invitation was revoked"),
  INVITATION_DECLINED: unmet(() => "the invitation was declined"),
  INVITATION_ACCEPTED: unmet(() => "the invitation was accepted"),
  ORG_LIMIT_REACHED: {
    code: Code.ResourceExhausted,
    message: (m) => `the org's limit is reached: ${m.limit} at most ${m.value}`,
  },
  DATABASE_UNAVAILABLE: { code: Code.Unavailable, message: () => "the database cannot be reached" },
  OVERLOADED: { code: Code.Unavailable, message: () => "too much to do at the moment; try again" },
  POSITION_INVALID: invalid(
    (m) => `${m.field}: not one that was made here for the feed of this org`,
  ),
  POSITION_OUT_OF_RANGE: {
    code: Code.OutOfRange,
    message: () => "the changes behind this position are gone; take a snapshot again",
  },
  WATCH_TOO_SLOW: {
    code: Code.ResourceExhausted,
    message: () => "changes are made faster than they are read; go on from the position",
  },
  WATCHERS_LIMIT_REACHED: {
    code: Code.ResourceExhausted,
    message: (m) =>
      m.where === "org"
        ? `this org has ${m.value} watchers on this server, as many as may be`
        : `this server has ${m.value} watchers, as many as may be`,
    retrySeconds: 5n,
  },
  STREAM_ENDED: {
    code: Code.Unavailable,
    message: () => "the server stops, or the stream is as old as one may be; open it again",
  },
  DEADLINE_EXCEEDED: { code: Code.DeadlineExceeded, message: () => "the deadline passed" },
  CANCELLED: { code: Code.Canceled, message: () => "the caller hung up" },
  INTERNAL: { code: Code.Internal, message: (m) => `internal error, incident ${m.incident_id}` },
};

/** One field at fault. */
export interface Violation {
  readonly field: string;
  readonly rule: string;
}

// Details travel in headers, of which many clients take no more than 8 KiB before they drop the connection.
// So what a request says at length is cut, of its many faults the first are told, and of ids twenty.
const requestLength = 128;
const idsLength = 20 * 37;
const maximumViolations = 16;
const cut = (text: string, most: number): string =>
  text.length > most ? `${text.slice(0, most).toWellFormed()}…` : text;

/**
 * Makes the error for a reason: canonical code, message, and google.rpc details of which ErrorInfo is always
 * the first.
 *
 * @param variables values of the message's variables, sent in ErrorInfo
 * @param violations the fields at fault; without them `variables.field` is taken for the one
 */
export const fail = (
  reason: Reason,
  variables: Metadata = {},
  violations: readonly Violation[] = variables.field
    ? [{ field: variables.field, rule: variables.rule ?? "" }]
    : [],
): ConnectError => {
  const { code, message, resource, retrySeconds } = rules[reason];
  const most = code === Code.InvalidArgument ? requestLength : idsLength;
  const metadata: Metadata = Object.fromEntries(
    // What may stand in a filter's place is ours to say, and is said whole.
    Object.entries(variables).map(([name, value]) => [
      name,
      cut(value, name === "allowed" ? idsLength : most),
    ]),
  );
  const text = message(metadata);
  const error = new ConnectError(text, code);
  const add = <Desc extends DescMessage>(desc: Desc, value: MessageInitShape<Desc>): void => {
    error.details.push({ desc, value } as ConnectError["details"][number]);
  };
  add(ErrorInfoSchema, { reason, domain: "roster", metadata });
  if (code === Code.InvalidArgument && violations.length > 0) {
    const fieldViolations = violations.slice(0, maximumViolations).map(({ field, rule }) => ({
      field: cut(field, requestLength),
      description: rule || text,
      reason,
    }));
    add(BadRequestSchema, { fieldViolations });
  }
  if (code === Code.FailedPrecondition) {
    const subject =
      metadata.org_ids ??
      metadata.org_id ??
      metadata.team_id ??
      metadata.user_id ??
      metadata.invitation_id ??
      "";
    add(PreconditionFailureSchema, { violations: [{ type: reason, subject, description: text }] });
  }
  if (code === Code.ResourceExhausted && metadata.org_id !== undefined)
    add(QuotaFailureSchema, {
      violations: [{ subject: `org:${metadata.org_id}`, description: text }],
    });
  if (resource) {
    const [type, key] = resource;
    add(ResourceInfoSchema, {
      resourceType: type,
      resourceName: metadata[key] ?? "",
      description: text,
    });
  }
  if (code === Code.Unavailable)
    add(RetryInfoSchema, { retryDelay: { seconds: 0n, nanos: 200_000_000 } });
  if (retrySeconds !== undefined) add(RetryInfoSchema, { retryDelay: { seconds: retrySeconds } });
  return error;
};

/** An error as a message. */
const toStatus = ({ code, rawMessage, details }: ConnectError): Status =>
  create(StatusSchema, {
    code,
    message: rawMessage,
    details: details.flatMap((detail) =>
      "desc" in detail ? [anyPack(detail.desc, create(detail.desc, detail.value))] : [],
    ),
  });

/** What a result of one of many things says when that one failed. */
export const refused = (reason: Reason, metadata: Metadata) => ({
  case: "error" as const,
  value: toStatus(fail(reason, metadata)),
});

/** The reason of an error of ours, or undefined for a foreign one. */
export const reasonOf = (error: ConnectError): Reason | undefined => {
  const [info] = error.details as { desc?: DescMessage; value?: { reason?: string } }[];
  return info?.desc === ErrorInfoSchema ? (info.value?.reason as Reason) : undefined;
};

/**
 * What a violated constraint says to a caller. Null: no request can cause it while the code is right, so it
 * is an internal error. The schema test demands a row here for each constraint of the database.
 */
export const constraints: Readonly<Record<string, readonly [Reason, Metadata] | null>> = {
  users_email_key_key: ["EMAIL_TAKEN", { field: "user.email" }],
  users_external_id_key: ["USER_EXTERNAL_ID_TAKEN", { field: "user.external_id" }],
  users_pkey: null,
  users_state_check: null,
  users_labels_check: null,
  users_delete_time_check: null,
  profiles_pkey: null,
  profiles_user_id_fkey: null,
  profiles_org_id_user_id_fkey: null,
  profiles_settings_check: [
    "VALUE_TOO_LARGE",
    { field: "profile.settings", rule: "must be at most 64 KiB" },
  ],
  profiles_user_id_org_id_key: ["CONFLICT_RETRY", {}],
  orgs_external_id_key: ["ORG_EXTERNAL_ID_TAKEN", { field: "org.external_id" }],
  orgs_pkey: null,
  orgs_state_check: null,
  orgs_labels_check: null,
  orgs_delete_time_check: null,
  org_slugs_pkey: null,
  org_slugs_org_id_fkey: null,
  roles_pkey: ["ROLE_NAME_TAKEN", { field: "role.name" }],
  roles_name_check: ["ROLE_NAME_TAKEN", { field: "role.name" }],
  roles_permissions_check: null,
  roles_org_id_fkey: null,
  org_members_pkey: ["ORG_MEMBER_EXISTS", { field: "user_id" }],
  org_members_org_id_fkey: null,
  org_members_user_id_fkey: null,
  org_members_state_check: null,
  org_members_org_id_custom_role_fkey: ["ROLE_UNKNOWN", { field: "role" }],
  org_members_owner_expire_time_check: [
    "FIELD_INVALID",
    { field: "expire_time", rule: "owners take no expire_time" },
  ],
  org_member_keys_pkey: null,
  org_member_keys_org_id_user_id_fkey: null,
  org_limits_pkey: null,
  org_limits_org_id_fkey: null,
  org_limits_team_depth_check: null,
  org_counts_pkey: null,
  org_counts_org_id_fkey: null,
  teams_pkey: null,
  teams_org_id_fkey: null,
  teams_org_id_parent_team_id_fkey: null,
  teams_visibility_check: null,
  teams_labels_check: null,
  teams_delete_time_check: null,
  teams_org_id_parent_team_id_name_key_key: ["TEAM_NAME_TAKEN", { field: "team.name" }],
  team_members_pkey: ["TEAM_MEMBER_EXISTS", { field: "user_id" }],
  team_members_role_check: null,
  team_members_org_id_team_id_fkey: null,
  team_members_org_id_user_id_fkey: ["ORG_MEMBER_NOT_FOUND", {}],
  invitations_pkey: null,
  invitations_org_id_fkey: null,
  invitations_org_id_custom_role_fkey: ["ROLE_UNKNOWN", { field: "role" }],
  invitations_org_id_email_key_key: ["INVITATION_EXISTS", {}],
  invitations_state_check: null,
  invitations_resolve_time_check: null,
  idempotency_keys_pkey: null,
  audit_entries_pkey: null,
  audit_entries_kind_check: null,
  audit_entries_outcome_check: null,
  audit_changes_pkey: null,
  audit_seals_pkey: null,
  audit_removals_pkey: null,
  audit_changes_kind_check: null,
  audit_feed_pkey: null,
};

/** Rethrows a database error with its field as this request calls it: several requests meet the same constraint. */
export const fieldCalled =
  (nameOf: (field: string) => string) =>
  (error: DatabaseError): never => {
    const [reason, metadata] = raisedBy(error) ?? constraints[error.constraint ?? ""] ?? [];
    if (!reason || !metadata?.field) throw error;
    throw fail(reason, { ...metadata, field: nameOf(metadata.field) });
  };

/** The same for a field inside a resource: an add has it in the request itself, an update in the resource. */
export const fieldInside = (resource: string) => fieldCalled((field) => `${resource}.${field}`);

/** Rethrows what the database says of a delete while other rows refer to what is to go. */
export const whileReferredTo =
  (reason: Reason, metadata: Metadata) =>
  (error: DatabaseError): never => {
    throw error.code === "23503" ? fail(reason, metadata) : error;
  };

/** Rethrows refusals of the database for which a new look at what there is may find another way. */
export const askedAnew =
  (...reasons: readonly Reason[]) =>
  (error: DatabaseError): never => {
    const [reason] = raisedBy(error) ?? [];
    throw reason !== undefined && reasons.includes(reason) ? new Overtaken(reason) : error;
  };

/** What our own functions raise: the reason is the message, its metadata the detail. */
const raisedBy = ({ code, message, detail }: DatabaseError): [Reason, Metadata] | undefined =>
  code === "RS001" ? [message as Reason, JSON.parse(detail ?? "{}") as Metadata] : undefined;

/** What a database error says to a caller; null when it is a fault of ours. */
const ofDatabase = (error: DatabaseError): ConnectError | null => {
  const { code, constraint } = error;
  const raised = raisedBy(error);
  if (raised) return fail(...raised);
  if (constraint !== undefined && code?.startsWith("23")) {
    const known = constraints[constraint];
    return known ? fail(...known) : null;
  }
  switch (code) {
    // The claim that goes ahead of every statement raises it, hence with no field of theirs.
    case "RS003":
      return fail("REQUEST_ID_REUSED", { field: "request_id" });
    case "40001":
    case "40P01":
      return fail("CONFLICT_RETRY");
    case "57014":
      return fail("DEADLINE_EXCEEDED");
    case "22021":
    case "22P05":
      return fail("FIELD_INVALID", {
        field: "request",
        rule: "text must not contain NUL characters",
      });
    // A row for which no partition exists carries no constraint name.
    case "23514":
      return fail("DATABASE_UNAVAILABLE");
  }
  // Connection lost or refused, too many connections, shutting down, read-only after a failover.
  const away =
    // Slonik's errors all have the name of Error.
    error.constructor.name === "ConnectionError" ||
    /^(08|25006|28|53|57P|ECONN|EPIPE|ETIMEDOUT|ENOTFOUND|EHOSTUNREACH)/.test(code ?? "") ||
    /terminated|timeout exceeded when trying to connect|not queryable|client is (pending )?destroy/i.test(
      error.message,
    );
  return away ? fail("DATABASE_UNAVAILABLE") : null;
};

/** The error that a caller sees; null for what nobody foresaw, which the corridor logs and hides. */
export const failureOf = (error: unknown): ConnectError | null => {
  if (error instanceof ConnectError) return error;
  if (error instanceof Overloaded) return fail("OVERLOADED");
  if (error instanceof DeadlinePassed) return fail("DEADLINE_EXCEEDED");
  if (error instanceof HistoryChanged) return fail("POSITION_OUT_OF_RANGE");
  if (error instanceof TooManyWatchers)
    return fail("WATCHERS_LIMIT_REACHED", { where: error.where, value: `${error.most}` });
  return error instanceof Error ? ofDatabase(error) : null;
};
