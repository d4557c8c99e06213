/** What audit, and with it the feed, adds to each mutation: the same on a database that keeps no log. */
import { load, usual } from "./data.ts";
import { createdUser, repeatableUser } from "./operations.ts";
import type { Served } from "./process.ts";
import type { Cost, Stand } from "./stand.ts";

/** Mutations of one thing, and the most that audit may make of them. */
const most = 1.5;

/** Which operation is measured, under which name, and what it may cost at most against the same unaudited. */
const auditedOperations: readonly {
  readonly name: string;
  readonly operation: string;
  readonly against: string;
  readonly most?: number;
}[] = [
  { name: "Audited", operation: createdUser, against: createdUser, most },
  // Its answer exists only after the rows came back: two flushes.
  { name: "AuditedWithRequestId", operation: repeatableUser.name, against: createdUser, most: 1.8 },
  ...["CreateOrg", "AddOrgMember", "AcceptInvitation", "UpdateTeam"].map((operation) => ({
    name: `Audited${operation}`,
    operation,
    against: operation,
    most,
  })),
  // They write a change for each of many rows, which is what is measured, not held.
  ...["BatchAddOrgMembers", "SetTeamMembers"].map((operation) => ({
    name: `Audited${operation}`,
    operation,
    against: operation,
  })),
];

/** Takes audit off a database: no entry, no change, and what is left of the function that writes entries. */
const unaudited = `
  do $$
  declare
    t record;
  begin
    for t in
      select tgrelid::regclass as of, tgname as name from pg_trigger
      where not tgisinternal and tgname like '%\\_audit\\_%' and tgparentid = 0
    loop
      execute format('alter table %s disable trigger %I', t.of, t.name);
    end loop;
  end $$;
  create or replace function roster.write_entry(
    org uuid, entry uuid, actor uuid, subject text, on_behalf_of text[], method text, correlation_id text
  ) returns void language plpgsql volatile set search_path = '' as $$ begin end $$`;

/** The costs of an operation, round by round, and those of what it is held against. */
interface Audited {
  readonly own: readonly Cost[];
  readonly bare: readonly Cost[];
}

/** Measures all of them beside a database without audit, in turns. */
export async function* measureAudited(
  stand: Stand,
  roster: Served,
  { seconds, rounds, warmUpSeconds }: { seconds: number; rounds: number; warmUpSeconds: number },
): AsyncGenerator<Audited & { readonly name: string; readonly most?: number | undefined }> {
  const { urls, admin } = await stand.addDatabase("roster_bench_unaudited");
  await load(admin, usual);
  await admin.query(unaudited);
  const bare = await stand.serveRoster(urls);
  for (const { name, operation, against, most: held } of auditedOperations) {
    const costs: { own: Cost[]; bare: Cost[] } = { own: [], bare: [] };
    const turns = [
      [costs.own, roster, operation],
      [costs.bare, bare, against],
    ] as const;
    for (const [, served, called] of turns) await stand.measure(served, called, warmUpSeconds);
    for (let round = 0; round < rounds; round++)
      for (const i of turns.keys()) {
        const [into, served, called] = turns[(i + round) % turns.length] as (typeof turns)[number];
        into.push(await stand.measure(served, called, seconds));
      }
    yield { name, ...costs, most: held };
  }
}
