import fc from "fast-check";
import { beforeAll, describe, expect, test } from "vitest";
import { z } from "zod";
import { flights } from "../src/database/driver.ts";
import { type Bound, Packet } from "../src/database/packet.ts";
import { readerOf } from "../src/database/reader.ts";
import { Shape } from "../src/database/shape.ts";
import { formatInstant, sql } from "../src/database/sql.ts";
import { useHarness } from "./harness.ts";
import { clean, fresh, number, usePools, within } from "./pools.ts";

const harness = useHarness();

const int16 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
};
const int32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return bytes;
};
const ended = (text: string): Buffer => Buffer.from(`${text}\0`);
const message = (type: string, ...body: readonly Buffer[]): Buffer => {
  const all = Buffer.concat(body);
  return Buffer.concat([Buffer.from(type), int32(all.length + 4), all]);
};
const sized = (value: Bound): Buffer =>
  value === null ? int32(-1) : Buffer.concat([int32(Buffer.byteLength(value)), Buffer.from(value)]);
const rowOf = (...values: readonly Bound[]): Buffer =>
  message("D", int16(values.length), ...values.map(sized));

describe("a packet", () => {
  const bound = fc.oneof(
    fc.constant(null),
    fc.string({ unit: "binary" }),
    // Text and bytes that are larger than what a packet begins with.
    fc.integer({ min: 1, max: 40_000 }).map((length) => "€".repeat(length)),
    fc.uint8Array().map((bytes) => Buffer.from(bytes)),
    fc.integer({ min: 1, max: 40_000 }).map((length) => Buffer.alloc(length, 1)),
  );
  const format = fc.constantFrom(0, 1);

  test("holds the messages in their order and as PostgreSQL reads them, also when it is used again", () => {
    const packet = new Packet();
    fc.assert(
      fc.property(
        fc.string(),
        fc.array(bound, { maxLength: 8 }),
        fc.array(format),
        (name, values, formats) => {
          packet.parse(name, "select 'é'");
          packet.bind(name, values, formats);
          packet.describe();
          packet.execute();
          packet.sync();
          const binary = values.some((value) => Buffer.isBuffer(value))
            ? values.map((value) => int16(Buffer.isBuffer(value) ? 1 : 0))
            : [];
          const expected = Buffer.concat([
            message("P", ended(name), ended("select 'é'"), int16(0)),
            message(
              "B",
              ...[ended(""), ended(name), int16(binary.length), ...binary],
              ...[int16(values.length), ...values.map(sized)],
              ...[int16(formats.length), ...formats.map(int16)],
            ),
            message("D", ended("P")),
            message("E", ended(""), int32(0)),
            message("S"),
          ]);
          expect(packet.take().equals(expected)).toBe(true);
        },
      ),
    );
    expect(packet.take()).toHaveLength(0);
  });

  test("keeps what was taken from what comes later", () => {
    const packet = new Packet();
    packet.bind("a", ["first"]);
    const taken = packet.take();
    const before = Buffer.from(taken);
    packet.bind("b", ["later"]);
    expect(taken.equals(before)).toBe(true);
  });

  test("holds half a surrogate pair as the mark of what cannot be read", () => {
    const packet = new Packet();
    packet.bind("", ["a\ud800"]);
    expect(packet.take().includes(Buffer.from("a\ufffd"))).toBe(true);
  });

  test("takes as many values as PostgreSQL, refuses more, and is empty when it is cleared", () => {
    const packet = new Packet();
    packet.bind("", new Array(65_535).fill(null));
    expect(packet.take()).toHaveLength(7 + 2 + 2 + 65_535 * 4 + 2);
    expect(() => packet.bind("", new Array(65_536).fill(null))).toThrow(RangeError);
    packet.cut(0);
    packet.sync();
    expect(packet.take()).toEqual(message("S"));
  });
});

