import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { completeWith, orgId, unitOfWork } from "../context.ts";
import { sql } from "../database/sql.ts";
import { askedAnew, fieldInside, type Metadata, type Reason, refused } from "../errors.ts";
import type {
  BatchCreateInvitationsResponse,
  OrgService,
} from "../gen/roster/v1/org_service_pb.ts";
import { insertInvitations, newInvitation, signToken, toSent } from "./invitations.ts";

type Item = ReturnType<typeof newInvitation>;

const judgementRow = z.object({
  email_key: z.string(),
  pending: z.boolean(),
  refusal: z.custom<Metadata & { readonly reason: Reason }>().nullable(),
  room: z.number(),
  allowed: z.number(),
});
type Judgement = z.output<typeof judgementRow>;

/** Whether the caller may make each, whether its address has a pending one now, and how many there is room for. */
const judge = (context: HandlerContext, items: readonly Item[]) => {
  const org = orgId(context);
  const rows = items.map((i) => [i.email, i.role, i.teamIds, i.expireTime]);
  const query = sql.type(judgementRow)`
    select key.email as email_key,
      (select true from roster.invitations
        where org_id = ${org} and email_key = key.email and state = 'PENDING' and expire_time > now()
      ) is not null as pending,
      roster.invitation_refusal(${org}, a.role, a.team_ids::uuid[], a.expire_time) as refusal, room, allowed
    from ${sql.unnest(rows, ["text", "text", "text", "timestamptz"])} with ordinality
      a (email, role, team_ids, expire_time, place)
    cross join lateral (select lower(normalize(a.email, nfc)) as email) key
    cross join roster.room_for('pending_invitations')
    order by a.place`;
  return unitOfWork(context).many(query, { prepare: false });
};

/** Why the database refuses all, of which others have changed something since each was judged. */
const changing = [
  "ORG_LIMIT_REACHED",
  "ROLE_UNKNOWN",
  "ROLE_NOT_GRANTABLE",
  "TEAM_NOT_FOUND",
] as const;

const made = (row: Parameters<typeof toSent>[0]) => {
  const { invitation, token } = toSent(row);
  return { result: { case: "invitation" as const, value: invitation }, token };
};
const exists = ({ path }: Item) => ({
  result: refused("INVITATION_EXISTS", { field: `${path}email` }),
});
const full = (org: string, allowed: number) => {
  const told = { org_id: org, limit: "pending_invitations", value: `${allowed}` };
  return { result: refused("ORG_LIMIT_REACHED", told) };
};
const forbidden = ({ path }: Item, { reason, ...metadata }: NonNullable<Judgement["refusal"]>) => ({
  result: refused(
    reason,
    metadata.field ? { ...metadata, field: path + metadata.field } : metadata,
  ),
});

type Results = Map<Item, ReturnType<typeof made> | ReturnType<typeof exists>>;

/**
 * Which of these can be made, by id, and why the others cannot: because the caller may not or the address has one
 * already, or because of one before them in the request, provided that that one is made.
 */
const sortOut = (org: string, items: readonly Item[], judgements: readonly Judgement[]) => {
  const free = new Map<string, Item>();
  const taken: Results = new Map();
  const doubles: Results = new Map();
  const addresses = new Set<string>();
  for (const [index, item] of items.entries()) {
    const { email_key, pending, refusal, room, allowed } = judgements[index] as Judgement;
    if (refusal) taken.set(item, forbidden(item, refusal));
    else if (pending) taken.set(item, exists(item));
    else if (addresses.has(email_key)) doubles.set(item, exists(item));
    else if (free.size >= room) taken.set(item, full(org, allowed));
    else {
      free.set(item.id, item);
      addresses.add(email_key);
    }
  }
  return { free, taken, doubles };
};

/** Inviting many addresses at once, an RPC of OrgService. */
export const invitationBatches = {
  async batchCreateInvitations(request, context) {
    completeWith<BatchCreateInvitationsResponse>(context, ({ results }) => {
      for (const answer of results)
        if (answer.result.case === "invitation")
          answer.token = signToken(context, answer.result.value, answer.token);
    });
    const items = request.invitations.map((invitation, place) =>
      newInvitation(invitation, `invitations[${place}].`),
    );
    const results: Results = new Map();
    // One round, unless another call invites an address between its two statements.
    for (let left = items; left.length > 0; left = left.filter((item) => !results.has(item))) {
      const { free, taken, doubles } = sortOut(orgId(context), left, await judge(context, left));
      const asked = [...free.values()];
      const inserted = asked.length > 0 ? insertInvitations(context, asked) : Promise.resolve([]);
      const rows = await inserted.catch(askedAnew(...changing)).catch(fieldInside("invitations"));
      for (const row of rows) results.set(free.get(row.invitation_id) as Item, made(row));
      const settled = rows.length === free.size ? [...taken, ...doubles] : taken;
      for (const [item, result] of settled) results.set(item, result);
    }
    return {
      results: items.map((item) => {
        const result = results.get(item);
        if (!result) throw new Error("an invitation without a result");
        return result;
      }),
    };
  },
} satisfies Pick<ServiceImpl<typeof OrgService>, "batchCreateInvitations">;
