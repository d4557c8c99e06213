/** What benchmarks run on: rows written in bulk, with ids that follow from their numbers. */
import type pg from "pg";

const kinds = {
  user: "7001",
  org: "7002",
  team: "7003",
  profile: "7004",
  entry: "7005",
  change: "7006",
  invitation: "7007",
} as const;

/** The id of the n-th row of its kind. Ids are ordered as their numbers, as those of UUIDv7 are by time. */
export const idOf = (kind: keyof typeof kinds, n: number): string =>
  `01940000-0000-${kinds[kind]}-8000-${n.toString(16).padStart(12, "0")}`;

/** The same in SQL, of a number that is an expression. */
export const idSql = (kind: keyof typeof kinds, n: string): string =>
  `('01940000-0000-${kinds[kind]}-8000-' || lpad(to_hex(${n}), 12, '0'))::uuid`;

/** Numbers from the first one up to, and without, the second one. */
export type Range = readonly [from: number, to: number];

/** The numbers as rows. */
export const numbers = ([from, to]: Range, name: string): string =>
  `generate_series(${from}, ${to - 1}) ${name}`;

/** How much of everything there is. */
export interface Size {
  readonly orgs: number;
  readonly users: number;
  /** Members of each org, its owner among them, unless it is one of the large ones. */
  readonly members: number;
  /** The first so many orgs have more members. */
  readonly largeOrgs: number;
  readonly largeMembers: number;
  /** Teams of each org. */
  readonly teams: number;
  /** Members of one org more, behind the others. They are users of its own, behind the others too. */
  readonly hugeMembers: number;
  /** Teams of the huge org, in a tree. */
  readonly hugeTeams: number;
  /** Pending invitations of each org that is neither large nor huge, for the huge one's first members. */
  readonly invitations: number;
}

/** The servers' `TOKEN_SECRET`, from which the tokens of the invitations follow. */
export const tokenSecret = "a secret of at least thirty-two characters";

/** What `npm run bench` runs on. */
export const usual: Size = {
  orgs: 1_000,
  users: 20_000,
  members: 20,
  largeOrgs: 10,
  largeMembers: 1_000,
  teams: 20,
  hugeMembers: 100_000,
  hugeTeams: 10_000,
  invitations: 100,
};

/** The number of the j-th member of an org; the owner is member 0. Orgs overlap when users run out. */
export const memberOf = (size: Size, org: number, j: number): number =>
  (org * size.members + j) % size.users;

/** The number of the j-th member of the huge org; the owner is member 0. */
export const hugeMemberOf = (size: Size, j: number): number => size.users + j;

/** Statements that write users with their profiles. */
export const users = (range: Range): string[] => [
  `insert into roster.users (id, email, name)
   select ${idSql("user", "n")}, 'user' || n || '@example.com', 'User ' || n from ${numbers(range, "n")}`,
  `insert into roster.profiles (id, user_id, bio)
   select ${idSql("profile", "n")}, ${idSql("user", "n")}, 'The person with number ' || n
   from ${numbers(range, "n")}`,
];

/** Statements that write orgs with their slugs. */
export const orgs = (range: Range): string[] => [
  `insert into roster.orgs (id, name, slug)
   select ${idSql("org", "n")}, 'Org ' || n, 'org-' || n from ${numbers(range, "n")}`,
  `insert into roster.org_slugs (slug_key, org_id)
   select 'org-' || n, ${idSql("org", "n")} from ${numbers(range, "n")}`,
];

/** Writes members 0, the owner, and up of each org. `user` is the number of member `j` of org `o`, in SQL. */
export const members = (ofOrgs: Range, count: number, user: string): string =>
  `insert into roster.org_members (org_id, user_id, role)
   select ${idSql("org", "o")}, ${idSql("user", user)}, case when j = 0 then 'owner' else 'member' end
   from ${numbers(ofOrgs, "o")} cross join ${numbers([0, count], "j")}`;

/** Writes teams of each org. `number` is that of team `t` of org `o`, in SQL. */
export const teams = (ofOrgs: Range, count: number, number: string): string =>
  `insert into roster.teams (org_id, id, path, name)
   select ${idSql("org", "o")}, ${idSql("team", number)}, array[${idSql("team", number)}], 'Team ' || t
   from ${numbers(ofOrgs, "o")} cross join ${numbers([0, count], "t")}`;

