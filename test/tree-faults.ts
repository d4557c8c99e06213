import type pg from "pg";

/** What the teams of an org say of their place in the tree that their parents do not, and what no tree may be. */
export const treeFaults = async (
  { admin }: { readonly admin: Pick<pg.ClientBase, "query"> },
  orgId: string,
): Promise<string[]> => {
  const { rows } = await admin.query<{ fault: string }>(
    `with recursive tree as (
      select t.id, array[t.id] as path, t.delete_time is null as live,
        case t.visibility when 'SECRET' then array[t.id] else '{}' end as secrets
      from roster.teams t where t.org_id = $1 and t.parent_team_id is null
      union all
      select t.id, tree.path || t.id, t.delete_time is null,
        case t.visibility when 'SECRET' then tree.secrets || t.id else tree.secrets end
      from tree join roster.teams t on t.org_id = $1 and t.parent_team_id = tree.id
      where cardinality(tree.path) < 40)
    select concat_ws(' ', t.name, 'lies in a cycle') as fault from roster.teams t
      where t.org_id = $1 and not exists (select from tree where tree.id = t.id)
    union all
    select concat_ws(' ', t.name, 'has the wrong path') from roster.teams t join tree on tree.id = t.id
      where t.org_id = $1 and t.path <> tree.path
    union all
    select concat_ws(' ', t.name, 'is hidden by the wrong teams') from roster.teams t join tree on tree.id = t.id
      where t.org_id = $1 and t.secrets <> tree.secrets
    union all
    select concat_ws(' ', t.name, 'lies too deep') from roster.teams t
      where t.org_id = $1 and t.delete_time is null and cardinality(t.path) > 16
    union all
    select concat_ws(' ', t.name, 'is live under a deleted team') from roster.teams t
      join roster.teams p on p.org_id = t.org_id and p.id = t.parent_team_id
      where t.org_id = $1 and t.delete_time is null and p.delete_time is not null`,
    [orgId],
  );
  return rows.map(({ fault }) => fault);
};
