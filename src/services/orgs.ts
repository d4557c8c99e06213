import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { v7 as uuid } from "uuid";
import { z } from "zod";
import { caller, claimNewOrg, orgId, settings, unitOfWork } from "../context.ts";
import { etag, instant, labels, maybeInstant, maybeText, sql } from "../database/sql.ts";
import { fail } from "../errors.ts";
import { OrgSchema, OrgState } from "../gen/roster/v1/org_pb.ts";
import type { OrgService } from "../gen/roster/v1/org_service_pb.ts";
import type { UserService } from "../gen/roster/v1/user_service_pb.ts";
import { View } from "../gen/roster/v1/view_pb.ts";
import { foldedText, labelsIn, oneOf, text, time } from "./conditions.ts";
import { isLasting, memberColumns, memberShape, toMember } from "./org-members.ts";
import {
  changesOf,
  checkLabelCount,
  firstId,
  inOrder,
  labelChange,
  nfc,
  orNull,
  pageOf,
  required,
  sendable,
  stale,
  undeletable,
  versionOf,
} from "./requests.ts";
import { type Choices, selectionOf } from "./selections.ts";
import { noUser } from "./users.ts";

/** An org as columns of `orgs o`. */
export const orgColumns = sql.fragment`
  o.id as org_id, o.name as org_name, o.slug as org_slug, o.state as org_state,
  o.external_id as org_external_id, o.labels as org_labels, o.create_time as org_create_time,
  o.update_time as org_update_time, o.delete_time as org_delete_time, o.purge_time as org_purge_time,
  o.version as org_version`;

export const orgShape = {
  org_id: z.string(),
  org_name: z.string(),
  org_slug: z.string(),
  org_state: z.enum(["ACTIVE", "SUSPENDED"]),
  org_external_id: maybeText,
  org_labels: labels,
  org_create_time: instant,
  org_update_time: instant,
  org_delete_time: maybeInstant,
  org_purge_time: maybeInstant,
  org_version: etag,
};
const orgRow = z.object(orgShape);
const countedRow = z.object({ ...orgShape, org_members: z.number(), org_teams: z.number() });
const placedRow = z.object({ ...orgShape, position: z.string() });
/** An org and one membership of it. */
const membershipRow = z.object({ ...orgShape, ...memberShape });

export const toOrg = (row: z.output<typeof orgRow>) => ({
  id: row.org_id,
  name: row.org_name,
  slug: row.org_slug,
  state: OrgState[row.org_state],
  externalId: row.org_external_id,
  labels: row.org_labels,
  createTime: row.org_create_time,
  updateTime: row.org_update_time,
  deleteTime: row.org_delete_time,
  purgeTime: row.org_purge_time,
  etag: row.org_version,
});

/** What ListOrgs lets its callers choose. */
const choices: Choices = {
  fields: {
    name: foldedText(sql.fragment`o.name_key`),
    slug: text(sql.fragment`(o.slug collate "C")`),
    state: oneOf(sql.fragment`o.state`, ["ACTIVE", "SUSPENDED"]),
    external_id: text(sql.fragment`o.external_id`),
    labels: labelsIn(sql.fragment`o.labels`),
    create_time: time(sql.fragment`o.create_time`),
    update_time: time(sql.fragment`o.update_time`),
    delete_time: time(sql.fragment`o.delete_time`),
  },
  keys: {
    name: { column: sql.fragment`o.name_key`, type: "text" },
    slug: { column: sql.fragment`(o.slug collate "C")`, type: "text" },
  },
  idOrder: "create_time",
  id: sql.fragment`o.id`,
};

/** Slugs that would read as part of a product rather than as a customer. */
const reservedSlugs = new Set(
  [
    "about account admin api app auth billing blog console dashboard docs help internal login logout me",
    "new null oauth org orgs platform public roster root security settings signup static status support",
    "system team teams test undefined user users www",
  ].flatMap((line) => line.split(" ")),
);

const slugOf = (slug: string): string => {
  required(slug, "org.slug");
  if (reservedSlugs.has(slug)) throw fail("SLUG_RESERVED", { field: "org.slug" });
  return slug;
};

const noOrg = (id: string) => () => fail("ORG_NOT_FOUND", { org_id: id });

/** The live org's version, for saying why a write met no row. */
const versionNow = (context: HandlerContext) =>
  unitOfWork(context).one(
    sql.type(z.object({ version: etag }))`
      select version from roster.orgs where id = ${orgId(context)} and delete_time is null`,
    noOrg(orgId(context)),
  );

/** Gives the live org a state; one that has it stays as it is. */
const withState = async (context: HandlerContext, given: string, state: "ACTIVE" | "SUSPENDED") => {
  const row = await unitOfWork(context).maybeOne(sql.type(orgRow)`
    with asked as (
      select * from roster.orgs
      where id = ${orgId(context)} and delete_time is null
        and version = coalesce(${versionOf(given, "etag")}::bigint, version)
      for no key update),
    changed as (
      update roster.orgs o set state = ${state}
      from asked where o.id = asked.id and asked.state <> ${state}
      returning o.*),
    o as (select * from changed union all select * from asked where state = ${state})
    select ${orgColumns} from o`);
  if (!row) throw stale(given, (await versionNow(context)).version);
  return toOrg(row);
};

