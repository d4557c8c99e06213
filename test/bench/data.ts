/** What benchmarks run on: rows written in bulk, with ids that follow from their numbers. */
import type pg from "pg";

const kinds = { user: "7001", org: "7002", team: "7003", profile: "7004", entry: "7005" } as const;

/** The id of the n-th row of its kind. Ids are ordered as their numbers, as those of UUIDv7 are by time. */
export const idOf = (kind: keyof typeof kinds, n: number): string =>
  `01940000-0000-${kinds[kind]}-8000-${n.toString(16).padStart(12, "0")}`;

const idSql = (kind: keyof typeof kinds, n: string): string =>
  `('01940000-0000-${kinds[kind]}-8000-' || lpad(to_hex(${n}), 12, '0'))::uuid`;

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
}

/** What `npm run bench` runs on. */
export const usual: Size = {
  orgs: 1_000,
  users: 20_000,
  members: 20,
  largeOrgs: 10,
  largeMembers: 1_000,
  teams: 20,
};

/** The number of the j-th member of an org; the owner is member 0. Orgs overlap when users run out. */
export const memberOf = (size: Size, org: number, j: number): number =>
  (org * size.members + j) % size.users;

/**
 * Writes the rows. Triggers and foreign keys are off meanwhile: what they would check, the statements
 * guarantee, and a benchmark needs no audit entries of its own making.
 *
 * @param admin a superuser's connection
 */
export const load = async (admin: pg.Client, size: Size): Promise<void> => {
  const { orgs, users, members, largeOrgs, largeMembers, teams } = size;
  await admin.query("set session_replication_role = replica");
  await admin.query(`
    insert into roster.users (id, email, name)
    select ${idSql("user", "n")}, 'user' || n || '@example.com', 'User ' || n
    from generate_series(0, ${users - 1}) n`);
  await admin.query(`
    insert into roster.profiles (id, user_id, bio)
    select ${idSql("profile", "n")}, ${idSql("user", "n")}, 'The person with number ' || n
    from generate_series(0, ${users - 1}) n`);
  await admin.query(`
    insert into roster.orgs (id, name, slug)
    select ${idSql("org", "n")}, 'Org ' || n, 'org-' || n from generate_series(0, ${orgs - 1}) n`);
  await admin.query(`
    insert into roster.org_slugs (slug_key, org_id)
    select 'org-' || n, ${idSql("org", "n")} from generate_series(0, ${orgs - 1}) n`);
  await admin.query(`
    insert into roster.org_members (org_id, user_id, role)
    select ${idSql("org", "o")}, ${idSql("user", `(o * ${members} + j) % ${users}`)},
      case when j = 0 then 'owner' else 'member' end
    from generate_series(0, ${orgs - 1}) o
    cross join lateral generate_series(
      0, case when o < ${largeOrgs} then ${largeMembers} else ${members} end - 1) j`);
  await admin.query(`
    insert into roster.teams (org_id, id, name)
    select ${idSql("org", "o")}, ${idSql("team", `o * ${teams} + t`)}, 'Team ' || t
    from generate_series(0, ${orgs - 1}) o cross join generate_series(0, ${teams - 1}) t`);
  await admin.query("set session_replication_role = origin");
  await admin.query("vacuum (freeze, analyze)");
};
