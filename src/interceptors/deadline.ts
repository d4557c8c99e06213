import type { ConnectError, Interceptor } from "@connectrpc/connect";
import { keys } from "../context.ts";
import type { Deadline } from "../database/pool.ts";
import { fail } from "../errors.ts";

/** Milliseconds that an RPC may take when its caller names no deadline, and at most. */
export interface DeadlineLimits {
  readonly defaultMs: number;
  readonly maximumMs: number;
}

/**
 * Bounds the call by its caller's deadline, or the default, at most the maximum. Everything behind it, SQL
 * included, takes its time limit from here. The caller is answered when the time is over, whatever still runs.
 */
export const deadline =
  ({ defaultMs, maximumMs }: DeadlineLimits): Interceptor =>
  (next) =>
  (request) => {
    const ms = Math.min(request.contextValues.get(keys.timeoutMs) ?? defaultMs, maximumMs);
    if (ms <= 0) throw fail("DEADLINE_EXCEEDED");
    const clock = new Clock(ms, request.signal);
    request.contextValues.set(keys.deadline, clock);
    return clock.bound(() => next(request));
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
  private readonly end: number;
  private failure: ConnectError | undefined;
  private readonly listeners = new Set<() => void>();

  constructor(ms: number, caller: AbortSignal) {
    this.end = performance.now() + ms;
    running.add(this);
    ticking ??= setInterval(tick, tickMs);
    const leave = (): void =>
      this.finish(this.remainingMs() > slackMs ? "CANCELLED" : "DEADLINE_EXCEEDED");
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
    if (this.remainingMs() <= 0) this.finish("DEADLINE_EXCEEDED");
  }

  private finish(reason: "CANCELLED" | "DEADLINE_EXCEEDED"): void {
    if (this.failure) return;
    this.failure = fail(reason);
    running.delete(this);
    for (const listener of this.listeners) listener();
  }
}
