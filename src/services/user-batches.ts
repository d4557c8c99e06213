import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { unitOfWork } from "../context.ts";
import { sql } from "../database/sql.ts";
import { fieldInside, refused } from "../errors.ts";
import type { UserService } from "../gen/roster/v1/user_service_pb.ts";
import { profileColumns } from "./profiles.ts";
import { fullUserRow, newUser, toFullUser, userColumns, userJoin } from "./users.ts";

/** A user to be made, and where in the request they stand. */
type Item = ReturnType<typeof newUser> & { readonly path: string };

const keysRow = z.object({
  email_key: z.string(),
  email_taken: z.boolean(),
  external_id_taken: z.boolean(),
});

/** Whether the email and the external id of each are taken now; a scalar subquery is one index probe. */
const keysOf = (context: HandlerContext, items: readonly Item[]) => {
  const rows = items.map(({ email, externalId }) => [email, externalId]);
  const query = sql.type(keysRow)`
    select key.email as email_key,
      (select true from roster.users where email_key = key.email and delete_time is null) is not null
        as email_taken,
      (select true from roster.users where external_id = a.external_id and delete_time is null) is not null
        as external_id_taken
    from ${sql.unnest(rows, ["text", "text"])} with ordinality a (email, external_id, place)
    cross join lateral (select lower(normalize(a.email, nfc)) as email) key
    order by a.place`;
  // A plan kept from when there were a few users would go through all of them, once for each asked.
  return unitOfWork(context).many(query, { prepare: false });
};

/**
 * Inserts users in the order of their emails, in which every batch does: two with the same people wait for one
 * another instead of deadlocking. Whoever is taken meanwhile is left out.
 */
const insert = (context: HandlerContext, items: readonly Item[]) => {
  const people = items.map((i) => [i.id, i.email, i.name, i.externalId, i.labels]);
  const faces = items.map((i) => [i.id, i.profileId, i.avatar, i.bio, i.settings]);
  const inserted = unitOfWork(context).many(sql.type(fullUserRow)`
    with u as (
      insert into roster.users (id, email, name, external_id, labels)
      select id, email, name, external_id, labels
      from ${sql.unnest(people, ["uuid", "text", "text", "text", "jsonb"])}
        a (id, email, name, external_id, labels)
      order by lower(normalize(email, nfc)) collate "C"
      on conflict do nothing
      returning *),
    p as (
      insert into roster.profiles (user_id, id, avatar, bio, settings)
      select u.id, a.id, a.avatar, a.bio, a.settings
      from u join ${sql.unnest(faces, ["uuid", "uuid", "text", "text", "jsonb"])}
        a (user_id, id, avatar, bio, settings) on a.user_id = u.id
      returning *)
    select ${userColumns}, ${profileColumns} from u join p on p.user_id = u.id ${userJoin}`);
  return inserted.catch(fieldInside("users"));
};

const made = (row: z.output<typeof fullUserRow>) => ({
  case: "user" as const,
  value: toFullUser(row),
});
type Results = Map<Item, ReturnType<typeof made> | ReturnType<typeof refused>>;

/**
 * Who of these can be made, by id, and why the others cannot: because of what is taken already, or because of
 * one before them in the request, provided that that one is made.
 */
const sortOut = (items: readonly Item[], keys: readonly z.output<typeof keysRow>[]) => {
  const free = new Map<string, Item>();
  const taken: Results = new Map();
  const doubles: Results = new Map();
  const emails = new Set<string>();
  const externalIds = new Set<string | null>();
  for (const [index, item] of items.entries()) {
    const { email_key, email_taken, external_id_taken } = keys[index] as z.output<typeof keysRow>;
    const { externalId, path } = item;
    const ofEmail = email_taken ? taken : emails.has(email_key) && doubles;
    const ofExternalId = external_id_taken ? taken : externalIds.has(externalId) && doubles;
    if (ofEmail) ofEmail.set(item, refused("EMAIL_TAKEN", { field: `${path}user.email` }));
    else if (ofExternalId)
      ofExternalId.set(
        item,
        refused("USER_EXTERNAL_ID_TAKEN", { field: `${path}user.external_id` }),
      );
    else {
      free.set(item.id, item);
      emails.add(email_key);
      if (externalId !== null) externalIds.add(externalId);
    }
  }
  return { free, taken, doubles };
};

/** Making many users at once, an RPC of UserService. */
export const userBatches = {
  async batchCreateUsers(request, context) {
    const items = request.users.map((user, place) => {
      const path = `users[${place}].`;
      return { ...newUser(user, path), path };
    });
    const results: Results = new Map();
    // One round, unless another call takes an email or external id between its two statements.
    for (let left = items; left.length > 0; left = left.filter((item) => !results.has(item))) {
      const { free, taken, doubles } = sortOut(left, await keysOf(context, left));
      const rows = free.size > 0 ? await insert(context, [...free.values()]) : [];
      for (const row of rows) results.set(free.get(row.user_id) as Item, made(row));
      const settled = rows.length === free.size ? [...taken, ...doubles] : taken;
      for (const [item, result] of settled) results.set(item, result);
    }
    return {
      results: items.map((item) => {
        const result = results.get(item);
        if (!result) throw new Error("a user without a result");
        return { result };
      }),
    };
  },
} satisfies Pick<ServiceImpl<typeof UserService>, "batchCreateUsers">;
