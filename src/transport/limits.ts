/** What both ports hold their callers to. */
const mebibyte = 1024 * 1024;
const minuteMs = 60_000;

export const limits = {
  /** Bytes of a message that comes in, also once it is unpacked. */
  receiveBytes: mebibyte,
  sendBytes: 4 * mebibyte,
  /** Calls at once on one HTTP/2 connection. */
  streams: 250,
  /** Old connections are asked to go, so that clients spread again over new processes. */
  connectionAgeMs: 30 * minuteMs,
  connectionAgeGraceMs: minuteMs,
} as const;
