/**
 * Reads what PostgreSQL answers to a flush. pg's parser makes an object and an event of each message, which costs
 * more than the messages say. The few kinds that nearly every answer is made of are read here; any other goes to
 * pg, in its turn.
 *
 * Layout of the messages: https://www.postgresql.org/docs/current/protocol-message-formats.html
 */

/** Who waits for the answer to a flush. */
export interface Receiver {
  handleParseComplete(): void;
  /** A row: a count of columns, then the length and the bytes of each, from `at` to `end`. */
  handleRow(bytes: Buffer, at: number, end: number): void;
  handleCommandComplete(message: { text: string }): void;
}

const parseComplete = 0x31;
const bindComplete = 0x32;
const commandComplete = 0x43;
const dataRow = 0x44;
const readyForQuery = 0x5a;

/**
 * Makes the listener to a connection's bytes.
 *
 * @param receiver who waits, or null
 * @param ready hears of the transaction's status at the end of an answer
 * @param others takes one whole message of another kind
 */
export const readerOf = (
  receiver: () => Receiver | null,
  ready: (status: string) => void,
  others: (bytes: Buffer) => void,
): ((chunk: Buffer) => void) => {
  let rest: Buffer | undefined;
  return (chunk) => {
    const bytes = rest ? Buffer.concat([rest, chunk]) : chunk;
    let at = 0;
    while (at + 5 <= bytes.length) {
      const end = at + 1 + bytes.readUInt32BE(at + 1);
      if (end > bytes.length) break;
      switch (bytes[at]) {
        case dataRow:
          receiver()?.handleRow(bytes, at + 5, end);
          break;
        case commandComplete:
          // The tag ends with a zero byte.
          receiver()?.handleCommandComplete({ text: bytes.toString(undefined, at + 5, end - 1) });
          break;
        case readyForQuery:
          ready(String.fromCharCode(bytes[at + 5] as number));
          break;
        case parseComplete:
          receiver()?.handleParseComplete();
          break;
        case bindComplete:
          break;
        default:
          others(bytes.subarray(at, end));
      }
      at = end;
    }
    rest = at < bytes.length ? bytes.subarray(at) : undefined;
  };
};
