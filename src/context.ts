/** What the corridor leaves for those behind it. Accessors fail loudly when their interceptor did not run. */
import type { KeyObject } from "node:crypto";
import type { Message } from "@bufbuild/protobuf";
import { type ContextKey, type ContextValues, createContextKey } from "@connectrpc/connect";
import type { Sight } from "./database/consistency.ts";
import type { Step } from "./database/exchange.ts";
import type { Deadline } from "./database/pool.ts";
import type { UnitOfWork } from "./database/sql.ts";
import type { Feed } from "./database/watchers.ts";

/** Who calls, as their verified credential says. */
export interface Caller {
  /** The token's `sub`: a user id, or `service:NAME`. */
  readonly subject: string;
  /** The user who calls; undefined for a service. */
  readonly userId: string | undefined;
  /** Who acts in the caller's name, the immediate one first (RFC 8693 `act`). */
  readonly onBehalfOf: readonly string[];
  /** The org to which the credential is pinned. */
  readonly orgId: string | undefined;
  /** The orgs of which the credential may select one, where there are several; undefined: that of `orgId`, else any. */
  readonly orgs?: ReadonlySet<string> | undefined;
  /** Permissions: all that a service has; what a user's token is narrowed to, undefined if it is not. */
  readonly scope: readonly string[] | undefined;
  /** A service with the scope `roster.platform`. */
  readonly platform: boolean;
  /** Until when the credential is taken, as Date.now() has it. */
  readonly expiresMs: number;
}

/** What the client certificate of a call's connection says; a CA that is trusted for clients signed it. */
export interface Peer {
  readonly uris: readonly string[];
  /** It is a CA's own. */
  readonly authority: boolean;
  readonly expiresMs: number;
}

/** How the call is judged, by its method's access option. */
export interface Access {
  /** The selected org; undefined: the call runs outside any. */
  readonly orgId: string | undefined;
  /** The permission it needs there. */
  readonly permission: string;
  /** The call is about the caller, so the permission is not needed. */
  readonly self: boolean;
  /** The team whose roles may grant the permission. */
  readonly teamId: string | undefined;
  /** A platform caller may enter the org although it is deleted. */
  readonly deletedOrg: boolean;
  /** Outside an org: the credential may see everyone. */
  readonly reach: boolean;
  /** Outside an org: the one whose invitation the call answers. */
  readonly invitingOrgId?: string;
  /** The org that this call makes; set by its handler before its first statement. */
  newOrgId?: string;
}

/** What the audit entry of a mutation, or of an operator's read, tells. */
export interface Entry {
  /** A mutation's; a read has one for each try. */
  readonly id: string;
  /** Such as `roster.v1.TeamService/CreateTeam`. */
  readonly method: string;
  readonly correlationId: string;
  /** Why an operator calls, empty where they need not say; undefined for everyone else. */
  readonly operatorReason: string | undefined;
}

/** How a mutation that may be sent again is claimed before it writes, and its answer kept as it commits. */
export interface Claim {
  readonly claiming: Step;
  readonly storing: (answer: Message) => Step;
}

/** Puts into a mutation's answer what is not kept of it. */
export type Completion = (answer: Message) => void;

/** What handlers need of the configuration. */
export interface Settings {
  /** Seals page tokens. */
  readonly pageKey: KeyObject;
  /** Seals positions in the change feed. */
  readonly positionKey: KeyObject;
  /** Signs the tokens of invitations. */
  readonly invitationKey: KeyObject;
  /** Days between a delete and its purge. */
  readonly purgeAfterDays: number;
}

const key = <T>(): ContextKey<T | undefined> => createContextKey<T | undefined>(undefined);

export const keys = {
  caller: key<Caller>(),
  /** Set by the transport; undefined where the connection has no client certificate, or none of a trusted CA. */
  peer: key<Peer>(),
  access: key<Access>(),
  /** Milliseconds that the caller allows, set by the transport; undefined: no deadline was sent. */
  timeoutMs: key<number>(),
  deadline: key<Deadline>(),
  correlationId: key<string>(),
  /** Where the call stands in a trace, as logs tell it; undefined when it is part of none. */
  trace: key<{ readonly trace_id: string; readonly span_id: string }>(),
  unitOfWork: key<UnitOfWork>(),
  entry: key<Entry>(),
  claim: key<Claim>(),
  /** What the call sees; undefined where there is no replica. */
  sight: key<Sight>(),
  completion: key<Completion>(),
  settings: key<Settings>(),
  feed: key<Feed>(),
};

interface Carrier {
  readonly values: ContextValues;
}

const demand = <T>(values: ContextValues, of: ContextKey<T | undefined>, what: string): T => {
  const value = values.get(of);
  if (value === undefined) throw new Error(`${what} is missing: its interceptor did not run`);
  return value;
};

export const callerOf = (values: ContextValues): Caller =>
  demand(values, keys.caller, "the caller");
export const accessOf = (values: ContextValues): Access =>
  demand(values, keys.access, "the access decision");
export const deadlineOf = (values: ContextValues): Deadline =>
  demand(values, keys.deadline, "the deadline");
export const correlationIdOf = (values: ContextValues): string =>
  demand(values, keys.correlationId, "the correlation id");

/** Who calls. */
export const caller = ({ values }: Carrier): Caller => callerOf(values);

/** What the handler's statements run on. */
export const unitOfWork = ({ values }: Carrier): UnitOfWork =>
  demand(values, keys.unitOfWork, "the unit of work");

/** The selected org, for RPCs that cannot run without one. */
export const orgId = ({ values }: Carrier): string => {
  const { orgId: id } = accessOf(values);
  if (id === undefined) throw new Error("no org is selected");
  return id;
};

/** The selected org, or undefined. */
export const maybeOrgId = ({ values }: Carrier): string | undefined => accessOf(values).orgId;

/** The audit entry of this mutation. */
export const entryId = ({ values }: Carrier): string =>
  demand(values, keys.entry, "the audit entry").id;

/** The org whose invitation the call answers. */
export const invitingOrgId = ({ values }: Carrier): string => {
  const { invitingOrgId: id } = accessOf(values);
  if (id === undefined) throw new Error("no org invites");
  return id;
};

/** Announces the org that this call makes, so that its audit entry and its rows belong to it. */
export const claimNewOrg = ({ values }: Carrier, id: string): void => {
  accessOf(values).newOrgId = id;
};

/**
 * Announces, before the handler's first statement, what is still to be put into its answer as it leaves: also
 * into one that is replayed, which was kept without it.
 */
export const completeWith = <Answer extends Message>(
  { values }: Carrier,
  complete: (answer: Answer) => void,
): void => {
  values.set(keys.completion, complete as Completion);
};

/** What handlers need of the configuration. */
export const settings = ({ values }: Carrier): Settings =>
  demand(values, keys.settings, "the handlers' settings");

/** The poll of the change feed that this process makes for all who watch. */
export const feed = ({ values }: Carrier): Feed => demand(values, keys.feed, "the change feed");
