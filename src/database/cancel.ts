/**
 * Ends in PostgreSQL what nobody waits for any more. A cancel request names a connection and not a statement: whatever
 * runs there when the signal comes is hit. So nothing new is written to the connection until the request's own one has
 * been closed, which the server does behind the signal; one that comes between statements is dropped by the server.
 */
import pg from "pg";
import type { Session } from "./exchange.ts";

/** A statement that the request came too early for is cancelled again. */
const firstPauseMs = 10;
const longestPauseMs = 1_000;
/** How long the server may take over a request. */
const patienceMs = 5_000;

/** The parts of pg's client and connection that its types leave out. */
interface Cancellable {
  readonly host: string;
  readonly port: number;
  readonly ssl: boolean | object;
  readonly processID: number;
  readonly secretKey: number;
}
interface Line extends pg.Connection {
  connect(port: number | string, host?: string): void;
  requestSsl(): void;
  cancel(processId: number, secretKey: number): void;
}

/**
 * Asks the server to cancel what the client's connection runs, and waits until it has done so.
 *
 * @returns false when the server could not be asked
 * @throws Error when it may have been asked and did not say so in time
 */
export const requestCancel = (client: pg.Client): Promise<boolean> =>
  new Promise((resolve, reject) => {
    const { host, port, ssl, processID, secretKey } = client as unknown as Cancellable;
    const line = new pg.Connection({ ssl } as pg.ConnectionConfig) as Line;
    let asked = false;
    const ask = (): void => {
      asked = true;
      line.cancel(processID, secretKey);
    };
    const patience = setTimeout(() => {
      if (asked) reject(new Error("the server did not answer a cancel request"));
      line.stream.destroy();
    }, patienceMs).unref();
    line.on("connect", () => (ssl ? line.requestSsl() : ask()));
    line.on("sslconnect", ask);
    line.on("error", () => {});
    line.on("end", () => {
      clearTimeout(patience);
      resolve(asked);
    });
    if (host.startsWith("/")) line.connect(`${host}/.s.PGSQL.${port}`);
    else line.connect(port, host);
  });

/** Cancels what a connection runs, if nobody wants it. What runs on is cancelled again. */
export const cancelUnwanted = (session: Session, pauseMs = firstPauseMs): void => {
  const exchange = session.current?.running;
  if (!exchange?.unwanted || session.held) return;
  const held: (() => void)[] = [];
  session.held = held;
  session.cancel().then(
    () => {
      session.held = null;
      for (const write of held) write();
      if (session.current?.running !== exchange) cancelUnwanted(session);
      else {
        const again = (): void => {
          // Another one that is unwanted has attempts of its own.
          if (session.current?.running === exchange)
            cancelUnwanted(session, Math.min(pauseMs * 2, longestPauseMs));
        };
        setTimeout(again, pauseMs).unref();
      }
    },
    // A signal may still come, so nobody else may have the connection.
    (error: Error) => session.wire.stream.destroy(error),
  );
};
