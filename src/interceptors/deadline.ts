import type { Message } from "@bufbuild/protobuf";
import type {
  ConnectError,
  Interceptor,
  StreamRequest,
  StreamResponse,
  UnaryRequest,
  UnaryResponse,
} from "@connectrpc/connect";
import { callerOf, keys } from "../context.ts";
import type { Deadline } from "../database/pool.ts";
import { fail } from "../errors.ts";
import { through } from "./streams.ts";

/** Milliseconds that an RPC may take when its caller names no deadline, and at most; and a stream at most. */
export interface DeadlineLimits {
  readonly defaultMs: number;
  readonly maximumMs: number;
  readonly streamMs: number;
}

/**
 * Bounds the call by its caller's deadline, or the default, at most the maximum. Everything behind it, SQL
 * included, takes its time limit from here. The caller is answered when the time is over, whatever still runs.
 */
export const deadline =
  (limits: DeadlineLimits): Interceptor =>
  (next) =>
  (request) => {
    if (request.method.methodKind !== "unary") return streaming(limits, request, next);
    const { defaultMs, maximumMs } = limits;
    const ms = Math.min(request.contextValues.get(keys.timeoutMs) ?? defaultMs, maximumMs);
    if (ms <= 0) throw fail("DEADLINE_EXCEEDED");
    const clock = new Clock(ms, request.signal);
    request.contextValues.set(keys.deadline, clock);
    return clock.bound(() => next(request));
  };

/**
 * Bounds a stream as a whole: by its caller's deadline, by the age of a connection, and by the life of the
 * credential. A statement within it may take what a unary RPC may by default.
 */
const streaming = async (
  { defaultMs, streamMs }: DeadlineLimits,
  request: UnaryRequest | StreamRequest,
  next: (request: UnaryRequest | StreamRequest) => Promise<UnaryResponse | StreamResponse>,
): Promise<UnaryResponse | StreamResponse> => {
  const { contextValues: values, signal } = request;
  const ms = values.get(keys.timeoutMs) ?? Number.POSITIVE_INFINITY;
  if (ms <= 0) throw fail("DEADLINE_EXCEEDED");
  const clock = new StreamClock(Math.min(ms, streamMs), signal, defaultMs);
  if (ms > streamMs) clock.atEnd = "STREAM_ENDED";
  values.set(keys.deadline, clock);
  const response = await clock.bound(() => next(request));
  if (!response.stream) return response;
  clock.expire(callerOf(values).expiresMs - Date.now());
  return through(response, (messages) => clock.flow(messages));
};

/** A caller whose own deadline passes hangs up, and that may be heard a little before the time is over here. */
const slackMs = 25;

/** Clocks of the calls under way. One timer looks after them all: one for each would cost more than the calls do. */
const running = new Set<Clock>();
const tickMs = 10;
let ticking: NodeJS.Timeout | undefined;

const tick = (): void => {
  for (const clock of running) clock.check();
  if (running.size > 0) return;
  clearInterval(ticking);
  ticking = undefined;
};

/** Ends one call in time, to within a tick. */
class Clock implements Deadline {
  /** What it means when the time is over. */
  atEnd: Ending = "DEADLINE_EXCEEDED";
  protected end: number;
  protected failure: ConnectError | undefined;
  private readonly listeners = new Set<() => void>();

  constructor(ms: number, caller: AbortSignal) {
    this.end = performance.now() + ms;
    this.run();
    const leave = (): void => {
      const early = this.end - performance.now() > slackMs;
      this.finish(caller.reason ?? fail(early ? "CANCELLED" : this.atEnd));
    };
    if (caller.aborted) leave();
    else caller.addEventListener("abort", leave, { once: true });
  }

  get over(): boolean {
    return this.failure !== undefined;
  }

  remainingMs(): number {
    return this.end - performance.now();
  }

  onOver(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** The work's outcome, or the failure of the call if that comes first. */
  bound<T>(work: () => Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const fall = (error: unknown = this.failure): void => {
        running.delete(this);
        reject(error);
      };
      if (this.failure) {
        fall();
        return;
      }
      this.listeners.add(fall);
      try {
        work().then((value) => {
          running.delete(this);
          resolve(value);
        }, fall);
      } catch (error) {
        fall(error);
      }
    });
  }

  /** Ends the call if its time is over. */
  check(): void {
    if (this.remainingMs() <= 0) this.finish(fail(this.atEnd));
  }

  protected run(): void {
    running.add(this);
    ticking ??= setInterval(tick, tickMs);
  }

  protected stop(): void {
    running.delete(this);
  }

  private finish(failure: ConnectError): void {
    if (this.failure) return;
    this.failure = failure;
    running.delete(this);
    for (const listener of this.listeners) listener();
  }
}

type Ending = "DEADLINE_EXCEEDED" | "CREDENTIAL_EXPIRED" | "STREAM_ENDED";

/** Ends a stream in time. What is left of it is told statement by statement. */
class StreamClock extends Clock {
  private readonly statementMs: number;

  constructor(ms: number, caller: AbortSignal, statementMs: number) {
    super(ms, caller);
    this.statementMs = statementMs;
  }

  override remainingMs(): number {
    return Math.min(super.remainingMs(), this.statementMs);
  }

  /** The stream ends with the credential, when that is sooner. */
  expire(ms: number): void {
    const end = performance.now() + ms;
    if (end >= this.end) return;
    this.end = end;
    this.atEnd = "CREDENTIAL_EXPIRED";
  }

  /**
   * The messages until the stream is over. Then whoever makes them is ended at once, also while they wait for the
   * database and while a slow reader asks for nothing.
   */
  async *flow(messages: AsyncIterable<Message>): AsyncGenerator<Message> {
    const source = messages[Symbol.asyncIterator]();
    let wake = (_failure: unknown): void => {};
    const leave = this.onOver(() => {
      wake(this.failure);
      // The stream has failed and told why; that its maker fails as well is no news.
      source.return?.().catch(() => {});
    });
    this.run();
    try {
      for (;;) {
        if (this.failure) throw this.failure;
        const { done, value } = await new Promise<IteratorResult<Message>>((resolve, reject) => {
          wake = reject;
          source.next().then(resolve, reject);
        });
        if (done) return;
        yield value;
      }
    } finally {
      leave();
      this.stop();
      if (!this.failure) await source.return?.();
    }
  }
}
