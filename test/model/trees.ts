/** What teams should be like: where they lie, who sees them, and what a role in them permits. */

export type TeamRole = "MAINTAINER" | "MEMBER";

export interface Team {
  /** The team above; empty: none. */
  readonly parent: string;
  readonly name: string;
  readonly secret: boolean;
  /** Which delete took it; empty while it is live. */
  readonly deleted: string;
  readonly members: ReadonlyMap<number, TeamRole>;
}

/** The teams of an org, by what the model calls them. */
export type Teams = ReadonlyMap<string, Team>;

/** Of which teams a caller knows by their role in the org: deleted ones too, all, those that are not secret, none. */
export type Sight = "deleted" | "all" | "visible" | "own";

/** A team, and those above it. */
export const upFrom = (teams: Teams, key: string): Team[] => {
  const team = teams.get(key);
  return team ? [team, ...upFrom(teams, team.parent)] : [];
};

export const isLive = ({ deleted }: Team): boolean => deleted === "";

export const childrenOf = (teams: Teams, key: string): string[] =>
  [...teams].filter(([, { parent }]) => parent === key).map(([child]) => child);

/** A team and the live ones below it. */
export const liveDownFrom = (teams: Teams, key: string): string[] =>
  [...teams]
    .filter(([, team]) => isLive(team))
    .flatMap(([other, team]) => {
      return upFrom(teams, other).includes(teams.get(key) ?? team) ? [other] : [];
    });

/** How deep a team lies: 1 at the top. */
export const depthOf = (teams: Teams, key: string): number => upFrom(teams, key).length;

export const deepest = (teams: Teams): number =>
  Math.max(0, ...[...teams].map(([key, team]) => (isLive(team) ? depthOf(teams, key) : 0)));

/** Where someone's nearest role in a team or in one below it is: the fewest levels below, of those the first made. */
export const nearest = (
  teams: Teams,
  wanted: string,
  user: number,
  isSeen: (key: string) => boolean,
): readonly string[] | undefined => {
  const held = liveDownFrom(teams, wanted).filter(
    (key) => teams.get(key)?.members.has(user) && isSeen(key),
  );
  const [first] = held.sort(
    (one, other) => depthOf(teams, one) - depthOf(teams, other) || (one < other ? -1 : 1),
  );
  return first === undefined ? undefined : wayUp(teams, first, wanted);
};

/** The teams from one up to another above it. */
export const wayUp = (teams: Teams, from: string, to: string): string[] =>
  from === to ? [from] : [from, ...wayUp(teams, teams.get(from)?.parent ?? to, to)];

const isIn =
  (user: number, role?: TeamRole) =>
  (team: Team): boolean =>
    role === undefined ? team.members.has(user) : team.members.get(user) === role;

/** Whether someone belongs to a team: they have a role in it, or in a live one below it. */
const belongs = (teams: Teams, wanted: Team, user: number): boolean =>
  [...teams].some(([key, team]) => {
    return isLive(team) && isIn(user)(team) && upFrom(teams, key).includes(wanted);
  });

/** Whether a secret at or above a team is kept from someone who has no role there but that of a member. */
const isKept = (teams: Teams, key: string, user: number): boolean =>
  upFrom(teams, key).some((team) => team.secret && !belongs(teams, team, user));

/** What someone is in a team by their roles there and above. As a mere member they stop at a secret. */
export const roleIn = (teams: Teams, key: string, user: number): TeamRole | undefined => {
  const up = upFrom(teams, key);
  if (up.some(isIn(user, "MAINTAINER"))) return "MAINTAINER";
  return up.some(isIn(user)) && !isKept(teams, key, user) ? "MEMBER" : undefined;
};

/** Whether a team is there for someone who has this sight. */
export const sees = (teams: Teams, key: string, user: number, sight: Sight): boolean => {
  if (sight === "deleted" || sight === "all") return true;
  const isOpen = sight === "visible" && !isKept(teams, key, user);
  return isOpen || roleIn(teams, key, user) !== undefined;
};

/** What a role in a team permits in it and below. */
export const permitted: Readonly<Record<TeamRole, readonly string[]>> = {
  MEMBER: ["teams.get"],
  MAINTAINER: ["teams.get", "teams.create", "teams.update"],
};

/** Where someone has a role that counts in a team, the nearest first. */
export const rolesOver = (teams: Teams, key: string, user: number): string[] =>
  keysUpFrom(teams, key).filter((above) => {
    const role = teams.get(above)?.members.get(user);
    return role === "MAINTAINER" || (role === "MEMBER" && !isKept(teams, key, user));
  });

const keysUpFrom = (teams: Teams, key: string): string[] =>
  key === "" ? [] : [key, ...keysUpFrom(teams, teams.get(key)?.parent ?? "")];
