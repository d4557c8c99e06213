/** What may happen in a storm: a line for each operation, with the refusals that are fair to it. */
import type { CallOptions } from "@connectrpc/connect";
import { OrgMemberState } from "../src/gen/roster/v1/org_member_pb.ts";
import type { Callers } from "./harness.ts";

/** Who sends an operation: the operator, someone, or the person whom it is about. */
export type Sender = "platform" | "person" | "self";

/** What an operation is about. An etag is the last that was seen, and no longer the current one at times. */
export interface Target {
  readonly orgId: string;
  readonly teamId: string;
  readonly userId: string;
  readonly requestId: string;
  readonly force: boolean;
  readonly slug: string;
  readonly etag: { readonly org: string; readonly user: string; readonly member: string };
}

/** Resources that an answer may hold, of which later requests take etags. */
export interface Answer {
  readonly org?: { readonly id: string; readonly etag: string } | undefined;
  readonly user?: { readonly id: string; readonly etag: string } | undefined;
  readonly member?:
    | { readonly orgId: string; readonly userId: string; readonly etag: string }
    | undefined;
}

export interface Operation {
  /** Whether it brings people or takes them. Both come in turns, so that many meet where few owners are left. */
  readonly tide: "flood" | "ebb";
  /** How often it comes, beside the others of its tide. */
  readonly share: number;
  /** Who sends it, each as often. */
  readonly by: readonly Sender[];
  readonly send: (as: Callers, target: Target, options: CallOptions) => Promise<Answer>;
  /** Reasons for which it may be refused, beside those of the sender and of the etag. */
  readonly fair: readonly string[];
}

const anyone = ["platform", "platform", "person"] as const;
const operator = ["platform"] as const;

const changeMember =
  (change: { role?: string; state?: OrgMemberState }): Operation["send"] =>
  ({ orgs }, { orgId, userId, requestId, etag }, options) =>
    orgs.updateOrgMember(
      { member: { orgId, userId, ...change, etag: etag.member }, requestId },
      options,
    );

const addMember =
  (role: string): Operation["send"] =>
  ({ orgs }, { orgId, userId, requestId }, options) =>
    orgs.addOrgMember({ orgId, userId, role, requestId }, options);

const removeMember: Operation["send"] = ({ orgs }, { orgId, userId, requestId, etag }, options) =>
  orgs.removeOrgMember({ orgId, userId, requestId, etag: etag.member }, options);

/** Work in an org, which may be deleted at any time. */
const inOrg = (...reasons: string[]): string[] => ["ORG_NOT_FOUND", ...reasons];
const absent = "ORG_MEMBER_NOT_FOUND";

