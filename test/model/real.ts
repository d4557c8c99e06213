/** The service as one sequence of calls knows it: whom and what the numbers of its model stand for. */
import { randomUUID } from "node:crypto";
import { anyUnpack, timestampFromMs } from "@bufbuild/protobuf/wkt";
import type { CallOptions } from "@connectrpc/connect";
import type pg from "pg";
import { v7 as uuid } from "uuid";
import { expect } from "vitest";
import { ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.ts";
import type { Status } from "../../src/gen/google/rpc/status_pb.ts";
import { type Invitation, InvitationState } from "../../src/gen/roster/v1/invitation_pb.ts";
import { type OrgMember, OrgMemberState } from "../../src/gen/roster/v1/org_member_pb.ts";
import { type Org, OrgState } from "../../src/gen/roster/v1/org_pb.ts";
import { type TeamMember, TeamRole } from "../../src/gen/roster/v1/team_member_pb.ts";
import { type Team, TeamVisibility } from "../../src/gen/roster/v1/team_pb.ts";
import { type User, UserState } from "../../src/gen/roster/v1/user_pb.ts";
import { byHand } from "../console.ts";
import { type Callers, type Harness, refusal, slug, tokenFor } from "../harness.ts";
import { treeFaults } from "../tree-faults.ts";
import type { Team as Node, TeamRole as Role } from "./trees.ts";
import {
  type Answer,
  builtIn,
  defaultLimits,
  type End,
  type Limits,
  type Member,
  type Invitation as Pending,
  platform,
  type World,
} from "./world.ts";

function team(name: string, parent: string, secret: boolean, members: [number, Role][]): Node {
  return { parent, name, secret, deleted: "", members: new Map(members) };
}

/** The names of the roles that the first orgs have of their own. */
export const crew = ["members.add", "members.get", "members.invite", "members.remove"].concat([
  "members.update",
  "org.get",
  "roles.manage",
  "teams.get",
]);

/** So many people there are, and who of them has which role in which org at first. */
const people = 6;
const firstMembers: readonly (readonly string[])[] = [
  ["owner", "admin", "admin", "crew", "member"],
  ["admin", "member", "", "", "owner", "crew"],
];

/** Who is invited to which org as what at first. */
const firstInvitations: readonly Readonly<Record<number, string>>[] = [
  { 4: "member", 5: "guest" },
  { 2: "crew", 3: "admin" },
];
/** How much the first orgs may have. */
const firstLimits: readonly Limits[] = [
  { ...defaultLimits, teamDepth: 4 },
  { members: 5, pendingInvitations: 3, roles: 2, teams: 4, teamDepth: 3 },
];
const firstKey = (org: number, invitee: number): string => `first ${org} ${invitee}`;
/** Which teams the first orgs have, and who is what in them. Of their names those come first that are made first. */
const firstTeams: readonly Readonly<Record<string, Node>>[] = [
  {
    "+A": team("Ant", "", false, [[4, "MAINTAINER"]]),
    "+B": team("Bee", "+A", true, [[3, "MEMBER"]]),
    "+C": team("Ant", "+B", false, []),
    "+D": team("Elk", "", true, [[4, "MEMBER"]]),
    "+G": { ...team("Elk", "+A", false, [[4, "MEMBER"]]), deleted: "first" },
    "+H": { ...team("Bee", "+G", true, [[3, "MAINTAINER"]]), deleted: "first" },
  },
  {
    "+E": team("Ant", "", true, [[1, "MEMBER"]]),
    "+F": team("Bee", "+E", false, [
      [1, "MAINTAINER"],
      [5, "MAINTAINER"],
    ]),
  },
];

/** A time that is to come, or one that has been, for memberships that end. */
export const endOf = (end: End) =>
  end === "never" ? {} : { expireTime: timestampFromMs(end === "over" ? 1_000 : 4e12) };

/** The names of an enum's numbers. */
export const namesOf = (numbers: Readonly<Record<string, number>>): Map<number, string> =>
  new Map(Object.entries(numbers).map(([name, number]) => [number, name]));

const stateNames = namesOf(InvitationState);

export const roleNames = namesOf(TeamRole);

/** How a call ended, and what the audit log may say of it; empty: nothing. */
interface Ending {
  readonly correlationId: string;
  readonly what: string;
  readonly told: readonly string[];
}

/** What was sent of an invitation: its id, and its tokens by how often it had been sent again. */
interface Sent {
  readonly id: string;
  readonly tokens: Map<number, string>;
}

export class Real {
  readonly harness: Harness;
  readonly userIds: string[] = [];
  readonly emails: string[] = [];
  readonly orgIds: string[] = [];
  readonly invitations = new Map<string, Sent>();
  readonly teamIds = new Map<string, string>();
  /** Counts the operations of the sequence, so that what they make has a name. */
  operations = 0;
  private readonly tokens: string[] = [];
  private readonly connections: readonly Callers[];
  private readonly endings: Ending[] = [];
  private readonly tally: Map<string, number>;
  private readonly admin: pg.Pool;
  private readonly started = new Date(Date.now() - 1_000);

  /**
   * @param connections over which the calls of one instant come, each over its own
   * @param admin connections that see and may do everything
   * @param tally counts how often calls ended how
   */
  constructor(
    harness: Harness,
    connections: readonly Callers[],
    admin: pg.Pool,
    tally: Map<string, number>,
  ) {
    this.harness = harness;
    this.connections = connections;
    this.admin = admin;
    this.tally = tally;
  }

  /** Makes the first people and orgs, and says what there is then. */
  async settle(): Promise<World> {
    const { ops } = this.harness;
    const names = Array.from({ length: people }, () => `${randomUUID()}@example.com`);
    const { results } = await ops.users.batchCreateUsers({
      users: names.map((email) => ({ user: { email, name: "Some One" } })),
    });
    for (const { result } of results) {
      if (result.case !== "user") return expect.fail("no user came back");
      this.userIds.push(result.value.id);
      this.emails.push(result.value.email);
    }
    this.tokens.push(...(await Promise.all(this.userIds.map((id) => tokenFor(id)))));
    this.orgIds.push(
      ...(await Promise.all(firstMembers.map((roles, org) => this.settleOrg(roles, org)))),
    );
    await this.settleTeams();
    return {
      users: names.map(() => ({ suspended: false, deleted: false })),
      orgs: firstMembers.map((roles, org) => ({
        suspended: false,
        deleted: false,
        limits: firstLimits[org] ?? defaultLimits,
        members: new Map(
          roles.flatMap((role, user): [number, Member][] =>
            role === "" ? [] : [[user, { role, suspended: false, end: "never" }]],
          ),
        ),
        joins: new Map(),
        roles: new Map([["crew", crew]]),
        invitations: new Map(
          Object.entries(firstInvitations[org] ?? {}).map(([invitee, role]): [string, Pending] => [
            firstKey(org, Number(invitee)),
            {
              invitee: Number(invitee),
              role,
              inviter: platform,
              state: "PENDING",
              over: false,
              resends: 0,
            },
          ]),
        ),
        teams: new Map(Object.entries(firstTeams[org] ?? {})),
      })),
    };
  }

  /** Makes the first teams by hand, which takes less time than many calls. */
  private async settleTeams(): Promise<void> {
    const teams = firstTeams.flatMap((teams, org) =>
      Object.entries(teams).map(([key, team]) => ({ org: this.orgIds[org], key, ...team })),
    );
    for (const { key } of teams) this.teamIds.set(key, uuid());
    const made = teams.map(({ org, key, parent, name, secret }) => ({
      org_id: org,
      id: this.teamIds.get(key),
      parent_team_id: this.teamIds.get(parent),
      name,
      visibility: secret ? "SECRET" : "VISIBLE",
    }));
    const joined = teams.flatMap(({ org, key, members }) =>
      [...members].map(([user, role]) => ({
        org_id: org,
        team_id: this.teamIds.get(key),
        user_id: this.userIds[user],
        role,
      })),
    );
    const admin = await this.admin.connect();
    try {
      await byHand(
        admin,
        `with made as (
          insert into roster.teams (org_id, id, parent_team_id, name, visibility)
          select org_id, id, parent_team_id, name, visibility
          from jsonb_populate_recordset(null::roster.teams, $1))
        insert into roster.team_members (org_id, team_id, user_id, role)
        select org_id, team_id, user_id, role from jsonb_populate_recordset(null::roster.team_members, $2)`,
        [JSON.stringify(made), JSON.stringify(joined)],
      );
      const gone = teams.filter(({ deleted }) => deleted).map(({ key }) => this.teamIds.get(key));
      await byHand(
        admin,
        "update roster.teams set delete_time = now(), purge_time = now() + interval '30 days' where id = any ($1)",
        [gone],
      );
    } finally {
      admin.release();
    }
  }

  private async settleOrg(roles: readonly string[], place: number): Promise<string> {
    const { orgs, access } = this.harness.ops;
    const ownerUserId = this.userIds[roles.indexOf("owner")] ?? "";
    const { org } = await orgs.createOrg({ org: { name: "Org", slug: slug() }, ownerUserId });
    const orgId = org?.id ?? "";
    await orgs.updateOrgLimits({ limits: { orgId, ...firstLimits[place] } });
    await access.createRole({ role: { orgId, name: "crew", permissions: crew } });
    const members = roles.flatMap((role, user) =>
      role === "" || role === "owner" ? [] : [{ userId: this.userIds[user] ?? "", role }],
    );
    await orgs.batchAddOrgMembers({ orgId, members });
    const invited = Object.entries(firstInvitations[place] ?? {});
    const invitations = invited.map(([user, role]) => ({
      email: this.emails[Number(user)] ?? "",
      role,
    }));
    const { results } = await orgs.batchCreateInvitations({ orgId, invitations });
    for (const { result, token } of results) {
      if (result.case !== "invitation") return expect.fail("no invitation came back");
      const { id, email } = result.value;
      this.keep(firstKey(place, this.emails.indexOf(email)), id, token);
    }
    return orgId;
  }

  /** Makes a call and says how it ended. */
  async call(
    what: string,
    by: number,
    connection: number,
    send: (clients: Callers, options: CallOptions) => Promise<Answer>,
  ): Promise<Answer> {
    const correlationId = randomUUID();
    const token = by === platform ? this.harness.ops.token : this.tokens[by];
    const headers = { authorization: `Bearer ${token}`, "x-request-id": correlationId };
    const clients = this.connections[connection] ?? expect.fail("there is no such connection");
    const reads = by === platform ? "READ" : "";
    const mutates = !/^(Get|List|Check|BatchCheck)/.test(what);
    try {
      const answer = await send(clients, { headers });
      this.count(`${what} SUCCEEDED`);
      this.endings.push({ correlationId, what, told: mutates ? ["SUCCEEDED"] : ["", reads] });
      return answer;
    } catch (error) {
      const { code, reason, metadata, message } = await refusal(Promise.reject(error));
      const denied = mutates && code === "PermissionDenied";
      // Of one caller's many denials some are passed over. What an operator was let in to read may not be there.
      const more = denied ? [`DENIED ${reason}`] : mutates ? [] : [reads];
      this.endings.push({ correlationId, what, told: ["", ...more] });
      this.count(`${what} ${reason}`);
      const orgs = metadata.org_ids?.split(",").map((id) => this.orgIds.indexOf(id));
      const refused = reason || `${code}: ${message}`;
      return reason === "LAST_OWNER" && orgs ? { refused, orgs: orgs.sort() } : { refused };
    }
  }

  /**
   * Makes calls at the same instant. They are held after their first change, with their locks, until each of them
   * stands there, waits for the locks of another, or has ended.
   */
  async together<T>(calls: readonly (() => Promise<T>)[]): Promise<T[]> {
    const holder = await this.admin.connect();
    try {
      // Every change is written here too, by a trigger behind it.
      await holder.query("begin; lock table roster.audit_changes in share mode");
      let ended = 0;
      const outcomes = Promise.all(
        calls.map((call) =>
          call().finally(() => {
            ended++;
          }),
        ),
      );
      // It is awaited below; until then nobody else hears of a call that fails.
      outcomes.catch(() => undefined);
      for (let waiting = 0; waiting + ended < calls.length; ) {
        await holder.query("select pg_stat_clear_snapshot()");
        const { rows } = await holder.query<{ count: number }>(
          `select count(*)::int from pg_stat_activity
            where datname = current_database() and wait_event_type = 'Lock'`,
        );
        waiting = rows[0]?.count ?? 0;
      }
      await holder.query("commit");
      return await outcomes;
    } finally {
      holder.release();
    }
  }

  /** Lets the time of an invitation be over. */
  async expire(key: string): Promise<void> {
    const sent = this.invitations.get(key);
    if (!sent) return;
    await this.admin.query(
      `begin;
      set local session_replication_role = replica;
      update roster.invitations set expire_time = now() - interval '1 second' where id = '${sent.id}';
      commit`,
    );
  }

  private count(ending: string): void {
    this.tally.set(ending, (this.tally.get(ending) ?? 0) + 1);
  }

  /** What became of calls of which the log says something else than it should. */
  async misreported(): Promise<string[]> {
    const { rows } = await this.admin.query<{ id: string; told: string[]; read: boolean }>(
      `select correlation_id as id, array_agg(concat_ws(' ', outcome, nullif(reason, ''))) as told,
          bool_and(method ~ '/(Get|List|Check|BatchCheck|BatchGet|Lookup)') as read
        from roster.audit_entries where create_time >= $1 and correlation_id = any ($2) group by 1`,
      [this.started, this.endings.map(({ correlationId }) => correlationId)],
    );
    // Some calls are several reads under one id.
    const told = new Map(rows.map(({ id, told, read }) => [id, read ? "READ" : told.join()]));
    return this.endings.flatMap(({ correlationId, what, told: expected }) => {
      const found = told.get(correlationId) ?? "";
      return expected.includes(found) ? [] : [`${what}: ${found || "nothing"} in the log`];
    });
  }

  /** What the database holds and never should. */
  async faults(): Promise<string[]> {
    const { rows } = await this.admin.query<{ fault: string }>(
      `select 'no owner of ' || o.id as fault from roster.orgs o
        where o.id = any ($1) and o.delete_time is null and o.state = 'ACTIVE' and not exists (
          select from roster.org_members m join roster.users u on u.id = m.user_id
          where m.org_id = o.id and m.role = 'owner' and m.state = 'ACTIVE'
            and u.delete_time is null and u.state = 'ACTIVE')
      union all
      select 'two pending invitations in ' || i.org_id from roster.invitations i
        where i.org_id = any ($1) and i.state = 'PENDING' group by i.org_id, i.email_key having count(*) > 1
      union all
      select 'no such role: ' || p.role from (
          select org_id, role from roster.org_members
          union all
          select org_id, role from roster.invitations where state = 'PENDING') p
        where p.org_id = any ($1) and roster.built_in_permissions(p.role) is null
          and not exists (select from roster.roles r where r.org_id = p.org_id and r.name = p.role)
      union all
      select 'in a team and not in the org: ' || t.user_id from roster.team_members t
        where t.org_id = any ($1) and not exists (
          select from roster.org_members m where m.org_id = t.org_id and m.user_id = t.user_id)`,
      [this.orgIds],
    );
    const ofTrees = await Promise.all(
      this.orgIds.map((id) => treeFaults({ admin: this.admin }, id)),
    );
    return [...rows.map(({ fault }) => fault), ...ofTrees.flat()];
  }

  user(id: string): number {
    return id === "" ? platform : this.userIds.indexOf(id);
  }

  /** Keeps an invitation that was sent under the name that the model gives it. */
  keep(key: string, id: string, token: string): void {
    const sent = this.invitations.get(key) ?? { id, tokens: new Map() };
    sent.tokens.set(Number.parseInt(token, 10), token);
    this.invitations.set(key, sent);
  }

  member(member: OrgMember | undefined): Answer {
    if (!member) return expect.fail("no member came back");
    const { userId, role, state, expireTime } = member;
    const isOver = expireTime !== undefined && Number(expireTime.seconds) * 1_000 < Date.now();
    const end = expireTime === undefined ? "never" : isOver ? "over" : "later";
    return { user: this.user(userId), role, suspended: state === OrgMemberState.SUSPENDED, end };
  }

  /** What the model calls a team; nothing for the one above those at the top. */
  teamKey(id: string): string | undefined {
    return id === "" ? "" : [...this.teamIds].find(([, other]) => other === id)?.[0];
  }

  team(team: Team | undefined) {
    if (!team) return expect.fail("no team came back");
    const { id, parentTeamId, name, visibility, deleteTime } = team;
    return {
      key: this.teamKey(id),
      parent: this.teamKey(parentTeamId),
      name,
      secret: visibility === TeamVisibility.SECRET,
      deleted: deleteTime !== undefined,
    };
  }

  teamMember(member: TeamMember | undefined) {
    if (!member) return expect.fail("no member of a team came back");
    const { teamId, userId, role } = member;
    return { team: this.teamKey(teamId), user: this.user(userId), role: roleNames.get(role) };
  }

  /** A membership with the teams by which it is one. */
  granted(member: TeamMember | undefined, via: readonly string[] = []): Answer {
    return { ...this.teamMember(member), via: via.map((id) => this.teamKey(id)) };
  }

  invitation(invitation: Invitation | undefined): Answer {
    if (!invitation) return expect.fail("no invitation came back");
    const { id, email, role, state, inviterId } = invitation;
    const [key] = [...this.invitations].find(([, sent]) => sent.id === id) ?? [];
    const inviter = this.user(inviterId);
    const invitee = this.emails.indexOf(email);
    return { key, invitee, role, inviter, state: stateNames.get(state) };
  }
}

/** Parts of answers for which no numbers of the model are needed. */
export const stateOfUser = (user: User | undefined): Answer => ({
  suspended: user?.state === UserState.SUSPENDED,
  deleted: user?.deleteTime !== undefined,
});

export const stateOfOrg = (org: Org | undefined): Answer => ({
  suspended: org?.state === OrgState.SUSPENDED,
  deleted: org?.deleteTime !== undefined,
});

/** What a result of one of many things says when that one failed. */
export const refusalIn = (status: Status | undefined): Answer => {
  const [detail] = status?.details ?? [];
  return { refused: (detail && anyUnpack(detail, ErrorInfoSchema))?.reason };
};

/** The permissions of a role as an answer has them. */
export const sorted = (permissions: readonly string[]): string[] => [...permissions].sort();

export const builtInRoles = Object.keys(builtIn);
