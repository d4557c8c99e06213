/**
 * What a Node service calls Roster by: typed clients with a deadline, a token that is renewed, tries that double
 * nothing, and reads that see what was written. `roster/client` in package.json.
 */
import { randomUUID } from "node:crypto";
import type { SecureClientSessionOptions } from "node:http2";
import { setTimeout as delay } from "node:timers/promises";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import {
  type CallOptions,
  type Client,
  Code,
  ConnectError,
  createClient,
  type Transport,
} from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
} from "./gen/google/rpc/error_details_pb.ts";
import { AccessService } from "./gen/roster/v1/access_service_pb.ts";
import { AuditService } from "./gen/roster/v1/audit_service_pb.ts";
import type { Change } from "./gen/roster/v1/change_pb.ts";
import {
  ChangeService,
  type WatchChangesRequestSchema,
} from "./gen/roster/v1/change_service_pb.ts";
import { OrgService } from "./gen/roster/v1/org_service_pb.ts";
import { TeamService } from "./gen/roster/v1/team_service_pb.ts";
import { UserService } from "./gen/roster/v1/user_service_pb.ts";

export interface RosterOptions {
  /** Host and port, such as `roster.internal:50051`. */
  readonly address: string;
  /** A token, or what gets one: asked at the first call, and again when the server calls the last one expired. */
  readonly token: string | (() => Promise<string>);
  /** `true`, or what TLS needs beside: `ca`, and `cert` and `key` of a client. Without it the connection is clear. */
  readonly tls?: boolean | SecureClientSessionOptions;
  /** The deadline of unary calls that name none, over all tries. */
  readonly timeoutMs?: number;
}

export interface Roster {
  readonly users: Client<typeof UserService>;
  readonly orgs: Client<typeof OrgService>;
  readonly teams: Client<typeof TeamService>;
  readonly access: Client<typeof AccessService>;
  readonly audit: Client<typeof AuditService>;
  readonly changes: Client<typeof ChangeService>;
  /**
   * Changes from a position on, for as long as they are read, over whatever ends a stream on the way. With
   * `snapshot` they begin with a snapshot where there is no position, and do so anew when the position is kept no
   * more. Without it that is the error OUT_OF_RANGE, thrown like what trying again would not mend.
   */
  watch(
    request: MessageInitShape<typeof WatchChangesRequestSchema>,
    options?: Pick<CallOptions, "signal" | "headers">,
  ): AsyncGenerator<Watched>;
  /** Ends the connection, and calls that still run. */
  close(): void;
}

/** Changes to be applied in order and kept together with the position, in one transaction. */
export interface Watched {
  readonly changes: readonly Change[];
  readonly position: string;
  /** They are all there is: what was held before is to be dropped first. */
  readonly snapshot: boolean;
}

/** What a failed call told. */
export interface ErrorDetails {
  readonly code: Code;
  /** A name of `ErrorReason`; empty when the error is not the server's, such as a lost connection. */
  readonly reason: string;
  readonly metadata: Readonly<Record<string, string>>;
  readonly fields: readonly { readonly field: string; readonly description: string }[];
  /** How long the server wants the next try to wait. */
  readonly retryMs: number;
}

export const errorInfoOf = (thrown: unknown): ErrorDetails => {
  const error = ConnectError.from(thrown);
  const [info] = error.findDetails(ErrorInfoSchema);
  const { seconds = 0n, nanos = 0 } = error.findDetails(RetryInfoSchema)[0]?.retryDelay ?? {};
  return {
    code: error.code,
    reason: info?.reason ?? "",
    metadata: info?.metadata ?? {},
    fields: error.findDetails(BadRequestSchema).flatMap(({ fieldViolations }) => fieldViolations),
    retryMs: Number(seconds) * 1_000 + nanos / 1e6,
  };
};

/** The pages of a list, such as `pages(roster.teams.listTeams, { orgId })`. */
export async function* pages<
  Request extends { pageToken?: string | undefined },
  Page extends { nextPageToken: string },
>(
  list: (request: Request, options?: CallOptions) => Promise<Page>,
  request: Request,
  options?: CallOptions,
): AsyncGenerator<Page> {
  let next = request;
  do {
    const page = await list(next, options);
    yield page;
    next = { ...request, pageToken: page.nextPageToken };
  } while (next.pageToken !== "");
}

const tries = 5;
const consistency = "roster-consistency-token";

/** Between half and all of a time that doubles from 0.1 s to 2 s, and no less than the server asked for. */
const waitOf = (attempt: number, { retryMs }: ErrorDetails): number =>
  retryMs + Math.min(2_000, 100 * 2 ** attempt) * (0.5 + Math.random() / 2);

/** What a connection that broke reads as, beside UNAVAILABLE. */
const broken = new Set([Code.Aborted, Code.Canceled, Code.Internal]);

const mayPass = ({ code, reason }: ErrorDetails): boolean =>
  code === Code.Unavailable || reason === "CONFLICT_RETRY" || (reason === "" && broken.has(code));

/** A token for as long as the server takes it. */
class Credential {
  private readonly source: RosterOptions["token"];
  private held: Promise<string> | undefined;

  constructor(source: RosterOptions["token"]) {
    this.source = source;
  }

  async token(): Promise<string> {
    if (typeof this.source === "string") return this.source;
    const asked = this.held ?? this.source();
    this.held = asked;
    // What could not be had now is asked for again by the next call.
    return asked.catch((error: unknown) => {
      if (this.held === asked) this.held = undefined;
      throw error;
    });
  }

  /** Whether another one may be had in place of that which was refused. */
  async renewed({ reason }: ErrorDetails, refused: string): Promise<boolean> {
    if (typeof this.source === "string" || reason !== "CREDENTIAL_EXPIRED") return false;
    const { held } = this;
    // Of many calls that were refused, the first asks.
    if ((await held) === refused && this.held === held) this.held = undefined;
    return (await this.token()) !== refused;
  }
}

