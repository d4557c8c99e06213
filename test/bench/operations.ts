/** What the benchmarks call, and what it may cost. */
import { randomUUID } from "node:crypto";
import {
  create,
  type DescMessage,
  type DescMethodUnary,
  type Message,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import { tokenKey } from "../../src/database/page.ts";
import { AccessService } from "../../src/gen/roster/v1/access_service_pb.ts";
import { OrgService } from "../../src/gen/roster/v1/org_service_pb.ts";
import { TeamRole } from "../../src/gen/roster/v1/team_member_pb.ts";
import { TeamService } from "../../src/gen/roster/v1/team_service_pb.ts";
import { UserService } from "../../src/gen/roster/v1/user_service_pb.ts";
import { View } from "../../src/gen/roster/v1/view_pb.ts";
import { tokenOf } from "../../src/services/invitations.ts";
import { hugeMemberOf, hugeTeamOf, idOf, memberOf, tokenSecret, usual } from "./data.ts";

/** Who sends a call: a user, or undefined for an operator. */
export type Sender = string | undefined;

/** One kind of call. */
export interface Operation {
  readonly name: string;
  readonly method: DescMethodUnary;
  /** The n-th call. No two numbers may make the same row. */
  readonly call: (n: number) => { readonly sender: Sender; readonly request: Message };
  /** What its cost is held to, by ratio; an operation without a budget is measured only. */
  readonly budget?: Budget;
  /** What its server and PostgreSQL CPU are shown against, in the same rounds. */
  readonly against?: Against;
  /** Its statements hold more than fields of the request, which the other systems could not fill in. */
  readonly rosterOnly?: true;
}

/** Calls of another operation that together do what one call does. */
export interface Against {
  readonly operation: string;
  readonly calls: number;
  /** The most that the call may cost, as a ratio to them; without it the ratio is shown only. */
  readonly most?: number;
}

/** The most a call may cost, as ratios of CPU. */
export interface Budget {
  /** Server against the floor's. */
  readonly server?: number;
  /** PostgreSQL against the floor's. */
  readonly postgres?: number;
  /** The least ratio of the naive composition's server and PostgreSQL to Roster's. */
  readonly naive?: number;
  /** Server and PostgreSQL against the server of a bare handler that answers the same from memory. */
  readonly echo?: number;
}

const get: Budget = { server: 1.5, postgres: 1.2, naive: 4 };

/** Makes an operation that is named after its method. */
export const operation = <Method extends DescMethodUnary>(
  method: Method,
  call: (n: number) => { sender: Sender; request: MessageInitShape<Method["input"]> },
  budget?: Budget,
): Operation => ({
  name: method.name,
  method,
  call: (n) => {
    const { sender, request } = call(n);
    return {
      sender,
      request: create(method.input as DescMessage, request as Record<string, unknown>),
    };
  },
  ...(budget && { budget }),
});

/** Orgs take turns, so that no call finds its rows or its caller in a cache of one. */
const callersOrgs = 200;
const member = (org: number, j: number): string => idOf("user", memberOf(usual, org, j));
const small = (n: number): number => usual.largeOrgs + (n % callersOrgs);
const large = (n: number): number => n % usual.largeOrgs;

const smallOrgs = usual.orgs - usual.largeOrgs;
const hugeMember = (j: number): string => idOf("user", hugeMemberOf(usual, j));
/** Of the huge org's members, those behind the invited ones are added to small orgs, in parts of this size. */
const batchSize = 100;
const batches = Math.floor((usual.hugeMembers - usual.invitations) / batchSize);

/**
 * Deals things out: each small org in turn takes one that it has not had, and no two orgs that come after each
 * other take the same. @throws Error when all have had all
 */
const dealt = (n: number, things: number): { org: number; thing: number } => {
  const [place, turn] = [n % smallOrgs, Math.floor(n / smallOrgs)];
  if (turn >= things) throw new Error(`there are no more than ${smallOrgs * things} such calls`);
  return { org: usual.largeOrgs + place, thing: (place + turn) % things };
};

const invitationKey = tokenKey(tokenSecret, "invitation");

/** A question about a member of an org and one of its teams. */
const check = (org: number, n: number) => ({
  userId: member(org, 2 + (n % 18)),
  permission: "teams.update",
  teamId: idOf("team", org * usual.teams + (n % usual.teams)),
});

export const operations: readonly Operation[] = [
  operation(
    UserService.method.getUser,
    (n) => {
      const org = small(n);
      const userId = member(org, 2 + (n % 10));
      return { sender: member(org, 1), request: { orgId: idOf("org", org), userId } };
    },
    get,
  ),
  operation(
    TeamService.method.getTeam,
    (n) => {
      const org = small(n);
      const teamId = idOf("team", org * usual.teams + (n % usual.teams));
      return { sender: member(org, 1), request: { orgId: idOf("org", org), teamId } };
    },
    get,
  ),
  operation(
    OrgService.method.getOrg,
    (n) => {
      const org = small(n);
      return { sender: member(org, 1), request: { orgId: idOf("org", org) } };
    },
    get,
  ),
  {
    ...operation(AccessService.method.checkAccess, (n) => {
      const org = small(n);
      return { sender: member(org, 0), request: { orgId: idOf("org", org), ...check(org, n) } };
    }),
    against: { operation: "GetUser", calls: 1, most: 1.2 },
    rosterOnly: true,
  },
  {
    ...operation(AccessService.method.batchCheckAccess, (n) => {
      const org = large(n);
      const checks = Array.from({ length: 1_000 }, (_, i) => ({
        ...check(org, i),
        userId: member(org, i),
      }));
      return { sender: member(org, 0), request: { orgId: idOf("org", org), checks } };
    }),
    against: { operation: "CheckAccess", calls: 1_000, most: 0.2 },
    rosterOnly: true,
  },
  operation(
    OrgService.method.listOrgMembers,
    (n) => {
      const orgId = idOf("org", large(n));
      return { sender: member(large(n), 1), request: { orgId, pageSize: 50, view: View.FULL } };
    },
    { echo: 650 / 170 },
  ),
  {
    ...operation(OrgService.method.listOrgMembers, (n) => ({
      sender: hugeMember(1 + (n % callersOrgs)),
      request: { orgId: idOf("org", usual.orgs), pageSize: 50, view: View.FULL },
    })),
    name: "ListOrgMembers100k",
    against: { operation: "ListOrgMembers", calls: 1 },
  },
  {
    // Subtrees of all sizes, the whole tree among them.
    ...operation(TeamService.method.listTeamMembers, (n) => ({
      sender: hugeMember(1 + (n % callersOrgs)),
      request: {
        orgId: idOf("org", usual.orgs),
        teamId: idOf("team", hugeTeamOf(usual, n % 1_000)),
        pageSize: 50,
        effective: true,
      },
    })),
    name: "ListTeamMembersEffective",
    rosterOnly: true,
  },
  {
    // Every second of its members changes with each call.
    ...operation(TeamService.method.setTeamMembers, (n) => {
      const org = large(n);
      const turn = Math.floor(n / usual.largeOrgs) % 2;
      return {
        sender: member(org, 0),
        request: {
          orgId: idOf("org", org),
          teamId: idOf("team", org * usual.teams),
          members: Array.from({ length: usual.largeMembers }, (_, j) => ({
            userId: member(org, j),
            role: j % 2 === turn ? TeamRole.MAINTAINER : TeamRole.MEMBER,
          })),
        },
      };
    }),
    rosterOnly: true,
  },
  operation(TeamService.method.listTeams, (n) => {
    const org = small(n);
    return { sender: member(org, 1), request: { orgId: idOf("org", org) } };
  }),
  {
    ...operation(TeamService.method.updateTeam, (n) => {
      const org = small(n);
      const id = idOf("team", org * usual.teams + (n % usual.teams));
      const description = `Described ${n} times`;
      return {
        sender: member(org, 0),
        request: { team: { orgId: idOf("org", org), id, description } },
      };
    }),
    rosterOnly: true,
  },
  operation(OrgService.method.addOrgMember, (n) => {
    // Each small org in turn takes the user behind its last one.
    const org = usual.largeOrgs + (n % smallOrgs);
    const userId = member(org, usual.members + Math.floor(n / smallOrgs));
    return {
      sender: member(org, 0),
      request: { orgId: idOf("org", org), userId, role: "member" },
    };
  }),
  operation(OrgService.method.acceptInvitation, (n) => {
    const { org, thing } = dealt(n, usual.invitations);
    const orgId = idOf("org", org);
    const invitationId = idOf("invitation", org * usual.invitations + thing);
    const token = tokenOf(invitationKey, orgId, invitationId, "0");
    return { sender: hugeMember(thing), request: { orgId, invitationId, token } };
  }),
  {
    ...operation(OrgService.method.batchAddOrgMembers, (n) => {
      const { org, thing } = dealt(n, batches);
      const first = usual.invitations + thing * batchSize;
      const members = Array.from({ length: batchSize }, (_, i) => ({
        userId: hugeMember(first + i),
        role: "member",
      }));
      return { sender: member(org, 0), request: { orgId: idOf("org", org), members } };
    }),
    against: { operation: "AddOrgMember", calls: batchSize },
    rosterOnly: true,
  },
  operation(OrgService.method.createOrg, (n) => ({
    sender: undefined,
    request: {
      org: { name: `New ${n}`, slug: `new-${n}` },
      ownerUserId: idOf("user", n % usual.users),
    },
  })),
  operation(UserService.method.createUser, (n) => ({
    sender: undefined,
    request: { user: { email: `new${n}@example.com`, name: `New ${n}` } },
  })),
];

/** What audit and a `request_id` add is measured by these and others, beside a database that keeps no log. */
export const createdUser = "CreateUser";
export const repeatableUser: Operation = {
  ...operation(UserService.method.createUser, (n) => ({
    sender: undefined,
    request: {
      user: { email: `again${n}@example.com`, name: `New ${n}` },
      requestId: randomUUID(),
    },
  })),
  name: "CreateUserWithRequestId",
};

/** An operation by its name. @throws Error for a name that none has */
export const operationOf = (name: string): Operation => {
  const found = [...operations, repeatableUser].find((candidate) => candidate.name === name);
  if (!found) throw new Error(`no operation ${name}: ${operations.map((o) => o.name).join(", ")}`);
  return found;
};

/** The path of a method on the wire. */
export const pathOf = ({ parent, name }: DescMethodUnary): string => `/${parent.typeName}/${name}`;

export const bytesOf = (method: DescMethodUnary, request: Message): Buffer =>
  Buffer.from(toBinary(method.input, request));
