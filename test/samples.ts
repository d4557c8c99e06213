/** Every RPC with a request for it, and how tests that walk all RPCs send and judge them. */
import {
  create,
  createRegistry,
  type DescMethod,
  getOption,
  type Message,
  toJson,
} from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { expect } from "vitest";
import { file_google_rpc_error_details } from "../src/gen/google/rpc/error_details_pb.ts";
import { type Access, access } from "../src/gen/roster/v1/access_pb.ts";
import { routes } from "../src/routes.ts";
import { type Callers, type Harness, type Refusal, refusal } from "./harness.ts";
import { accessSamples } from "./samples/access.ts";
import { auditSamples } from "./samples/audit.ts";
import { changeSamples } from "./samples/change.ts";
import { orgSamples } from "./samples/org.ts";
import { teamSamples } from "./samples/team.ts";
import { userSamples } from "./samples/user.ts";
import type { Sample, Samples, World } from "./samples/world.ts";

export const samples: Samples = {
  ...userSamples,
  ...orgSamples,
  ...teamSamples,
  ...accessSamples,
  ...auditSamples,
  ...changeSamples,
};

/** An RPC, and one way to call it. */
export interface Way extends Sample {
  readonly name: string;
  readonly method: DescMethod;
  readonly rule: Access;
}

/** Every RPC that the server answers, by `Service.Method`. */
export const methods: ReadonlyMap<string, DescMethod> = new Map(
  routes.flatMap(({ service }) =>
    service.methods.map((method) => [`${service.name}.${method.name}`, method]),
  ),
);

/** Every sample, with its RPC. */
export const ways: readonly Way[] = Object.entries(samples).map(([name, sample]) => {
  const method = methods.get(name.split(" ")[0] ?? "");
  if (!method) throw new Error(`${name}: there is no such RPC`);
  return { ...sample, name, method, rule: getOption(method, access) };
});

/** The request of a sample. */
export const requestOf = async ({ method, request }: Way, world: World): Promise<Message> =>
  create(method.input, { ...(await request(world)) });

/** What the results of a batch tell of those that failed. */
const registry = createRegistry(file_google_rpc_error_details);

/** Positions are sealed, hence never the same. */
const withoutPositions = (text: string): string =>
  text.replaceAll(/"position":"[^"]+"/g, '"position":"…"');

/**
 * Sends a request of any RPC and gives the answer as JSON text: of a stream the list of its messages, to its end, or
 * where it has none until it has told all there is.
 */
export const send = async (
  { transport }: Pick<Callers, "transport">,
  method: DescMethod,
  request: Message,
  headers: Record<string, string> = {},
): Promise<string> => {
  const client = createClient(method.parent, transport) as unknown as Record<
    string,
    (request: Message, options: object) => Promise<Message> | AsyncIterable<Message>
  >;
  const stopping = new AbortController();
  const answer = client[method.localName]?.(request, { headers, signal: stopping.signal });
  if (!answer) throw new Error(`${method.name} gave no response`);
  if (!(Symbol.asyncIterator in answer))
    return withoutPositions(JSON.stringify(toJson(method.output, await answer, { registry })));
  const messages: unknown[] = [];
  for await (const message of answer) {
    messages.push(toJson(method.output, message, { registry }));
    if ("position" in message && message.position !== "") break;
  }
  stopping.abort();
  if (messages.length === 0) throw new Error(`${method.name} sent no message`);
  return withoutPositions(JSON.stringify(messages));
};

/** A copy of the request with another value at a path of proto names. */
export const withField = (
  method: DescMethod,
  request: Message,
  path: string,
  value: unknown,
): Message => {
  const [first = "", second] = path.split(".");
  const field = method.input.fields.find(({ name }) => name === first);
  if (!field) throw new Error(`${method.name} takes no ${path}`);
  const init = initOf(request);
  const inner = field.message?.fields.find(({ name }) => name === second);
  const held = inner && { ...initOf(init[field.localName] as Message), [inner.localName]: value };
  return create(method.input, { ...init, [field.localName]: held ?? value });
};