async function* learning<Message>(
  messages: AsyncIterable<Message>,
  learn: (thrown: unknown) => Promise<never>,
): AsyncGenerator<Message> {
  try {
    yield* messages;
  } catch (thrown) {
    await learn(thrown);
  }
}

/** Sends calls with a credential, again where that doubles nothing, and reads with what was seen before. */
const steady = (
  inner: Transport,
  credential: Credential,
  defaultMs: number,
  checkOpen: () => void,
): Transport => {
  let seen: string | null = null;
  let writes = 0;

  return {
    async unary(method, signal, timeoutMs = defaultMs, header, input, values) {
      const end = performance.now() + timeoutMs;
      const reads = method.idempotency === Idempotency.NO_SIDE_EFFECTS;
      const given = create(method.input, input) as { readonly requestId?: string };
      // The caller's own message stays as it is: sent anew, it is a new request.
      const message = given.requestId === "" ? { ...given, requestId: randomUUID() } : given;
      for (let attempt = 0; ; attempt++) {
        checkOpen();
        const headers = new Headers(header);
        const token = await credential.token();
        headers.set("authorization", `Bearer ${token}`);
        const own = reads && !headers.has(consistency) ? seen : null;
        if (own !== null) headers.set(consistency, own);
        const before = writes;
        try {
          const left = Math.max(1, end - performance.now());
          const sent = message as typeof input;
          const response = await inner.unary(method, signal, left, headers, sent, values);
          // A read that began before a write was answered may have seen less than it.
          if (!reads || before === writes) seen = response.trailer.get(consistency) ?? seen;
          if (!reads) writes++;
          return response;
        } catch (thrown) {
          const told = errorInfoOf(thrown);
          if (signal?.aborted || attempt + 1 === tries) throw thrown;
          if (await credential.renewed(told, token)) continue;
          if (own !== null && told.reason === "CONSISTENCY_TOKEN_INVALID") {
            // The servers have got another secret: nothing that they made before counts.
            if (seen === own) seen = null;
            continue;
          }
          const wait = waitOf(attempt, told);
          if (!mayPass(told) || performance.now() + wait > end) throw thrown;
          await delay(wait, undefined, signal && { signal });
        }
      }
    },

    async stream(method, signal, timeoutMs, header, input, values) {
      checkOpen();
      const headers = new Headers(header);
      const token = await credential.token();
      headers.set("authorization", `Bearer ${token}`);
      // It is not begun anew, but the next one has a token that is taken.
      const learn = async (thrown: unknown): Promise<never> => {
        await credential.renewed(errorInfoOf(thrown), token);
        throw thrown;
      };
      const response = await inner
        .stream(method, signal, timeoutMs, headers, input, values)
        .catch(learn);
      return { ...response, message: learning(response.message, learn) };
    },
  };
};

export const createRoster = ({
  address,
  token,
  tls,
  timeoutMs = 10_000,
}: RosterOptions): Roster => {
  const baseUrl = `${tls ? "https" : "http"}://${address}`;
  const nodeOptions = typeof tls === "object" ? tls : undefined;
  // Who only listens would else never notice that the other side is gone.
  const sessionManager = new Http2SessionManager(baseUrl, { pingIntervalMs: 20_000 }, nodeOptions);
  const credential = new Credential(token);
  const inner = createGrpcTransport({ baseUrl, sessionManager });
  let closed = false;
  const transport = steady(inner, credential, timeoutMs, () => {
    if (closed) throw new ConnectError("the client was closed", Code.FailedPrecondition);
  });
  const changes = createClient(ChangeService, transport);
  return {
    users: createClient(UserService, transport),
    orgs: createClient(OrgService, transport),
    teams: createClient(TeamService, transport),
    access: createClient(AccessService, transport),
    audit: createClient(AuditService, transport),
    changes,
    watch: (request, options = {}) => watch(changes, credential, request, options),
    close: () => {
      closed = true;
      sessionManager.abort();
    },
  };
};

async function* watch(
  changes: Client<typeof ChangeService>,
  credential: Credential,
  request: MessageInitShape<typeof WatchChangesRequestSchema>,
  options: Pick<CallOptions, "signal" | "headers">,
): AsyncGenerator<Watched> {
  let position = request.position ?? "";
  for (let attempt = 0; ; attempt++) {
    const token = await credential.token();
    const leaving = new AbortController();
    const signal = AbortSignal.any([leaving.signal, ...(options.signal ? [options.signal] : [])]);
    let told = errorInfoOf(new ConnectError("the stream ended", Code.Unavailable));
    try {
      const asked = {
        ...request,
        position,
        snapshot: request.snapshot === true && position === "",
      };
      // What came without a position comes again with the next stream.
      let pending: Change[] = [];
      for await (const message of changes.watchChanges(asked, { ...options, signal })) {
        attempt = 0;
        pending.push(...message.changes);
        if (message.position === "") continue;
        yield { changes: pending, position: message.position, snapshot: message.snapshot };
        position = message.position;
        pending = [];
      }
    } catch (thrown) {
      told = errorInfoOf(thrown);
      if (options.signal?.aborted) throw thrown;
      const lost = told.code === Code.OutOfRange && request.snapshot === true;
      if (lost) position = "";
      const again =
        lost || told.reason === "WATCH_TOO_SLOW" || told.reason === "WATCHERS_LIMIT_REACHED";
      if (!again && !mayPass(told) && !(await credential.renewed(told, token))) throw thrown;
    } finally {
      leaving.abort();
    }
    await delay(waitOf(attempt, told), undefined, options.signal && { signal: options.signal });
  }
}