/** Every operation. */
export const operations = {
  addOwner: {
    tide: "flood",
    share: 7,
    by: anyone,
    send: addMember("owner"),
    fair: inOrg("ORG_MEMBER_EXISTS", "USER_NOT_FOUND"),
  },
  addAdmin: {
    tide: "flood",
    share: 2,
    by: anyone,
    send: addMember("admin"),
    fair: inOrg("ORG_MEMBER_EXISTS", "USER_NOT_FOUND"),
  },
  promote: {
    tide: "flood",
    share: 6,
    by: anyone,
    send: changeMember({ role: "owner" }),
    fair: inOrg(absent, "OWNER_INACTIVE"),
  },
  demote: {
    tide: "ebb",
    share: 9,
    by: [...anyone, "self"],
    send: changeMember({ role: "admin" }),
    fair: inOrg(absent, "LAST_OWNER"),
  },
  suspendMember: {
    tide: "ebb",
    share: 8,
    by: [...anyone, "self"],
    send: changeMember({ state: OrgMemberState.SUSPENDED }),
    fair: inOrg(absent, "LAST_OWNER"),
  },
  reactivateMember: {
    tide: "flood",
    share: 4,
    by: anyone,
    send: changeMember({ state: OrgMemberState.ACTIVE }),
    fair: inOrg(absent, "OWNER_INACTIVE"),
  },
  remove: {
    tide: "ebb",
    share: 7,
    by: anyone,
    send: removeMember,
    fair: inOrg(absent, "LAST_OWNER"),
  },
  leave: {
    tide: "ebb",
    share: 6,
    by: ["self"],
    send: removeMember,
    fair: inOrg(absent, "LAST_OWNER"),
  },
  suspendUser: {
    tide: "ebb",
    share: 2,
    by: operator,
    send: ({ users }, { userId, requestId, etag }, options) =>
      users.suspendUser({ userId, requestId, etag: etag.user }, options),
    fair: ["USER_NOT_FOUND", "LAST_OWNER"],
  },
  reactivateUser: {
    tide: "flood",
    share: 6,
    by: operator,
    send: ({ users }, { userId, requestId, etag }, options) =>
      users.reactivateUser({ userId, requestId, etag: etag.user }, options),
    fair: ["USER_NOT_FOUND"],
  },
  deleteUser: {
    tide: "ebb",
    share: 3,
    by: operator,
    send: ({ users }, { userId, requestId, etag }, options) =>
      users.deleteUser({ userId, requestId, etag: etag.user }, options),
    fair: ["USER_NOT_FOUND", "LAST_OWNER"],
  },
  undeleteUser: {
    tide: "flood",
    share: 5,
    by: operator,
    send: ({ users }, { userId, requestId }, options) =>
      users.undeleteUser({ userId, requestId }, options),
    fair: ["USER_NOT_FOUND", "NOT_DELETED"],
  },
  purgeUser: {
    tide: "ebb",
    share: 5,
    by: operator,
    send: async ({ users }, { userId, requestId }, options) => {
      await users.purgeUser({ userId, requestId }, options);
      return {};
    },
    fair: ["USER_NOT_FOUND", "STILL_LIVE"],
  },
  eraseUser: {
    tide: "ebb",
    share: 1,
    by: operator,
    send: async ({ users }, { userId, requestId, force }, options) => {
      await users.eraseUser({ userId, requestId, force }, options);
      return {};
    },
    fair: ["USER_NOT_FOUND", "LAST_OWNER"],
  },
  updateUser: {
    tide: "flood",
    share: 1,
    by: ["platform", "self"],
    send: ({ users }, { userId, requestId, etag, slug: name }, options) =>
      users.updateUser({ user: { id: userId, name, etag: etag.user }, requestId }, options),
    fair: ["USER_NOT_FOUND"],
  },
  suspendOrg: {
    tide: "ebb",
    share: 1,
    by: operator,
    send: ({ orgs }, { orgId, requestId, etag }, options) =>
      orgs.suspendOrg({ orgId, requestId, etag: etag.org }, options),
    fair: inOrg(),
  },
  reactivateOrg: {
    tide: "flood",
    share: 3,
    by: operator,
    send: ({ orgs }, { orgId, requestId, etag }, options) =>
      orgs.reactivateOrg({ orgId, requestId, etag: etag.org }, options),
    fair: inOrg("LAST_OWNER"),
  },
  deleteOrg: {
    tide: "ebb",
    share: 2,
    by: anyone,
    send: ({ orgs }, { orgId, requestId, etag, force }, options) =>
      orgs.deleteOrg({ orgId, requestId, etag: etag.org, force }, options),
    fair: inOrg("ORG_HAS_CHILDREN"),
  },
  undeleteOrg: {
    tide: "flood",
    share: 5,
    by: operator,
    send: ({ orgs }, { orgId, requestId }, options) =>
      orgs.undeleteOrg({ orgId, requestId }, options),
    fair: inOrg("NOT_DELETED", "LAST_OWNER"),
  },
  purgeOrg: {
    tide: "ebb",
    share: 3,
    by: operator,
    send: async ({ orgs }, { orgId, requestId }, options) => {
      await orgs.purgeOrg({ orgId, requestId }, options);
      return {};
    },
    fair: inOrg("STILL_LIVE"),
  },
  createOrg: {
    tide: "flood",
    share: 2,
    by: operator,
    send: ({ orgs }, { userId: ownerUserId, requestId, slug }, options) =>
      orgs.createOrg({ org: { name: "Org", slug }, ownerUserId, requestId }, options),
    fair: ["USER_NOT_FOUND", "OWNER_INACTIVE"],
  },
  addTeamMember: {
    tide: "flood",
    share: 2,
    by: anyone,
    send: async ({ teams }, { orgId, teamId, userId, requestId }, options) => {
      await teams.addTeamMember({ orgId, teamId, userId, requestId }, options);
      return {};
    },
    fair: inOrg("TEAM_MEMBER_EXISTS", absent),
  },
} satisfies Record<string, Operation>;

export type Kind = keyof typeof operations;
export const kinds = Object.keys(operations) as Kind[];

/** What a person may be told of themselves, whatever they ask: they come and go, and so do their orgs. */
const fairToPeople = [
  "CALLER_INACTIVE",
  "ORG_NOT_ALLOWED",
  "ORG_SUSPENDED",
  "PERMISSION_MISSING",
  "ROLE_NOT_GRANTABLE",
];

/** The reasons for which an operation may be refused to a sender, with an etag or without, or when it is sent twice. */
export const fairTo = (
  kind: Kind,
  byPlatform: boolean,
  withEtag: boolean,
  twice: boolean,
): string[] => [
  ...operations[kind].fair,
  ...(byPlatform ? [] : fairToPeople),
  ...(withEtag ? ["ETAG_STALE"] : []),
  ...(twice ? ["ANSWER_ERASED"] : []),
];
