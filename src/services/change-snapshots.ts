/** All there is in an org, as changes that make it. */
import type { HandlerContext } from "@connectrpc/connect";
import { z } from "zod";
import { orgId, unitOfWork } from "../context.ts";
import type { Image } from "../database/feed.ts";
import { firstSize, sizeAfter } from "../database/page.ts";
import { type FragmentSqlToken, type Query, sql } from "../database/sql.ts";
import { type ChangeInit, created } from "./change-images.ts";
import { firstId } from "./requests.ts";

/** Keys of the last row of a page; what is a text begins behind the empty one. */
type Cursor = readonly [string, string];

const image = z.custom<Image>();
const row = z.object({ one: z.string(), two: z.string(), image });
const memberRow = z.object({ ...row.shape, user: image, profiles: z.array(image) });
type Row = z.output<typeof row>;

const imageOf = (table: FragmentSqlToken) =>
  sql.fragment`to_jsonb(${table}) - roster.unaudited_columns()`;

/** Pages of a table. Each enters anew, and holds nothing while its reader is slow. */
async function* pages<Schema extends z.ZodType<Row>>(
  context: HandlerContext,
  start: Cursor,
  page: (after: Cursor, size: number) => Query<Schema>,
): AsyncGenerator<readonly z.output<Schema>[]> {
  let after = start;
  for (let size = firstSize; ; ) {
    const rows = await unitOfWork(context).many(page(after, size));
    yield rows;
    const last = rows.at(-1);
    if (last === undefined || rows.length < size) return;
    after = [last.one, last.two];
    size = sizeAfter(size, rows);
  }
}

/**
 * Every resource of the org, some of them as they were earlier than others. What was deleted and can come back is
 * among them, since nothing tells of a membership again when its team or user comes back.
 */
export async function* snapshotOf(context: HandlerContext): AsyncGenerator<ChangeInit[]> {
  const org = orgId(context);
  const made = (type: string) => (rows: readonly Row[]) =>
    rows.map(({ one, two, image: found }) =>
      created(org, type, two === "" ? one : `${one}/${two}`, found),
    );
  const plain = async function* (
    type: string,
    start: Cursor,
    page: (after: Cursor, size: number) => Query<typeof row>,
  ): AsyncGenerator<ChangeInit[]> {
    for await (const rows of pages(context, start, page)) yield made(type)(rows);
  };

  yield* plain(
    "org",
    [firstId, ""],
    ([id]) => sql.type(row)`
      select o.id as one, '' as two, ${imageOf(sql.fragment`o`)} as image
      from roster.orgs o where o.id = ${org} and o.id > ${id}::uuid`,
  );
  yield* plain(
    "role",
    ["", ""],
    ([name], size) => sql.type(row)`
      select r.name as one, '' as two, ${imageOf(sql.fragment`r`)} as image
      from roster.roles r where r.org_id = ${org} and r.name > ${name}
      order by r.name limit ${size}`,
  );
  const members = pages(
    context,
    [firstId, ""],
    ([id], size) => sql.type(memberRow)`
      select m.user_id as one, '' as two, ${imageOf(sql.fragment`m`)} as image,
        ${imageOf(sql.fragment`u`)} - '{external_id, labels}'::text[] as user,
        (select coalesce(jsonb_agg(${imageOf(sql.fragment`p`)}), '[]') from roster.profiles p
          where p.user_id = m.user_id and (p.org_id is null or p.org_id = ${org})) as profiles
      from roster.org_members m join roster.users u on u.id = m.user_id
      where m.org_id = ${org} and m.user_id > ${id}::uuid
      order by m.user_id limit ${size}`,
  );
  for await (const rows of members)
    yield rows.flatMap((found) => [
      created(org, "user", found.one, found.user),
      ...found.profiles.map((profile) => created(org, "profile", String(profile.id), profile)),
      ...made("org_member")([found]),
    ]);
  yield* plain(
    "team",
    [firstId, ""],
    ([id], size) => sql.type(row)`
      select t.id as one, '' as two, t.image
      from roster.told_teams(${id}::uuid, ${size}) t order by t.id`,
  );
  yield* plain(
    "team_member",
    [firstId, firstId],
    ([team, user], size) => sql.type(row)`
      select m.team_id as one, m.user_id as two, ${imageOf(sql.fragment`m`)} as image
      from roster.team_members m
      where m.org_id = ${org} and (m.team_id, m.user_id) > (${team}::uuid, ${user}::uuid)
      order by m.team_id, m.user_id limit ${size}`,
  );
  yield* plain(
    "invitation",
    [firstId, ""],
    ([id], size) => sql.type(row)`
      select i.id as one, '' as two, ${imageOf(sql.fragment`i`)} as image
      from roster.invitations i
      where i.org_id = ${org} and i.id > ${id}::uuid and i.state = 'PENDING' and i.expire_time > now()
      order by i.id limit ${size}`,
  );
}
