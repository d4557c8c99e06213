import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { orgId, unitOfWork } from "../context.ts";
import { Overtaken, sql } from "../database/sql.ts";
import { askedAnew, refused } from "../errors.ts";
import type { OrgService } from "../gen/roster/v1/org_service_pb.ts";
import { memberColumns, memberRow, timeText, toMember } from "./org-members.ts";

/** A user to be added, and where in the request they stand. */
interface Item {
  readonly userId: string;
  readonly role: string;
  readonly expireTime: string | null;
  readonly path: string;
}

const verdictRow = z.object({
  role_fault: z.enum(["ROLE_UNKNOWN", "ROLE_NOT_GRANTABLE"]).nullable(),
  user_is_active: z.boolean(),
  is_member: z.boolean(),
  is_over: z.boolean(),
  room: z.number(),
  allowed: z.number(),
});
type Verdict = z.output<typeof verdictRow>;

/**
 * What adding each alone would meet, whether their membership is over from the first, and how many there is room for.
 * Their roles and users stay as they are.
 */
const judge = (context: HandlerContext, items: readonly Item[]) => {
  const people = items.map(({ userId }) => userId);
  const roles = items.map(({ role }) => role);
  const ends = items.map(({ expireTime }) => expireTime);
  return unitOfWork(context).many(sql.type(verdictRow)`
    select role_fault, user_is_active, is_member, room, allowed,
      coalesce((${sql.array(ends, "timestamptz")})[place::int] <= now(), false) as is_over
    from roster.judge_new_members(${sql.array(people, "uuid")}, ${sql.array(roles, "text")}) with ordinality
      v (role_fault, user_is_active, is_member, place)
    cross join roster.room_for('members')
    order by place`);
};

/**
 * Adds users in the order of their ids, in which every batch does: two with the same people wait for one another
 * instead of deadlocking. Whoever was added meanwhile is missing from the answer.
 */
const insert = (context: HandlerContext, items: readonly Item[]) => {
  const rows = items.map(({ userId, role, expireTime }) => [userId, role, expireTime]);
  const inserted = unitOfWork(context).many(sql.type(memberRow)`
    insert into roster.org_members as m (org_id, user_id, role, expire_time)
    select ${orgId(context)}, a.user_id, a.role, a.expire_time
    from ${sql.unnest(rows, ["uuid", "text", "timestamptz"])} a (user_id, role, expire_time)
    order by a.user_id
    on conflict (org_id, user_id) do nothing
    returning ${memberColumns}`);
  return inserted.catch(askedAnew("ORG_LIMIT_REACHED"));
};

const exists = ({ path }: Item) => refused("ORG_MEMBER_EXISTS", { field: `${path}user_id` });

/** Why a user cannot be added; undefined when they can. What comes first is what AddOrgMember says first. */
const refusalOf = (item: Item, verdict: Verdict) => {
  const { userId, role, expireTime, path } = item;
  if (verdict.role_fault !== null)
    return refused(verdict.role_fault, { field: `${path}role`, role });
  if (!verdict.user_is_active)
    return refused("USER_NOT_FOUND", { field: `${path}user_id`, user_id: userId });
  if (role === "owner" && expireTime !== null) {
    const rule = "owners take no expire_time";
    return refused("FIELD_INVALID", { field: `${path}expire_time`, rule });
  }
  return verdict.is_member ? exists(item) : undefined;
};

/** Who can be added, by id, and why each of the others cannot; and whether there is no room for all. */
const sortOut = (org: string, items: readonly Item[], verdicts: readonly Verdict[]) => {
  const addable = new Map<string, Item>();
  let lasting = 0;
  let isFull = false;
  const refusals = items.map((item, place) => {
    const verdict = verdicts[place] as Verdict;
    const refusal = refusalOf(item, verdict);
    if (refusal || addable.has(item.userId)) return refusal;
    if (lasting + (verdict.is_over ? 0 : 1) > verdict.room) {
      isFull = true;
      const told = { org_id: org, limit: "members", value: `${verdict.allowed}` };
      return refused("ORG_LIMIT_REACHED", told);
    }
    addable.set(item.userId, item);
    if (!verdict.is_over) lasting++;
    return undefined;
  });
  return { addable, refusals, isFull };
};

/** Adding many members at once, an RPC of OrgService. */
export const orgMemberBatches = {
  async batchAddOrgMembers(request, context) {
    const items = request.members.map(({ userId, role, expireTime }, place): Item => {
      const path = `members[${place}].`;
      return {
        userId: userId.toLowerCase(),
        role: role || "member",
        expireTime: timeText(expireTime, `${path}expire_time`),
        path,
      };
    });
    let sorted = sortOut(orgId(context), items, await judge(context, items));
    // While that waited, others may have gone. Now that it has what it waited for, none can.
    if (sorted.isFull) sorted = sortOut(orgId(context), items, await judge(context, items));
    const { addable, refusals } = sorted;
    const rows = addable.size > 0 ? await insert(context, [...addable.values()]) : [];
    // Room was kept for whoever was added meanwhile, or their membership is over already: a new look tells.
    if (rows.length < addable.size) throw new Overtaken("others were added meanwhile");
    const added = new Map(rows.map((row) => [addable.get(row.member_user_id), row]));
    return {
      results: items.map((item, place) => {
        const row = added.get(item);
        const made = row && { case: "member" as const, value: toMember(row) };
        return { result: refusals[place] ?? made ?? exists(item) };
      }),
    };
  },
} satisfies Pick<ServiceImpl<typeof OrgService>, "batchAddOrgMembers">;
