/** Owners, members, roles, and memberships that end by themselves. */
import { type Guard, inRoutine, inSource, sql } from "./guard.ts";

const inGuard = inRoutine("guard_org_member");
const inHoldRights = inRoutine("hold_rights");
const inGuardRole = inRoutine("guard_role");
const inJudge = inRoutine("judge_new_members");
const inMembers = inSource("src/services/org-members.ts");

/** The last owner. */
const owners: readonly Guard[] = [
  // Either would do here, for all paths go through the org first.
  sql(
    "demand_owner: the org and its other owners are held",
    `do $$ begin
       execute regexp_replace(pg_get_functiondef('roster.demand_owner'::regproc),
         'for no key update|for share of u', '', 'g');
     end $$`,
    "owner-races",
    "by statements of their own",
  ),
  inRoutine("lock_owned_orgs")(
    "orgs are held before their owner",
    "perform from roster.orgs o where o.id = any (owned) order by o.id for no key update;",
    "",
    "owner-races",
    "instead of deadlocking",
  ),
  inGuard(
    "the last owner stays",
    "if leaves and not",
    "if false and not",
    "owners",
    "FAILED_PRECONDITION to demote them",
  ),
  inGuard(
    "an owner is active",
    "if tg_op = 'UPDATE' then\n      if user_state is distinct from 'ACTIVE' then",
    "if tg_op = 'UPDATE' then\n      if false then",
    "owners",
    "FAILED_PRECONDITION to be made of a suspended user",
  ),
  inRoutine("guard_user")(
    "the user stays who is one",
    "if cardinality(ownerless) > 0 then",
    "if false then",
    "owners",
    "FAILED_PRECONDITION to delete them",
  ),
  sql(
    "an org opens for an active owner alone",
    "drop trigger orgs_guard_owner_again on roster.orgs",
    "life-cycle",
    "when no active owner is left to open it for",
  ),
  sql(
    "a user is not removed by hand",
    "drop trigger users_guard_delete on roster.users",
    "owners",
    "cannot be removed by hand either",
  ),
  inMembers(
    "who is no owner hands nothing over",
    "and m.role = 'owner' and m.state = 'ACTIVE'",
    "and m.state = 'ACTIVE'",
    "transfer",
    "refuses who cannot go",
  ),
  inMembers(
    "who is suspended takes nothing over",
    "toUserId} and m.state = 'ACTIVE'",
    "toUserId}",
    "transfer",
    "refuses who cannot go",
  ),
  inMembers(
    "nobody hands over to themselves",
    "fromUserId.toLowerCase() === toUserId.toLowerCase()",
    "false",
    "transfer",
    "gives the former owner any role",
  ),
];

/** Who is added, with which role. */
const grants: readonly Guard[] = [
  inGuard(
    "a role is the caller's to give",
    "if fault is not null then",
    "if false then",
    "roles",
    "PERMISSION_DENIED to an admin",
  ),
  inGuard(
    "the role before is judged too",
    "else array[old.role, new.role] end",
    "else array[new.role] end",
    "roles",
    "PERMISSION_DENIED to an admin",
  ),
  inGuard(
    "a role that is taken away is judged",
    "when 'DELETE' then array[old.role]",
    "when 'DELETE' then '{}'",
    "roles",
    "PERMISSION_DENIED to an admin",
  ),
  inGuard(
    "a member is a live, active user",
    "elsif user_state is distinct from 'ACTIVE' then",
    "elsif false then",
    "org-members",
    "NOT_FOUND for a user who never was",
  ),
  inRoutine("role_fault")(
    "there is such a role",
    "(n.needed IS NULL)",
    "false",
    "batch-add-org-members",
    "answers for each what AddOrgMember would",
  ),
  inRoutine("role_fault")(
    "nobody gives what they do not hold",
    "(NOT (n.needed <@ string_to_array(role_fault.held, ' '::text)))",
    "false",
    "roles",
    "binds services to their scopes",
  ),
  inRoutine("role_fault")(
    "owners are made by owners alone",
    "(role_fault.role_name = 'owner'::text)",
    "false",
    "roles",
    "never lets them make an owner",
  ),
  inRoutine("role_fault")(
    "a role is one of the org",
    "(r.org_id = roster.current_org()) AND ",
    "",
    "batch-add-org-members",
    "answers for each what AddOrgMember would",
  ),
  inGuardRole(
    "nobody makes a role of more than they hold",
    "if held <> '*' and",
    "if false and",
    "custom-roles",
    "admins cannot touch what holds org.delete",
  ),
  inGuardRole(
    "what a role held before is judged too",
    "else old.permissions || new.permissions end",
    "else new.permissions end",
    "custom-roles",
    "admins cannot touch what holds org.delete",
  ),
  inGuardRole(
    "a role that is taken away is judged",
    "when 'DELETE' then old.permissions",
    "when 'DELETE' then '{}'",
    "custom-roles",
    "admins cannot touch what holds org.delete",
  ),
  inHoldRights(
    "the caller's rights are read again",
    "if not found then",
    "if false then",
    "role-races",
    "who loses their rights meanwhile",
  ),
  inHoldRights(
    "the caller's role is read again",
    "<@ coalesce(roster.built_in_permissions(m.role), r.permissions)",
    "<@ string_to_array(held, ' ')",
    "role-races",
    "whose own role is narrowed meanwhile",
  ),
  inHoldRights(
    "the caller's membership is read again",
    "and m.state = 'ACTIVE' and (m.expire_time is null or m.expire_time > now())",
    "",
    "role-races",
    "whose membership ends meanwhile",
  ),
  inHoldRights(
    "who gives a role holds roles",
    "for share",
    "",
    "role-races",
    "once they hold more than the giver does",
  ),
  inHoldRights(
    "who changes a role waits for its givers",
    "for no key update",
    "",
    "role-races",
    "once they hold more than the giver does",
  ),
];

