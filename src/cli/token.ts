import { parseArgs } from "node:util";
import { z } from "zod";
import { readConfig } from "../config.ts";
import { signToken } from "./development.ts";
import { UsageError } from "./usage.ts";

export const help = `usage: npx --no roster token [--user ID | --service NAME] [--org ID] [--scope S]... [--ttl 1h]

Prints a token that the development server of this folder accepts, and nothing else on stdout.
  --user ID       a user, by id
  --service NAME  a service; what it may do is what --scope says
  --org ID        pins the token to one org
  --scope S       a permission such as members.add, several by repeating; roster.platform for an operator
  --ttl T         how long it is good for, such as 30s, 15m, 1h (default) or 7d
The operator: npx --no roster token --service ops --scope roster.platform
Exit codes: 0 printed, 2 the call or the configuration is wrong.`;

const options = {
  user: { type: "string" },
  service: { type: "string" },
  org: { type: "string" },
  scope: { type: "string", multiple: true },
  ttl: { type: "string", default: "1h" },
} as const;

/** Prints a development token. */
export const token = async (args: readonly string[]): Promise<void> => {
  const { values } = parse(args);
  const { user, service, org, scope, ttl } = values;
  const faults = [
    (user === undefined) === (service === undefined) && "name one of --user and --service",
    user !== undefined &&
      !z.uuid().safeParse(user).success &&
      "--user: must be a user's id, a UUID",
    service !== undefined &&
      !/^[\x21-\x7e]{1,128}$/.test(service) &&
      "--service: must be 1 to 128 printable characters without spaces",
    org !== undefined && !z.uuid().safeParse(org).success && "--org: must be an org's id, a UUID",
    scope?.some((name) => !/^[a-z]+(\.[a-z]+)+$/.test(name)) &&
      "--scope: must be a permission such as members.add",
    !/^\d+[smhd]$/.test(ttl) && "--ttl: must be a number and s, m, h or d, such as 1h",
  ].filter((fault) => typeof fault === "string");
  if (faults.length > 0) throw new UsageError(faults.join("\n"));
  const { ROSTER_DATA_DIR } = process.env;
  const config = readConfig({ ROSTER_DATA_DIR, ROSTER_DEV: "1" });
  const subject = user ?? `service:${service}`;
  console.log(await signToken(config.dataDir, { subject, orgId: org, scope, ttl }));
};

const parse = (args: readonly string[]) => {
  try {
    return parseArgs({ args: [...args], options, allowPositionals: false });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
};
