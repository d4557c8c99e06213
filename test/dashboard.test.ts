/** deploy/: the dashboard and the alert rules speak of what a live server tells, and of all of it that matters. */
import { readFileSync } from "node:fs";
import { parser } from "@prometheus-io/lezer-promql";
import { beforeAll, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { routes } from "../src/routes.ts";
import { startHarness } from "./harness.ts";
import { collectGarbage, Scrape, scrape } from "./scraped.ts";

const deployed = (name: string): string =>
  readFileSync(new URL(`../deploy/${name}`, import.meta.url), "utf8");

interface Panel {
  readonly title: string;
  readonly type: string;
  readonly targets?: readonly { readonly expr: string }[];
}
interface Alert {
  readonly alert: string;
  readonly expr: string;
  readonly labels: { readonly severity: string };
  readonly annotations: { readonly summary: string };
}
const { panels } = JSON.parse(deployed("grafana-dashboard.json")) as { panels: Panel[] };
const { groups } = parse(deployed("alerts.yaml")) as { groups: { rules: Alert[] }[] };
const alerts = groups.flatMap(({ rules }) => rules);

/** Queries as Prometheus gets them, by where they stand. */
const queries = [
  ...panels.flatMap(({ title, targets = [] }) => targets.map(({ expr }) => [title, expr] as const)),
  ...alerts.map(({ alert, expr }) => [alert, expr] as const),
].map(([name, expr]) => [name, expr.replaceAll("$__rate_interval", "5m")] as const);

/** What Prometheus itself knows and adds. */
const ofPrometheus = { metrics: ["up"], labels: ["instance", "job", "le"] };

/** Faults of a query's grammar, and the metrics and labels that it names. */
const read = (query: string) => {
  const [metrics, labels, faults]: [Set<string>, Set<string>, string[]] = [
    new Set(),
    new Set(),
    [],
  ];
  parser.parse(query).iterate({
    enter: ({ type, name, from, to, node }) => {
      const text = query.slice(from, to);
      if (type.isError) faults.push(`at ${from}: ${query.slice(from, from + 20)}`);
      if (name === "Identifier" && node.parent?.name === "VectorSelector") metrics.add(text);
      if (name === "LabelName") labels.add(text);
    },
  });
  return { metrics: [...metrics], labels: [...labels], faults };
};

let told: Scrape;

beforeAll(async () => {
  const current = await startHarness();
  const working = await startHarness({ database: current.urls });
  const { orgId, owner, outsider } = await current.tenant();
  const leaving = new AbortController();
  const stream = owner.changes.watchChanges({ orgId }, { signal: leaving.signal });
  await stream[Symbol.asyncIterator]().next();
  await outsider.teams.listTeams({ orgId }).catch(() => {});
  await collectGarbage(current);
  told = new Scrape(`${(await scrape(current)).text}\n${(await scrape(working)).text}`);
  leaving.abort();
  await working.stop();
  await current.stop();
});

/** The labels that a metric has; undefined when there is none of this name. */
const labelsOf = (metric: string): ReadonlySet<string> | undefined => {
  const found = told.samples.filter(({ name }) => name === metric);
  return found.length === 0
    ? undefined
    : new Set(found.flatMap(({ labels }) => Object.keys(labels)));
};

describe("The dashboard and the alerts", () => {
  test.each(queries)("name what a live server tells: %s", (_name, query) => {
    const { metrics, labels, faults } = read(query);
    expect(faults).toEqual([]);
    const ours = metrics.filter((metric) => !ofPrometheus.metrics.includes(metric));
    expect(ours.filter((metric) => !labelsOf(metric))).toEqual([]);
    const known = new Set([...ours.flatMap((metric) => [...(labelsOf(metric) ?? [])])]);
    const strange = labels.filter(
      (label) => !known.has(label) && !ofPrometheus.labels.includes(label),
    );
    expect(strange).toEqual([]);
  });

  test("leave out streams where they tell of durations, and nothing else", () => {
    const streams = routes
      .flatMap(({ service }) => service.methods)
      .filter(({ methodKind }) => methodKind !== "unary")
      .map(({ name }) => name)
      .sort();
    const left = queries.flatMap(([, query]) =>
      [...query.matchAll(/rpc_method!~"\.\*\/\(([^)]*)\)"/g)].map(([, names = ""]) => names),
    );
    expect(left.length).toBeGreaterThan(2);
    for (const names of left) expect(names.split("|").sort()).toEqual(streams);
  });

  test("show rate, errors, duration, saturation, lags and denials; README has every metric", () => {
    const shown = new Set(queries.flatMap(([, query]) => read(query).metrics));
    const own = [...told.helps.keys()].filter((name) => /^(rpc|roster|db)_/.test(name));
    const unseen = own.filter((name) => ![...shown].some((metric) => metric.startsWith(name)));
    expect(unseen).toEqual([]);
    const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
    expect(own.filter((name) => !readme.includes(`\`${name}\``))).toEqual([]);
    const alerted = new Set(alerts.flatMap(({ expr }) => read(expr).metrics));
    expect([...alerted]).toEqual(
      expect.arrayContaining([
        "rpc_server_call_duration_seconds_bucket",
        "rpc_server_call_duration_seconds_count",
        "db_client_connection_pending_requests",
        "roster_feed_lag_seconds",
        "roster_seal_lag_seconds",
        "roster_cross_tenant_denials_total",
      ]),
    );
    const severities = alerts.map(({ labels }) => labels.severity);
    expect(new Set(severities)).toEqual(new Set(["critical", "warning"]));
    expect(alerts.filter(({ annotations }) => !annotations.summary)).toEqual([]);
  });

  test("would notice a metric, a label or a query that there is not", () => {
    const { metrics, labels } = read('sum by (tenant) (rate(rpc_calls{code="x"}[5m]))');
    expect([metrics, labels.sort(), labelsOf("rpc_calls")]).toEqual([
      ["rpc_calls"],
      ["code", "tenant"],
      undefined,
    ]);
    expect(read("sum(rate(roster_ready[5m])").faults).not.toEqual([]);
  });
});
