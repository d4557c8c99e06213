/** Reads at a standby that has replayed what they must see; whatever is amiss with it, the primary is asked. */
import { setTimeout as delay } from "node:timers/promises";
import { later, lsnText, nowhere, type Position } from "./consistency.ts";
import type { Step } from "./exchange.ts";
import { type Deadline, DeadlinePassed, type TenantPool } from "./pool.ts";
import { answered, type DatabaseError } from "./unit-of-work.ts";

/**
 * How old a read at the standby may be, whoever asks. Beyond that also who was removed from an org would go on reading
 * there as long as the standby lags.
 */
const oldestMs = 1_000;
/** How long a standby that did not serve is left alone, but for one read. */
const doubtMs = 1_000;
/** The part of a read's time that the standby may take, and at most how much of it for what is not yet replayed. */
const part = 1 / 4;
const longestWaitMs = 500;
const firstPauseMs = 4;

/** Asks at the standby: the check goes ahead of all else, in the same flush. */
type Asking<T> = (pool: TenantPool, check: Step, deadline: Deadline) => Promise<T>;

/** A standby, and what this process knows about it. */
export class Replica {
  readonly pool: TenantPool;
  /** Where the primary stood less than a second ago, and since when that is known. */
  private floor: { readonly position: Position; readonly sinceMs: number } | undefined;
  private doubted = false;
  private leftAloneUntilMs = 0;

  constructor(pool: TenantPool) {
    this.pool = pool;
  }

  /** Hears where the primary stands. */
  learn(position: Position): void {
    const known = this.known();
    if (position !== nowhere && known?.history !== position.history)
      this.floor = { position, sinceMs: performance.now() };
  }

  /**
   * Reads at the standby, for which it must have replayed what the primary had a second ago, and all that `least`
   * saw, for which it is waited a little.
   *
   * @returns undefined when the primary is to be asked
   */
  async read<T>(
    least: Position | undefined,
    deadline: Deadline,
    ask: Asking<T>,
  ): Promise<{ readonly value: T } | undefined> {
    const position = this.demand(least);
    if (position === undefined || this.leftAlone()) return undefined;
    const waits = position === least;
    const time = new PartOf(deadline, deadline.remainingMs() * part);
    try {
      const value = await time.bound(() => this.ask(position, waits, time, ask));
      this.doubted = false;
      return { value };
    } catch (error) {
      // What nobody waits for may come a moment late, and what is wrong with the read itself the primary tells.
      const failed = isBehind(error) ? waits : isStrange(error) || !answered(error);
      if (failed && !deadline.over) this.doubt();
      return undefined;
    }
  }

  private async ask<T>(
    position: Position,
    waits: boolean,
    time: PartOf,
    ask: Asking<T>,
  ): Promise<T> {
    const check: Step = {
      text: "select roster.require_replay($1, $2)",
      values: [position.history, lsnText(position)],
    };
    let left = waits ? Math.min(longestWaitMs, time.remainingMs()) : 0;
    for (let pause = firstPauseMs; ; pause *= 2) {
      try {
        return await ask(this.pool, check, time);
      } catch (error) {
        left -= pause;
        if (!isBehind(error) || left < 0) throw error;
      }
      await delay(pause);
    }
  }

  /** What the standby must have replayed; undefined when it cannot be told, so that the primary tells it anew. */
  private demand(least: Position | undefined): Position | undefined {
    const known = this.known();
    const position = known && least ? later(least, known) : known;
    return position === nowhere ? undefined : position;
  }

  private known(): Position | undefined {
    const { floor } = this;
    return floor && performance.now() - floor.sinceMs < oldestMs ? floor.position : undefined;
  }

  private doubt(): void {
    this.doubted = true;
    this.leftAloneUntilMs = performance.now() + doubtMs;
  }

  private leftAlone(): boolean {
    if (!this.doubted) return false;
    const now = performance.now();
    if (now < this.leftAloneUntilMs) return true;
    // This read finds out for the others.
    this.leftAloneUntilMs = now + doubtMs;
    return false;
  }
}

/** What `roster.require_replay` says of a standby that lags, and of a server that is none of this primary. */
const isBehind = (error: unknown): boolean => (error as DatabaseError).code === "RS010";
const isStrange = (error: unknown): boolean => (error as DatabaseError).code === "RS011";

/** A part of the time that is left. */
class PartOf implements Deadline {
  private readonly whole: Deadline;
  private readonly end: number;

  constructor(whole: Deadline, ms: number) {
    this.whole = whole;
    this.end = performance.now() + ms;
  }

  get over(): boolean {
    return this.whole.over || performance.now() >= this.end;
  }

  remainingMs(): number {
    return Math.min(this.whole.remainingMs(), this.end - performance.now());
  }

  onOver(listener: () => void): () => void {
    const timer = setTimeout(listener, this.end - performance.now());
    const stay = this.whole.onOver(listener);
    return () => {
      clearTimeout(timer);
      stay();
    };
  }

  /** The work's outcome if it comes in time. What is still under way then goes on by itself. */
  bound<T>(work: () => Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      const leave = this.onOver(() => reject(new DeadlinePassed()));
      work().then(resolve, reject).finally(leave);
    });
  }
}