type Orgs = Pick<
  ServiceImpl<typeof OrgService>,
  | "createOrg"
  | "getOrg"
  | "batchGetOrgs"
  | "lookupOrg"
  | "listOrgs"
  | "updateOrg"
  | "deleteOrg"
  | "undeleteOrg"
  | "purgeOrg"
  | "suspendOrg"
  | "reactivateOrg"
>;

export const orgs = {
  async createOrg({ org, ownerUserId }, context) {
    if (!org) throw fail("FIELD_REQUIRED", { field: "org" });
    const id = uuid();
    claimNewOrg(context, id);
    const slug = slugOf(org.slug);
    const row = await unitOfWork(context).one(
      sql.type(membershipRow)`
        with o as (
          insert into roster.orgs (id, name, slug, external_id, labels)
          values (${id}, ${nfc(required(org.name, "org.name"))}, ${slug}, ${orNull(nfc(org.externalId))},
            ${JSON.stringify(org.labels)})
          returning *),
        m as (
          insert into roster.org_members (org_id, user_id, role) select id, ${ownerUserId}, 'owner' from o
          returning *)
        select ${orgColumns}, ${memberColumns} from o cross join m`,
      () => new Error("the insert returned no row"),
    );
    return { org: toOrg(row), owner: toMember(row) };
  },

  async getOrg({ view }, context) {
    const unit = unitOfWork(context);
    const id = orgId(context);
    const isAsked = sql.fragment`o.id = ${id} and roster.kept(o.delete_time, o.purge_time, true)`;
    if (view === View.FULL) {
      const query = sql.type(countedRow)`
        select ${orgColumns}, c.members - roster.expired_members() as org_members,
          c.teams - roster.hidden_teams() as org_teams
        from roster.orgs o join roster.org_counts c on c.org_id = o.id where ${isAsked}`;
      const row = await unit.one(query, noOrg(id));
      return { org: { ...toOrg(row), memberCount: row.org_members, teamCount: row.org_teams } };
    }
    const query = sql.type(orgRow)`select ${orgColumns} from roster.orgs o where ${isAsked}`;
    return { org: toOrg(await unit.one(query, noOrg(id))) };
  },

  async batchGetOrgs({ orgIds }, context) {
    const { platform, orgId: pinned = null } = caller(context);
    const rows = await unitOfWork(context).many(sql.type(orgRow)`
      select ${orgColumns}
      from unnest(${sql.array([...new Set(orgIds)], "uuid")}) asked (id)
      cross join lateral (
        select * from roster.orgs
        where id = asked.id and id = coalesce(${pinned}::uuid, id)
          and roster.kept(delete_time, purge_time, ${platform})
        limit 1) o`);
    const { items, missingIds } = inOrder(orgIds, rows.map(toOrg));
    return sendable(context, { orgs: items, missingIds }, "org_ids");
  },

  async lookupOrg({ key }, context) {
    const bySlug = key.case === "slug";
    const pinned = caller(context).orgId ?? null;
    const asked = bySlug
      ? sql.fragment`
          roster.org_slugs s join roster.orgs o on o.id = s.org_id where s.slug_key = ${key.value}`
      : sql.fragment`roster.orgs o where o.external_id = ${nfc(key.value ?? "")}`;
    const row = await unitOfWork(context).one(
      sql.type(orgRow)`
        select ${orgColumns} from ${asked}
          and o.delete_time is null and o.id = coalesce(${pinned}::uuid, o.id)`,
      () => fail("ORG_NOT_FOUND", { field: bySlug ? "slug" : "external_id" }),
    );
    return { org: toOrg(row), renamed: bySlug && row.org_slug !== key.value };
  },

  async listOrgs(request, context) {
    const page = pageOf(context, request);
    const chosen = selectionOf(request, page, false, choices);
    const [after = firstId] = page.after ?? [];
    const deleted = request.showDeleted && caller(context).platform;
    const isShown = sql.fragment`roster.kept(o.delete_time, o.purge_time, ${deleted})`;
    if (chosen) {
      const query = sql.type(placedRow)`
        select ${orgColumns}, ${chosen.position} as position from roster.orgs o
        where ${isShown} and ${chosen.where}
        order by ${chosen.order} limit ${page.limit}`;
      const rows = await unitOfWork(context).many(query, { prepare: false });
      const cursor = (row: z.output<typeof placedRow>) => chosen.cursor(row.position, row.org_id);
      const { items, nextPageToken } = page.finish(rows, cursor, toOrg);
      return { orgs: items, nextPageToken };
    }
    const rows = await unitOfWork(context).many(sql.type(orgRow)`
      select ${orgColumns} from roster.orgs o
      where ${isShown} and o.id > ${after}::uuid
      order by o.id limit ${page.limit}`);
    const { items, nextPageToken } = page.finish(rows, (row) => [row.org_id], toOrg);
    return { orgs: items, nextPageToken };
  },

  async updateOrg({ org, updateMask }, context) {
    if (!org) throw fail("FIELD_REQUIRED", { field: "org" });
    const id = orgId(context);
    const changes = changesOf(OrgSchema, org, updateMask, [
      "name",
      "slug",
      "external_id",
      "labels",
    ]);
    if (changes.name) required(org.name, "org.name");
    const slug = changes.slug ? slugOf(org.slug) : "";
    const label = labelChange(org.labels, changes.labels);
    const row = await unitOfWork(context).maybeOne(sql.type(orgRow)`
      with o as (
        update roster.orgs set
          name = case when ${changes.name} then ${nfc(org.name)} else name end,
          slug = case when ${changes.slug} then ${slug} else slug end,
          external_id = case when ${changes.external_id} then ${orNull(nfc(org.externalId))} else external_id end,
          labels = (case when ${label.clear} then '{}' else labels end || ${label.set}::jsonb)
            - ${sql.array(label.remove, "text")}
        where id = ${id} and delete_time is null
          and version = coalesce(${versionOf(org.etag, "org.etag")}::bigint, version)
        returning *)
      select ${orgColumns} from o`);
    if (!row) throw stale(org.etag, (await versionNow(context)).version);
    checkLabelCount(row.org_labels, "org.labels");
    return { org: toOrg(row) };
  },

  async deleteOrg({ etag: given, force }, context) {
    const id = orgId(context);
    const version = versionOf(given, "etag");
    const unit = unitOfWork(context);
    // Once the org is held, no team and no member comes that the next statement does not see.
    if (!force) await unit.many(sql.typeAlias("void")`select from roster.lock_org()`);
    const row = await unit.maybeOne(sql.type(orgRow)`
      with o as (
        update roster.orgs set
          delete_time = now(), purge_time = now() + make_interval(days => ${settings(context).purgeAfterDays})
        where id = ${id} and delete_time is null and version = coalesce(${version}::bigint, version)
          and (${force} or not (
            exists (select from roster.teams t where t.org_id = ${id} and t.delete_time is null)
            or exists (
              select from roster.org_members m join roster.users u on u.id = m.user_id and u.delete_time is null
              where m.org_id = ${id} and m.role <> 'owner')))
        returning *)
      select ${orgColumns} from o`);
    if (!row) {
      const now = await versionNow(context);
      if (force || (version !== null && now.version !== given)) throw stale(given, now.version);
      throw fail("ORG_HAS_CHILDREN", { org_id: id });
    }
    return { org: toOrg(row) };
  },

  async undeleteOrg(_request, context) {
    const id = orgId(context);
    const row = await unitOfWork(context).maybeOne(sql.type(orgRow)`
      with o as (
        update roster.orgs set delete_time = null, purge_time = null
        where id = ${id} and delete_time is not null and purge_time > now()
        returning *)
      select ${orgColumns} from o`);
    if (row) return { org: toOrg(row) };
    const now = await unitOfWork(context).one(
      sql.type(z.object({ deleted: z.boolean() }))`
        select delete_time is not null as deleted from roster.orgs
        where id = ${id} and roster.kept(delete_time, purge_time, true)`,
      noOrg(id),
    );
    throw undeletable(now);
  },

  async purgeOrg({ orgId: id }, context) {
    // What the function removes, the statement around it still sees.
    const row = await unitOfWork(context).one(
      sql.type(orgRow)`
        select ${orgColumns} from roster.orgs o cross join roster.purge_org(${id}) where o.id = ${id}`,
      noOrg(id),
    );
    return { org: toOrg(row) };
  },

  async suspendOrg({ etag: given }, context) {
    return { org: await withState(context, given, "SUSPENDED") };
  },

  async reactivateOrg({ etag: given }, context) {
    return { org: await withState(context, given, "ACTIVE") };
  },
} satisfies Orgs;

