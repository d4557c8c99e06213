/** How the columns of a statement become the values of a row. */
import { bytesParserOf, parserOf } from "./types.ts";

interface Column {
  readonly name: string;
  readonly dataTypeId: number;
  readonly parse: (text: string) => unknown;
  /** Reads the value from PostgreSQL's own bytes, where that is cheaper than text on both sides. */
  readonly parseBytes: ((bytes: Buffer, at: number) => unknown) | undefined;
}

type Make = (values: readonly unknown[]) => Record<string, unknown>;

/** A name that stands in a literal as it is. */
const plainName = /^[a-z][a-z0-9_]*$/;

/**
 * Makes what puts values under their names. A row that grows name by name costs twenty times what a literal does, so
 * the literal is written once for each statement, as zod does for its objects.
 */
const makerOf = (names: readonly string[]): Make => {
  if (names.every((name) => plainName.test(name))) {
    const literal = names.map((name, index) => `${name}: values[${index}]`).join(", ");
    return new Function("values", `return { ${literal} };`) as Make;
  }
  return (values) => Object.fromEntries(names.map((name, index) => [name, values[index]]));
};

/** The columns that a statement answers with. */
export class Shape {
  readonly columns: readonly Column[];
  /** What to ask for, by column: 0 for text, 1 for bytes. */
  readonly formats: readonly number[];
  private readonly make: Make;

  constructor(fields: readonly { readonly name: string; readonly dataTypeID: number }[]) {
    this.columns = fields.map(({ name, dataTypeID }) => ({
      name,
      dataTypeId: dataTypeID,
      parse: parserOf(dataTypeID),
      parseBytes: bytesParserOf(dataTypeID),
    }));
    this.formats = this.columns.map(({ parseBytes }) => (parseBytes ? 1 : 0));
    this.make = makerOf(this.columns.map(({ name }) => name));
  }

  /**
   * Reads a row.
   *
   * @param at where the count of columns stands
   * @param inBytes whether the columns came in `formats`, or all as text
   */
  row(bytes: Buffer, at: number, inBytes: boolean): Record<string, unknown> {
    const { columns } = this;
    const values = new Array<unknown>(columns.length);
    let start = at + 2;
    for (let i = 0; i < columns.length; i++) {
      const { parse, parseBytes } = columns[i] as Column;
      const length = bytes.readInt32BE(start);
      start += 4;
      if (length < 0) {
        values[i] = null;
      } else {
        values[i] =
          inBytes && parseBytes
            ? parseBytes(bytes, start)
            : parse(bytes.toString(undefined, start, start + length));
        start += length;
      }
    }
    return this.make(values);
  }
}
