/** Calls that change the roles which an org has of its own. */
import fc from "fast-check";
import type { Role } from "../../src/gen/roster/v1/role_pb.ts";
import { calls, callWith } from "./operation.ts";
import { crew, sorted } from "./real.ts";
import {
  type Answer,
  builtIn,
  demandRoom,
  dismiss,
  enterToGrant,
  holds,
  isLasting,
  type Org,
  Refused,
  refuse,
} from "./world.ts";

const name = fc.constantFrom("crew", "desk", "crew", "desk", "admin");
const permissions = fc.constantFrom(
  [],
  ["members.get"],
  ["org.get", "members.get", "members.invite"],
  crew,
  crew.filter((permission) => permission !== "members.remove"),
  [...crew, "org.delete"],
  [...(builtIn.admin ?? [])],
  [...crew, "teams.create"],
  ["org.get", "teams.get", "teams.create", "teams.delete"],
);

const answerOf = (role: Role | undefined): Answer => ({
  name: role?.name,
  permissions: role?.permissions,
});

/** What a role of the org's own permits. */
const ownRole = ({ roles }: Org, name: string): readonly string[] => {
  if (builtIn[name]) refuse("ROLE_BUILT_IN");
  const found = roles.get(name);
  if (!found) throw new Refused("ROLE_NOT_FOUND");
  return found;
};

const createRole = calls("CreateRole", {
  input: callWith({ name, permissions }),
  predict: (world, call) => {
    const { org, held } = enterToGrant(world, call, "roles.manage");
    if (!holds(held, call.permissions)) refuse("ROLE_NOT_GRANTABLE");
    if (builtIn[call.name] || org.roles.has(call.name)) refuse("ROLE_NAME_TAKEN");
    demandRoom(world, org, "roles");
    org.roles.set(call.name, call.permissions);
    return { name: call.name, permissions: sorted(call.permissions) };
  },
  send: async (real, { access }, { org, name, permissions }, options) => {
    const role = { orgId: real.orgIds[org] ?? "", name, permissions: [...permissions] };
    return answerOf((await access.createRole({ role }, options)).role);
  },
});

const updateRole = calls("UpdateRole", {
  input: callWith({ name, permissions }),
  predict: (world, call) => {
    const { org, held } = enterToGrant(world, call, "roles.manage");
    const former = ownRole(org, call.name);
    if (!holds(held, former) || !holds(held, call.permissions)) refuse("ROLE_NOT_GRANTABLE");
    org.roles.set(call.name, call.permissions);
    return { name: call.name, permissions: sorted(call.permissions) };
  },
  send: async (real, { access }, { org, name, permissions }, options) => {
    const role = { orgId: real.orgIds[org] ?? "", name, permissions: [...permissions] };
    const request = { role, updateMask: { paths: ["permissions"] } };
    return answerOf((await access.updateRole(request, options)).role);
  },
});

const deleteRole = calls("DeleteRole", {
  input: callWith({ name }),
  predict: (world, call) => {
    const { org, held } = enterToGrant(world, call, "roles.manage");
    const former = ownRole(org, call.name);
    if (!holds(held, former)) refuse("ROLE_NOT_GRANTABLE");
    const holders = [...org.members].filter(([, member]) => member.role === call.name);
    const isPromised = [...org.invitations.values()].some(
      ({ role, state }) => role === call.name && state === "PENDING",
    );
    if (isPromised || holders.some(([, member]) => isLasting(member))) refuse("ROLE_IN_USE");
    for (const [user] of holders) dismiss(org, user);
    org.roles.delete(call.name);
    return { name: call.name, permissions: sorted(former) };
  },
  send: async (real, { access }, { org, name }, options) => {
    const request = { orgId: real.orgIds[org] ?? "", name };
    return answerOf((await access.deleteRole(request, options)).role);
  },
});

export const roleCalls = [createRole, updateRole, updateRole, deleteRole];
