import { createHmac, type KeyObject, timingSafeEqual } from "node:crypto";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { v7 as uuid } from "uuid";
import { z } from "zod";
import { caller, completeWith, invitingOrgId, orgId, settings, unitOfWork } from "../context.ts";
import { etag, ids, instant, maybeInstant, maybeText, sql } from "../database/sql.ts";
import { fail, fieldInside } from "../errors.ts";
import { type Invitation, InvitationState } from "../gen/roster/v1/invitation_pb.ts";
import type { CreateInvitationResponse, OrgService } from "../gen/roster/v1/org_service_pb.ts";
import { foldedText, oneOf, text, time } from "./conditions.ts";
import { memberColumns, memberShape, timeText, toMember } from "./org-members.ts";
import { firstId, nfc, pageOf, required, versionOf } from "./requests.ts";
import { type Choices, selectionOf } from "./selections.ts";

const resolutions = ["ACCEPTED", "DECLINED", "REVOKED"] as const;
const states = ["PENDING", "EXPIRED", ...resolutions] as const;
/** How long an invitation that says nothing of it can be accepted. */
const usualLifetime = sql.fragment`interval '7 days'`;

/** What has become of an invitation; that its time is over needs nobody to write it down. */
const stateNow = sql.fragment`
  (case when i.state = 'PENDING' and i.expire_time <= now() then 'EXPIRED' else i.state end)`;

/** An invitation as columns of `invitations i`. */
export const invitationColumns = sql.fragment`
  i.org_id as invitation_org_id, i.id as invitation_id, i.email as invitation_email, i.role as invitation_role,
  i.team_ids as invitation_team_ids, ${stateNow} as invitation_state, i.inviter_id as invitation_inviter_id,
  i.create_time as invitation_create_time, i.expire_time as invitation_expire_time,
  i.resolve_time as invitation_resolve_time, i.version as invitation_version,
  i.resend_count::text as invitation_resends`;

const invitationShape = {
  invitation_org_id: z.string(),
  invitation_id: z.string(),
  invitation_email: z.string(),
  invitation_role: z.string(),
  invitation_team_ids: ids,
  invitation_state: z.enum(states),
  invitation_inviter_id: maybeText,
  invitation_create_time: instant,
  invitation_expire_time: instant,
  invitation_resolve_time: maybeInstant,
  invitation_version: etag,
  invitation_resends: z.string(),
};
export const invitationRow = z.object(invitationShape);
const placedRow = z.object({ ...invitationShape, position: z.string() });
const acceptedRow = z.object({ ...invitationShape, ...memberShape });

export const toInvitation = (row: z.output<typeof invitationRow>) => ({
  id: row.invitation_id,
  orgId: row.invitation_org_id,
  email: row.invitation_email,
  role: row.invitation_role,
  teamIds: row.invitation_team_ids,
  state: InvitationState[row.invitation_state],
  inviterId: row.invitation_inviter_id,
  createTime: row.invitation_create_time,
  expireTime: row.invitation_expire_time,
  resolveTime: row.invitation_resolve_time,
  etag: row.invitation_version,
});

/**
 * A token says how often its invitation was sent again, and proves by a signature that it came from here. Sent
 * again, an invitation has another, and the former is void. It is never kept, since it can be made anew. Exported
 * for the benchmark, whose invitations nobody was sent: it writes them into the table.
 */
export const tokenOf = (key: KeyObject, org: string, id: string, resends: string): string => {
  const signature = createHmac("sha256", key).update([org, id, resends].join("\n"));
  return `${resends}.${signature.digest("base64url")}`;
};

/** An invitation in an answer. Until that leaves, the token is no more than the part which is no secret. */
export const toSent = (row: z.output<typeof invitationRow>) => ({
  invitation: toInvitation(row),
  token: row.invitation_resends,
});

/** Signs the token of an invitation in an answer that leaves. */
export const signToken = (
  context: HandlerContext,
  { id, orgId: org }: Pick<Invitation, "id" | "orgId">,
  token: string,
): string => tokenOf(settings(context).invitationKey, org, id, token);

/** Has the token of an answer signed as it leaves. */
const signing = (context: HandlerContext): void =>
  completeWith<CreateInvitationResponse>(context, (answer) => {
    if (answer.invitation) answer.token = signToken(context, answer.invitation, answer.token);
  });