describe("a reader", () => {
  /** Reads chunks, and tells what it heard in order; a shape reads the rows. */
  const heard = (chunks: readonly Buffer[], shape: Shape): unknown[] => {
    const events: unknown[] = [];
    const read = readerOf(
      () => ({
        handleParseComplete: () => events.push("parsed"),
        handleRow: (bytes, at, end) => events.push([shape.row(bytes, at, false), end - at]),
        handleCommandComplete: ({ text }) => events.push(text),
      }),
      (status) => events.push({ status }),
      (bytes) => events.push(Buffer.from(bytes)),
    );
    for (const chunk of chunks) read(chunk);
    return events;
  };
  const columns = ["a", "b"].map((name) => ({ name, dataTypeID: 25 }));
  const notice = message("N", ended("SNOTICE"), ended("Mé"), ended(""));
  const setting = message("S", ended("TimeZone"), ended("UTC"));
  const answer = Buffer.concat([
    message("1"),
    message("2"),
    rowOf("é", null),
    notice,
    rowOf("", "y"),
    setting,
    message("C", ended("SELECT 2")),
    message("Z", Buffer.from("T")),
    message("E", ended("SERROR"), ended("")),
    message("Z", Buffer.from("I")),
  ]);
  const events = [
    "parsed",
    [{ a: "é", b: null }, 12],
    notice,
    [{ a: "", b: "y" }, 11],
    setting,
    "SELECT 2",
    { status: "T" },
    message("E", ended("SERROR"), ended("")),
    { status: "I" },
  ];

  test("hears the same however the bytes are cut in two", () => {
    for (let at = 0; at <= answer.length; at++) {
      const chunks = [answer.subarray(0, at), answer.subarray(at)];
      expect(heard(chunks, new Shape(columns)), `cut at ${at}`).toEqual(events);
    }
  });

  test("hears the same byte by byte, and in any pieces", () => {
    const bytewise = Array.from(answer, (_, at) => answer.subarray(at, at + 1));
    expect(heard(bytewise, new Shape(columns))).toEqual(events);
    fc.assert(
      fc.property(fc.array(fc.nat(answer.length)), (cuts) => {
        const places = [0, ...cuts.sort((a, b) => a - b), answer.length];
        const chunks = places.slice(1).map((to, index) => answer.subarray(places[index], to));
        expect(heard(chunks, new Shape(columns))).toEqual(events);
      }),
    );
  });

  test("reads a row of many chunks", () => {
    const large = "é".repeat(1024 * 1024);
    const bytes = Buffer.concat([message("2"), rowOf(large, "y"), message("1")]);
    const chunks: Buffer[] = [];
    for (let at = 0; at < bytes.length; at += 65_536) chunks.push(bytes.subarray(at, at + 65_536));
    const [row, parsed] = heard(chunks, new Shape(columns));
    expect(row).toEqual([{ a: large, b: "y" }, large.length * 2 + 11]);
    expect(parsed).toBe("parsed");
  });

  test("passes over what nobody waits for", () => {
    const statuses: string[] = [];
    const read = readerOf(
      () => null,
      (status) => statuses.push(status),
      () => {},
    );
    read(answer);
    expect(statuses).toEqual(["T", "I"]);
  });
});

describe("a shape", () => {
  const read = (names: readonly string[], values: readonly Bound[]) => {
    const shape = new Shape(names.map((name) => ({ name, dataTypeID: 25 })));
    return shape.row(rowOf(...values), 5, false);
  };

  test("puts each value under its name, whatever the name", () => {
    const names = ["a", "a_1", "return", "?column?", "A", "é", 'a"b', "constructor", "__proto__"];
    const some = fc.uniqueArray(fc.oneof(fc.constantFrom(...names), fc.string()), { minLength: 1 });
    fc.assert(
      fc.property(some, (chosen) => {
        const row = read(
          chosen,
          chosen.map((name) => `of ${name}`),
        );
        expect(Object.entries(row).sort()).toEqual(
          chosen.map((name) => [name, `of ${name}`]).sort(),
        );
        expect(Object.getPrototypeOf(row)).toBe(Object.prototype);
      }),
    );
  });

  test("makes of columns with one name one, the last, and of none an empty row", () => {
    expect(read(["a", "a"], ["1", "2"])).toEqual({ a: "2" });
    expect(read(["?", "?"], ["1", "2"])).toEqual({ "?": "2" });
    expect(read([], [])).toEqual({});
  });
});

