/** One request for each RPC, and a world of which the requests speak: for tests that walk all RPCs. */
import { randomUUID } from "node:crypto";
import { create, type DescMethodUnary, getOption, type Message, toJson } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { expect } from "vitest";
import { type Access, access } from "../src/gen/roster/v1/access_pb.ts";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import { routes } from "../src/routes.ts";
import { type Callers, type Harness, type Refusal, refusal, slug, type Tenant } from "./harness.ts";
import { makeTeam } from "./made-team.ts";

/** A tenant with a team, people in it, and what was deleted. */
export interface World extends Tenant {
  readonly harness: Harness;
  readonly teamId: string;
  /** A member of org and team. */
  readonly mateId: string;
  readonly auditEntryId: string;
  readonly deletedUserId: string;
  readonly deletedTeamId: string;
  readonly deletedOrgId: string;
  /** A new member of the org, of the team too where a team role is given. */
  readonly person: (orgRole: string, teamRole?: TeamRole) => Promise<string>;
}

/** @param word stands in every text of the world that a person wrote */
export const makeWorld = async (harness: Harness, word = "World"): Promise<World> => {
  const tenant = await harness.tenant();
  const { orgId, owner } = tenant;
  const { ops } = harness;
  const person = async (orgRole: string, teamRole?: TeamRole): Promise<string> => {
    const userId = await harness.user(`${word} person`);
    await ops.orgs.addOrgMember({ orgId, userId, role: orgRole });
    if (teamRole) await ops.teams.addTeamMember({ orgId, teamId, userId, role: teamRole });
    return userId;
  };
  const text = { name: `${word} team`, description: word, type: word.toLowerCase() };
  const { id: teamId } = await makeTeam(owner, { ...text, orgId, labels: { [word]: word } });
  const { id: deletedTeamId } = await makeTeam(owner, { orgId, name: `${word} deleted` });
  await owner.teams.deleteTeam({ orgId, teamId: deletedTeamId });
  await owner.orgs.updateOrg({ org: { id: orgId, name: `${word} org`, labels: { [word]: word } } });
  const mateId = await person("member", TeamRole.MEMBER);
  for (const id of [tenant.ownerId, mateId]) {
    const email = `${word}.${randomUUID()}@example.com`;
    await ops.users.updateUser({ user: { id, email, name: word, labels: { [word]: word } } });
    const profile = { userId: id, bio: word, settings: { [word]: word } };
    await ops.users.updateProfile({ profile });
    await ops.users.updateProfile({ profile: { ...profile, orgId } });
  }
  const deletedUserId = await person("member", TeamRole.MEMBER);
  const { org: gone } = await ops.orgs.createOrg({
    org: { name: `${word} deleted`, slug: slug() },
    ownerUserId: deletedUserId,
  });
  const deletedOrgId = gone?.id ?? "";
  await ops.orgs.addOrgMember({ orgId: deletedOrgId, userId: tenant.ownerId, role: "owner" });
  await ops.orgs.deleteOrg({ orgId: deletedOrgId, force: true });
  await ops.users.deleteUser({ userId: deletedUserId });
  const { auditEntries } = await owner.audit.listAuditEntries({ orgId, pageSize: 1 });
  const auditEntryId = auditEntries[0]?.id ?? "";
  const deleted = { deletedUserId, deletedTeamId, deletedOrgId };
  return { ...tenant, ...deleted, harness, teamId, mateId, auditEntryId, person };
};

/** One way to call an RPC. */
export interface Sample {
  /** A request that succeeds for whoever may; what it takes away is made for it. */
  readonly request: (world: World) => object | Promise<object>;
  /** Who sends it: someone inside the org, or platform, or a service outside any org. */
  readonly by: "owner" | "member" | "platform" | "service";
  /** Fields with the form of an id that the RPC does not read. */
  readonly ignored?: readonly string[];
  /** A field with a value by which the request fails; without it a second try does, or a stale etag. */
  readonly fault?: readonly [path: string, value: unknown];
}

