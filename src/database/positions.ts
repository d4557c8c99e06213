/** Places in the change feed: what was seen of a history in which transactions end in another order than they begin. */
import type { KeyObject } from "node:crypto";
import { seal, unseal } from "./page.ts";

/** Which transactions could be seen at some time, as PostgreSQL's type pg_snapshot tells it. */
export interface Snapshot {
  /** All before it have ended. */
  readonly xmin: bigint;
  /** It and all behind it had not ended. */
  readonly xmax: bigint;
  /** Those between the two that had not ended. */
  readonly running: readonly bigint[];
}

/** Reads a pg_snapshot: `xmin:xmax:running,…`. */
export const parseSnapshot = (text: string): Snapshot => {
  const [xmin = "", xmax = "", running = ""] = text.split(":");
  return {
    xmin: BigInt(xmin),
    xmax: BigInt(xmax),
    running: running === "" ? [] : running.split(",").map(BigInt),
  };
};

/** Writes it as PostgreSQL reads it. */
export const formatSnapshot = ({ xmin, xmax, running }: Snapshot): string =>
  `${xmin}:${xmax}:${running.join(",")}`;

/** True when the first snapshot shows all that the second one does. */
export const covers = (later: Snapshot, earlier: Snapshot): boolean =>
  later.xmax >= earlier.xmax &&
  later.running.every((xid) => xid >= earlier.xmax || earlier.running.includes(xid));

/** How far a reader has come. */
export interface Place {
  /** What they could see then, they have. */
  readonly seen: Snapshot;
  /** Of what a later snapshot shows besides, they have it up to a change. */
  readonly part?: {
    readonly of: Snapshot;
    /** The last change of the transaction in whose order it stands. */
    readonly last: string;
    readonly id: string;
  };
}

// A position travels in the details of errors, which are short; many transactions may be running.
const pack = ({ xmin, xmax, running }: Snapshot): string =>
  [xmin, xmax - xmin, ...running.map((xid) => xid - xmin)].map((n) => n.toString(36)).join(".");

const number = (text: string): bigint =>
  [...text].reduce((sum, digit) => sum * 36n + BigInt(Number.parseInt(digit, 36)), 0n);

const unpack = (text: string): Snapshot => {
  const [xmin = 0n, length = 0n, ...running] = text.split(".").map(number);
  return { xmin, xmax: xmin + length, running: running.map((n) => xmin + n) };
};

const binding = (orgId: string | undefined): string => `position ${orgId ?? ""}`;

/** Makes the position that stands for a place in the feed of an org, or of all orgs. */
export const sealPosition = (
  secret: KeyObject,
  orgId: string | undefined,
  epoch: string,
  { seen, part }: Place,
): string => {
  const parts = part ? [pack(part.of), part.last, part.id] : [];
  return seal(secret, [epoch, pack(seen), ...parts].join(" "), binding(orgId));
};

/** Reads a position; null when it was not made here for this feed. */
export const openPosition = (
  secret: KeyObject,
  orgId: string | undefined,
  position: string,
): { readonly epoch: string; readonly place: Place } | null => {
  const text = unseal(secret, position, binding(orgId));
  if (text === undefined) return null;
  const [epoch = "", seen = "", of, last = "", id = ""] = text.split(" ");
  const place: Place = { seen: unpack(seen), ...(of && { part: { of: unpack(of), last, id } }) };
  return { epoch, place };
};
