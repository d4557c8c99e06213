/** The access table of the README, from the access options of the protos and the roles of the database. */
import { type DescMethod, getOption } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { type Access, access, Scope } from "../src/gen/roster/v1/access_pb.ts";
import { routes } from "../src/routes.ts";

/** Permissions of the built-in roles, of the team roles, and of no service, as the database has them. */
export type Permissions = Readonly<Record<string, readonly string[]>>;

const roles = ["guest", "member", "admin", "owner"] as const;
const mayNot = "–";
const may = "●";

type Cells = readonly string[];

/** The permission that is the platform's alone: no role has it, and a service that has it is the platform. */
const ofPlatform = "roster.platform";

/** Whether the call changes or promises a membership or a role, by which nobody may hand out more than they hold. */
const isBounded = ({ idempotency }: DescMethod, { scope, permission }: Access): boolean =>
  scope === Scope.ORG &&
  /^(members\.(add|update|remove|invite)|roles\.manage)$/.test(permission) &&
  idempotency !== Idempotency.NO_SIDE_EFFECTS;

const roleCell = (
  role: string,
  permission: string,
  method: DescMethod,
  option: Access,
  permissions: Permissions,
): string => {
  if (permissions[role]?.includes(permission)) {
    return isBounded(method, option) && role !== "owner" ? "≤" : may;
  }
  const lists = permission === "teams.get" && option.team === "";
  if (option.team === "" && !lists) return mayNot;
  if (permission === "teams.create" && role === "guest") return mayNot;
  if (permissions.MEMBER?.includes(permission)) return "T";
  return permissions.MAINTAINER?.includes(permission) ? "M" : mayNot;
};

const inOrg = (
  permission: string,
  method: DescMethod,
  option: Access,
  permissions: Permissions,
): Cells => [
  permission,
  "in an org",
  ...roles.map((role) => roleCell(role, permission, method, option, permissions)),
  option.self === "" ? mayNot : may,
  permission === ofPlatform || permissions.closed?.includes(permission)
    ? mayNot
    : isBounded(method, option)
      ? "≤"
      : may,
  may,
];

const noRoles = roles.map(() => "");

const selfCell = ({ own, self, selfMask }: Access): string => {
  if (own) return "own";
  if (self === "") return mayNot;
  return selfMask.length > 0 ? selfMask.map((path) => `\`${path}\``).join(" ") : may;
};

const outside = (option: Access): Cells => [
  option.permission || ofPlatform,
  "outside",
  ...noRoles,
  selfCell(option),
  option.permission === "" ? mayNot : "u",
  may,
];

const rowsOf = (method: DescMethod, permissions: Permissions): Cells[] => {
  const option = getOption(method, access);
  switch (option.scope) {
    case Scope.ORG: {
      const all: Cells = [option.permission, "all orgs", ...noRoles, mayNot, mayNot, may];
      return [
        inOrg(option.permission, method, option, permissions),
        ...(option.allOrgs ? [all] : []),
      ];
    }
    case Scope.USER:
      return [
        inOrg(option.permission.replace("users.", "members."), method, option, permissions),
        outside(option),
      ];
    case Scope.PLATFORM:
      return [outside(option)];
    case Scope.INVITEE:
      return [[option.permission, "an org that invites", ...noRoles, "by e-mail", may, mayNot]];
    case Scope.NONE:
      return [["any credential", "either", may, may, may, may, may, may, may]];
    default:
      throw new Error(`${method.name}: no access option`);
  }
};

/** The table in Markdown; RPCs with the same rule share a row. */
export const accessTable = (permissions: Permissions): string => {
  const rows = new Map<string, string[]>();
  for (const { service } of routes) {
    for (const method of service.methods) {
      for (const cells of rowsOf(method, permissions)) {
        const key = cells.join(" | ");
        rows.set(key, [...(rows.get(key) ?? []), method.name]);
      }
    }
  }
  const lines = [...rows].map(([cells, names]) => `| ${names.join(", ")} | ${cells} |`);
  return [
    `| RPC | permission | where | ${roles.join(" | ")} | self | service | platform |`,
    "|---|---|---|:-:|:-:|:-:|:-:|:-:|:-:|:-:|",
    ...lines,
  ].join("\n");
};
