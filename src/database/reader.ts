/**
 * Reads what PostgreSQL answers to a flush. pg's parser makes an object and an event of each message, which costs
 * more than the messages say. The few kinds that nearly every answer is made of are read here; a batch that
 * holds any other goes to pg whole.
 *
 * Layout of the messages: https://www.postgresql.org/docs/current/protocol-message-formats.html
 */

/** Who waits for the answer to a flush. */
export interface Receiver {
  /** Whether the rows of the statement that answers now are wanted. */
  readonly wantsRows: boolean;
  handleParseComplete(): void;
  handleDataRow(message: { fields: (string | null)[] }): void;
  handleCommandComplete(message: { text: string }): void;
}

const parseComplete = 0x31;
const bindComplete = 0x32;
const commandComplete = 0x43;
const dataRow = 0x44;
const readyForQuery = 0x5a;
const known = new Set([parseComplete, bindComplete, commandComplete, dataRow, readyForQuery]);

/** Where whole messages end in some bytes, and whether all of them are of the kinds known here. */
const survey = (bytes: Buffer): { end: number; plain: boolean } => {
  let end = 0;
  let plain = true;
  while (end + 5 <= bytes.length) {
    const next = end + 1 + bytes.readUInt32BE(end + 1);
    if (next > bytes.length) break;
    plain &&= known.has(bytes[end] as number);
    end = next;
  }
  return { end, plain };
};

const fieldsOf = (bytes: Buffer, start: number): (string | null)[] => {
  const count = bytes.readUInt16BE(start);
  const fields = new Array<string | null>(count);
  let at = start + 2;
  for (let i = 0; i < count; i++) {
    const length = bytes.readInt32BE(at);
    at += 4;
    if (length < 0) {
      fields[i] = null;
    } else {
      fields[i] = bytes.toString(undefined, at, at + length);
      at += length;
    }
  }
  return fields;
};

/**
 * Makes the listener to a connection's bytes.
 *
 * @param receiver who waits, or null
 * @param ready hears of the transaction's status at the end of an answer
 * @param others takes whole messages of any kind
 */
export const readerOf = (
  receiver: () => Receiver | null,
  ready: (status: string) => void,
  others: (bytes: Buffer) => void,
): ((chunk: Buffer) => void) => {
  let rest: Buffer | undefined;
  return (chunk) => {
    const bytes = rest ? Buffer.concat([rest, chunk]) : chunk;
    const { end, plain } = survey(bytes);
    rest = end < bytes.length ? bytes.subarray(end) : undefined;
    if (end === 0) return;
    const whole = end < bytes.length ? bytes.subarray(0, end) : bytes;
    if (!plain) {
      others(whole);
      return;
    }
    for (let at = 0; at < end; at += 1 + whole.readUInt32BE(at + 1)) {
      const type = whole[at];
      if (type === readyForQuery) ready(String.fromCharCode(whole[at + 5] as number));
      else if (type !== bindComplete) deliver(receiver(), type, whole, at);
    }
  };
};

const deliver = (
  to: Receiver | null,
  type: number | undefined,
  bytes: Buffer,
  at: number,
): void => {
  if (type === dataRow) {
    if (to?.wantsRows) to.handleDataRow({ fields: fieldsOf(bytes, at + 5) });
  } else if (type === commandComplete) {
    // The tag ends with a zero byte.
    const end = at + bytes.readUInt32BE(at + 1);
    to?.handleCommandComplete({ text: bytes.toString(undefined, at + 5, end) });
  } else {
    to?.handleParseComplete();
  }
};
