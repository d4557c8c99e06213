/** How PostgreSQL's text becomes values, without the losses of pg's own parsers. */
import pg from "pg";

/** An instant with PostgreSQL's microseconds, in the init shape of google.protobuf.Timestamp. */
export interface Instant {
  readonly seconds: bigint;
  readonly nanos: number;
}

const instantPattern =
  /^(\d{4,})-(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?([+-]\d\d)(?::(\d\d))?(?::(\d\d))?$/;

/**
 * Reads a timestamptz in ISO style. A JavaScript Date would drop the microseconds, and an undelete that
 * looks for exactly the same time would find nothing.
 *
 * @throws Error for `infinity`, years before Christ and beyond what a Date holds, which no column of ours has
 */
export const parseInstant = (text: string): Instant => {
  // As a session in UTC writes the times of nine thousand years.
  if (text.length >= 22 && text.charCodeAt(4) === dash && text[0] !== "0" && text.endsWith("+00")) {
    const instant = inUtc(text);
    if (instant) return instant;
  }
  const match = instantPattern.exec(text);
  if (!match) throw new Error(`not a timestamp: ${text}`);
  const [, year, month, day, hour, minute, second, fraction = "", zone = "+00", ...zoneRest] =
    match;
  const [zoneMinute = "0", zoneSecond = "0"] = zoneRest;
  const local = Date.UTC(
    Number(year),
    Number(month) - 1,
    Number(day),
    Number(hour),
    Number(minute),
    Number(second),
  );
  const sign = zone.startsWith("-") ? -1 : 1;
  const offset = Number(zone) * 3600 + sign * (Number(zoneMinute) * 60 + Number(zoneSecond));
  // To a Date the years 0 to 99 are those of the last century.
  const seconds =
    (Number(year) < 100 ? new Date(local).setUTCFullYear(Number(year)) : local) / 1000;
  if (!(seconds <= lastSecond)) throw new Error(`not a timestamp: ${text}`);
  return { seconds: BigInt(seconds - offset), nanos: Number(fraction.padEnd(6, "0")) * 1000 };
};

const [dash, dot, zero] = [0x2d, 0x2e, 0x30];
/** Of the year 1, and the last that a Date holds. */
const [firstSecond, lastSecond] = [-62_135_596_800, 8_640_000_000_000];

const pair = (text: string, at: number): number =>
  (text.charCodeAt(at) - zero) * 10 + text.charCodeAt(at + 1) - zero;

/** Reads `YYYY-MM-DD HH:MM:SS[.ffffff]+00` by position: most rows hold several times, and a pattern is slow. */
const inUtc = (text: string): Instant | undefined => {
  const end = text.length - 3;
  let nanos = 0;
  if (end > 19) {
    if (text.charCodeAt(19) !== dot || end > 26) return undefined;
    let unit = 100_000_000;
    for (let at = 20; at < end; at++, unit /= 10) nanos += (text.charCodeAt(at) - zero) * unit;
  }
  const local = Date.UTC(
    pair(text, 0) * 100 + pair(text, 2),
    pair(text, 5) - 1,
    pair(text, 8),
    pair(text, 11),
    pair(text, 14),
    pair(text, 17),
  );
  return { seconds: BigInt(local / 1000), nanos };
};

/** Writes an instant as PostgreSQL reads it, in UTC and with microseconds. */
export const formatInstant = ({ seconds, nanos }: Instant): string => {
  const date = new Date(Number(seconds) * 1000).toISOString().slice(0, 19);
  return `${date}.${String(Math.floor(nanos / 1000)).padStart(6, "0")}Z`;
};

const same = (text: string): string => text;
const json = (text: string): unknown => JSON.parse(text);
const textArray = (pg.types.getTypeParser as (oid: number) => (text: string) => unknown)(1009);

// Keys are the OIDs of pg_type, which are fixed for built-in types. int8 stays exact as a bigint.
const parsers = new Map<number, (text: string) => unknown>([
  [16, (text) => text === "t"],
  [17, (text) => Buffer.from(text.slice("\\x".length), "hex")],
  [20, BigInt],
  [21, Number],
  [23, Number],
  [114, json],
  [700, Number],
  [701, Number],
  [1009, textArray],
  [1184, parseInstant],
  [2951, textArray],
  [3802, json],
]);

/** The parser of a built-in type by its OID; text stays text. */
export const parserOf = (oid: number): ((text: string) => unknown) => parsers.get(oid) ?? same;

const microsecondsPerSecond = 1_000_000;
/** PostgreSQL counts from the year 2000. */
const epochSeconds = 946_684_800;

/** Reads a timestamptz from its 64 bits of microseconds. @throws Error for what {@link parseInstant} refuses */
const instantOf = (bytes: Buffer, at: number): Instant => {
  const high = bytes.readInt32BE(at);
  // Microseconds up to the year 2285 are exact in a number.
  if (high > 0x1f_ffff || high < -0x20_0000) return farInstantOf(bytes.readBigInt64BE(at));
  const microseconds = high * 0x1_0000_0000 + bytes.readUInt32BE(at + 4);
  const seconds = Math.floor(microseconds / microsecondsPerSecond);
  return {
    seconds: BigInt(seconds + epochSeconds),
    nanos: (microseconds - seconds * microsecondsPerSecond) * 1000,
  };
};

/** Refuses what {@link parseInstant} does, infinity among it: that is the largest number or the smallest. */
const farInstantOf = (microseconds: bigint): Instant => {
  const rest = microseconds % 1_000_000n;
  const below = rest < 0n ? rest + 1_000_000n : rest;
  const seconds = (microseconds - below) / 1_000_000n + BigInt(epochSeconds);
  if (seconds < firstSecond || seconds > lastSecond)
    throw new Error(`not a timestamp: ${microseconds} microseconds from the year 2000`);
  return { seconds, nanos: Number(below) * 1000 };
};

const bytesParsers = new Map<number, (bytes: Buffer, at: number) => unknown>([
  [20, (bytes, at) => bytes.readBigInt64BE(at)],
  [1184, instantOf],
]);

/** The parser of a type's own bytes, where Roster asks for them: times are dear to write and to read as text. */
export const bytesParserOf = (oid: number): ((bytes: Buffer, at: number) => unknown) | undefined =>
  bytesParsers.get(oid);
