/** Files that somebody replaces while the process runs. */
import { statSync } from "node:fs";

const everyMs = 1_000;

/**
 * What some files say together, read anew within a second or two after they changed. While they say nothing sensible,
 * what they said before stays in force.
 */
export class Renewed<T> {
  current: T;
  private readonly files: readonly string[];
  private readonly read: () => T;
  private readonly failed: (error: Error) => void;
  private readonly listeners: ((value: T) => void)[] = [];
  private readonly timer: NodeJS.Timeout;
  private version: string;
  private fault: Error | undefined;

  /**
   * @param read reads all of them; what it throws at first is thrown
   * @param failed hears once of what it throws later
   */
  constructor(files: readonly string[], read: () => T, failed: (error: Error) => void) {
    this.files = files;
    this.read = read;
    this.failed = failed;
    this.version = this.versionNow();
    this.current = read();
    this.timer = setInterval(() => this.look(), everyMs).unref();
  }

  onChange(listener: (value: T) => void): void {
    this.listeners.push(listener);
  }

  stop(): void {
    clearInterval(this.timer);
  }

  private look(): void {
    const version = this.versionNow();
    if (version === this.version) {
      // Told at the second look only: files that go together may be written one after another.
      if (this.fault) this.failed(this.fault);
      this.fault = undefined;
      return;
    }
    this.version = version;
    try {
      const value = this.read();
      this.fault = undefined;
      this.current = value;
      for (const listener of this.listeners) listener(value);
    } catch (error) {
      this.fault = error as Error;
    }
  }

  private versionNow(): string {
    return this.files
      .map((file) => {
        try {
          const { mtimeMs, size, ino } = statSync(file);
          return `${mtimeMs} ${size} ${ino}`;
        } catch (error) {
          // Reading it fails as well, and is told.
          return String((error as NodeJS.ErrnoException).code);
        }
      })
      .join();
  }
}
