/** What a guard is, and short ways to write one down. */
import type { Weakness } from "./weakness.ts";

/** Something that must hold, how it is weakened, and who must notice. */
export interface Guard {
  readonly guard: string;
  readonly weakness: Weakness;
  /** Name of a test file, without its ending: the fastest that notices. */
  readonly file: string;
  /** Part of the names of the tests that are run, for a file of which only a few have to be. */
  readonly test?: string | undefined;
}

/** A guard that statements take away from the schema. */
export const sql = (guard: string, text: string, file: string, test?: string): Guard => ({
  guard,
  weakness: { sql: text },
  file,
  test,
});

/** Guards that are text of a function of the database. */
export const inRoutine =
  (routine: string) =>
  (guard: string, find: string, instead: string, file: string, test?: string): Guard => ({
    guard: `${routine}: ${guard}`,
    weakness: { routine, find, instead },
    file,
    test,
  });

/** Guards that are text of a source. */
export const inSource =
  (source: string) =>
  (guard: string, find: string, instead: string, file: string, test?: string): Guard => ({
    guard: `${source}: ${guard}`,
    weakness: { file: source, find, instead },
    file,
    test,
  });
