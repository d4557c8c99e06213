import http from "node:http";
import https from "node:https";
import { inspectConfig, isLoopback } from "../config.ts";

export const help = `usage: npx --no roster health

Asks the server of this environment, on this machine, whether it is ready: for containers, whose engine asks again.
It needs HTTP_ADDR alone, and takes any certificate, for it sends nothing.
Exit codes: 0 ready, 1 not ready or not there, 2 there is no HTTP port to ask.`;

const patienceMs = 3_000;

/** Prints what /readyz says. @returns the exit code */
export const health = async (): Promise<number> => {
  const { HTTP_ADDR: address, TLS_CERT_FILE } = inspectConfig().values;
  if (!address) {
    console.error("HTTP_ADDR is off, so there is nothing to ask");
    return 2;
  }
  const { host, port } = address;
  // A server that listens everywhere listens here.
  const at = isLoopback(host) || !/^[0:.]+$/.test(host) ? host : "localhost";
  try {
    const { status, text } = await ask(TLS_CERT_FILE ? https : http, at, port);
    console.log(text.trim());
    return status === 200 ? 0 : 1;
  } catch (error) {
    console.error(`nothing answers at ${at}:${port}: ${(error as Error).message}`);
    return 1;
  }
};

const ask = (
  by: typeof http | typeof https,
  hostname: string,
  port: number,
): Promise<{ readonly status: number | undefined; readonly text: string }> =>
  new Promise((resolve, reject) => {
    const timeout = AbortSignal.timeout(patienceMs);
    const options = { hostname, port, path: "/readyz", rejectUnauthorized: false, signal: timeout };
    by.get(options, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("error", reject);
      response.on("end", () => resolve({ status: response.statusCode, text }));
    }).on("error", reject);
  });
