/** One guard, weakened, so that a test must fail. A run of the tests gets it by its environment. */
import type pg from "pg";

/** Where the guard stands, and what becomes of it. Text that is to be replaced must be there. */
export type Weakness =
  /** Statements on the database of each test file. */
  | { readonly sql: string }
  /** The text of a function of the database. */
  | { readonly routine: string; readonly find: string; readonly instead: string }
  /** The text of a source, by its path. */
  | { readonly file: string; readonly find: string; readonly instead: string };

const variable = "ROSTER_WEAKNESS";

/** The environment of a run that is to be weakened. */
export const environmentOf = (weakness: Weakness): Record<string, string> => ({
  [variable]: JSON.stringify(weakness),
});

/** The weakness of this run, if any. */
export const weaknessOfRun = (): Weakness | undefined => {
  const text = process.env[variable];
  return text === undefined ? undefined : (JSON.parse(text) as Weakness);
};

/** @throws Error when the text is not there, for then nothing would be weakened */
export const weakened = (text: string, find: string, instead: string): string => {
  if (!text.includes(find)) throw new Error(`nothing to weaken: there is no ${find}`);
  return text.replaceAll(find, () => instead);
};

/** Weakens a test's database, behind the back of the server, which looks at it when it starts. */
export const weakenDatabase = async (admin: pg.Client): Promise<void> => {
  const weakness = weaknessOfRun();
  if (weakness === undefined || "file" in weakness) return;
  if ("sql" in weakness) {
    await admin.query(weakness.sql);
    return;
  }
  const { rows } = await admin.query<{ text: string }>(
    `select pg_get_functiondef(oid) as text from pg_proc
     where pronamespace = 'roster'::regnamespace and proname = $1`,
    [weakness.routine],
  );
  if (rows.length !== 1) throw new Error(`there is no one function ${weakness.routine}`);
  await admin.query(weakened(rows[0]?.text ?? "", weakness.find, weakness.instead));
};

/** Whether this run weakens a source. */
export const weakensSource = (): boolean => {
  const weakness = weaknessOfRun();
  return weakness !== undefined && "file" in weakness;
};

/** A plugin of vitest that weakens a source while it is loaded. */
export const weakenSources = () => ({
  name: "weaken",
  enforce: "pre" as const,
  transform(code: string, id: string): string | undefined {
    const weakness = weaknessOfRun();
    if (weakness === undefined || !("file" in weakness) || !id.endsWith(`/${weakness.file}`))
      return undefined;
    return weakened(code, weakness.find, weakness.instead);
  },
});
