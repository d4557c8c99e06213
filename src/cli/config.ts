import { parseArgs } from "node:util";
import { ConfigError, inspectConfig, type Setting } from "../config.ts";
import { developmentClaims } from "./development.ts";
import { UsageError } from "./usage.ts";

export const help = `usage: npx --no roster config [--json]

Prints what each environment variable comes to and where that is from, without passwords and secrets.
npm start sets ROSTER_DEV=1: to see what it runs by, ROSTER_DEV=1 npx --no roster config
  --json  as a list of { name, value, source }; value is null where there is none
Exit codes: 0 printed, 2 the call or the configuration is wrong.`;

/** A variable as it may be shown. */
interface Shown {
  readonly name: string;
  readonly value: string | null;
  readonly source: string;
}

/** Prints the effective configuration. */
export const config = async (args: readonly string[]): Promise<void> => {
  const json = parse(args);
  const { faults, values, settings } = inspectConfig();
  if (faults.length > 0) throw new ConfigError(faults);
  const made = values.ROSTER_DEV ? madeInDevelopment(values) : {};
  const shown = settings.map((setting): Shown => {
    const { name } = setting;
    const value = made[name];
    return value === undefined ? redacted(setting) : { name, value, source: "development" };
  });
  console.log(json ? JSON.stringify(shown, undefined, 2) : aligned(shown));
};

const parse = (args: readonly string[]): boolean => {
  try {
    const options = { json: { type: "boolean", default: false } } as const;
    return parseArgs({ args: [...args], options, allowPositionals: false }).values.json;
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
};

type Values = ReturnType<typeof inspectConfig>["values"];

/** What a development server has that no variable says. */
const madeInDevelopment = (values: Values): Partial<Record<Setting["name"], string>> => {
  const folder = values.ROSTER_DATA_DIR;
  const { issuer, audience, orgClaim } = developmentClaims;
  const database = `embedded PostgreSQL in ${folder}/postgres`;
  return {
    ...(values.DATABASE_URL
      ? {}
      : {
          DATABASE_URL: database,
          DIRECTORY_DATABASE_URL: database,
          WORKER_DATABASE_URL: database,
        }),
    ...(values.JWKS_URL || values.JWKS_FILE
      ? {}
      : {
          JWKS_FILE: `${folder}/jwks.json`,
          JWT_ISSUER: issuer,
          JWT_AUDIENCE: audience,
          JWT_ORG_CLAIM: orgClaim,
        }),
    ...(values.TOKEN_SECRET ? {} : { TOKEN_SECRET: `kept in ${folder}/secrets.json` }),
  };
};

const hidden = "***";

/** Parameters of a URL that say how to connect; any other may be a password. */
const plainParameters = ["sslmode", "host", "port", "application_name", "connect_timeout"];

/** A URL without its password and without the parameters that could hold one. */
const withoutSecrets = (text: string): string => {
  const url = new URL(text);
  if (url.password !== "") url.password = hidden;
  for (const name of [...url.searchParams.keys()])
    if (!plainParameters.includes(name)) url.searchParams.set(name, hidden);
  url.hash &&= hidden;
  return url.href;
};

const redacted = ({ name, text, source: from }: Setting): Shown => {
  const source = typeof from === "string" ? from : `file ${from.file}`;
  if (text === undefined) return { name, value: null, source };
  if (name === "TOKEN_SECRET") return { name, value: hidden, source };
  return { name, value: name.endsWith("_URL") ? withoutSecrets(text) : text, source };
};

const aligned = (shown: readonly Shown[]): string => {
  const width = (texts: readonly string[]): number => Math.max(...texts.map((text) => text.length));
  const nameWidth = width(shown.map(({ name }) => name));
  const valueWidth = width(shown.map(({ value }) => value ?? "–"));
  return shown
    .map(({ name, value, source }) =>
      [name.padEnd(nameWidth), (value ?? "–").padEnd(valueWidth), source].join("  "),
    )
    .join("\n");
};
