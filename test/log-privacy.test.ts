/** Whatever people write into whichever field, and whatever goes wrong with it: no log and no span has it. */
import {
  clone,
  type DescField,
  type DescMethod,
  type Message,
  ScalarType,
} from "@bufbuild/protobuf";
import { type ReflectMessage, reflect } from "@bufbuild/protobuf/reflect";
import pino from "pino";
import { expect, onTestFinished, test } from "vitest";
import { startHarness } from "./harness.ts";
import { listening } from "./listening.ts";
import { makeWorld } from "./samples/world.ts";
import { callersFor, heard, requestOf, send, ways } from "./samples.ts";

/** A name, an address and a number as they stand in labels. */
const [person, phone] = ["Zebulon Quagmire", "+49 151 5550123"];
const personal = /zebulon|quagmire|canary\.example|151 ?5550123/i;
let addresses = 0;
const address = (): string => `zebulon.${addresses++}@canary.example`;

const isId = ({ name }: DescField): boolean =>
  /^(id|.*_ids?|etag|page_token|position|role)$/.test(name);
const textFor = ({ name }: DescField): string => (name.includes("email") ? address() : person);

/** Writes a person into the texts of a message, and where all are meant into ids and tokens too. */
const write = (message: ReflectMessage, all: boolean): void => {
  for (const field of message.fields) {
    if (isId(field) && !(all && field.fieldKind === "scalar")) continue;
    const value = field.fieldKind !== "scalar" && message.isSet(field) && message.get(field);
    if (field.fieldKind === "scalar" && typeof message.get(field) === "string")
      message.set(field, textFor(field));
    else if (field.fieldKind === "map" && field.scalar === ScalarType.STRING)
      message.get(field).set(person.replace(" ", "."), phone);
    else if (value && field.fieldKind === "message" && field.message.typeName.startsWith("roster."))
      write(value as ReflectMessage, all);
    else if (value && field.fieldKind === "list" && field.listKind === "message")
      for (const item of value as Iterable<ReflectMessage>) write(item, all);
  }
};

const written = ({ input }: DescMethod, request: Message, all: boolean): Message => {
  const copy = clone(input, request);
  write(reflect(input, copy), all);
  return copy;
};

test("no log and no span has what people wrote, at any level and whatever went wrong", async () => {
  const exporter = listening();
  const lines: string[] = [];
  const log = pino({ level: "trace" }, { write: (line: string) => void lines.push(line) });
  const current = await startHarness({ log });
  onTestFinished(() => current.stop());
  const world = await makeWorld(current, "Zebulon");
  const headers = {
    "roster-reason": `asked by ${person}`,
    "user-agent": person,
    tracestate: "zebulon=quagmire",
    traceparent: "Zebulon",
  };
  const codes = new Set<string>();
  const call = async (way: (typeof ways)[number], all: boolean): Promise<void> => {
    const sent = written(way.method, await requestOf(way, world), all);
    const callers = await callersFor(current, way, world);
    const answer = await heard(send(callers, way.method, sent, headers));
    codes.add(
      answer.startsWith("{") || answer.startsWith("[") ? "OK" : (answer.split("\n")[0] ?? ""),
    );
  };
  // What an org's owner deletes is gone for the calls behind it.
  const lasting = ways.filter(({ name }) => name !== "OrgService.DeleteOrg");
  for (const all of [false, true]) await Promise.all(lasting.map((way) => call(way, all)));

  const { admin, ops } = current;
  const user = { email: address(), name: person, externalId: phone };
  await ops.users.createUser({ user });
  await expect(ops.users.createUser({ user })).rejects.toThrow("already_exists");
  const { rows } = await admin.query(
    "select count(*)::int as n from roster.users where name = $1 or email like '%@canary.example'",
    [person],
  );
  expect(rows[0].n).toBeGreaterThan(0);
  expect([...codes].sort()).toEqual(expect.arrayContaining(["InvalidArgument", "NotFound", "OK"]));

  // What nobody foresaw: PostgreSQL quotes the row in message and detail.
  const create = () => ops.users.createUser({ user: { email: address(), name: person } });
  await admin.query(
    "alter table roster.users add constraint canary check (name !~ 'Quagmire') not valid",
  );
  await expect(create()).rejects.toThrow("internal");
  await admin.query(`alter table roster.users drop constraint canary;
    create function roster.quote() returns trigger language plpgsql
      as $$ begin raise exception 'row %', new; end $$;
    create trigger quote before insert on roster.users for each row execute function roster.quote()`);
  await expect(create()).rejects.toThrow("internal");
  expect(lines.filter((line) => line.includes("unforeseen error"))).toHaveLength(2);

  expect(lines.length).toBeGreaterThan(2 * lasting.length);
  expect(lines.filter((line) => personal.test(line))).toEqual([]);
  const spans = exporter
    .getFinishedSpans()
    .map(({ name, attributes, events, status }) => [name, attributes, events, status]);
  expect(spans.length).toBeGreaterThan(lines.length);
  expect(spans.map((span) => JSON.stringify(span)).filter((span) => personal.test(span))).toEqual(
    [],
  );
}, 120_000);