/** The number of a team of the huge org: 0 is the top, and below each team are ten, as long as there are more. */
export const hugeTeamOf = (size: Size, t: number): number => size.orgs * size.teams + t;

/** Writes the teams of the huge org, and ten of its members into each. */
const tree = ({ orgs, teams, users, hugeMembers, hugeTeams }: Size): string[] => [
  `with recursive tree (t, path) as (
     select 0, array[${idSql("team", `${orgs * teams}`)}]
     union all
     select c, path || ${idSql("team", `${orgs * teams} + c`)}
     from tree cross join generate_series(t * 10 + 1, least(t * 10 + 10, ${hugeTeams} - 1)) c)
   insert into roster.teams (org_id, id, parent_team_id, path, name)
   select ${idSql("org", `${orgs}`)}, path[cardinality(path)], path[cardinality(path) - 1], path, 'Team ' || t
   from tree`,
  `insert into roster.team_members (org_id, team_id, user_id)
   select ${idSql("org", `${orgs}`)}, ${idSql("team", `${orgs * teams} + t`)},
     ${idSql("user", `${users} + (t * 10 + j) % ${hugeMembers}`)}
   from ${numbers([0, hugeTeams], "t")} cross join ${numbers([0, 10], "j")}`,
];

/** Writes pending invitations of each org. `user` is the number of whom invitation `i` of org `o` is for, in SQL. */
const invitations = (ofOrgs: Range, count: number, owner: string, user: string): string =>
  `insert into roster.invitations (org_id, id, email, inviter_id, expire_time)
   select ${idSql("org", "o")}, ${idSql("invitation", `o * ${count} + i`)}, 'user' || ${user} || '@example.com',
     ${idSql("user", owner)}, now() + interval '7 days'
   from ${numbers(ofOrgs, "o")} cross join ${numbers([0, count], "i")}`;

/** What triggers would have written beside the orgs and their members. */
const besides = [
  "truncate roster.org_member_keys",
  `insert into roster.org_member_keys (org_id, user_id, name_key, email_key)
   select m.org_id, m.user_id, u.name_key, u.email_key
   from roster.org_members m join roster.users u on u.id = m.user_id`,
  "truncate roster.org_counts",
  `insert into roster.org_counts (org_id, members, teams, pending_invitations)
   select o.id, coalesce(m.count, 0), coalesce(t.count, 0), coalesce(i.count, 0)
   from roster.orgs o
   left join (select org_id, count(*) from roster.org_members group by 1) m on m.org_id = o.id
   left join (select org_id, count(*) from roster.teams group by 1) t on t.org_id = o.id
   left join (select org_id, count(*) from roster.invitations where state = 'PENDING' group by 1) i
     on i.org_id = o.id`,
];

/**
 * Writes rows, and leaves the tables as a database that has had time to look after itself. Triggers and
 * foreign keys are off meanwhile: what they would check, the statements guarantee, and a benchmark needs no
 * audit entries of its own making.
 *
 * @param admin a superuser's connection
 */
export const write = async (admin: pg.Client, statements: readonly string[]): Promise<void> => {
  await admin.query("set session_replication_role = replica");
  for (const statement of [...statements, ...besides]) await admin.query(statement);
  await admin.query("set session_replication_role = origin");
  await admin.query("vacuum (freeze, analyze)");
  await admin.query("checkpoint");
};

/** Writes everything that a size tells. */
export const load = (admin: pg.Client, size: Size): Promise<void> => {
  const member = (j: string): string => `(o * ${size.members} + ${j}) % ${size.users}`;
  const small: Range = [size.largeOrgs, size.orgs];
  return write(admin, [
    ...users([0, size.users + size.hugeMembers]),
    ...orgs([0, size.orgs + 1]),
    members([0, size.largeOrgs], size.largeMembers, member("j")),
    members(small, size.members, member("j")),
    members([size.orgs, size.orgs + 1], size.hugeMembers, `${size.users} + j`),
    teams([0, size.orgs], size.teams, `o * ${size.teams} + t`),
    ...tree(size),
    invitations(small, size.invitations, member("0"), `(${size.users} + i)`),
  ]);
};
