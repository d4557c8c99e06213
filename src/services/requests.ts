/** What requests of all resources have in common: presence, masks, etags, labels, settings, pages. */
import {
  create,
  type DescMessage,
  isFieldSet,
  type JsonObject,
  type Message,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import type { HandlerContext } from "@connectrpc/connect";
import { NIL } from "uuid";
import { caller, maybeOrgId, settings } from "../context.ts";
import { type ListRequest, Page, weigh } from "../database/page.ts";
import { Overtaken } from "../database/sql.ts";
import { fail } from "../errors.ts";

const mebibyte = 1024 * 1024;
/** The largest message that the transport sends. */
const maximumAnswerBytes = 4 * mebibyte;
const maximumLabels = 64;
const maximumSettingsBytes = 64 * 1024;
const maximumSettingsDepth = 20;

/**
 * Comes before every id. A first page begins behind it as each other begins behind its cursor: if the cursor
 * could be missing, a generic plan would read every row before the page.
 */
export const firstId = NIL;

/** The page that a list request asks for. */
export const pageOf = (context: HandlerContext, request: ListRequest): Page =>
  new Page(
    request,
    context.method.input,
    {
      secret: settings(context).pageKey,
      method: context.method.name,
      subject: caller(context).subject,
      orgId: maybeOrgId(context) ?? "",
    },
    () => fail("PAGE_TOKEN_INVALID", { field: "page_token" }),
  );

/**
 * What a batch get found, in the order in which it was asked. An id that was asked twice is answered twice, be
 * it found or missing.
 */
export const inOrder = <Item extends { readonly id: string }>(
  ids: readonly string[],
  found: readonly Item[],
): { items: Item[]; missingIds: string[] } => {
  const byId = new Map(found.map((item) => [item.id, item]));
  const items: Item[] = [];
  const missingIds: string[] = [];
  for (const id of ids) {
    const item = byId.get(id.toLowerCase());
    if (item) items.push(item);
    else missingIds.push(id);
  }
  return { items, missingIds };
};

/**
 * Refuses an answer that no message can carry, instead of letting the transport fail on it.
 *
 * @param field the request's list of which there should be fewer
 */
export const sendable = <Answer extends MessageInitShape<DescMessage>>(
  { method }: HandlerContext,
  answer: Answer,
  field: string,
): Answer => {
  if (
    weigh(answer) > maximumAnswerBytes &&
    toBinary(method.output, create(method.output, answer)).length > maximumAnswerBytes
  ) {
    const limit = `${maximumAnswerBytes / mebibyte} MiB`;
    throw fail("ANSWER_TOO_LARGE", { field, limit });
  }
  return answer;
};

/** Demands that a string is set; the protos cannot say it of a field inside a resource. */
export const required = (value: string, field: string): string => {
  if (value === "") throw fail("FIELD_REQUIRED", { field, rule: "must be set" });
  return value;
};

/** The spelling under which text is kept: NFC. */
export const nfc = (text: string): string => text.normalize("NFC");

/** Empty text as null, for columns that are unique where they are set. */
export const orNull = (text: string): string | null => (text === "" ? null : text);

/** The version that an etag stands for, or null without one. */
export const versionOf = (etag: string, field: string): string | null => {
  if (etag === "") return null;
  const version = /^"(\d{1,18})"$/.exec(etag)?.[1];
  if (version === undefined) throw fail("ETAG_MALFORMED", { field });
  return version;
};

/**
 * Why a write met no row although there is one.
 *
 * @param given the request's etag. Without one, or when it is the current one, the row came only after the write
 *   had looked, which is then done again
 */
export const stale = (given: string, now: string): Error =>
  given === "" || given === now
    ? new Overtaken("the row came after the write")
    : fail("ETAG_STALE", { etag: now });

/** Why an undelete met no row although there is one. */
export const undeletable = ({ deleted }: { readonly deleted: boolean }): Error =>
  deleted ? new Overtaken("the row was deleted after the write") : fail("NOT_DELETED");

/** Which of a resource's fields an update changes. */
export type Changes<Field extends string> = Readonly<Record<Field, boolean>>;

/**
 * Reads an update mask. Without one, or with an empty one, the populated fields change, with `*` all; a field
 * in the mask that is not set is cleared.
 *
 * @param fields proto names of the fields that can be updated
 * @throws ConnectError UPDATE_MASK_INVALID
 */
export const changesOf = <Field extends string>(
  schema: DescMessage,
  resource: Message,
  mask: { readonly paths: readonly string[] } | undefined,
  fields: readonly Field[],
): Changes<Field> => {
  const paths = mask?.paths.length ? mask.paths : undefined;
  const known: readonly string[] = fields;
  const unknown = paths?.find((path) => path !== "*" && !known.includes(path));
  if (unknown !== undefined)
    throw fail("UPDATE_MASK_INVALID", { field: "update_mask", path: unknown });
  const changes: Partial<Record<Field, boolean>> = {};
  for (const name of fields) {
    const field = schema.fields.find((candidate) => candidate.name === name);
    if (!field) throw new Error(`${schema.typeName} has no field ${name}`);
    changes[name] = paths
      ? paths.includes("*") || paths.includes(name)
      : isFieldSet(resource, field);
  }
  return changes as Changes<Field>;
};

/** A change of labels: `set` is merged, `remove` goes; with `clear` all others go too. */
export interface LabelChange {
  readonly clear: boolean;
  readonly set: string;
  readonly remove: readonly string[];
}

/** Reads labels of an update: an empty value removes its label, an empty map in the mask clears them all. */
export const labelChange = (
  labels: Readonly<Record<string, string>>,
  changes: boolean,
): LabelChange => {
  const entries = Object.entries(labels);
  return {
    clear: changes && entries.length === 0,
    set: JSON.stringify(
      changes ? Object.fromEntries(entries.filter(([, value]) => value !== "")) : {},
    ),
    remove: changes ? entries.filter(([, value]) => value === "").map(([name]) => name) : [],
  };
};

/** Refuses a merge that left more labels than a resource may have. */
export const checkLabelCount = (labels: Readonly<Record<string, string>>, field: string): void => {
  if (Object.keys(labels).length > maximumLabels) {
    throw fail("VALUE_TOO_LARGE", {
      field,
      rule: `must be at most ${maximumLabels} after merging`,
    });
  }
};

const depthOf = (value: unknown): number =>
  typeof value === "object" && value !== null
    ? 1 + Object.values(value).reduce<number>((most, inner) => Math.max(most, depthOf(inner)), 0)
    : 0;

const finite = (value: unknown): boolean =>
  typeof value === "number"
    ? Number.isFinite(value)
    : typeof value !== "object" || value === null || Object.values(value).every(finite);

/** Settings as JSON text, within their limits. */
export const settingsText = (value: JsonObject | undefined, field: string): string => {
  const text = JSON.stringify(value ?? {});
  if (Buffer.byteLength(text) > maximumSettingsBytes) {
    throw fail("VALUE_TOO_LARGE", {
      field,
      rule: `must be at most ${maximumSettingsBytes / 1024} KiB`,
    });
  }
  if (depthOf(value ?? {}) > maximumSettingsDepth) {
    throw fail("VALUE_TOO_LARGE", {
      field,
      rule: `must nest at most ${maximumSettingsDepth} levels deep`,
    });
  }
  if (!finite(value)) throw fail("FIELD_INVALID", { field, rule: "numbers must be finite" });
  // A backslash that is not itself escaped: the text \u0000 is six harmless characters.
  if (/(?<!\\)(?:\\\\)*\\u0000/.test(text))
    throw fail("FIELD_INVALID", { field, rule: "must not contain NUL characters" });
  return text;
};
