/** The access table of the README, from the access options of the protos and the roles of the database. */
import { type DescMethod, getOption } from "@bufbuild/protobuf";
import { type Access, access, Scope } from "../src/gen/roster/v1/access_pb.ts";
import { routes } from "../src/routes.ts";

/** Permissions of the built-in roles, of the team roles, and of no service, as the database has them. */
export type Permissions = Readonly<Record<string, readonly string[]>>;

const roles = ["guest", "member", "admin", "owner"] as const;
const mayNot = "–";
const may = "●";

type Cells = readonly string[];

/** Whether the call changes a membership or a role, by which nobody may hand out more than they hold. */
const isBounded = ({ scope, permission }: Access): boolean =>
  scope === Scope.ORG && /^(members\.(add|update|remove)|roles\.manage)$/.test(permission);

const roleCell = (
  role: string,
  permission: string,
  option: Access,
  permissions: Permissions,
): string => {
  if (permissions[role]?.includes(permission)) {
    return isBounded(option) && role !== "owner" ? "≤" : may;
  }
  const lists = permission === "teams.get" && option.team === "";
  if (option.team === "" && !lists) return mayNot;
  if (permission === "teams.create" && role === "guest") return mayNot;
  if (permissions.MEMBER?.includes(permission)) return "T";
  return permissions.MAINTAINER?.includes(permission) ? "M" : mayNot;
};

const inOrg = (permission: string, option: Access, permissions: Permissions): Cells => [
  permission,
  "in an org",
  ...roles.map((role) => roleCell(role, permission, option, permissions)),
  option.self === "" ? mayNot : may,
  permissions.closed?.includes(permission) ? mayNot : isBounded(option) ? "≤" : may,
  may,
];

const noRoles = roles.map(() => "");

const selfCell = ({ own, self, selfMask }: Access): string => {
  if (own) return "own";
  if (self === "") return mayNot;
  return selfMask.length > 0 ? selfMask.map((path) => `\`${path}\``).join(" ") : may;
};

const outside = (option: Access): Cells => [
  option.permission || "roster.platform",
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
      return [inOrg(option.permission, option, permissions), ...(option.allOrgs ? [all] : [])];
    }
    case Scope.USER:
      return [
        inOrg(option.permission.replace("users.", "members."), option, permissions),
        outside(option),
      ];
    case Scope.PLATFORM:
      return [outside(option)];
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
