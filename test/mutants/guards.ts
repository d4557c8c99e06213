import type { Guard } from "./guard.ts";
import { access } from "./guards-of-access.ts";
import { audit } from "./guards-of-audit.ts";
import { certificates } from "./guards-of-certificates.ts";
import { feed } from "./guards-of-feed.ts";
import { freshness } from "./guards-of-freshness.ts";
import { invitations } from "./guards-of-invitations.ts";
import { limits } from "./guards-of-limits.ts";
import { log } from "./guards-of-log.ts";
import { members } from "./guards-of-members.ts";
import { rights } from "./guards-of-rights.ts";
import { rows } from "./guards-of-rows.ts";
import { seals } from "./guards-of-seals.ts";
import { teamMembers } from "./guards-of-team-members.ts";
import { teams } from "./guards-of-teams.ts";
import { telemetry } from "./guards-of-telemetry.ts";
import { ends, requests } from "./guards-of-time.ts";

/** The guards of Roster, each with how it is weakened and the test that must notice. */
export const guards: readonly Guard[] = [
  ...rows,
  ...rights,
  ...access,
  ...certificates,
  ...members,
  ...invitations,
  ...limits,
  ...teams,
  ...teamMembers,
  ...log,
  ...audit,
  ...seals,
  ...freshness,
  ...feed,
  ...requests,
  ...ends,
  ...telemetry,
];