/** The message's fields without its type's name, so that what is put in may be an init shape again. */
const initOf = (message: Message | undefined): Record<string, unknown> => {
  const { $typeName: _name, ...fields } = { $typeName: "", ...message };
  return fields;
};

/**
 * Paths of the fields that hold the id of something, in the request and in the resource within it. What is named in a
 * list fails alone, which the tests of batches judge.
 */
export const idPaths = ({ input }: DescMethod): string[] =>
  input.fields.flatMap((field) =>
    field.fieldKind === "message" && field.message.file.proto.package === "roster.v1"
      ? field.message.fields.filter(isId).map(({ name }) => `${field.name}.${name}`)
      : isId(field)
        ? [field.name]
        : [],
  );

const isId = ({ name, fieldKind }: { name: string; fieldKind: string }): boolean =>
  fieldKind === "scalar" && /^(id|.*_id)$/.test(name) && !/^(external|request)_id$/.test(name);

/** All that a refusal tells, byte for byte. */
const wholly = ({ code, message, error }: Refusal): string => {
  const details = error.details.map((detail) =>
    "value" in detail && detail.value instanceof Uint8Array
      ? `${"type" in detail ? detail.type : ""} ${Buffer.from(detail.value).toString("latin1")}`
      : "",
  );
  return [code, message, ...details].join("\n");
};

/** All that a refusal tells, with the id that was asked put out of sight. */
export const told = (refused: Refusal, id: string): string => wholly(refused).replaceAll(id, "ID");

/** What a caller gets to read of a call, however it ends. */
export const heard = async (call: Promise<string>): Promise<string> => {
  try {
    return await call;
  } catch (error) {
    return wholly(await refusal(Promise.reject(error)));
  }
};

const services = new Map<string, Promise<Callers>>();

/** A service with these permissions, pinned where an org is named. */
export const serviceWith = (harness: Harness, scope: string, org = ""): Promise<Callers> => {
  const key = `${harness.baseUrl} ${scope} ${org}`;
  const made = services.get(key) ?? harness.as("service:crm", { scope, org });
  services.set(key, made);
  return made;
};

/** Whoever the sample says sends it. */
export const callersFor = async (
  harness: Harness,
  { by, rule }: Way,
  world: World,
): Promise<Callers> => {
  if (by === "platform") return harness.ops;
  if (by === "service") return serviceWith(harness, rule.permission);
  return world[by];
};

/** Every row of every table, as one hash for each. */
export const contentsOf = async (
  { admin }: Harness,
  ...without: string[]
): Promise<{ t: string }[]> => {
  const { rows } = await admin.query<{ t: string }>(
    `select oid::regclass::text as t from pg_class
      where relnamespace = 'roster'::regnamespace and relkind in ('r', 'p') and not relispartition`,
  );
  expect(rows.length).toBeGreaterThan(8);
  const hashes = rows
    .filter(({ t }) => !without.includes(t))
    .map(
      ({ t }) =>
        `select '${t}' as t, count(*), md5(string_agg(r::text, '' order by r::text)) from ${t} r`,
    );
  return (await admin.query(hashes.join(" union all "))).rows;
};

/** The audit entries of a call, by its correlation id. */
export const entriesOf = async ({ admin }: Harness, correlationId: string): Promise<unknown[]> => {
  const { rows } = await admin.query(
    "select method, outcome from roster.audit_entries where correlation_id = $1",
    [correlationId],
  );
  return rows;
};

/** Where the request holds an etag; what makes something new has none. */
export const etagPath = ({ method }: Way): string | undefined => {
  if (/^(Create|Add)/.test(method.name)) return undefined;
  const holder = method.input.fields.find(({ message }) =>
    message?.fields.some(({ name }) => name === "etag"),
  );
  if (holder) return `${holder.name}.etag`;
  return method.input.fields.some(({ name }) => name === "etag") ? "etag" : undefined;
};
