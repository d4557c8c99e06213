/** What `/metrics` tells, in Prometheus' text form and by OpenTelemetry's names; never which tenant or who. */
import type { DescMethod } from "@bufbuild/protobuf";
import { Counter, collectDefaultMetrics, Gauge, Registry } from "@prometheus-io/client";
import { ErrorReasonSchema } from "../gen/roster/v1/error_pb.ts";
import { type Series, Timings } from "./timings.ts";

/** What is told of a pool when somebody asks. */
export interface MeteredPool {
  readonly size: number;
  readonly connections: { readonly idle: number; readonly used: number };
  readonly queued: number;
  readonly roundTrips: { readonly count: number };
}

/** What is told of the process when somebody asks; undefined: there is nothing to tell. */
export interface Vitals {
  readonly isReady: () => boolean;
  readonly watchers: () => number;
  readonly feedLagMs: () => number | undefined;
  readonly sealLagMs: () => number | undefined;
}

const callSeconds = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10];
const statementSeconds = [0.0005, ...callSeconds];
/** Refusals of who asked about an org that is not theirs, or named two. */
const crossTenant = ["ORG_NOT_ALLOWED", "ORG_MISMATCH"];
const reasons = ErrorReasonSchema.values.map(({ name }) => name.replace("ERROR_REASON_", ""));

const pool = "db_client_connection_pool_name";
const operation = "db_operation_name";
const poolState = "db_client_connection_state";

/** What is measured at one server: its calls and statements as they end, the rest when somebody asks. */
export class Metrics {
  private readonly registry = new Registry();
  private readonly registers = [this.registry];
  private readonly pools = new Map<string, MeteredPool>();
  private readonly calls = new Timings(
    this.registry,
    "rpc_server_call_duration_seconds",
    "Seconds until an RPC was answered, of a stream until its end.",
    callSeconds,
  );
  private readonly failures = new Counter({
    name: "roster_rpc_failures_total",
    help: "Number of RPCs that failed, by ErrorReason. OVERLOADED was shed; of CANCELLED the caller had hung up.",
    labelNames: ["reason"],
    registers: this.registers,
  });
  private readonly denials = new Counter({
    name: "roster_cross_tenant_denials_total",
    help: "Number of RPCs that were refused since they reached for an org that is not the caller's, by ErrorReason.",
    labelNames: ["reason"],
    registers: this.registers,
  });
  private readonly statements = new Timings(
    this.registry,
    "db_client_operation_duration_seconds",
    "Seconds from handing a statement to a connection until its answer, entering the tenant included.",
    statementSeconds,
  );
  private readonly waits = new Timings(
    this.registry,
    "db_client_connection_wait_time_seconds",
    "Seconds that RPCs waited for a connection, of those that had to and got one.",
    callSeconds,
  );
  private readonly timeouts = new Counter({
    name: "db_client_connection_timeouts_total",
    help: "Number of RPCs that waited for a connection until their time was over or their caller gone.",
    labelNames: [pool],
    registers: this.registers,
  });
  private readonly callsBy = {
    grpc: new Map<DescMethod, Map<string, Series>>(),
    connectrpc: new Map<DescMethod, Map<string, Series>>(),
  };
  private inFlight = 0;

  constructor(vitals: Vitals) {
    // A counter that appears with its first event hides that one from every rate.
    for (const reason of reasons) this.failures.inc({ reason }, 0);
    for (const reason of crossTenant) this.denials.inc({ reason }, 0);
    const seconds = (read: () => number | undefined) => () => {
      const ms = read();
      return ms === undefined ? undefined : ms / 1000;
    };
    this.gauge("roster_rpc_in_flight", "Number of RPCs that are being answered.", () => {
      return this.inFlight;
    });
    this.gauge("roster_ready", "1 while /readyz says so, else 0.", () => Number(vitals.isReady()));
    this.gauge("roster_feed_watchers", "Number of WatchChanges streams that are open.", () =>
      vitals.watchers(),
    );
    this.gauge(
      "roster_feed_lag_seconds",
      "Age in seconds of what watchers were told last: all that was committed before was told. Absent without them.",
      seconds(vitals.feedLagMs),
    );
    this.gauge(
      "roster_seal_lag_seconds",
      "Age in seconds of the oldest row of the audit log that is not sealed. Absent where no worker runs.",
      seconds(vitals.sealLagMs),
    );
    this.ofPools();
    // It measures from now on, not from the first time that somebody asks.
    ofProcess();
  }

