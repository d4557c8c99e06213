/** Histograms of times that are counted in place: the package's own finds a series anew each time, which costs 3 µs. */
import type { Metric, Registry } from "@prometheus-io/client";

type Labels = Readonly<Record<string, string>>;

/** The times of one set of labels. */
export class Series {
  readonly labels: Labels;
  /** By bucket, the last one without a bound. */
  readonly counts: Float64Array;
  sum = 0;
  private readonly bounds: readonly number[];

  constructor(labels: Labels, bounds: readonly number[]) {
    this.labels = labels;
    this.bounds = bounds;
    this.counts = new Float64Array(bounds.length + 1);
  }

  /** Counts a time. */
  observe(ms: number): void {
    const { bounds, counts } = this;
    const seconds = ms / 1000;
    let at = 0;
    while (at < bounds.length && seconds > (bounds[at] as number)) at++;
    counts[at] = (counts[at] as number) + 1;
    this.sum += seconds;
  }
}

/** A histogram, as the package's registry asks for it. */
export class Timings {
  readonly name: string;
  readonly help: string;
  readonly type = "histogram";
  readonly aggregator = "sum";
  private readonly bounds: readonly number[];
  private readonly all: Series[] = [];

  /** @param bounds of the buckets, in seconds */
  constructor(registry: Registry, name: string, help: string, bounds: readonly number[]) {
    this.name = name;
    this.help = help;
    this.bounds = bounds;
    registry.registerMetric(this as unknown as Metric);
  }

  /** A new series, which is told of from now on. */
  series(labels: Labels): Series {
    const made = new Series(labels, this.bounds);
    this.all.push(made);
    return made;
  }

  /** What the registry tells: of each series the buckets, which add up, then sum and count. */
  async get() {
    const { name, help, type, aggregator } = this;
    return { name, help, type, aggregator, values: this.all.flatMap((of) => this.told(of)) };
  }

  private told({ labels, counts, sum }: Series) {
    const { name, bounds } = this;
    let count = 0;
    const buckets = Array.from(counts, (each, at) => {
      count += each;
      const le = String(bounds[at] ?? "+Inf");
      return { metricName: `${name}_bucket`, labels: { ...labels, le }, value: count };
    });
    const total = (end: string, value: number) => ({ metricName: `${name}_${end}`, labels, value });
    return [...buckets, total("sum", sum), total("count", count)];
  }
}
