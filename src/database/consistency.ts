/** How fresh a response is: positions in PostgreSQL's write-ahead log, and the tokens that carry them. */
import type { KeyObject } from "node:crypto";
import { seal, unseal } from "./page.ts";

/** Where the log of a primary stood. */
export interface Position {
  /** The cluster and timeline that it belongs to, as `roster.wal_history` tells them. */
  readonly history: string;
  readonly lsn: bigint;
}

/**
 * Ahead of every replica: for what only the primary is sure to have. It is the position of each response of a process
 * without a replica, which need not ask where the log stands: a token that may have been anywhere is sound when it is
 * read at the primary, and costs nothing.
 */
export const nowhere: Position = { history: "", lsn: 0n };

const shape = /^(\S+) ([0-9A-F]+)\/([0-9A-F]+)$/;

/** Reads what `roster.wal_position` said; what it does not know is nowhere. */
export const positionOf = (text: string | null | undefined): Position => {
  const [, history, high, low] = shape.exec(text ?? "") ?? [];
  if (history === undefined) return nowhere;
  return { history, lsn: (BigInt(`0x${high}`) << 32n) | BigInt(`0x${low}`) };
};

/** The position's number as PostgreSQL writes a pg_lsn. */
export const lsnText = ({ lsn }: Position): string =>
  `${(lsn >> 32n).toString(16)}/${(lsn & 0xffff_ffffn).toString(16)}`.toUpperCase();

/** A position that lies behind neither. Those of different histories have none in common. */
export const later = (one: Position, other: Position): Position => {
  if (one.history !== other.history) return nowhere;
  return one.lsn < other.lsn ? other : one;
};

/** What one call's reads must have seen, and what they saw. */
export class Sight {
  private readonly asked: Position | undefined;
  private seen: Position | undefined;

  /** @param asked what the caller has seen before */
  constructor(asked: Position | undefined) {
    this.asked = asked;
  }

  /** What the next read must have seen: time does not go back within a call either. */
  get least(): Position | undefined {
    return this.seen && this.asked ? later(this.asked, this.seen) : (this.seen ?? this.asked);
  }

  /** What the response's token says. */
  get reached(): Position {
    return this.seen ?? nowhere;
  }

  /** Notes a position behind all that a statement has seen. */
  saw(position: Position): void {
    this.seen = this.seen ? later(this.seen, position) : position;
  }
}

/** Makes and opens the tokens of responses. */
export class ConsistencyTokens {
  private readonly key: KeyObject;
  /** Many responses stand at one position, and many requests come back with its token. */
  private last: { readonly position: Position; readonly token: string };

  /** @param key what `tokenKey` made for them */
  constructor(key: KeyObject) {
    this.key = key;
    this.last = this.make(nowhere);
  }

  seal(position: Position): string {
    const { history, lsn } = this.last.position;
    if (history !== position.history || lsn !== position.lsn) this.last = this.make(position);
    return this.last.token;
  }

  /** Undefined when it is none that a process with this key made. */
  open(token: string): Position | undefined {
    const { last } = this;
    if (token === last.token) return last.position;
    const text = unseal(this.key, token, "");
    return text === undefined ? undefined : positionOf(text);
  }

  private make(position: Position): ConsistencyTokens["last"] {
    const text = position === nowhere ? "" : `${position.history} ${lsnText(position)}`;
    return { position, token: seal(this.key, text, "") };
  }
}
