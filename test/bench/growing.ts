/** The families that grow in a database, beside another one that stays small. */
import { AuditService } from "../../src/gen/roster/v1/audit_service_pb.ts";
import { TeamService } from "../../src/gen/roster/v1/team_service_pb.ts";
import { UserService } from "../../src/gen/roster/v1/user_service_pb.ts";
import { idSql, members, numbers, orgs, type Range, teams, users } from "./data.ts";
import { calls, type GrowingFamily, org, powers, spread, team, user } from "./families.ts";
import { operation } from "./operations.ts";

/** The first org has 1,000 people, the next nine have 100, the others 10: any size has a thousand callers. */
const peopleOf = (orgNumber: number): number => (orgNumber < 1 ? 1_000 : orgNumber < 10 ? 100 : 10);
/** The number of an org's first member, its owner; its people follow. */
const ownerOf = (orgNumber: number): number =>
  orgNumber < 1
    ? 0
    : orgNumber < 10
      ? 1_001 + (orgNumber - 1) * 101
      : 1_910 + (orgNumber - 10) * 11;
/** The number of an org's first team; it has as many as people. */
const firstTeamOf = ownerOf;

/** Orgs of a size, more and more of them. */
export const tenants: GrowingFamily = {
  name: "tenants",
  unit: "tenants",
  sizes: powers(0, 5),
  grow([from, to]) {
    const people = peopleOf(from);
    const inOrg = `${ownerOf(from)} + (o - ${from}) * ${people + 1}`;
    return [
      ...users([ownerOf(from), ownerOf(to)]),
      ...orgs([from, to]),
      members([from, to], people + 1, `${inOrg} + j`),
      teams([from, to], people, `${inOrg} + t`),
    ];
  },
  async operations(size) {
    const placeOf = (n: number) => ({
      orgNumber: size < calls ? n % size : spread(n, size),
      place: Math.floor((n % calls) / size),
    });
    const senderOf = (n: number): string => {
      const { orgNumber, place } = placeOf(n);
      return user(ownerOf(orgNumber) + 1 + place);
    };
    return [
      operation(UserService.method.getUser, (n) => {
        const { orgNumber, place } = placeOf(n);
        const userId = user(ownerOf(orgNumber) + 1 + ((place + 1) % peopleOf(orgNumber)));
        return { sender: senderOf(n), request: { orgId: org(orgNumber), userId } };
      }),
      operation(TeamService.method.getTeam, (n) => {
        const { orgNumber, place } = placeOf(n);
        const teamId = team(firstTeamOf(orgNumber) + place);
        return { sender: senderOf(n), request: { orgId: org(orgNumber), teamId } };
      }),
    ];
  },
};

const platformOrgs = 100;
const orgMembers = 10;

/** A hundred orgs of ten, whose people are spread over all users of the platform. */
export const platformUsers: GrowingFamily = {
  name: "users",
  unit: "users of the platform",
  sizes: powers(3, 6),
  budget: { size: 1e6, ratio: 1.3 },
  grow([from, to]) {
    const step = to / (platformOrgs * orgMembers);
    return [
      ...users([from, to]),
      ...(from === 0 ? orgs([0, platformOrgs]) : []),
      "delete from roster.org_members",
      members([0, platformOrgs], orgMembers, `(o * ${orgMembers} + j) * ${step}`),
    ];
  },
  async operations(size) {
    const step = size / (platformOrgs * orgMembers);
    const member = (o: number, j: number): string => user((o * orgMembers + j) * step);
    return [
      operation(UserService.method.getUser, (n) => {
        const o = n % platformOrgs;
        const userId = member(o, 2 + (Math.floor(n / platformOrgs) % (orgMembers - 2)));
        return { sender: member(o, 1), request: { orgId: org(o), userId } };
      }),
      {
        ...operation(UserService.method.listUsers, () => ({
          sender: undefined,
          request: { pageSize: 50 },
        })),
        items: 50,
      },
      operation(UserService.method.lookupUser, (n) => ({
        sender: undefined,
        request: { key: { case: "email" as const, value: `user${spread(n, size)}@example.com` } },
      })),
    ];
  },
};

const auditedOrgs = 1_000;
/** Every second entry belongs to one of these, each fortieth to none, the others to the rest. */
const busyOrgs = 5;

