import { type DescMethod, getOption, isFieldSet, type Message } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import type { Interceptor } from "@connectrpc/connect";
import { type Access, type Caller, callerOf, keys } from "../context.ts";
import { fail } from "../errors.ts";
import { access as accessOption, Scope } from "../gen/roster/v1/access_pb.ts";

type Reader = (message: Message) => unknown;

/** What an access option says, ready to be asked per call. */
interface Rule {
  readonly scope: Scope;
  readonly permission: string;
  readonly allOrgs: boolean;
  readonly deletedOrg: boolean;
  readonly own: boolean;
  readonly mutates: boolean;
  readonly orgPath: string;
  readonly org: Reader | undefined;
  readonly team: Reader | undefined;
  readonly self: Reader | undefined;
  /** True when the call changes nothing beyond what its own user may. */
  readonly withinSelf: (message: Message) => boolean;
}

const uuid = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

const readerOf = (method: DescMethod, path: string): Reader | undefined => {
  if (path === "") return undefined;
  let message = method.input;
  const names = path.split(".").map((name, index, all) => {
    const field = message.fields.find((candidate) => candidate.name === name);
    if (!field) throw new Error(`${method.name}: access names ${path}, which the request lacks`);
    if (index < all.length - 1 && field.message) message = field.message;
    return field.localName;
  });
  return (value) => {
    let at: unknown = value;
    for (const name of names) at = (at as Record<string, unknown> | undefined)?.[name];
    return at;
  };
};

/** Whether an update changes only what its own user may: its mask, or without one the populated fields. */
const maskReader = (
  method: DescMethod,
  selfPath: string,
  selfMask: readonly string[],
): Rule["withinSelf"] => {
  const resource = method.input.fields.find((field) => field.name === selfPath.split(".")[0]);
  const described = resource?.message;
  if (selfMask.length === 0 || !described) return () => true;
  // What names the resource is not a change of it.
  const allowed = new Set([...selfMask, selfPath.split(".")[1], "etag"]);
  return (message) => {
    const request = message as Message & { updateMask?: { paths: string[] } } & Record<
        string,
        Message | undefined
      >;
    const value = request[resource.localName];
    const populated = described.fields.filter((field) => value && isFieldSet(value, field));
    const masked = request.updateMask?.paths ?? [];
    const paths = masked.length > 0 ? masked : populated.map(({ name }) => name);
    return paths.every((path) => allowed.has(path));
  };
};

const rules = new Map<DescMethod, Rule>();

const ruleOf = (method: DescMethod): Rule => {
  let rule = rules.get(method);
  if (!rule) {
    const option = getOption(method, accessOption);
    const { scope, permission, org, team, self, selfMask, allOrgs, deletedOrg, own } = option;
    rule = {
      scope,
      permission,
      allOrgs,
      deletedOrg,
      own,
      mutates: method.idempotency !== Idempotency.NO_SIDE_EFFECTS,
      orgPath: org,
      org: readerOf(method, org),
      team: readerOf(method, team),
      self: readerOf(method, self),
      withinSelf: maskReader(method, self, selfMask),
    };
    rules.set(method, rule);
  }
  return rule;
};

/** The org that body, header and claim select together. */
const selectOrg = (
  rule: Rule,
  message: Message,
  header: string | null,
  caller: Caller,
): string | undefined => {
  const named = String(rule.org?.(message) ?? "").toLowerCase();
  const narrowed = header?.toLowerCase();
  if (narrowed !== undefined && !uuid.test(narrowed)) throw fail("ORG_MALFORMED");
  if (named !== "" && !uuid.test(named)) {
    throw fail("FIELD_INVALID", { field: rule.orgPath, rule: "must be a valid UUID" });
  }
  if (named !== "" && narrowed !== undefined && named !== narrowed) throw fail("ORG_MISMATCH");
  const orgId = named || narrowed || caller.orgId;
  if (orgId !== undefined && caller.orgId !== undefined && orgId !== caller.orgId) {
    throw fail("ORG_NOT_ALLOWED");
  }
  if (caller.orgs !== undefined) {
    // What is outside any org is outside those.
    if (orgId === undefined && rule.scope !== Scope.NONE) throw fail("ORG_REQUIRED");
    if (orgId !== undefined && !caller.orgs.has(orgId)) throw fail("ORG_NOT_ALLOWED");
  }
  return orgId;
};

/**
 * Reads the method's access option: which permission the call needs, in which org, and whether the credential
 * can select that org at all. It decides nothing else; `roster.enter` judges.
 */
export const access = (): Interceptor => (next) => (request) => {
  const { contextValues: values, message: sent, header } = request;
  const rule = ruleOf(request.method);
  const message = sent as Message;
  let caller = callerOf(values);
  const orgId = selectOrg(rule, message, header.get("roster-org-id"), caller);
  if (caller.orgs !== undefined && orgId !== undefined) {
    // From here on as if the credential were pinned to that one.
    caller = { ...caller, orgId, orgs: undefined };
    values.set(keys.caller, caller);
  }
  values.set(keys.access, decide(rule, message, orgId, caller));
  return next(request);
};

const decide = (
  rule: Rule,
  message: Message,
  orgId: string | undefined,
  caller: Caller,
): Access => {
  const subject = rule.self?.(message);
  const self =
    caller.userId !== undefined &&
    typeof subject === "string" &&
    subject.toLowerCase() === caller.userId &&
    rule.withinSelf(message);
  const teamId = String(rule.team?.(message) ?? "").toLowerCase();
  const reach =
    caller.orgId === undefined &&
    (caller.platform ||
      (caller.userId === undefined &&
        rule.permission !== "" &&
        (caller.scope?.includes(rule.permission) ?? false)));
  const outside = (permission: string, more: Partial<Access> = {}): Access => ({
    orgId: undefined,
    permission,
    self,
    teamId: undefined,
    deletedOrg: false,
    reach,
    ...more,
  });
  const inside = (orgId: string, permission: string, more: Partial<Access> = {}): Access => ({
    orgId,
    permission,
    self,
    teamId: uuid.test(teamId) ? teamId : undefined,
    deletedOrg: rule.deletedOrg,
    reach: false,
    ...more,
  });
  switch (rule.scope) {
    case Scope.ORG:
      if (orgId !== undefined) return inside(orgId, rule.permission);
      if (rule.allOrgs && caller.platform) return outside(rule.permission);
      throw fail("ORG_REQUIRED");
    case Scope.USER: {
      // What a mutation changes, its request says alone: a credential's org must not turn a change of the
      // user everywhere into one of the user in that org.
      const where = rule.mutates && rule.org?.(message) === "" ? undefined : orgId;
      return where === undefined
        ? outside(rule.permission)
        : inside(where, rule.permission.replace(/^users\./, "members."));
    }
    case Scope.PLATFORM:
      // Of what is theirs, row-level security shows a user nothing else.
      return outside(rule.permission || "roster.platform", {
        self: self || (rule.own && caller.userId !== undefined),
      });
    case Scope.INVITEE:
      if (orgId === undefined) throw fail("ORG_REQUIRED");
      // A user stands for themselves. A service vouches for someone, also where it is pinned to the org.
      return outside(rule.permission, {
        self: self || (caller.userId !== undefined && subject === ""),
        reach: caller.userId === undefined && caller.scope?.includes(rule.permission) === true,
        invitingOrgId: orgId,
      });
    case Scope.NONE:
      // Any credential will do, so the call counts as one about the caller.
      return orgId === undefined
        ? outside("", { self: true, reach: false })
        : inside(orgId, "", { self: true });
    default:
      throw new Error("this method has no access option that the server knows");
  }
};
