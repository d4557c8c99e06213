/** Watchers of the change feed, and what a reader makes of what they get. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { onTestFinished } from "vitest";
import { ChangeKindSchema } from "../src/gen/roster/v1/audit_pb.ts";
import type { Change } from "../src/gen/roster/v1/change_pb.ts";
import type {
  WatchChangesRequestSchema,
  WatchChangesResponse,
} from "../src/gen/roster/v1/change_service_pb.ts";
import { InvitationState } from "../src/gen/roster/v1/invitation_pb.ts";
import { type Callers, type Refusal, refusal } from "./harness.ts";

/** Such as `team CREATED`. */
export const lineOf = ({ resourceType, kind }: Change): string =>
  `${resourceType} ${ChangeKindSchema.value[kind]?.localName}`;

/** A stream of changes that is read as it comes. */
export class Watching {
  readonly messages: WatchChangesResponse[] = [];
  /** How the stream ended. */
  readonly ended: Promise<Refusal>;
  private readonly stopping = new AbortController();

  constructor(
    { changes }: Pick<Callers, "changes">,
    request: MessageInitShape<typeof WatchChangesRequestSchema>,
    hear: (message: WatchChangesResponse) => void | Promise<void> = () => {},
  ) {
    const read = async (): Promise<void> => {
      const options = { signal: this.stopping.signal };
      for await (const message of changes.watchChanges(request, options)) {
        this.messages.push(message);
        await hear(message);
      }
    };
    this.ended = refusal(read());
    onTestFinished(() => this.cancel());
  }

  cancel(): void {
    this.stopping.abort();
  }

  get changes(): Change[] {
    return this.messages.flatMap(({ changes }) => changes);
  }

  /** The last one that came; empty when none did. */
  get position(): string {
    return this.messages.findLast(({ position }) => position !== "")?.position ?? "";
  }

  get told(): string[] {
    return this.changes.map(lineOf);
  }
}

const plain = (value: unknown): unknown =>
  JSON.parse(
    JSON.stringify(value, (key, inner) =>
      // The feed knows no etags, and each message its type.
      key === "etag" || key === "$typeName" || key === "$unknown"
        ? undefined
        : typeof inner === "bigint"
          ? String(inner)
          : inner,
    ),
  );

/** What a reader holds: applied in order, whole as a position comes. */
export class Fold {
  position = "";
  /** The changes of the log that were applied. */
  readonly applied: string[] = [];
  private readonly held = new Map<string, { readonly user: string; readonly value: unknown }>();
  private pending: Change[] = [];

  /** Begins again behind the last position. */
  reconnect(): void {
    this.pending = [];
  }

  hear({ changes, position, snapshot }: WatchChangesResponse): void {
    this.pending.push(...changes);
    if (position === "") return;
    for (const change of this.pending) this.apply(change, snapshot);
    this.pending = [];
    this.position = position;
  }

  private apply(change: Change, snapshot: boolean): void {
    const { resourceType: type, resourceId: id, resource } = change;
    if (change.auditEntryId !== "" && !snapshot)
      this.applied.push(`${change.auditEntryId} ${id} ${lineOf(change)}`);
    if (resource.case !== undefined) {
      const value = resource.value as { readonly userId?: string };
      this.held.set(`${type} ${id}`, { user: type === "user" ? id : (value.userId ?? ""), value });
      return;
    }
    this.held.delete(`${type} ${id}`);
    if (type !== "org_member") return;
    for (const [key, { user }] of this.held) if (user === id) this.held.delete(key);
  }

  private of<T>(type: string): T[] {
    return [...this.held]
      .filter(([key]) => key.startsWith(`${type} `))
      .map(([, e]) => e.value as T);
  }

  /** What lists show of it, as {@link tablesOf} has it. */
  shown(): unknown {
    type Deletable = { readonly id: string; readonly deleteTime?: object };
    const live = <T extends Deletable>(all: readonly T[]) => all.filter((one) => !one.deleteTime);
    const users = live(this.of<Deletable>("user"));
    const known = new Set(users.map(({ id }) => id));
    const teams = live(this.of<Deletable>("team"));
    const there = new Set(teams.map(({ id }) => id));
    return sorted({
      org: this.of("org"),
      users,
      members: this.of<{ userId: string }>("org_member").filter(({ userId }) => known.has(userId)),
      teams,
      teamMembers: this.of<{ userId: string; teamId: string }>("team_member").filter(
        ({ userId, teamId }) => known.has(userId) && there.has(teamId),
      ),
      roles: this.of("role"),
      invitations: this.of<{ state: number }>("invitation").filter(
        ({ state }) => state === InvitationState.PENDING,
      ),
    });
  }
}

const sorted = (lists: Readonly<Record<string, readonly unknown[]>>): unknown =>
  Object.fromEntries(
    Object.entries(lists).map(([name, list]) => [
      name,
      list.map((item) => JSON.stringify(Object.entries(plain(item) as object).sort())).sort(),
    ]),
  );

/** An org as lists show it to who may see everything. */
export const tablesOf = async (
  { orgs, teams, users, access }: Callers,
  orgId: string,
): Promise<unknown> => {
  const all = { orgId, pageSize: 1_000 };
  const [{ org }, people, { members }, found, { roles }, { invitations }] = await Promise.all([
    orgs.getOrg({ orgId }),
    users.listUsers(all),
    orgs.listOrgMembers(all),
    teams.listTeams(all),
    access.listRoles(all),
    orgs.listInvitations({ ...all, filter: "state = PENDING" }),
  ]);
  const teamMembers: unknown[] = [];
  for (const { id: teamId } of found.teams)
    teamMembers.push(
      ...(await teams.listTeamMembers({ ...all, teamId })).members.map((member) => ({
        ...member,
        viaTeamIds: [],
      })),
    );
  return sorted({
    org: [org],
    users: people.users,
    members,
    teams: found.teams,
    teamMembers,
    roles: roles.filter((role) => role.orgId !== ""),
    invitations,
  });
};
