/** The file of SPIFFE ids: which client certificates may call, and what they may. */
import { z } from "zod";

/** What the holder of one SPIFFE id may. */
export interface Allowed {
  /** Its permissions. */
  readonly scope: readonly string[];
  /** The orgs that it may select; undefined: any. */
  readonly orgs: ReadonlySet<string> | undefined;
}

/** What is wrong with the file, one line per fault. */
export class AllowFaults extends Error {
  override readonly name = "AllowFaults";
  readonly faults: readonly string[];

  constructor(faults: readonly string[]) {
    super(faults.join("; "));
    this.faults = faults;
  }
}

/** An id of a workload (SPIFFE-ID 2.1 to 2.3), short enough for the audit log. */
export const spiffeId = /^spiffe:\/\/[a-z0-9._-]+(\/(?!\.{1,2}(\/|$))[A-Za-z0-9._-]+)+$/;
const longestId = 128;

const identity = z.strictObject({
  id: z
    .string()
    .regex(spiffeId, "must be a SPIFFE id with a path, such as spiffe://example.org/billing")
    .max(longestId, `must be at most ${longestId} characters`),
  scope: z.array(z.string().regex(/^[a-z]+\.[a-z]+$/, "must be a permission such as teams.get")),
  orgs: z.union(
    [z.literal("*"), z.array(z.uuid()).min(1)],
    'must be "*" for any org, or a list of ids of orgs, at least one',
  ),
});

const list = z.strictObject({ identities: z.array(identity) }).check(({ value, issues }) => {
  const seen = new Set<string>();
  for (const [index, { id }] of value.identities.entries()) {
    if (seen.has(id)) {
      const path = ["identities", index, "id"];
      issues.push({ code: "custom", input: id, path, message: "stands there twice" });
    }
    seen.add(id);
  }
});

/** Reads the file's text. @throws AllowFaults with every fault at once */
export const readAllowed = (text: string): ReadonlyMap<string, Allowed> => {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    throw new AllowFaults(["must be JSON"]);
  }
  const { data, error } = list.safeParse(json);
  if (error)
    throw new AllowFaults(
      error.issues.map(({ path, message }) => [path.join("."), message].filter(Boolean).join(": ")),
    );
  return new Map(
    data.identities.map(({ id, scope, orgs }) => [
      id,
      { scope, orgs: orgs === "*" ? undefined : new Set(orgs.map((org) => org.toLowerCase())) },
    ]),
  );
};