/**
 * The months before this one, as partitions; the migration makes this one and those to come. None is logged:
 * the rows are read as those of logged tables are, and written much faster.
 */
const pastMonths = `
  do $$
  declare
    parent text;
    child text;
    first date;
  begin
    foreach parent in array array['audit_entries', 'audit_changes'] loop
      for i in 1 .. 12 loop
        first := date_trunc('month', now()) - make_interval(months => i);
        child := parent || to_char(first, '_YYYY_MM');
        execute format('create table roster.%I (like roster.%I including defaults including constraints)',
          child, parent);
        call roster.protect(('roster.' || child)::regclass);
        execute format('alter table roster.%I attach partition roster.%I for values from (%L) to (%L)',
          parent, child, first, (first + interval '1 month')::date);
      end loop;
      for child in select relid::regclass from pg_partition_tree(('roster.' || parent)::regclass) where isleaf loop
        execute format('alter table %s set unlogged', child);
      end loop;
    end loop;
  end
  $$`;

/** Indexes that are not kept while rows are written, and built when they are there. */
const withoutIndexes = (statements: readonly string[]): string[] => [
  `update pg_index set indisready = false
   where indrelid in (
     select relid from pg_partition_tree('roster.audit_entries') where isleaf
     union all select relid from pg_partition_tree('roster.audit_changes') where isleaf)`,
  ...statements,
  "reindex table roster.audit_entries",
  "reindex table roster.audit_changes",
];

/** Entries with one change each, evenly over the year until now and written in the order of time. */
const auditEntries = ([from, to]: Range): string[] => {
  const rows = `(
    select n, begin + (now() - begin) * ((n - ${from} + 0.5) / ${to - from}) as create_time,
      case
        when n % 2 = 0 then ${idSql("org", `n / 2 % ${busyOrgs}`)}
        when n % 40 < 39 then ${idSql("org", `${busyOrgs} + n / 2 % ${auditedOrgs - busyOrgs}`)}
      end as org_id
    from ${numbers([from, to], "n")}, lateral (select date_trunc('month', now()) - interval '1 year') y (begin)
    ) r`;
  // In one transaction, so that a change has the time of its entry.
  return [
    "begin",
    `insert into roster.audit_entries (id, org_id, subject, kind, method, correlation_id, create_time)
     select ${idSql("entry", "n")}, org_id, 'service:bench', 'SERVICE', '/roster.v1.TeamService/UpdateTeam',
       'call-' || n, create_time
     from ${rows}`,
    `insert into roster.audit_changes (id, org_id, apart, entry_id, subject, method, correlation_id,
       resource_type, resource_id, kind, before, after, changed_fields, create_time)
     select ${idSql("change", "n")}, coalesce(org_id, ${idSql("org", `n / 40 % ${busyOrgs}`)}),
       org_id is null, ${idSql("entry", "n")}, 'service:bench', '/roster.v1.TeamService/UpdateTeam',
       'call-' || n, 'team', ${idSql("team", "n % 1000")}::text, 'UPDATED',
       '{"name": "Old"}', '{"name": "New"}', '{name}', create_time
     from ${rows}`,
    "commit",
  ];
};

/** A log that tells of a thousand orgs, five of which are busy. */
export const audit: GrowingFamily = {
  name: "audit",
  unit: "audit rows: entries with one change each",
  sizes: powers(3, 7),
  budget: { size: 1e7, ratio: 1.3 },
  grow([from, to]) {
    const first = [
      ...users([0, auditedOrgs]),
      ...orgs([0, auditedOrgs]),
      members([0, auditedOrgs], 1, "o"),
      pastMonths,
    ];
    return [...(from === 0 ? first : []), ...withoutIndexes(auditEntries([from / 2, to / 2]))];
  },
  async operations() {
    const { listAuditEntries } = AuditService.method;
    return [
      {
        ...operation(listAuditEntries, (n) => ({
          sender: user(n % busyOrgs),
          request: { orgId: org(n % busyOrgs), pageSize: 50 },
        })),
        items: 50,
      },
      {
        ...operation(listAuditEntries, () => ({ sender: undefined, request: { pageSize: 50 } })),
        name: "ListAuditEntries of all orgs",
        items: 50,
      },
    ];
  },
};
