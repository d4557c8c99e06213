/** Keyset pages: what a request asks for, and tokens that cannot be made, moved or misused by a caller. */
import {
  createCipheriv,
  createDecipheriv,
  createSecretKey,
  hash,
  hkdfSync,
  type KeyObject,
  randomBytes,
} from "node:crypto";
import { create, type DescMessage, type Message, toBinary } from "@bufbuild/protobuf";
import type { FragmentSqlToken } from "slonik";
import { sql } from "./tag.ts";

const defaultSize = 50;
const maximumSize = 1_000;
/**
 * Sizes that are often asked for stand in the statement itself. A limit that is a parameter PostgreSQL takes for
 * a tenth of the table, finds such a plan dear, and plans each page of a large table anew.
 */
const usualSizes = new Set([10, 20, 25, 50, 100, 200, 250, 500, maximumSize]);
const lifetimeSeconds = 24 * 3600;
const cipher = "aes-256-gcm";
const [nonceBytes, tagBytes] = [12, 16];
/** What a page may weigh in bytes; the largest message the server sends is twice that. */
const maximumWeight = 2 * 1024 * 1024;

/** Rows that weigh more than this may be more than a page carries: a message is at most four times its rows. */
export const heavyBytes = maximumWeight / 4;
/** Answers that were heavier, with their bytes. All others are spared the weighing of each row. */
export const heavy = new WeakMap<object, number>();

/** Rows that are read at once where a reader takes all there is: at first, at most, and as many as weigh so much. */
export const firstSize = 250;
const [mostRows, readWeight] = [1_000, 1024 * 1024];

/** How many rows to read next: where they are heavy fewer, so that memory stays the same. */
export const sizeAfter = (size: number, rows: readonly unknown[]): number => {
  const bytes = heavy.get(rows);
  const fitting = bytes ? (rows.length * readWeight) / bytes : mostRows;
  return Math.max(1, Math.min(mostRows, 2 * size, Math.floor(fitting)));
};

/** What a page token is bound to beside the arguments. */
export interface PageBinding {
  /** What {@link tokenKey} made for pages. */
  readonly secret: KeyObject;
  readonly method: string;
  readonly subject: string;
  readonly orgId: string;
}

/** A list request of any resource. */
export type ListRequest = Message & { readonly pageSize: number; readonly pageToken: string };

/** The page that a request asks for. */
export class Page {
  /** Rows to ask for: one more than the page holds, to know whether another follows. */
  readonly limit: FragmentSqlToken | number;
  /** The cursor of the last row of the page before; null on the first page. */
  readonly after: readonly string[] | null;
  private readonly size: number;
  private readonly binding: string;
  private readonly secret: KeyObject;

  /** @param invalid makes the error for a token that is not valid for this request */
  constructor(
    request: ListRequest,
    schema: DescMessage,
    binding: PageBinding,
    invalid: () => Error,
  ) {
    this.size = Math.min(request.pageSize || defaultSize, maximumSize);
    this.limit = usualSizes.has(this.size) ? sql.literalValue(`${this.size + 1}`) : this.size + 1;
    this.secret = binding.secret;
    const rest = create(schema, { ...request, pageSize: 0, pageToken: "" });
    const fingerprint = hash("sha256", toBinary(schema, rest), "base64url");
    this.binding = [binding.method, binding.subject, binding.orgId, fingerprint].join("\n");
    this.after = request.pageToken === "" ? null : this.open(request.pageToken, invalid);
  }

  /**
   * Makes the answer: at most a page of rows, fewer when they are heavy, and the token of the next one.
   *
   * @param cursor what orders a row, as text
   * @param item the row's message, or null for a row that the list leaves out
   */
  finish<Row, Item>(
    rows: readonly Row[],
    cursor: (row: Row) => readonly string[],
    item: (row: Row) => Item | null,
  ): { items: Item[]; nextPageToken: string } {
    const items: Item[] = [];
    const weighing = heavy.has(rows);
    let weight = 0;
    let taken = 0;
    for (const row of rows.slice(0, this.size)) {
      const made = item(row);
      if (made !== null) {
        const more = weighing ? weigh(made) : 0;
        if (taken > 0 && weight + more > maximumWeight) break;
        weight += more;
        items.push(made);
      }
      taken++;
    }
    const last = rows[taken - 1];
    const nextPageToken = last !== undefined && taken < rows.length ? this.seal(cursor(last)) : "";
    return { items, nextPageToken };
  }

  /** A cursor tells what orders a row, such as a name, and the last row may be one that the list leaves out. */
  private seal(cursor: readonly string[]): string {
    const expires = Math.floor(Date.now() / 1000) + lifetimeSeconds;
    return seal(this.secret, JSON.stringify([expires, ...cursor]), this.binding);
  }

  private open(token: string, invalid: () => Error): readonly string[] {
    const text = unseal(this.secret, token, this.binding);
    if (text === undefined) throw invalid();
    const [expires, ...cursor] = JSON.parse(text) as [number, ...string[]];
    if (expires < Date.now() / 1000) throw invalid();
    return cursor;
  }
}

/**
 * Makes a token of a text, which who holds it can neither read nor change.
 *
 * @param binding what must be the same when it is opened
 */
export const seal = (key: KeyObject, text: string, binding: string): string => {
  const nonce = randomBytes(nonceBytes);
  const sealing = createCipheriv(cipher, key, nonce).setAAD(Buffer.from(binding));
  const parts = [nonce, sealing.update(text, "utf8"), sealing.final(), sealing.getAuthTag()];
  return Buffer.concat(parts).toString("base64url");
};

/** What {@link seal} made a token of; undefined when it was made by another key or binding, or was touched. */
export const unseal = (key: KeyObject, token: string, binding: string): string | undefined => {
  const bytes = Buffer.from(token, "base64url");
  // Node skips letters that are not base64url, and bits beyond the last byte.
  if (bytes.toString("base64url") !== token || bytes.length < nonceBytes + tagBytes)
    return undefined;
  const nonce = bytes.subarray(0, nonceBytes);
  const opening = createDecipheriv(cipher, key, nonce, { authTagLength: tagBytes })
    .setAAD(Buffer.from(binding))
    .setAuthTag(bytes.subarray(-tagBytes));
  const text = opening.update(bytes.subarray(nonceBytes, -tagBytes), undefined, "utf8");
  try {
    return text + opening.final("utf8");
  } catch {
    return undefined;
  }
};

/** A deployment's key for tokens of one kind. As an object: Node would make one of bare bytes for each token. */
export const tokenKey = (
  tokenSecret: string,
  kind: "page" | "invitation" | "consistency" | "position",
): KeyObject =>
  createSecretKey(Buffer.from(hkdfSync("sha256", tokenSecret, "", `roster ${kind} tokens`, 32)));

/** Hardly less than the bytes of a message on the wire, without encoding it: names stand for tags and lengths. */
export const weigh = (value: unknown): number => {
  if (typeof value === "string") return Buffer.byteLength(value) + 4;
  if (typeof value !== "object" || value === null) return 12;
  let sum = 4;
  for (const [key, inner] of Object.entries(value)) {
    if (inner !== undefined)
      sum += weigh(inner) + (Array.isArray(value) ? 0 : Buffer.byteLength(key) + 4);
  }
  return sum;
};
