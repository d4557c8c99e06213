/**
 * The very statements by which Roster answers a call, listened to on its way to the database and made into
 * templates, so that the floor and the naive composition send the same ones.
 */
import { subscribe, unsubscribe } from "node:diagnostics_channel";
import type { Message } from "@bufbuild/protobuf";
import type { Step } from "../../src/database/exchange.ts";
import type { Operation, Sender } from "./operations.ts";

/** Where a value of a statement comes from. */
type Source =
  | { readonly constant: unknown }
  /** A field of the request, such as `org.slug`. */
  | { readonly request: string }
  /** The user who calls. */
  | { readonly sender: true }
  /** An id that is made for the call; equal numbers stand for the same one. */
  | { readonly fresh: number };

/** A statement whose values are to be filled in. */
export interface Template {
  readonly text: string;
  readonly values: readonly Source[];
}

/** The flushes of one call, each a list of statements up to a Sync. */
export type Templates = readonly (readonly Template[])[];

/** Whether a call enters as the role for what needs no membership in an org. */
export const isOutsideOrgs = (templates: Templates): boolean =>
  templates[0]?.some(({ text }) => /roster\.enter_(directory|invitation)\(/.test(text)) ?? false;

/** One call as it was heard. */
interface Heard {
  readonly sender: Sender;
  readonly request: Message;
  readonly flushes: readonly (readonly Step[])[];
}

/** Sends two calls of an operation and learns from what differs between them. */
export const templatesOf = async (
  operation: Operation,
  numbers: readonly [number, number],
  send: (sender: Sender, request: Message) => Promise<unknown>,
): Promise<Templates> => {
  const heard: Heard[] = [];
  for (const number of numbers) {
    const { sender, request } = operation.call(number);
    const flushes: (readonly Step[])[] = [];
    const listen = (steps: unknown): void => void flushes.push(steps as readonly Step[]);
    subscribe("roster:flush", listen);
    await send(sender, request);
    unsubscribe("roster:flush", listen);
    heard.push({ sender, request, flushes });
  }
  const [one, other] = heard as [Heard, Heard];
  const freshIds: unknown[] = [];
  return one.flushes.map((steps, i) =>
    steps.map(({ text, values }, j) => ({
      text,
      values: values.map((value, k) =>
        sourceOf([value, other.flushes[i]?.[j]?.values[k]], [one, other], freshIds),
      ),
    })),
  );
};

const uuid = /^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$/;

const sourceOf = (
  [value, otherValue]: readonly [unknown, unknown],
  [one, other]: readonly [Heard, Heard],
  freshIds: unknown[],
): Source => {
  if (value === one.sender && otherValue === other.sender) return { sender: true };
  const path = pathsOf(one.request).find(
    (candidate) =>
      fieldAt(one.request, candidate) === value && fieldAt(other.request, candidate) === otherValue,
  );
  // Also when it is the same in both calls: another operation of this method may ask for something else.
  if (path !== undefined) return { request: path };
  if (JSON.stringify(value) === JSON.stringify(otherValue)) return { constant: value };
  if (typeof value === "string" && uuid.test(value)) {
    if (!freshIds.includes(value)) freshIds.push(value);
    return { fresh: freshIds.indexOf(value) };
  }
  // What is left differs by chance: milliseconds that the call may still take.
  if (typeof value !== "number") throw new Error(`where does ${JSON.stringify(value)} come from?`);
  return { constant: value };
};

const pathsOf = (value: object): string[] =>
  Object.entries(value).flatMap(([name, inner]) =>
    typeof inner === "object" && inner !== null
      ? pathsOf(inner).map((path) => `${name}.${path}`)
      : [name],
  );

const fieldAt = (value: object, path: string): unknown =>
  path
    .split(".")
    .reduce<unknown>((at, name) => (at as Record<string, unknown> | undefined)?.[name], value);

/** Makes what fills a template's values in. */
export const fillerOf = (
  templates: Templates,
  makeId: () => string,
): ((sender: Sender, request: Message) => Step[][]) => {
  const fresh = templates
    .flat()
    .flatMap(({ values }) => values.map((source) => ("fresh" in source ? source.fresh + 1 : 0)));
  const ids = Math.max(0, ...fresh);
  return (sender, request) => {
    const made = Array.from({ length: ids }, () => makeId());
    const valueFrom = (source: Source): unknown => {
      if ("constant" in source) return source.constant;
      if ("sender" in source) return sender;
      if ("fresh" in source) return made[source.fresh];
      return fieldAt(request, source.request);
    };
    return templates.map((steps) =>
      steps.map(({ text, values }) => ({ text, values: values.map(valueFrom) })),
    );
  };
};