const email = (): string => `${randomUUID()}@example.com`;
const { MAINTAINER, MEMBER } = TeamRole;

const emailOf = async ({ ops }: Harness, userId: string): Promise<string> =>
  (await ops.users.getUser({ userId })).user?.email ?? "";
const slugOf = async ({ ops }: Harness, orgId: string): Promise<string> =>
  (await ops.orgs.getOrg({ orgId })).org?.slug ?? "";

/** An org of nobody else, which may be closed. */
const newOrg = async (harness: Harness): Promise<string> => {
  const ownerUserId = await harness.user();
  const { org } = await harness.ops.orgs.createOrg({
    org: { name: "New", slug: slug() },
    ownerUserId,
  });
  return org?.id ?? "";
};

/** By `Service.Method`; a second way to call the same RPC has a word behind it. */
export const samples: Readonly<Record<string, Sample>> = {
  "UserService.GetCaller": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "UserService.CreateUser": {
    by: "platform",
    request: () => ({ user: { email: email(), name: "New" }, profile: { bio: "Hi" } }),
    ignored: ["user.id", "profile.id", "profile.user_id", "profile.org_id"],
  },
  "UserService.BatchCreateUsers": {
    by: "platform",
    request: () => ({
      users: [1, 2].map(() => ({ user: { email: email(), name: "New" }, profile: { bio: "Hi" } })),
    }),
    fault: ["users", []],
  },
  "UserService.GetUser": {
    by: "member",
    request: ({ orgId, mateId: userId }) => ({ orgId, userId }),
  },
  "UserService.GetUser outside": { by: "service", request: ({ mateId: userId }) => ({ userId }) },
  "UserService.BatchGetUsers": {
    by: "member",
    request: ({ orgId, mateId }) => ({ orgId, userIds: [mateId] }),
  },
  "UserService.BatchGetUsers outside": {
    by: "service",
    request: ({ mateId }) => ({ userIds: [mateId] }),
  },
  "UserService.LookupUser": {
    by: "member",
    request: async ({ harness, orgId, mateId }) => ({
      orgId,
      key: { case: "email", value: await emailOf(harness, mateId) },
    }),
  },
  "UserService.LookupUser outside": {
    by: "service",
    request: async ({ harness, mateId }) => ({
      key: { case: "email", value: await emailOf(harness, mateId) },
    }),
  },
  "UserService.ListUsers": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "UserService.ListUsers outside": { by: "service", request: () => ({}) },
  "UserService.UpdateUser": {
    by: "platform",
    request: async ({ harness }) => ({ user: { id: await harness.user(), name: "Renamed" } }),
  },
  "UserService.UpdateUser email": {
    by: "platform",
    request: async ({ harness }) => ({ user: { id: await harness.user(), email: email() } }),
  },
  "UserService.DeleteUser": {
    by: "platform",
    request: async ({ harness }) => ({ userId: await harness.user() }),
  },
  "UserService.UndeleteUser": {
    by: "platform",
    request: async ({ harness }) => {
      const userId = await harness.user();
      await harness.ops.users.deleteUser({ userId });
      return { userId };
    },
  },
  "UserService.SuspendUser": {
    by: "platform",
    request: async ({ harness }) => ({ userId: await harness.user() }),
  },
  "UserService.ReactivateUser": {
    by: "platform",
    request: async ({ harness }) => {
      const userId = await harness.user();
      await harness.ops.users.suspendUser({ userId });
      return { userId };
    },
  },
  "UserService.GetProfile": {
    by: "member",
    request: ({ orgId, mateId: userId }) => ({ orgId, userId }),
  },
  "UserService.GetProfile outside": {
    by: "service",
    request: ({ mateId: userId }) => ({ userId }),
  },
  "UserService.UpdateProfile": {
    by: "owner",
    request: ({ orgId, mateId: userId }) => ({ profile: { orgId, userId, bio: randomUUID() } }),
    ignored: ["profile.id"],
  },
  "UserService.UpdateProfile outside": {
    by: "service",
    request: ({ mateId: userId }) => ({ profile: { userId, bio: randomUUID() } }),
    ignored: ["profile.id"],
  },
  "UserService.ListUserOrgs": { by: "service", request: ({ mateId: userId }) => ({ userId }) },

  "OrgService.CreateOrg": {
    by: "platform",
    request: ({ memberId }) => ({ org: { name: "New", slug: slug() }, ownerUserId: memberId }),
    ignored: ["org.id"],
  },
  "OrgService.GetOrg": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "OrgService.BatchGetOrgs": { by: "service", request: ({ orgId }) => ({ orgIds: [orgId] }) },
  "OrgService.LookupOrg": {
    by: "service",
    request: async ({ harness, orgId }) => ({
      key: { case: "slug", value: await slugOf(harness, orgId) },
    }),
  },
  "OrgService.ListOrgs": { by: "service", request: () => ({}) },
  "OrgService.UpdateOrg": {
    by: "owner",
    request: ({ orgId: id }) => ({ org: { id, labels: { now: randomUUID() } } }),
  },
  "OrgService.DeleteOrg": { by: "owner", request: ({ orgId }) => ({ orgId, force: true }) },
  "OrgService.UndeleteOrg": {
    by: "platform",
    request: async ({ harness }) => {
      const orgId = await newOrg(harness);
      await harness.ops.orgs.deleteOrg({ orgId });
      return { orgId };
    },
  },
  "OrgService.SuspendOrg": {
    by: "platform",
    request: async ({ harness }) => ({ orgId: await newOrg(harness) }),
  },
  "OrgService.ReactivateOrg": {
    by: "platform",
    request: async ({ harness }) => {
      const orgId = await newOrg(harness);
      await harness.ops.orgs.suspendOrg({ orgId });
      return { orgId };
    },
  },
  "OrgService.AddOrgMember": {
    by: "owner",
    request: async ({ orgId, harness }) => ({ orgId, userId: await harness.user() }),
  },
  "OrgService.GetOrgMember": {
    by: "member",
    request: ({ orgId, mateId: userId }) => ({ orgId, userId }),
  },
  "OrgService.ListOrgMembers": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "OrgService.UpdateOrgMember": {
    by: "owner",
    request: async ({ orgId, person }) => ({
      member: { orgId, userId: await person("member"), role: "guest" },
    }),
  },
  "OrgService.RemoveOrgMember": {
    by: "owner",
    request: async ({ orgId, person }) => ({ orgId, userId: await person("member") }),
  },

  "TeamService.CreateTeam": {
    by: "owner",
    request: ({ orgId, teamId: parentTeamId }) => ({
      team: { orgId, parentTeamId, name: randomUUID() },
    }),
    ignored: ["team.id"],
  },
  "TeamService.GetTeam": { by: "member", request: ({ orgId, teamId }) => ({ orgId, teamId }) },
  "TeamService.BatchGetTeams": {
    by: "member",
    request: ({ orgId, teamId }) => ({ orgId, teamIds: [teamId] }),
  },
  "TeamService.ListTeams": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "TeamService.UpdateTeam": {
    by: "owner",
    request: ({ orgId, teamId: id }) => ({ team: { orgId, id, type: `t${Date.now()}` } }),
    ignored: ["team.parent_team_id"],
  },
  "TeamService.DeleteTeam": {
    by: "owner",
    request: async ({ orgId, teamId: parentTeamId, owner }) => {
      const { id } = await makeTeam(owner, { orgId, parentTeamId, name: randomUUID() });
      return { orgId, teamId: id };
    },
  },
  "TeamService.UndeleteTeam": {
    by: "owner",
    request: async ({ orgId, teamId: parentTeamId, owner }) => {
      const { id: teamId } = await makeTeam(owner, { orgId, parentTeamId, name: randomUUID() });
      await owner.teams.deleteTeam({ orgId, teamId });
      return { orgId, teamId };
    },
  },
  "TeamService.AddTeamMember": {
    by: "owner",
    request: async ({ orgId, teamId, person }) => ({
      orgId,
      teamId,
      userId: await person("guest"),
    }),
  },
  "TeamService.GetTeamMember": {
    by: "member",
    request: ({ orgId, teamId, mateId: userId }) => ({ orgId, teamId, userId }),
  },
  "TeamService.ListTeamMembers": {
    by: "member",
    request: ({ orgId, teamId }) => ({ orgId, teamId }),
  },
  "TeamService.ListUserTeams": {
    by: "member",
    request: ({ orgId, mateId: userId }) => ({ orgId, userId }),
  },
  "TeamService.UpdateTeamMember": {
    by: "owner",
    request: async ({ orgId, teamId, person }) => ({
      member: { orgId, teamId, userId: await person("guest", MEMBER), role: MAINTAINER },
    }),
  },
  "TeamService.RemoveTeamMember": {
    by: "owner",
    request: async ({ orgId, teamId, person }) => ({
      orgId,
      teamId,
      userId: await person("guest", MEMBER),
    }),
  },

  "AuditService.GetAuditEntry": {
    by: "owner",
    request: ({ orgId, auditEntryId }) => ({ orgId, auditEntryId }),
  },
  "AuditService.GetAuditEntry everywhere": {
    by: "platform",
    request: ({ auditEntryId }) => ({ auditEntryId }),
  },
  "AuditService.ListAuditEntries": { by: "owner", request: ({ orgId }) => ({ orgId }) },
  "AuditService.ListAuditEntries everywhere": { by: "platform", request: () => ({}) },
};