/** The orgs of a user, an RPC of UserService. */
export const userOrgs = {
  async listUserOrgs(request, context) {
    const { userId } = request;
    const page = pageOf(context, request);
    const [after = firstId] = page.after ?? [];
    const unit = unitOfWork(context);
    const rows = await unit.many(
      sql.type(membershipRow)`
        select ${orgColumns}, ${memberColumns}
        from (
          select * from roster.org_members m
          where user_id = ${userId} and state = 'ACTIVE' and ${isLasting}
            and org_id = coalesce(${caller(context).orgId ?? null}::uuid, org_id)
            and org_id > ${after}::uuid
          order by org_id limit ${page.limit}) m
        join roster.orgs o on o.id = m.org_id
        join roster.users u on u.id = m.user_id and u.delete_time is null
        order by o.id`,
    );
    if (rows.length === 0) {
      await unit.one(
        sql.type(
          z.object({}),
        )`select from roster.users where id = ${userId} and delete_time is null`,
        noUser(userId),
      );
    }
    const { items, nextPageToken } = page.finish(
      rows,
      (row) => [row.org_id],
      (row) => (row.org_delete_time ? null : { org: toOrg(row), member: toMember(row) }),
    );
    return { userOrgs: items, nextPageToken };
  },
} satisfies Pick<ServiceImpl<typeof UserService>, "listUserOrgs">;
