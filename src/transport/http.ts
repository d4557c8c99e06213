/** The HTTP port: the services by Connect, gRPC-Web, gRPC and JSON, probes, metrics, and how it stops. */
import http from "node:http";
import http2 from "node:http2";
import https from "node:https";
import type { AddressInfo, Socket } from "node:net";
import { TLSSocket } from "node:tls";
import { cors, type Interceptor } from "@connectrpc/connect";
import {
  universalRequestFromNodeRequest,
  universalResponseToNodeResponse,
} from "@connectrpc/connect-node";
import type { Peer } from "../context.ts";
import type { Route } from "../routes.ts";
import { askingFor, type Certificates, peerOf } from "./certificates.ts";
import { type Answering, answers } from "./connect.ts";
import { limits } from "./limits.ts";
import type { OpenStreams } from "./mount.ts";

/** What the port serves. */
export interface HttpOptions {
  readonly host: string;
  readonly port: number;
  /** Undefined: cleartext. */
  readonly certificates?: Certificates | undefined;
  /** Web pages that may call it, such as `https://admin.example`; to no others a browser hands on what is answered. */
  readonly origins: readonly string[];
  readonly routes: readonly Route[];
  readonly interceptors: readonly Interceptor[];
  /** Why calls are not welcome; undefined: they are. */
  readonly unready: () => string | undefined;
  /** The metrics in Prometheus' text form. */
  readonly metrics: () => Promise<string>;
}

/** A running HTTP port. */
export interface HttpServer {
  /** The port it listens on, also when 0 was asked. */
  readonly port: number;
  /** Refuses new calls, ends streams, lets running calls end for `graceMs` milliseconds. Probes are still answered. */
  drain(graceMs: number): Promise<void>;
  /** Cuts what is left. */
  close(): Promise<void>;
}

type Request = http.IncomingMessage | http2.Http2ServerRequest;
type Response = http.ServerResponse | http2.Http2ServerResponse;

/** Metadata of ours that a web page may send, and see. */
const sent = ["authorization", "roster-org-id", "roster-consistency-token", "x-request-id"];
const seen = ["roster-consistency-token", "trailer-roster-consistency-token", "x-request-id"];
const preflightSeconds = 7_200;

/** Opens the port. @throws Error that names the address when it cannot be had */
export const serveHttp = async (options: HttpOptions): Promise<HttpServer> => {
  const open: OpenStreams = new Set();
  const port = new Port(options, answers(options.routes, options.interceptors, open), open);
  return { port: await port.listen(), drain: (ms) => port.drain(ms), close: () => port.close() };
};

class Port {
  private readonly options: HttpOptions;
  private readonly rpcs: ReadonlyMap<string, Answering>;
  private readonly open: OpenStreams;
  private readonly http1: http.Server | https.Server;
  private readonly http2: http2.Http2Server;
  private readonly sessions = new Set<http2.ServerHttp2Session>();
  private readonly running = new Set<Response>();
  /** Every connection, with the time of its making. */
  private readonly sockets = new Map<Socket, number>();
  private draining = false;
  private idle = (): void => {};

  constructor(options: HttpOptions, rpcs: ReadonlyMap<string, Answering>, open: OpenStreams) {
    this.options = options;
    this.rpcs = rpcs;
    this.open = open;
    const listener = (request: Request, response: Response): void => this.hear(request, response);
    // Values that come twice are joined, and then refused, as on the gRPC port: another program on the way may have
    // looked at the other one.
    const joined = { joinDuplicateHeaders: true };
    const { certificates } = options;
    this.http1 = certificates
      ? secured(certificates, joined, listener)
      : http.createServer(joined, listener);
    const settings = { maxConcurrentStreams: limits.streams };
    this.http2 = http2.createServer({ settings }, listener);
    this.http2.on("session", (session) => this.keep(session));
    const connected = certificates ? "secureConnection" : "connection";
    const [serve] = this.http1.listeners(connected);
    this.http1.removeAllListeners(connected);
    const give = (socket: Socket, is2: boolean): void => {
      if (is2) this.http2.emit("connection", socket);
      else serve?.call(this.http1, socket);
    };
    this.http1.on("connection", (socket: Socket) => this.know(socket));
    this.http1.on(connected, (socket: Socket) => {
      this.know(socket);
      if (socket instanceof TLSSocket) give(socket, socket.alpnProtocol === "h2");
      else sniff(socket, (is2) => give(socket, is2));
    });
  }

