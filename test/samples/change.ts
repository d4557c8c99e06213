/** One request for each RPC of ChangeService. */
import type { Samples } from "./world.ts";

export const changeSamples: Samples = {
  "ChangeService.WatchChanges": {
    by: "owner",
    request: ({ orgId, teamId }) => ({ orgId, teamId, snapshot: true }),
    unknown: ["team_id"],
  },
  "ChangeService.WatchChanges everywhere": {
    by: "platform",
    request: () => ({}),
    unknown: ["team_id"],
  },
  "ChangeService.ListChanges": {
    by: "owner",
    request: ({ orgId, teamId, position }) => ({ orgId, teamId, position }),
    unknown: ["team_id"],
  },
  "ChangeService.ListChanges everywhere": {
    by: "platform",
    request: ({ teamId, positionEverywhere: position }) => ({ teamId, position }),
    unknown: ["team_id"],
  },
};