const batches: readonly Guard[] = [
  inJudge(
    "roles",
    "roster.role_fault(a.role, held)",
    "null::text",
    "batch-add-org-members",
    "answers for each what AddOrgMember would",
  ),
  inJudge(
    "users",
    "where u.id = a.user_id and u.delete_time is null and u.state = 'ACTIVE'",
    "where u.id = a.user_id",
    "batch-add-org-members",
    "answers for each what AddOrgMember would",
  ),
  inJudge(
    "users are held",
    "order by u.id for share",
    "",
    "batch-add-org-members",
    "heed what changed before them",
  ),
  inJudge(
    "roles are held",
    "perform from roster.orgs o where o.id = org for share;",
    "",
    "batch-add-org-members",
    "heed what changed before them",
  ),
];

const ofMember = `m.org_id = \${orgId(context)} and m.user_id = \${userId}`;

/** Memberships whose time has come. */
const expiry: readonly Guard[] = [
  ...["users", "profiles"].map((table) =>
    sql(
      `${table}: of members whose time has not come`,
      `alter policy ${table}_app on roster.${table} using ((select true from roster.org_members m
         where m.org_id = (select roster.current_org())
           and m.user_id = ${table}.${table === "users" ? "id" : "user_id"}))`,
      "membership-expiry",
      "hides its user and their profiles",
    ),
  ),
  inMembers(
    "a list leaves out whose time has come",
    "(m.expire_time is null or m.expire_time > now())",
    "true",
    "membership-expiry",
    "is in no list, and cuts no page short",
  ),
  ...[
    ["UpdateOrgMember", `from roster.users u\n      where ${ofMember}`],
    ["RemoveOrgMember", `using roster.users u\n      where ${ofMember}`],
    ["TransferOrgOwnership", "m.state = 'ACTIVE'"],
  ].map(([rpc = "", where = ""]) =>
    inMembers(
      `${rpc} meets no membership whose time came while it waited`,
      `${where} and \${isLasting}`,
      where,
      "membership-expiry",
      `stays expired: ${rpc}`,
    ),
  ),
  sql(
    "a role is let go of",
    "drop trigger roles_end_expired_holders on roster.roles",
    "membership-expiry",
    "lets go of its role",
  ),
  inRoutine("end_expired_holders")(
    "a role is let go of by those alone whose time has come",
    "and m.expire_time <= now()",
    "",
    "membership-expiry",
    "lets go of its role",
  ),
  inGuard(
    "whose time has come is added anew",
    "if found then",
    "if false then",
    "membership-expiry",
    "begins anew",
  ),
  inRoutine("record_denial")(
    "a denied try is the org's while the membership lasts",
    "and (m.expire_time is null or m.expire_time > now())",
    "",
    "membership-expiry",
    "its denied tries are not the org's",
  ),
  inRoutine("remove_expired_members")(
    "what someone holds is passed over",
    "for update skip locked",
    "for update",
    "membership-expiry",
    "passes over a membership that someone holds",
  ),
  // Either would do, the query or the policy of the gate.
  sql(
    "remove_expired_members: what lasts stays",
    `alter policy org_members_gate_expired on roster.org_members using (true);
     do $$ begin
       execute replace(pg_get_functiondef('roster.remove_expired_members'::regproc),
         'm.expire_time <= now()', 'm.expire_time is not null');
     end $$`,
    "membership-expiry",
    "takes those whose time has come",
  ),
];

export const members: readonly Guard[] = [...owners, ...grants, ...batches, ...expiry];
