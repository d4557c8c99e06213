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

/** A caller whose own deadline passes hangs up, and that may be heard a little before the time is over here. */
const slackMs = 25;

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
    const finish = (reason: "CANCELLED" | "DEADLINE_EXCEEDED"): void => {
      this.controller.abort();
      reject(fail(reason));
    };
    this.leave = () => finish(this.remainingMs() > slackMs ? "CANCELLED" : "DEADLINE_EXCEEDED");
    this.timer = setTimeout(finish, Math.max(ms, 0), "DEADLINE_EXCEEDED");
    if (caller.aborted) this.leave();
    else caller.addEventListener("abort", this.leave, { once: true });
  }

  remainingMs(): number {
    return this.end - performance.now();
  }

  stop(): void {
    clearTimeout(this.timer);
    this.caller.removeEventListener("abort", this.leave);
  }
}
