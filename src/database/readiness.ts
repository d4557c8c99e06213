/** Whether calls can be served: a connection works, and the schema has what this version needs. */
import pg from "pg";
import { readMigrations } from "./migrate.ts";
import { withPasswordNow } from "./passwords.ts";

/** How often it is looked, and how long the database may take; together they tell of a loss within 2 s. */
const everyMs = 500;
const patienceMs = 700;

/**
 * Looks at the database on a connection of its own, so that a busy pool does not read as a lost database. A schema that
 * has been migrated further counts as known: the processes of the last version serve until they are replaced.
 */
export class Readiness {
  ready = true;
  private readonly url: string;
  private readonly changed: (ready: boolean) => void;
  private readonly versions = readMigrations().map(({ version }) => version);
  private client: pg.Client | undefined;
  private next: NodeJS.Timeout | undefined;
  private looking: Promise<void> | undefined;
  private stopped = false;

  /** @param changed hears when it is no longer as it was; at first the database counts as usable */
  constructor(url: string, changed: (ready: boolean) => void) {
    this.url = url;
    this.changed = changed;
    this.lookSoon(everyMs);
  }

  async stop(): Promise<void> {
    this.stopped = true;
    clearTimeout(this.next);
    await this.looking;
    this.leave();
  }

  private lookSoon(ms: number): void {
    if (this.stopped) return;
    clearTimeout(this.next);
    this.next = setTimeout(() => {
      this.looking = this.look();
    }, ms).unref();
  }

  private async look(): Promise<void> {
    // A connection that broke says nothing about the next one.
    const ready = (await this.asked()) ?? (await this.asked()) ?? false;
    this.looking = undefined;
    if (ready !== this.ready && !this.stopped) {
      this.ready = ready;
      this.changed(ready);
    }
    this.lookSoon(everyMs);
  }

  /** Whether the schema is known; undefined when the database did not answer. */
  private async asked(): Promise<boolean | undefined> {
    try {
      this.client ??= await this.connect();
      const { rows } = await this.client.query(
        "select count(*)::int as known from roster.schema_migrations where version = any($1)",
        [this.versions],
      );
      return rows[0]?.known === this.versions.length;
    } catch (error) {
      this.leave();
      // It answered, but there is no such table or it must not be read.
      return error instanceof pg.DatabaseError && error.code?.startsWith("42") ? false : undefined;
    }
  }

  private async connect(): Promise<pg.Client> {
    const client = new pg.Client({
      connectionString: withPasswordNow(this.url),
      application_name: "roster readiness",
      connectionTimeoutMillis: patienceMs,
      query_timeout: patienceMs,
    });
    client.on("error", () => {
      // Lost while nobody used it: what has become of the database is looked at now.
      if (client !== this.client) return;
      this.client = undefined;
      if (!this.looking) this.lookSoon(0);
    });
    await client.connect();
    return client;
  }

  /** Ends the connection, for which nobody waits: it may hang. */
  private leave(): void {
    this.client?.end().catch(() => {});
    this.client = undefined;
  }
}