  private know(socket: Socket): void {
    if (this.sockets.has(socket)) return;
    this.sockets.set(socket, performance.now());
    socket.once("close", () => this.sockets.delete(socket));
    // A connection that breaks takes its requests along, and they tell.
    socket.on("error", () => {});
  }

  listen(): Promise<number> {
    const { host, port } = this.options;
    const address = host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
    return new Promise((resolve, reject) => {
      this.http1.on("error", (error) =>
        reject(
          new Error(`cannot listen for HTTP on ${address}: ${error.message}`, { cause: error }),
        ),
      );
      this.http1.listen({ host, port }, () => resolve((this.http1.address() as AddressInfo).port));
    });
  }

  async drain(graceMs: number): Promise<void> {
    this.draining = true;
    for (const end of this.open) end();
    for (const session of this.sessions) session.close();
    for (const response of this.running) lastOf(response);
    this.http1.closeIdleConnections();
    if (this.running.size === 0) return;
    await new Promise<void>((resolve) => {
      const cut = setTimeout(resolve, graceMs);
      this.idle = () => {
        clearTimeout(cut);
        resolve();
      };
    });
  }

  close(): Promise<void> {
    return new Promise((resolve) => {
      this.http1.close(() => resolve());
      for (const session of this.sessions) session.destroy();
      for (const socket of this.sockets.keys()) socket.destroy();
    });
  }

  /** Asks a connection to go when it is old, and ends it when it stays. */
  private keep(session: http2.ServerHttp2Session): void {
    this.sessions.add(session);
    // So that those of one moment do not come back in one.
    const jitter = 0.9 + Math.random() * 0.2;
    const ageMs = limits.connectionAgeMs * jitter;
    const age = setTimeout(() => session.close(), ageMs).unref();
    const end = setTimeout(() => session.destroy(), ageMs + limits.connectionAgeGraceMs).unref();
    session.once("close", () => {
      clearTimeout(age);
      clearTimeout(end);
      this.sessions.delete(session);
    });
  }

  private hear(request: Request, response: Response): void {
    const [path = ""] = (request.url ?? "").split("?", 1);
    response.setHeader("cache-control", "no-store");
    response.setHeader("x-content-type-options", "nosniff");
    const bornMs = this.sockets.get(request.socket) ?? performance.now();
    if (this.draining || performance.now() - bornMs > limits.connectionAgeMs) lastOf(response);
    const answer = this.rpcs.get(path);
    if (!answer) {
      this.look(path, request, response);
      return;
    }
    if (this.preflight(request, response)) return;
    if (this.draining) {
      response.setHeader("retry-after", "1");
      tell(response, 503, "the server is shutting down");
      return;
    }
    this.running.add(response);
    response.once("close", () => {
      this.running.delete(response);
      if (this.running.size === 0) this.idle();
    });
    respond(answer, request, response);
  }

  /** Answers what is no RPC. */
  private look(path: string, { method }: Request, response: Response): void {
    const { unready, metrics } = this.options;
    const reads = method === "GET" || method === "HEAD";
    if (!["/livez", "/readyz", "/metrics"].includes(path))
      tell(response, 404, "there is no such path");
    else if (!reads) tell(response, 405, "this is read by GET");
    else if (path === "/livez") tell(response, 200, "ok");
    else if (path === "/readyz") {
      const why = unready();
      tell(response, why === undefined ? 200 : 503, why ?? "ok");
    } else {
      metrics().then(
        (text) => tell(response, 200, text, "text/plain; version=0.0.4; charset=utf-8"),
        () => tell(response, 500, "no metrics"),
      );
    }
  }

  /** Lets web pages of the listed origins in; true when the browser only asked whether it may. */
  private preflight({ headers, method }: Request, response: Response): boolean {
    const { origins } = this.options;
    if (origins.length === 0) return false;
    response.setHeader("vary", "origin");
    const { origin } = headers;
    if (origin === undefined || !origins.includes(origin)) return false;
    response.setHeader("access-control-allow-origin", origin);
    response.setHeader(
      "access-control-expose-headers",
      [...cors.exposedHeaders, ...seen].join(", "),
    );
    if (method !== "OPTIONS") return false;
    response.setHeader("access-control-allow-methods", cors.allowedMethods.join(", "));
    response.setHeader(
      "access-control-allow-headers",
      [...cors.allowedHeaders, ...sent].join(", "),
    );
    response.setHeader("access-control-max-age", preflightSeconds);
    response.statusCode = 204;
    response.end();
    return true;
  }
}