/** An RPC, and one way to call it. */
export interface Way extends Sample {
  readonly name: string;
  readonly method: DescMethodUnary;
  readonly rule: Access;
}

/** Every RPC that the server answers, by `Service.Method`. */
export const methods: ReadonlyMap<string, DescMethodUnary> = new Map(
  routes.flatMap(({ service }) =>
    service.methods.map((method) => [`${service.name}.${method.name}`, method as DescMethodUnary]),
  ),
);

/** Every sample, with its RPC. */
export const ways: readonly Way[] = Object.entries(samples).map(([name, sample]) => {
  const method = methods.get(name.split(" ")[0] ?? "");
  if (!method) throw new Error(`${name}: there is no such RPC`);
  return { ...sample, name, method, rule: getOption(method, access) };
});

/** The request of a sample. */
export const requestOf = async ({ method, request }: Way, world: World): Promise<Message> =>
  create(method.input, { ...(await request(world)) });

/** Sends a request of any RPC and gives the answer as JSON text. */
export const send = async (
  { transport }: Pick<Callers, "transport">,
  method: DescMethodUnary,
  request: Message,
  headers: Record<string, string> = {},
): Promise<string> => {
  const client = createClient(method.parent, transport) as unknown as Record<
    string,
    (request: Message, options: object) => Promise<Message>
  >;
  const response = await client[method.localName]?.(request, { headers });
  if (!response) throw new Error(`${method.name} gave no response`);
  return JSON.stringify(toJson(method.output, response));
};