/** How often the invitation had been sent again when its token was given; null for a token of other making. */
const resendsOf = (context: HandlerContext, invitationId: string, token: string): string | null => {
  const resends = /^(\d{1,9})\./.exec(token)?.[1] ?? "";
  const { invitationKey: key } = settings(context);
  const right = tokenOf(key, invitingOrgId(context), invitationId.toLowerCase(), resends);
  const [given, expected] = [Buffer.from(token), Buffer.from(right)];
  return given.length === expected.length && timingSafeEqual(given, expected) ? resends : null;
};

/** For whom an invitation is answered: the user who calls, or whom a service names. */
const personOf = (context: HandlerContext, userId: string): string =>
  caller(context).userId ?? required(userId, "user_id");

/**
 * The row of an invitation to be made, as the request has it.
 *
 * @param path where its fields stand in the request, ending in a dot
 */
export const newInvitation = (invitation: Invitation, path: string) => ({
  id: uuid(),
  email: nfc(required(invitation.email, `${path}email`)),
  role: invitation.role || "member",
  teamIds: `{${[...new Set(invitation.teamIds.map((id) => id.toLowerCase()))].join(",")}}`,
  expireTime: timeText(invitation.expireTime, `${path}expire_time`),
  path,
});

/**
 * Makes invitations in the order of their addresses, in which every batch does, and leaves out those whose
 * address has a pending one. One that has expired gives way first. That the caller may invite so, a trigger demands.
 */
export const insertInvitations = (
  context: HandlerContext,
  items: readonly ReturnType<typeof newInvitation>[],
) => {
  const org = orgId(context);
  const rows = items.map((i) => [i.id, i.email, i.role, i.teamIds, i.expireTime]);
  const asked = sql.fragment`${sql.unnest(rows, ["uuid", "text", "text", "text", "timestamptz"])}
    a (id, email, role, team_ids, expire_time)`;
  return unitOfWork(context).many(sql.type(invitationRow)`
    with due as (
      select i.id
      from (select distinct lower(normalize(a.email, nfc)) collate "C" as email from ${asked} order by 1) key
      cross join lateral (
        select id from roster.invitations
        where org_id = ${org} and email_key = key.email and state = 'PENDING' and expire_time <= now()
        limit 1 for no key update) i),
    expired as (
      update roster.invitations set state = 'EXPIRED'
      where org_id = ${org} and id = any (array(select id from due))
      returning id)
    insert into roster.invitations as i (org_id, id, email, role, team_ids, inviter_id, expire_time)
    select ${org}, a.id, a.email, a.role, a.team_ids::uuid[], ${caller(context).userId ?? null}::uuid,
      coalesce(a.expire_time, now() + ${usualLifetime})
    from ${asked} cross join (select count(*) from expired) first
    order by lower(normalize(a.email, nfc)) collate "C"
    on conflict (org_id, email_key) where state = 'PENDING' do nothing
    returning ${invitationColumns}`);
};

const noInvitation = (invitationId: string) => () =>
  fail("INVITATION_NOT_FOUND", { invitation_id: invitationId });

/** Why a write met no row: there is none, something has become of it, or it is newer than the etag says. */
const unwritten = async (context: HandlerContext, invitationId: string): Promise<Error> => {
  const query = sql.type(z.object({ resolution: z.enum(resolutions).nullable(), version: etag }))`
    select case when resolve_time is not null then state end as resolution, version
    from roster.invitations where org_id = ${orgId(context)} and id = ${invitationId}`;
  const { resolution, version } = await unitOfWork(context).one(query, noInvitation(invitationId));
  return resolution === null
    ? fail("ETAG_STALE", { etag: version })
    : fail(`INVITATION_${resolution}`, { invitation_id: invitationId });
};

/** What ListInvitations lets its callers choose. */
const choices: Choices = {
  fields: {
    email: foldedText(sql.fragment`i.email_key`),
    state: oneOf(stateNow, states),
    role: text(sql.fragment`i.role`),
    create_time: time(sql.fragment`i.create_time`),
    expire_time: time(sql.fragment`i.expire_time`),
  },
  keys: { email: { column: sql.fragment`i.email_key`, type: "text" } },
  idOrder: "create_time",
  id: sql.fragment`i.id`,
};

type Invitations = Pick<
  ServiceImpl<typeof OrgService>,
  | "createInvitation"
  | "getInvitation"
  | "listInvitations"
  | "resendInvitation"
  | "acceptInvitation"
  | "declineInvitation"
  | "revokeInvitation"
>;