const secured = (
  certificates: Certificates,
  options: https.ServerOptions,
  listener: (request: http.IncomingMessage, response: http.ServerResponse) => void,
): https.Server => {
  const server = https.createServer(
    {
      ...options,
      ...askingFor(certificates),
      ...certificates.current,
      ALPNProtocols: ["h2", "http/1.1"],
    },
    listener,
  );
  certificates.onChange((context) => server.setSecureContext(context));
  return server;
};

/** What the certificate of a request's connection says; undefined without one that its CA vouches for. */
const peerOfRequest = (request: Request): Peer | undefined => {
  const socket = "stream" in request ? request.stream.session?.socket : request.socket;
  if (!(socket instanceof TLSSocket && socket.authorized)) return undefined;
  return peerOf(socket.getPeerCertificate());
};

/** Lets an HTTP/1.1 connection end with this response. */
const lastOf = (response: Response): void => {
  if (response instanceof http.ServerResponse) response.shouldKeepAlive = false;
};

const tell = (
  response: Response,
  status: number,
  text: string,
  contentType = "text/plain; charset=utf-8",
): void => {
  response.statusCode = status;
  response.setHeader("content-type", contentType);
  response.end(text.endsWith("\n") ? text : `${text}\n`);
};

const respond = (answer: Answering, request: Request, response: Response): void => {
  let asked: Parameters<Answering>[0];
  try {
    asked = universalRequestFromNodeRequest(request, response, undefined, undefined);
  } catch (error) {
    // A host or a path that no URL can have.
    if (!(error instanceof Error)) throw error;
    tell(response, 400, "host and path must make a URL");
    return;
  }
  answer({ ...asked, body: bodyOf(request) }, peerOfRequest(request))
    .then((answered) => universalResponseToNodeResponse(answered, response))
    // Whoever asked is gone; the corridor has logged what it did for them.
    .catch(() => response.destroy());
};

/** What of a body that is too large is still taken, so that its sender hears the answer. */
const patienceBytes = 16 * limits.receiveBytes;

const cutOff = (request: Request): void => {
  if (request instanceof http.IncomingMessage) request.destroy();
  else request.stream.close(http2.constants.NGHTTP2_ENHANCE_YOUR_CALM);
};

/** How long a body may take: it is held in memory before anyone knows whose it is. */
const bodyMs = 30_000;

/** The body, of which the rest is read and dropped when nobody wants it: to cut it off would cut the answer off. */
async function* bodyOf(request: Request): AsyncGenerator<Uint8Array> {
  const slow = setTimeout(() => cutOff(request), bodyMs).unref();
  try {
    yield* request.iterator({ destroyOnReturn: false });
  } finally {
    clearTimeout(slow);
    let left = patienceBytes;
    request.on("data", (chunk: Uint8Array) => {
      left -= chunk.length;
      if (left < 0) cutOff(request);
    });
  }
}

/** What every HTTP/2 connection begins with, and no request of HTTP/1. */
const preface = Buffer.from("PRI");
const patienceMs = 10_000;

/** Tells by the first bytes whether a connection speaks HTTP/2; in cleartext there is no other sign. */
const sniff = (socket: Socket, serve: (is2: boolean) => void): void => {
  let head = Buffer.alloc(0);
  const give = (): void => void socket.destroy();
  socket.setTimeout(patienceMs, give);
  socket.once("end", give);
  const look = (): void => {
    const chunk: Buffer | null = socket.read();
    if (chunk !== null) head = Buffer.concat([head, chunk]);
    const is2 = preface.equals(head.subarray(0, preface.length));
    if (!is2 && preface.subarray(0, head.length).equals(head)) {
      socket.once("readable", look);
      return;
    }
    socket.setTimeout(0, give);
    socket.off("timeout", give);
    socket.off("end", give);
    socket.unshift(head);
    serve(is2);
  };
  socket.once("readable", look);
};