  /** A call has begun. */
  started(): void {
    this.inFlight++;
  }

  /** That call has ended, with this code by name. */
  ended(system: "grpc" | "connectrpc", method: DescMethod, code: string, ms: number): void {
    this.inFlight--;
    const children = this.callsBy[system];
    let child = children.get(method)?.get(code);
    if (!child) {
      const rpc_method = `${method.parent.typeName}/${method.name}`;
      child = this.calls.series({ rpc_system_name: system, rpc_method, rpc_status_code: code });
      children.set(method, new Map(children.get(method)).set(code, child));
    }
    child.observe(ms);
  }

  /** That call has failed. */
  failed(reason = "UNSPECIFIED"): void {
    this.failures.inc({ reason });
    if (crossTenant.includes(reason)) this.denials.inc({ reason });
  }

  /** Hears what a pool does, which goes by the role that logs in, or `replica`. */
  meterOf(name: string) {
    const statements = new Map<string, Series>();
    const waits = this.waits.series({ [pool]: name });
    this.timeouts.inc({ [pool]: name }, 0);
    return {
      waited: (ms: number) => waits.observe(ms),
      timedOut: () => this.timeouts.inc({ [pool]: name }),
      asked: (does: string, error: string, ms: number) => {
        const key = error === "" ? does : `${does} ${error}`;
        let child = statements.get(key);
        if (!child) {
          child = this.statements.series({
            db_system_name: "postgresql",
            [pool]: name,
            [operation]: does,
            error_type: error,
          });
          statements.set(key, child);
        }
        child.observe(ms);
      },
    };
  }

  /** Tells of this pool from now on. */
  watch(name: string, metered: MeteredPool): void {
    this.pools.set(name, metered);
  }

  /** All of it, and what is measured of the process. */
  async text(): Promise<string> {
    return `${await this.registry.metrics()}\n${await ofProcess().metrics()}`;
  }

  private gauge(name: string, help: string, read: () => number | undefined): void {
    new Gauge({
      name,
      help,
      registers: this.registers,
      collect() {
        const value = read();
        if (value === undefined) this.remove();
        else this.set(value);
      },
    });
  }

  private ofPools(): void {
    const { pools, registers } = this;
    new Gauge({
      name: "db_client_connection_count",
      help: "Number of connections to PostgreSQL, by whether they are used or idle.",
      labelNames: [pool, poolState],
      registers,
      collect() {
        for (const [name, { connections }] of pools)
          for (const [state, count] of Object.entries(connections))
            this.set({ [pool]: name, [poolState]: state }, count);
      },
    });
    const gauges: readonly (readonly [string, string, (of: MeteredPool) => number])[] = [
      [
        "db_client_connection_limit",
        "Number of connections that there may be at once.",
        ({ size }) => size,
      ],
      [
        "db_client_connection_pending_requests",
        "Number of RPCs that wait for a connection.",
        ({ queued }) => queued,
      ],
    ];
    for (const [name, help, read] of gauges) {
      new Gauge({
        name,
        help,
        labelNames: [pool],
        registers,
        collect() {
          for (const [label, of] of pools) this.set({ [pool]: label }, read(of));
        },
      });
    }
    new Counter({
      name: "roster_database_flushes_total",
      help: "Number of flushes that were sent to PostgreSQL.",
      labelNames: [pool],
      registers,
      collect() {
        this.reset();
        for (const [label, of] of pools) this.inc({ [pool]: label }, of.roundTrips.count);
      },
    });
  }
}

let processRegistry: Registry | undefined;

/** CPU, memory, event loop and garbage collection, which are the process's, however many servers it runs. */
const ofProcess = (): Registry => {
  if (!processRegistry) {
    processRegistry = new Registry();
    collectDefaultMetrics({ register: processRegistry });
  }
  return processRegistry;
};
