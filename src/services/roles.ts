import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { z } from "zod";
import { orgId, unitOfWork } from "../context.ts";
import { etag, maybeInstant, maybeText, sql } from "../database/sql.ts";
import { fail, whileReferredTo } from "../errors.ts";
import type { AccessService } from "../gen/roster/v1/access_service_pb.ts";
import { RoleSchema } from "../gen/roster/v1/role_pb.ts";
import { changesOf, nfc, pageOf, required, stale, versionOf } from "./requests.ts";

/** A role as columns of `roles r`. */
const roleColumns = sql.fragment`
  r.org_id as role_org_id, r.name as role_name, r.title as role_title, r.permissions as role_permissions,
  r.create_time as role_create_time, r.update_time as role_update_time, r.version as role_version`;

const roleShape = {
  role_org_id: maybeText,
  role_name: z.string(),
  role_title: z.string(),
  role_permissions: z.array(z.string()),
  role_create_time: maybeInstant,
  role_update_time: maybeInstant,
  role_version: etag.nullable(),
};
const roleRow = z.object(roleShape);
const listedRow = z.object({ ...roleShape, place: z.string() });

export const toRole = (row: z.output<typeof roleRow>) => ({
  orgId: row.role_org_id,
  name: row.role_name,
  title: row.role_title,
  permissions: [...row.role_permissions].sort(),
  createTime: row.role_create_time,
  updateTime: row.role_update_time,
  etag: row.role_version ?? "",
});

/** The built-in roles as rows of `roles`, with their places in a list. They have no row there. */
const builtIn = sql.fragment`
  select null::uuid as org_id, name, initcap(name) as title, roster.built_in_permissions(name) as permissions,
    null::bigint as version, null::timestamptz as create_time, null::timestamptz as update_time, place
  from unnest('{owner, admin, member, guest}'::text[]) with ordinality b (name, place)`;
/** Behind them come those of the org. */
const ownPlace = "5";
const own = sql.fragment`
  select org_id, name, title, permissions, version, create_time, update_time, ${ownPlace}::bigint as place
  from roster.roles`;

/** The role of this name that the org has. */
const roleNamed = (context: HandlerContext, name: string) =>
  unitOfWork(context).one(
    sql.type(roleRow)`
      select ${roleColumns}
      from (${builtIn} union all ${own} where org_id = ${orgId(context)}) r
      where r.name = ${name}`,
    () => fail("ROLE_NOT_FOUND", { role: name }),
  );

/** Why a write met no row: no such role, a built-in one, or a newer one than the etag says. */
const unwritten = async (context: HandlerContext, name: string, given: string): Promise<Error> => {
  const { role_version: version } = await roleNamed(context, name);
  return version === null ? fail("ROLE_BUILT_IN", { role: name }) : stale(given, version);
};

/** Permissions as they are kept: each once, sorted. */
const distinct = (permissions: readonly string[]) =>
  sql.array([...new Set(permissions)].sort(), "text");

type Roles = Pick<
  ServiceImpl<typeof AccessService>,
  "createRole" | "getRole" | "listRoles" | "updateRole" | "deleteRole"
>;

/** Roles, RPCs of AccessService. That nobody hands out more than they hold, triggers demand. */
export const roles = {
  async createRole({ role }, context) {
    if (!role) throw fail("FIELD_REQUIRED", { field: "role" });
    const row = await unitOfWork(context).one(
      sql.type(roleRow)`
        insert into roster.roles as r (org_id, name, title, permissions)
        values (${orgId(context)}, ${required(role.name, "role.name")}, ${nfc(role.title)},
          ${distinct(role.permissions)})
        returning ${roleColumns}`,
      () => new Error("the insert returned no row"),
    );
    return { role: toRole(row) };
  },

  async getRole({ name }, context) {
    return { role: toRole(await roleNamed(context, name)) };
  },

  async listRoles(request, context) {
    const page = pageOf(context, request);
    const [place = "0", name = ""] = page.after ?? [];
    const rows = await unitOfWork(context).many(sql.type(listedRow)`
      select ${roleColumns}, r.place::text as place
      from (
        (${builtIn} where place > ${place}::bigint)
        union all
        (${own}
          where org_id = ${orgId(context)} and name > ${place === ownPlace ? name : ""}
          order by name limit ${page.limit})) r
      order by r.place, r.name limit ${page.limit}`);
    const { items, nextPageToken } = page.finish(rows, (row) => [row.place, row.role_name], toRole);
    return { roles: items, nextPageToken };
  },

  async updateRole({ role, updateMask }, context) {
    if (!role) throw fail("FIELD_REQUIRED", { field: "role" });
    const name = required(role.name, "role.name");
    const changes = changesOf(RoleSchema, role, updateMask, ["title", "permissions"]);
    const row = await unitOfWork(context).maybeOne(sql.type(roleRow)`
      update roster.roles r set
        title = case when ${changes.title} then ${nfc(role.title)} else title end,
        permissions = case when ${changes.permissions} then ${distinct(role.permissions)} else permissions end
      where r.org_id = ${orgId(context)} and r.name = ${name}
        and r.version = coalesce(${versionOf(role.etag, "role.etag")}::bigint, r.version)
      returning ${roleColumns}`);
    if (!row) throw await unwritten(context, name, role.etag);
    return { role: toRole(row) };
  },

  async deleteRole({ name, etag: given }, context) {
    const deleted = unitOfWork(context).maybeOne(sql.type(roleRow)`
      delete from roster.roles r
      where r.org_id = ${orgId(context)} and r.name = ${name}
        and r.version = coalesce(${versionOf(given, "etag")}::bigint, r.version)
      returning ${roleColumns}`);
    const row = await deleted.catch(whileReferredTo("ROLE_IN_USE", { role: name }));
    if (!row) throw await unwritten(context, name, given);
    return { role: toRole(row) };
  },
} satisfies Roles;
