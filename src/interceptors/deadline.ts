import type { Interceptor } from "@connectrpc/connect";
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
  async (request) => {
    const ms = Math.min(request.contextValues.get(keys.timeoutMs) ?? defaultMs, maximumMs);
    const clock = new Clock(ms, request.signal);
    request.contextValues.set(keys.deadline, clock);
    if (ms <= 0) throw fail("DEADLINE_EXCEEDED");
    try {
      return await Promise.race([next(request), clock.passed]);
    } finally {
      clock.stop();
    }
  };

class Clock implements Deadline {
  readonly signal: AbortSignal;
  readonly passed: Promise<never>;
  private readonly end: number;
  private readonly caller: AbortSignal;
  private readonly controller = new AbortController();
  private readonly timer: NodeJS.Timeout;
  private readonly leave: () => void;

  constructor(ms: number, caller: AbortSignal) {
    this.end = performance.now() + ms;
    this.caller = caller;
    this.signal = this.controller.signal;
    const { promise, reject } = Promise.withResolvers<never>();
    this.passed = promise;
    // Nobody may be listening any more when the time is over.
    promise.catch(() => {});
    this.leave = () => {
      this.controller.abort();
      reject(fail(this.remainingMs() > 0 ? "CANCELLED" : "DEADLINE_EXCEEDED"));
    };
    this.timer = setTimeout(this.leave, ms);
    caller.addEventListener("abort", this.leave, { once: true });
  }

  remainingMs(): number {
    return this.end - performance.now();
  }

  stop(): void {
    clearTimeout(this.timer);
    this.caller.removeEventListener("abort", this.leave);
  }
}