describe.each([
  ["pipelined", true],
  ["plain", false],
])("answers through the %s driver", (_, pipeline) => {
  const pools = usePools(harness, pipeline);
  const any = z.custom<unknown>(() => true);
  const one = z.object({ value: any });
  beforeAll(async () => {
    await harness.current.admin.query(`
      create or replace function test_notice(n int) returns int language plpgsql as $$
        begin
          raise notice 'row % of many', n;
          perform set_config('application_name', 'row ' || n, true);
          return n;
        end $$`);
  });

  const instants = fc
    .tuple(fc.bigInt(-62_135_596_800n, 253_402_300_799n), fc.integer({ min: 0, max: 999_999 }))
    .map(([seconds, micros]) => ({ seconds, nanos: micros * 1000 }));
  const atMicros = (micros: bigint) => {
    const rest = ((micros % 1_000_000n) + 1_000_000n) % 1_000_000n;
    const seconds = (micros - rest) / 1_000_000n + 946_684_800n;
    return { seconds, nanos: Number(rest) * 1000 };
  };
  const edges = [0n, 1n << 32n, 1n << 53n, -(1n << 53n)].flatMap((edge) =>
    [-1n, 0n, 1n].map((step) => atMicros(edge + step)),
  );

  test("are the same as text and as bytes, for every type", async () => {
    const row = z.object(
      Object.fromEntries(["t", "n", "i", "b", "s", "j", "l", "none", "never"].map((n) => [n, any])),
    );
    const values = fc.record({
      t: instants,
      n: fc.bigInt(-(1n << 63n), (1n << 63n) - 1n),
      i: fc.integer(),
      b: fc.boolean(),
      s: fc.string({ unit: "grapheme" }).map((text) => text.replaceAll("\0", "").toWellFormed()),
      j: fc.dictionary(fc.constantFrom("a", "b"), fc.option(fc.integer())),
      l: fc.array(fc.constantFrom("a", 'b"', "{", "", "null")),
    });
    const read = ({
      t,
      n,
      i,
      b,
      s,
      j,
      l,
    }: typeof values extends fc.Arbitrary<infer V> ? V : never) =>
      sql.type(row)`select ${formatInstant(t)}::timestamptz as t, ${n}::int8 as n, ${i}::int4 as i,
        ${b}::bool as b, ${s}::text as s, ${JSON.stringify(j)}::jsonb as j, ${sql.array(l, "text")} as l,
        null::timestamptz as none, null::int8 as never`;
    const session = pools.current.reading(pools.current.tenant.ownerId, 60_000);
    await fc.assert(
      fc.asyncProperty(values, async (value) => {
        const expected = [{ ...value, none: null, never: null }];
        expect(await session.many(read(value), { prepare: false })).toEqual(expected);
        expect(await session.many(read(value))).toEqual(expected);
      }),
      {
        numRuns: 100,
        examples: [
          ...edges,
          { seconds: -62_135_596_800n, nanos: 0 },
          { seconds: -59_011_459_201n, nanos: 999_999_000 },
          { seconds: -1n, nanos: 999_999_000 },
          { seconds: 253_402_300_799n, nanos: 999_999_000 },
        ].flatMap((t) =>
          [-(1n << 63n), (1n << 63n) - 1n].map((n): [never] => [
            { t, n, i: 0, b: true, s: "", j: {}, l: [] } as never,
          ]),
        ),
      },
    );
  });

  test("hold times up to the end of a Date", async () => {
    const query = sql.type(one)`select timestamptz '275760-09-12 23:59:59.999999+00' as value`;
    const expected = [{ value: { seconds: 8_639_999_999_999n, nanos: 999_999_000 } }];
    for (let i = 0; i < 3; i++) expect(await pools.current.reading().many(query)).toEqual(expected);
  });

  test.each(["infinity", "-infinity", "0044-03-15 12:00+00 BC", "294276-12-31 23:59:59+00"])(
    "fail by themselves for the time %s, and leave nothing broken",
    async (time) => {
      const of = (value: string | null) => sql.type(one)`select ${value}::timestamptz as value`;
      const read = (value: string | null) => pools.current.reading().many(of(value));
      // As text, since the statement is new; then as bytes, once the connection knows it.
      await expect(read(time)).rejects.toThrow("not a timestamp");
      expect(await read(null)).toEqual([{ value: null }]);
      await expect(read(time)).rejects.toThrow("not a timestamp");
      expect(await read("2026-01-01 00:00+00")).toEqual([
        { value: { seconds: 1_767_225_600n, nanos: 0 } },
      ]);
      const writing = pools.current.writing((unit) => unit.many(of(time)));
      await expect(writing).rejects.toThrow("not a timestamp");
      expect((await pools.current.probe()).settings).toEqual(clean);
    },
  );

  test("hold rows of a mebibyte, and many of them", async () => {
    const query = (count: number) => sql.type(one)`
      select jsonb_build_object('text', repeat('é', 524288), 'n', n) as value
      from generate_series(1, ${count}) n`;
    const text = "é".repeat(524_288);
    for (const count of [1, 8, 8]) {
      const rows = await pools.current.reading().many(query(count));
      const expected = Array.from({ length: count }, (_, n) => ({ value: { text, n: n + 1 } }));
      expect(rows).toEqual(expected);
    }
  });

  test("come whole among notices and settings that are told amid them", async () => {
    const query = sql.type(number)`select test_notice(n) as n from generate_series(1, 300) n`;
    const expected = Array.from({ length: 300 }, (_, n) => ({ n: n + 1 }));
    for (let i = 0; i < 3; i++) expect(await pools.current.reading().many(query)).toEqual(expected);
  });

  test("have the columns of a table as it is, after one refusal at most, when it changes", async () => {
    const { admin } = harness.current;
    await admin.query(`
      drop table if exists changing;
      create table changing (value int4); insert into changing values (7);
      grant select on changing to roster_app`);
    const query = sql.type(one)`select value from public.changing`;
    const other = sql.type(one)`select '2026-01-01 00:00+00'::timestamptz as value`;
    const read = () => pools.current.reading().many(query);
    for (const [type, expected] of [
      ["int8", 7n],
      ["timestamptz using to_timestamp(value)", { seconds: 7n, nanos: 0 }],
      ["text using 'seven'", "seven"],
    ]) {
      const before = await pools.current.probe();
      for (let i = 0; i < 3; i++) await read();
      await pools.current.reading().many(other);
      await admin.query(`alter table changing alter value type ${type}`);
      if (pipeline) await expect(read()).rejects.toMatchObject({ code: "0A000" });
      for (let i = 0; i < 3; i++) {
        expect(await read()).toEqual([{ value: expected }]);
        const [row] = await pools.current.reading().many(other);
        expect(row?.value).toEqual({ seconds: 1_767_225_600n, nanos: 0 });
      }
      expect(await pools.current.probe()).toEqual(before);
    }
  });

  test("have no columns where a statement has none", async () => {
    for (let i = 0; i < 3; i++) {
      const query = sql.type(z.object({}))`select from generate_series(1, 2)`;
      expect(await pools.current.reading().many(query)).toEqual([{}, {}]);
    }
  });

  test("come after a statement that could not be packed", async () => {
    const { app } = pools.current;
    const flight = { before: [{ text: "select 1", values: [] }], prepare: true };
    for (const [values, message] of [
      [[{ a: 1n }], "BigInt"],
      [new Array(65_536).fill(1), "out of range"],
    ] as const) {
      const loan = await app.take(within(5_000));
      const bad = { ...sql.type(number)`select 1 as n`, values } as never;
      const send = () => flights.run(flight, () => loan.connection.any(bad));
      await expect(send()).rejects.toThrow(message);
      const next = flights.run(flight, () => loan.connection.any(fresh()));
      expect(await next).toEqual([{ n: 7 }]);
      app.give(loan);
      await expect(pools.current.reading().many(bad)).rejects.toThrow(message);
      const writing = pools.current.writing((unit) => unit.many(bad));
      await expect(writing).rejects.toThrow(message);
      expect(await pools.current.reading().many(fresh())).toEqual([{ n: 7 }]);
      expect((await pools.current.probe()).settings).toEqual(clean);
    }
  });
});
