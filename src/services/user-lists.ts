/** Lists of users: the members of an org, or everyone. */
import type { ServiceImpl } from "@connectrpc/connect";
import type { z } from "zod";
import { caller, maybeOrgId, unitOfWork } from "../context.ts";
import type { Page } from "../database/page.ts";
import { type FragmentSqlToken, sql } from "../database/sql.ts";
import type { UserService } from "../gen/roster/v1/user_service_pb.ts";
import { View } from "../gen/roster/v1/view_pb.ts";
import { foldedText, labelsIn, oneOf, text, time } from "./conditions.ts";
import { isLasting } from "./org-members.ts";
import { briefProfileColumns, profileJoin } from "./profiles.ts";
import { firstId, pageOf } from "./requests.ts";
import { type Choices, type Selection, selectionOf } from "./selections.ts";
import {
  listedUserRow,
  placedListedUserRow,
  placedUserRow,
  toListedUser,
  userColumns,
  userJoin,
  userRow,
} from "./users.ts";

/**
 * What ListUsers lets its callers choose, of users with the table's name and their keys beside an id. A filter sees
 * what the answer shows: users have nobody's external id and labels but their own.
 */
const choicesBy = (
  id: FragmentSqlToken,
  nameKey: FragmentSqlToken,
  emailKey: FragmentSqlToken,
  shown: { readonly externalId: FragmentSqlToken; readonly labels: FragmentSqlToken },
): Choices => ({
  fields: {
    name: foldedText(nameKey),
    email: foldedText(emailKey),
    state: oneOf(sql.fragment`u.state`, ["ACTIVE", "SUSPENDED"]),
    external_id: text(shown.externalId),
    labels: labelsIn(shown.labels),
    create_time: time(sql.fragment`u.create_time`),
    update_time: time(sql.fragment`u.update_time`),
    delete_time: time(sql.fragment`u.delete_time`),
  },
  keys: {
    name: { column: nameKey, type: "text" },
    email: { column: emailKey, type: "text" },
  },
  idOrder: "create_time",
  id,
});

const toAll = { externalId: sql.fragment`u.external_id`, labels: sql.fragment`u.labels` };
const isOwn = sql.fragment`u.id = (select roster.current_actor())`;
const toOne = {
  externalId: sql.fragment`(case when ${isOwn} then u.external_id end)`,
  labels: sql.fragment`(case when ${isOwn} then u.labels else '{}' end)`,
};
const memberKeys = [
  sql.fragment`k.user_id`,
  sql.fragment`k.name_key`,
  sql.fragment`k.email_key`,
] as const;
/** Of all users, whom only platform and services list. */
const ofAll = choicesBy(
  sql.fragment`u.id`,
  sql.fragment`u.name_key`,
  sql.fragment`u.email_key`,
  toAll,
);
const ofOrgToServices = choicesBy(...memberKeys, toAll);
const ofOrgToUsers = choicesBy(...memberKeys, toOne);

/** A page of users, which comes before all that belongs to them: a join in the page would be sorted whole. */
const pageOfUsers = (org: string | undefined, after: string, deleted: boolean, { limit }: Page) =>
  org === undefined
    ? sql.fragment`(
        select * from roster.users
        where roster.kept(delete_time, purge_time, ${deleted}) and id > ${after}::uuid
        order by id limit ${limit}) u`
    : sql.fragment`(
        select user_id as id from roster.org_members m
        where org_id = ${org} and user_id > ${after}::uuid and ${isLasting}
        order by user_id limit ${limit}) page
        join roster.users u on u.id = page.id`;

/** The same of chosen users. In an org the keys of its members come first, each with one probe for its user. */
const pageOfChosen = (
  org: string | undefined,
  chosen: Selection,
  deleted: boolean,
  { limit }: Page,
) => {
  const tables =
    org === undefined
      ? sql.fragment`roster.users u where true`
      : sql.fragment`
          roster.org_member_keys k
          cross join lateral (select * from roster.users where id = k.user_id limit 1) u
          where k.org_id = ${org}`;
  return sql.fragment`(
    select u.*, ${chosen.places}, ${chosen.position} as position from ${tables}
      and roster.kept(u.delete_time, u.purge_time, ${deleted}) and ${chosen.where}
    order by ${chosen.order} limit ${limit}) u`;
};

type Listed = z.output<typeof userRow> & { readonly position?: string };

export const userLists = {
  async listUsers(request, context) {
    const page = pageOf(context, request);
    const org = maybeOrgId(context);
    const { userId, platform } = caller(context);
    const inOrg = userId === undefined ? ofOrgToServices : ofOrgToUsers;
    const choices = org === undefined ? ofAll : inOrg;
    const chosen = selectionOf(request, page, org !== undefined, choices);
    const deleted = request.showDeleted && platform;
    const users = chosen
      ? pageOfChosen(org, chosen, deleted, page)
      : pageOfUsers(org, page.after?.[0] ?? firstId, deleted, page);
    const position = chosen ? sql.fragment`, u.position` : sql.fragment``;
    const order = chosen?.placeOrder ?? sql.fragment`u.id`;
    const unit = unitOfWork(context);
    const options = { prepare: chosen === undefined };
    const rows: readonly Listed[] =
      request.view === View.FULL
        ? await unit.many(
            sql.type(chosen ? placedListedUserRow : listedUserRow)`
              select ${userColumns}, ${briefProfileColumns}${position}
              from ${users} ${userJoin} ${profileJoin}
              order by ${order}`,
            options,
          )
        : await unit.many(
            sql.type(chosen ? placedUserRow : userRow)`
              select ${userColumns}${position} from ${users} ${userJoin} order by ${order}`,
            options,
          );
    const { items, nextPageToken } = page.finish<Listed, object>(
      rows,
      (row) => chosen?.cursor(row.position ?? "", row.user_id) ?? [row.user_id],
      (row) => (row.user_delete_time && !deleted ? null : toListedUser(row)),
    );
    return { users: items, nextPageToken };
  },
} satisfies Pick<ServiceImpl<typeof UserService>, "listUsers">;