/** A copy of the request with another value at a path of proto names. */
export const withField = (
  method: DescMethodUnary,
  request: Message,
  path: string,
  value: unknown,
): Message => {
  const [first = "", second] = path.split(".");
  const field = method.input.fields.find(({ name }) => name === first);
  if (!field) throw new Error(`${method.name} takes no ${path}`);
  const init = initOf(request);
  const inner = field.message?.fields.find(({ name }) => name === second);
  const held = inner && { ...initOf(init[field.localName] as Message), [inner.localName]: value };
  return create(method.input, { ...init, [field.localName]: held ?? value });
};

/** The message's fields without its type's name, so that what is put in may be an init shape again. */
const initOf = (message: Message | undefined): Record<string, unknown> => {
  const { $typeName: _name, ...fields } = { $typeName: "", ...message };
  return fields;
};

/** Paths of the fields that hold the id of something, in the request and in the resource within it. */
export const idPaths = ({ input }: DescMethodUnary): string[] =>
  input.fields.flatMap((field) =>
    field.message?.file.proto.package === "roster.v1"
      ? field.message.fields.filter(isId).map(({ name }) => `${field.name}.${name}`)
      : isId(field)
        ? [field.name]
        : [],
  );

const isId = ({ name, fieldKind }: { name: string; fieldKind: string }): boolean =>
  fieldKind === "scalar" && /^(id|.*_id)$/.test(name) && !/^(external|request)_id$/.test(name);

