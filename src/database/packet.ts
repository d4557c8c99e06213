/**
 * What goes to PostgreSQL in one flush, as the bytes of one write. pg would write each message of the extended
 * protocol by itself, and the writes would cost more than all else that a read does here.
 *
 * Layout of the messages: https://www.postgresql.org/docs/current/protocol-message-formats.html
 */

const execute = Buffer.from([0x45, 0, 0, 0, 9, 0, 0, 0, 0, 0]);
const describe = Buffer.from([0x44, 0, 0, 0, 6, 0x50, 0]);
const sync = Buffer.from([0x53, 0, 0, 0, 4]);

/** A value as PostgreSQL reads it: text, bytes, or null. */
export type Bound = string | Buffer | null;

/** Collects messages. It may be used again after `take`. */
export class Packet {
  private bytes = Buffer.allocUnsafe(8 * 1024);
  /** Bytes so far. */
  length = 0;

  /** Parses a statement under a name; the empty name holds it until the next one. */
  parse(name: string, text: string): void {
    const start = this.begin(0x50);
    this.text(name);
    this.text(text);
    this.int16(0);
    this.end(start);
  }

  /**
   * Binds values to a statement, for the one unnamed portal.
   *
   * @param formats how each column comes back: 0 as text, 1 as the type's own bytes; without them all as text
   */
  bind(statement: string, values: readonly Bound[], formats: readonly number[] = []): void {
    const start = this.begin(0x42);
    this.text("");
    this.text(statement);
    const binary = values.some((value) => Buffer.isBuffer(value));
    this.int16(binary ? values.length : 0);
    if (binary) for (const value of values) this.int16(Buffer.isBuffer(value) ? 1 : 0);
    this.int16(values.length);
    for (const value of values) this.value(value);
    this.int16(formats.length);
    for (const format of formats) this.int16(format);
    this.end(start);
  }

  /** Asks for the columns of what is bound. */
  describe(): void {
    this.raw(describe);
  }

  /** Runs what is bound, to its end. */
  execute(): void {
    this.raw(execute);
  }

  sync(): void {
    this.raw(sync);
  }

  /** The bytes so far, which are the caller's to keep. */
  take(): Buffer {
    const taken = Buffer.from(this.bytes.subarray(0, this.length));
    this.length = 0;
    return taken;
  }

  /** Drops what came after this many bytes. */
  cut(length: number): void {
    this.length = length;
  }

  private value(value: Bound): void {
    if (value === null) {
      this.int32(-1);
      return;
    }
    if (typeof value === "string") {
      // A UTF-16 unit is at most three bytes of UTF-8.
      this.reserve(4 + value.length * 3);
      const size = this.bytes.write(value, this.length + 4);
      this.int32(size);
      this.length += size;
      return;
    }
    this.int32(value.length);
    this.raw(value);
  }

  private begin(type: number): number {
    this.reserve(5);
    this.bytes[this.length] = type;
    this.length += 5;
    return this.length - 4;
  }

  private end(start: number): void {
    this.bytes.writeInt32BE(this.length - start, start);
  }

  /** Text that ends with a zero byte. */
  private text(text: string): void {
    this.reserve(1 + text.length * 3);
    this.length += this.bytes.write(text, this.length);
    this.bytes[this.length++] = 0;
  }

  private int16(value: number): void {
    this.reserve(2);
    this.length = this.bytes.writeUInt16BE(value, this.length);
  }

  private int32(value: number): void {
    this.reserve(4);
    this.length = this.bytes.writeInt32BE(value, this.length);
  }

  private raw(bytes: Buffer): void {
    this.reserve(bytes.length);
    this.length += bytes.copy(this.bytes, this.length);
  }

  private reserve(more: number): void {
    if (this.length + more <= this.bytes.length) return;
    const larger = Buffer.allocUnsafe(Math.max(this.bytes.length * 2, this.length + more));
    this.bytes.copy(larger, 0, 0, this.length);
    this.bytes = larger;
  }
}
