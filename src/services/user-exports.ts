import type { MessageInitShape } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { caller, unitOfWork } from "../context.ts";
import { type Query, sql } from "../database/sql.ts";
import { fail } from "../errors.ts";
import type { ExportUserResponseSchema, UserService } from "../gen/roster/v1/user_service_pb.ts";
import { bareEntryRow, changeRow, toBareEntry, toChange } from "./audit.ts";
import { invitationColumns, invitationRow, toInvitation } from "./invitations.ts";
import { memberColumns, memberRow, toMember } from "./org-members.ts";
import { profileColumns, profileJoin, profileRow, toProfile } from "./profiles.ts";
import { firstId } from "./requests.ts";
import {
  memberColumns as teamMemberColumns,
  memberRow as teamMemberRow,
  toMember as toTeamMember,
} from "./team-members.ts";
import { fullUserRow, noUser, toUser, userColumns, userJoin } from "./users.ts";

type Item = NonNullable<MessageInitShape<typeof ExportUserResponseSchema>["item"]>;

const pageSize = 500;

/** How a page begins behind another one; as in `firstId`, the first begins behind what comes before all. */
type Cursor = readonly [string, string];
const first: Cursor = [firstId, firstId];
const firstTime: Cursor = ["-infinity", firstId];

/**
 * Rows of one kind, page after page. Each page is a statement of its own, which enters anew: who may not go on is
 * refused there, and nothing is held in between.
 */
async function* pages<Row extends z.ZodType>(
  context: HandlerContext,
  start: Cursor,
  page: (after: Cursor) => Query<Row>,
  cursor: (row: z.output<Row>) => Cursor,
): AsyncGenerator<z.output<Row>> {
  let rows: readonly z.output<Row>[];
  let after = start;
  do {
    rows = await unitOfWork(context).many(page(after));
    yield* rows;
    const last = rows.at(-1);
    if (last !== undefined) after = cursor(last);
  } while (rows.length === pageSize);
}

const profilesOf = (userId: string, context: HandlerContext) =>
  pages(
    context,
    first,
    ([org]) => sql.type(profileRow)`
      select ${profileColumns} from roster.profiles p
      where p.user_id = ${userId} and p.org_id > ${org}::uuid
      order by p.org_id limit ${pageSize}`,
    (row) => [row.profile_org_id, firstId],
  );

const orgMembersOf = (userId: string, context: HandlerContext) =>
  pages(
    context,
    first,
    ([org]) => sql.type(memberRow)`
      select ${memberColumns} from roster.org_members m
      where m.user_id = ${userId} and m.org_id > ${org}::uuid
      order by m.org_id limit ${pageSize}`,
    (row) => [row.member_org_id, firstId],
  );

/** Found by way of the orgs, without which nobody is in a team: each is one probe of a key. */
const teamMembersOf = (userId: string, context: HandlerContext) =>
  pages(
    context,
    first,
    ([org, team]) => sql.type(teamMemberRow)`
      select ${teamMemberColumns} from roster.org_members o
      join roster.team_members m on m.org_id = o.org_id and m.user_id = o.user_id
      where o.user_id = ${userId} and o.org_id >= ${org}::uuid
        and (m.org_id, m.team_id) > (${org}::uuid, ${team}::uuid)
      order by m.org_id, m.team_id limit ${pageSize}`,
    (row) => [row.member_org_id, row.member_team_id],
  );

const invitationsOf = (userId: string, context: HandlerContext) =>
  pages(
    context,
    first,
    ([org, id]) => sql.type(invitationRow)`
      select ${invitationColumns}
      from roster.exported_invitations(${userId}, ${org}::uuid, ${id}::uuid, ${pageSize}) i`,
    (row) => [row.invitation_org_id, row.invitation_id],
  );

/** What the cursor of a log is made of; the time as PostgreSQL compares it. */
const placed = { id: z.string(), position: z.string() };

const changesOf = (userId: string, context: HandlerContext) =>
  pages(
    context,
    firstTime,
    ([time, id]) => sql.type(changeRow.extend(placed))`
      select c.org_id, c.resource_type, c.resource_id, c.kind, c.before, c.after, c.changed_fields,
        c.id, c.create_time::text as position
      from roster.exported_changes(${userId}, ${time}::timestamptz, ${id}::uuid, ${pageSize}) c`,
    ({ position, id }) => [position, id],
  );

const entriesOf = (userId: string, context: HandlerContext) =>
  pages(
    context,
    firstTime,
    ([time, id]) => sql.type(bareEntryRow)`
      select e.*, '' as operator_reason, e.create_time::text as position
      from roster.exported_entries(${userId}, ${time}::timestamptz, ${id}::uuid, ${pageSize}) e`,
    ({ position, id }) => [position, id],
  );

/** All that is held about a person, in the order that the RPC promises. */
async function* itemsOf(userId: string, context: HandlerContext): AsyncGenerator<Item> {
  const row = await unitOfWork(context).one(
    sql.type(fullUserRow)`
      select ${userColumns}, ${profileColumns} from roster.users u ${userJoin} ${profileJoin}
      where u.id = ${userId} and roster.kept(u.delete_time, u.purge_time, true)`,
    noUser(userId),
  );
  // What is held about a person reaches beyond any one org.
  if (caller(context).orgId !== undefined) throw fail("ORG_NOT_ALLOWED");
  yield { case: "user", value: toUser(row) };
  yield { case: "profile", value: toProfile(row) };
  for await (const profile of profilesOf(userId, context))
    yield { case: "profile", value: toProfile(profile) };
  for await (const member of orgMembersOf(userId, context))
    yield { case: "orgMember", value: toMember(member) };
  for await (const member of teamMembersOf(userId, context))
    yield { case: "teamMember", value: toTeamMember(member) };
  for await (const invitation of invitationsOf(userId, context))
    yield { case: "invitation", value: toInvitation(invitation) };
  for await (const change of changesOf(userId, context))
    yield { case: "auditChange", value: toChange(change) };
  for await (const entry of entriesOf(userId, context))
    yield { case: "auditEntry", value: toBareEntry(entry) };
}

type UserExports = Pick<ServiceImpl<typeof UserService>, "exportUser">;

export const userExports = {
  async *exportUser({ userId }, context) {
    for await (const item of itemsOf(userId, context)) yield { item };
  },
} satisfies UserExports;