/** All that a refusal tells, byte for byte. */
const wholly = ({ code, message, error }: Refusal): string => {
  const details = error.details.map((detail) =>
    "value" in detail && detail.value instanceof Uint8Array
      ? `${"type" in detail ? detail.type : ""} ${Buffer.from(detail.value).toString("latin1")}`
      : "",
  );
  return [code, message, ...details].join("\n");
};

/** All that a refusal tells, with the id that was asked put out of sight. */
export const told = (refused: Refusal, id: string): string => wholly(refused).replaceAll(id, "ID");

/** What a caller gets to read of a call, however it ends. */
export const heard = async (call: Promise<string>): Promise<string> => {
  try {
    return await call;
  } catch (error) {
    return wholly(await refusal(Promise.reject(error)));
  }
};

const services = new Map<string, Promise<Callers>>();

/** A service with these permissions, pinned where an org is named. */
export const serviceWith = (harness: Harness, scope: string, org = ""): Promise<Callers> => {
  const key = `${harness.baseUrl} ${scope} ${org}`;
  const made = services.get(key) ?? harness.as("service:crm", { scope, org });
  services.set(key, made);
  return made;
};

/** Whoever the sample says sends it. */
export const callersFor = async (
  harness: Harness,
  { by, rule }: Way,
  world: World,
): Promise<Callers> => {
  if (by === "platform") return harness.ops;
  if (by === "service") return serviceWith(harness, rule.permission);
  return world[by];
};

/** Every row of every table, as one hash for each. */
export const contentsOf = async (
  { admin }: Harness,
  ...without: string[]
): Promise<{ t: string }[]> => {
  const { rows } = await admin.query<{ t: string }>(
    `select oid::regclass::text as t from pg_class
      where relnamespace = 'roster'::regnamespace and relkind in ('r', 'p') and not relispartition`,
  );
  expect(rows.length).toBeGreaterThan(8);
  const hashes = rows
    .filter(({ t }) => !without.includes(t))
    .map(
      ({ t }) =>
        `select '${t}' as t, count(*), md5(string_agg(r::text, '' order by r::text)) from ${t} r`,
    );
  return (await admin.query(hashes.join(" union all "))).rows;
};

/** The audit entries of a call, by its correlation id. */
export const entriesOf = async ({ admin }: Harness, correlationId: string): Promise<unknown[]> => {
  const { rows } = await admin.query(
    "select method, outcome from roster.audit_entries where correlation_id = $1",
    [correlationId],
  );
  return rows;
};

/** Where the request holds an etag; what makes something new has none. */
export const etagPath = ({ method }: Way): string | undefined => {
  if (/^(Create|Add)/.test(method.name)) return undefined;
  const holder = method.input.fields.find(({ message }) =>
    message?.fields.some(({ name }) => name === "etag"),
  );
  if (holder) return `${holder.name}.etag`;
  return method.input.fields.some(({ name }) => name === "etag") ? "etag" : undefined;
};
