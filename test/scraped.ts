/** What /metrics of a server tells, read as Prometheus would. */
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import { vi } from "vitest";
import type { Harness } from "./harness.ts";

/** One figure. */
export interface Sample {
  readonly name: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly value: number;
}

/** All that is told at one moment. */
export class Scrape {
  readonly text: string;
  readonly samples: readonly Sample[];
  /** By the name of a metric, as its HELP line has it. */
  readonly helps: ReadonlyMap<string, string>;

  constructor(text: string) {
    this.text = text;
    const lines = text.split("\n");
    this.helps = new Map(
      lines.flatMap((line) => {
        const [, name = "", help = ""] = /^# HELP (\S+) (.*)$/.exec(line) ?? [];
        return name === "" ? [] : [[name, help] as const];
      }),
    );
    this.samples = lines.flatMap((line) => {
      const [, name, inside = "", value] = /^([a-z_]\w*)(?:\{(.*)\})? (\S+)$/i.exec(line) ?? [];
      if (name === undefined) return [];
      const labels = [...inside.matchAll(/(\w+)="([^"]*)"/g)].map(([, k = "", v = ""]) => [k, v]);
      return [{ name, labels: Object.fromEntries(labels), value: Number(value) }];
    });
  }

  /** The figures of this name that have these labels. */
  of(name: string, labels: Readonly<Record<string, string>> = {}): number[] {
    const wanted = Object.entries(labels);
    return this.samples
      .filter((sample) => sample.name === name && wanted.every(([k, v]) => sample.labels[k] === v))
      .map(({ value }) => value);
  }

  /** Their sum. */
  sum(name: string, labels: Readonly<Record<string, string>> = {}): number {
    return this.of(name, labels).reduce((sum, value) => sum + value, 0);
  }
}

export const scrape = async ({ server }: Pick<Harness, "server">): Promise<Scrape> =>
  new Scrape(await (await fetch(`http://127.0.0.1:${server.httpPort}/metrics`)).text());

/** Has garbage collected in this process, which a server that runs in it tells. */
export const collectGarbage = async (harness: Pick<Harness, "server">): Promise<void> => {
  setFlagsFromString("--expose-gc");
  runInNewContext("gc")();
  const told = async (): Promise<void> => {
    const { samples } = await scrape(harness);
    if (!samples.some(({ name }) => name === "nodejs_gc_duration_seconds_count"))
      throw new Error("no garbage collection was told");
  };
  await vi.waitFor(told, { timeout: 10_000 });
};
