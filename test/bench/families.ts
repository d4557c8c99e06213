/**
 * What the cost of a call may grow with, one family for each: the rows it is measured on, and the calls. At
 * every size of a family as many people call, and their pages hold as many rows, so that only what the
 * family is named after grows.
 */
import type { Message } from "@bufbuild/protobuf";
import { idOf, type Range } from "./data.ts";
import type { Operation } from "./operations.ts";

/** An operation at one size. */
export interface SizedOperation extends Operation {
  /** Items on its page; undefined for what answers with one resource. */
  readonly items?: number;
}

/** Makes a call once and returns the answer. */
export type Ask = (operation: Operation) => Promise<Message>;

interface Base {
  /** As `--only` names it. */
  readonly name: string;
  /** What a size counts. */
  readonly unit: string;
  /** Powers of ten, the smallest first. */
  readonly sizes: readonly number[];
  /** The most that a call at this size may cost, as a ratio to the smallest size. */
  readonly budget?: { readonly size: number; readonly ratio: number };
  /** What is called at a size, in the same order at each. */
  readonly operations: (size: number, ask: Ask) => Promise<readonly SizedOperation[]>;
}

/** One database grows from size to size and is measured beside another that stays at the smallest. */
export interface GrowingFamily extends Base {
  /** Statements that take a database from one size, 0 when it is empty, to the next. */
  readonly grow: (range: Range) => readonly string[];
}

/** One database holds all sizes at once. */
export interface StandingFamily extends Base {
  readonly load: (sizes: readonly number[]) => readonly string[];
}

export type Family = GrowingFamily | StandingFamily;

/** Sizes from one power of ten to another. */
export const powers = (from: number, to: number): number[] =>
  Array.from({ length: to - from + 1 }, (_, i) => 10 ** (from + i));

export const user = (n: number): string => idOf("user", n);
export const org = (n: number): string => idOf("org", n);
export const team = (n: number): string => idOf("team", n);

/** As many calls of an operation differ. */
export const calls = 1_000;

/** Spreads the calls evenly over a size. */
export const spread = (n: number, size: number): number => Math.floor(((n % calls) * size) / calls);