export const invitations = {
  async createInvitation({ invitation }, context) {
    if (!invitation) throw fail("FIELD_REQUIRED", { field: "invitation" });
    signing(context);
    const made = insertInvitations(context, [newInvitation(invitation, "invitation.")]);
    const [row] = await made.catch(fieldInside("invitation"));
    if (!row) throw fail("INVITATION_EXISTS", { field: "invitation.email" });
    return toSent(row);
  },

  async getInvitation({ invitationId }, context) {
    const row = await unitOfWork(context).one(
      sql.type(invitationRow)`
        select ${invitationColumns} from roster.invitations i
        where i.org_id = ${orgId(context)} and i.id = ${invitationId}`,
      noInvitation(invitationId),
    );
    return { invitation: toInvitation(row) };
  },

  async listInvitations(request, context) {
    const page = pageOf(context, request);
    const chosen = selectionOf(request, page, true, choices);
    const [after = firstId] = page.after ?? [];
    if (chosen) {
      const query = sql.type(placedRow)`
        select ${invitationColumns}, ${chosen.position} as position from roster.invitations i
        where i.org_id = ${orgId(context)} and ${chosen.where}
        order by ${chosen.order} limit ${page.limit}`;
      const rows = await unitOfWork(context).many(query, { prepare: false });
      const { items, nextPageToken } = page.finish(
        rows,
        (row) => chosen.cursor(row.position, row.invitation_id),
        toInvitation,
      );
      return { invitations: items, nextPageToken };
    }
    const rows = await unitOfWork(context).many(sql.type(invitationRow)`
      select ${invitationColumns} from roster.invitations i
      where i.org_id = ${orgId(context)} and i.id > ${after}::uuid
      order by i.id limit ${page.limit}`);
    const { items, nextPageToken } = page.finish(rows, (row) => [row.invitation_id], toInvitation);
    return { invitations: items, nextPageToken };
  },

  async resendInvitation({ invitationId, etag: given }, context) {
    signing(context);
    const org = orgId(context);
    // Another to the same address may have expired since, and then gives way.
    const row = await unitOfWork(context).maybeOne(sql.type(invitationRow)`
      with expired as (
        update roster.invitations other set state = 'EXPIRED' from roster.invitations asked
        where asked.org_id = ${org} and asked.id = ${invitationId}
          and other.org_id = ${org} and other.email_key = asked.email_key and other.id <> asked.id
          and other.state = 'PENDING' and other.expire_time <= now()
        returning other.id)
      update roster.invitations i set
        state = 'PENDING', resend_count = i.resend_count + 1, expire_time = now() + ${usualLifetime}
      from (select count(*) from expired) first
      where i.org_id = ${org} and i.id = ${invitationId} and i.state in ('PENDING', 'EXPIRED')
        and i.version = coalesce(${versionOf(given, "etag")}::bigint, i.version)
      returning ${invitationColumns}`);
    if (!row) throw await unwritten(context, invitationId);
    return toSent(row);
  },

  async acceptInvitation({ invitationId, token, userId }, context) {
    const person = personOf(context, userId);
    const row = await unitOfWork(context).one(
      sql.type(acceptedRow)`
        select ${invitationColumns}, ${memberColumns}
        from roster.accept_invitation(${invitationId}, ${resendsOf(context, invitationId, token)}::int, ${person}) a
        cross join lateral (select (a.accepted).*) i
        cross join lateral (select (a.member).*) m`,
      () => new Error("a function without a result"),
    );
    return { invitation: toInvitation(row), member: toMember(row) };
  },

  async declineInvitation({ invitationId, token, userId }, context) {
    const person = personOf(context, userId);
    const row = await unitOfWork(context).one(
      sql.type(invitationRow)`
        select ${invitationColumns}
        from roster.decline_invitation(${invitationId}, ${resendsOf(context, invitationId, token)}::int, ${person}) i`,
      () => new Error("a function without a result"),
    );
    return { invitation: toInvitation(row) };
  },

  async revokeInvitation({ invitationId, etag: given }, context) {
    const row = await unitOfWork(context).maybeOne(sql.type(invitationRow)`
      update roster.invitations i set state = 'REVOKED', resolve_time = now()
      where i.org_id = ${orgId(context)} and i.id = ${invitationId} and i.state in ('PENDING', 'EXPIRED')
        and i.version = coalesce(${versionOf(given, "etag")}::bigint, i.version)
      returning ${invitationColumns}`);
    if (!row) throw await unwritten(context, invitationId);
    return { invitation: toInvitation(row) };
  },
} satisfies Invitations;
