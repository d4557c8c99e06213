/** The families whose sizes stand side by side in one database, so that all are measured in turns. */
import { OrgService } from "../../src/gen/roster/v1/org_service_pb.ts";
import { TeamService } from "../../src/gen/roster/v1/team_service_pb.ts";
import { UserService } from "../../src/gen/roster/v1/user_service_pb.ts";
import { View } from "../../src/gen/roster/v1/view_pb.ts";
import { idSql, members, numbers, orgs, teams, users } from "./data.ts";
import { type Ask, org, powers, type StandingFamily, spread, team, user } from "./families.ts";
import { type Operation, operation } from "./operations.ts";

const perPage = 10;

type PageToken = { readonly nextPageToken: string };

/** The token that stands before a row of a list. A token holds whatever the size of the page it came with. */
const tokenAt = async (ask: Ask, row: number, list: (page: Page) => Operation): Promise<string> => {
  let pageToken = "";
  for (let at = 0; at < row; ) {
    const pageSize = Math.min(1_000, row - at);
    const answer = await ask(list({ pageSize, pageToken }));
    pageToken = (answer as unknown as PageToken).nextPageToken;
    if (pageToken === "") throw new Error(`the list ends before row ${row}`);
    at += pageSize;
  }
  return pageToken;
};

interface Page {
  readonly pageSize: number;
  readonly pageToken: string;
}

/** Pages of an org of a hundred thousand members and as many teams. */
export const depth: StandingFamily = {
  name: "depth",
  unit: `page, of ${perPage} rows`,
  sizes: powers(0, 4),
  budget: { size: 1e4, ratio: 1.1 },
  load(sizes) {
    // One page more than the deepest, so that this one is followed by another as the others are.
    const rows = (Math.max(...sizes) + 1) * perPage;
    return [
      ...users([0, rows]),
      ...orgs([0, 1]),
      members([0, 1], rows, "j"),
      teams([0, 1], rows, "t"),
    ];
  },
  async operations(size, ask) {
    const lists = [
      (page: Page) =>
        operation(OrgService.method.listOrgMembers, () => ({
          sender: user(1),
          request: { orgId: org(0), view: View.FULL, ...page },
        })),
      (page: Page) =>
        operation(TeamService.method.listTeams, () => ({
          sender: user(1),
          request: { orgId: org(0), ...page },
        })),
      (page: Page) => ({
        ...operation(TeamService.method.listTeams, () => ({
          sender: user(1),
          request: { orgId: org(0), filter: 'type = "team" AND visibility = "VISIBLE"', ...page },
        })),
        name: "ListTeams with a filter",
      }),
      (page: Page) => ({
        ...operation(OrgService.method.listOrgMembers, () => ({
          sender: user(1),
          request: { orgId: org(0), filter: 'user.name = "user*"', ...page },
        })),
        name: "ListOrgMembers by a prefix",
      }),
    ];
    return Promise.all(
      lists.map(async (list) => {
        const pageToken = await tokenAt(ask, (size - 1) * perPage, list);
        return { ...list({ pageSize: perPage, pageToken }), items: perPage };
      }),
    );
  },
};

const orgSizes = powers(2, 5);
/** People who are in every org of a family that grows it. */
const callers = 100;

/** Small and large orgs in one database. */
export const orgSize: StandingFamily = {
  name: "org",
  unit: "members of the org",
  sizes: orgSizes,
  load: (sizes) => [
    ...users([0, Math.max(...sizes)]),
    ...orgs([0, sizes.length]),
    ...sizes.map((size, i) => members([i, i + 1], size, "j")),
  ],
  async operations(size) {
    const orgId = org(orgSizes.indexOf(size));
    const sender = (n: number): string => user(1 + (n % (callers - 1)));
    return [
      {
        ...operation(OrgService.method.listOrgMembers, (n) => ({
          sender: sender(n),
          request: { orgId, pageSize: 50, view: View.FULL },
        })),
        items: 50,
      },
      operation(OrgService.method.getOrgMember, (n) => ({
        sender: sender(n),
        request: { orgId, userId: user(spread(n, size)) },
      })),
      operation(UserService.method.getUser, (n) => ({
        sender: sender(n),
        request: { orgId, userId: user(spread(n, size)) },
      })),
    ];
  },
};

const teamSizes = powers(1, 4);

/** Small and large teams in one org of a hundred thousand. */
export const teamSize: StandingFamily = {
  name: "team",
  unit: "members of the team",
  sizes: teamSizes,
  load: (sizes) => [
    ...users([0, 100_000]),
    ...orgs([0, 1]),
    members([0, 1], 100_000, "j"),
    teams([0, 1], sizes.length, "t"),
    ...sizes.map(
      (size, i) => `
        insert into roster.team_members (org_id, team_id, user_id)
        select ${idSql("org", "0")}, ${idSql("team", `${i}`)}, ${idSql("user", "j")}
        from ${numbers([0, size], "j")}`,
    ),
  ],
  async operations(size) {
    const teamId = team(teamSizes.indexOf(size));
    return [
      {
        // Pages of ten, which the smallest team fills too.
        ...operation(TeamService.method.listTeamMembers, (n) => ({
          sender: user(1 + (n % (callers - 1))),
          request: { orgId: org(0), teamId, pageSize: 10, view: View.FULL },
        })),
        items: 10,
      },
    ];
  },
};
