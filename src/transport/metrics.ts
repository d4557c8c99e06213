/** What `/metrics` tells, in Prometheus' text form and by OpenTelemetry's names; never which tenant or who. */
import type { DescMethod } from "@bufbuild/protobuf";
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "@prometheus-io/client";

/** What is told of a pool. */
export interface MeteredPool {
  readonly size: number;
  readonly connections: { readonly idle: number; readonly used: number };
  readonly queued: number;
  /** Calls that had to wait for a connection, and how long all of them together. */
  readonly waits: { readonly count: number; readonly ms: number };
  readonly roundTrips: { readonly count: number };
}

/** By the role that logs in, or `replica`. */
type MeteredPools = readonly (readonly [string, MeteredPool])[];

/** What is measured at one server: its calls as they end, the rest when somebody asks. */
export class Metrics {
  private readonly registry = new Registry();
  private readonly durations: Histogram<"rpc_service" | "rpc_method" | "rpc_response_status_code">;
  /** By method and code: looking a child up by its labels would cost more than to count. */
  private readonly children = new Map<
    DescMethod,
    Map<string, { observe(seconds: number): void }>
  >();
  private inFlight = 0;

  constructor(pools: MeteredPools, isReady: () => boolean) {
    const registers = [this.registry];
    this.durations = new Histogram({
      name: "rpc_server_call_duration_seconds",
      help: "Time until an RPC was answered, of a stream until its end.",
      labelNames: ["rpc_service", "rpc_method", "rpc_response_status_code"],
      buckets: [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
      registers,
    });
    this.gauge("roster_rpc_in_flight", "RPCs that are being answered.", () => this.inFlight);
    this.gauge("roster_ready", "1 while /readyz says so.", () => Number(isReady()));
    this.ofPools(pools);
  }

  /** A call has begun. */
  started(): void {
    this.inFlight++;
  }

  /** That call has ended, with this code by name. */
  ended(method: DescMethod, code: string, ms: number): void {
    this.inFlight--;
    let child = this.children.get(method)?.get(code);
    if (!child) {
      const rpc_service = method.parent.typeName;
      const rpc_method = `${rpc_service}/${method.name}`;
      child = this.durations.labels({ rpc_service, rpc_method, rpc_response_status_code: code });
      this.children.set(method, new Map(this.children.get(method)).set(code, child));
    }
    child.observe(ms / 1000);
  }

  /** All of it, and what is measured of the process. */
  async text(): Promise<string> {
    return `${await this.registry.metrics()}\n${await ofProcess().metrics()}`;
  }

  private gauge(name: string, help: string, read: () => number): void {
    new Gauge({
      name,
      help,
      registers: [this.registry],
      collect() {
        this.set(read());
      },
    });
  }

  private ofPools(pools: MeteredPools): void {
    const pool = "db_client_connection_pool_name";
    const state = "db_client_connection_state";
    const registers = [this.registry];
    new Gauge({
      name: "db_client_connection_count",
      help: "Connections to PostgreSQL.",
      labelNames: [pool, state],
      registers,
      collect() {
        for (const [name, { connections }] of pools)
          for (const [value, count] of Object.entries(connections))
            this.set({ [pool]: name, [state]: value }, count);
      },
    });
    const gauges: readonly (readonly [string, string, (of: MeteredPool) => number])[] = [
      ["db_client_connection_max", "Most connections at once.", ({ size }) => size],
      ["db_client_connection_pending_requests", "Calls that wait for one.", ({ queued }) => queued],
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
    const counters: readonly (readonly [string, string, (of: MeteredPool) => number])[] = [
      ["roster_pool_waits_total", "Calls that had to wait.", ({ waits }) => waits.count],
      ["roster_pool_wait_seconds_total", "How long together.", ({ waits }) => waits.ms / 1000],
      ["roster_database_flushes_total", "Writes to PostgreSQL.", (of) => of.roundTrips.count],
    ];
    for (const [name, help, read] of counters) {
      new Counter({
        name,
        help,
        labelNames: [pool],
        registers,
        collect() {
          this.reset();
          for (const [label, of] of pools) this.inc({ [pool]: label }, read(of));
        },
      });
    }
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
