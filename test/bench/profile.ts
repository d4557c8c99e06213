/** `npm run bench:profile`: where a server's time goes while it answers one kind of call. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { load, usual } from "./data.ts";
import { operationOf } from "./operations.ts";
import { openStand } from "./stand.ts";

const help = `usage: npm run bench:profile -- [--only A] [--seconds N]

Samples Roster while it answers one operation, and tells what its main thread is busy with.
  --only     the operation (GetTeam)
  --seconds  length of the sampling, after a warm-up (10)`;

interface Node {
  readonly id: number;
  readonly callFrame: { readonly functionName: string; readonly url: string };
  readonly children?: readonly number[];
}

interface Profile {
  readonly nodes: readonly Node[];
  readonly samples: readonly number[];
  /** Microseconds between a sample and the one before. */
  readonly timeDeltas: readonly number[];
}

/** Whose code a file is: a package's, or a room's of ours. */
const ownerOf = (url: string): string | undefined => {
  const [, inPackage] = /.*\/node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(url) ?? [];
  if (inPackage) return inPackage;
  const [, room] = /\/src\/([^/]+)/.exec(url) ?? [];
  return room && `src/${room.replace(/\.ts$/, "")}`;
};

/** What a sample is counted for: the nearest code that is not Node's own, or what the engine does by itself. */
const partOf = (node: Node, parents: ReadonlyMap<number, Node>): string => {
  const { functionName } = node.callFrame;
  if (functionName === "(garbage collector)") return "garbage collection";
  const writes = /^write(v|Buffer)$/.test(functionName);
  for (let at: Node | undefined = node; at; at = parents.get(at.id)) {
    const owner = ownerOf(at.callFrame.url);
    if (owner) return writes && owner === "src/database" ? "writing to PostgreSQL's socket" : owner;
  }
  return "Node itself";
};

const sharesOf = (profile: Profile, seconds: number): [string, number][] => {
  const nodes = new Map(profile.nodes.map((node) => [node.id, node]));
  const parents = new Map<number, Node>();
  for (const node of profile.nodes) for (const id of node.children ?? []) parents.set(id, node);
  const spent = new Map<string, number>();
  let total = 0;
  let age = 0;
  // From the end, where the run is; before it lie the start and the warm-up.
  for (let i = profile.samples.length - 1; i >= 0 && age < seconds * 1e6; i--) {
    const us = profile.timeDeltas[i] as number;
    const node = nodes.get(profile.samples[i] as number) as Node;
    age += us;
    if (node.callFrame.functionName === "(idle)") continue;
    const part = partOf(node, parents);
    spent.set(part, (spent.get(part) ?? 0) + us);
    total += us;
  }
  return [...spent]
    .map(([part, us]): [string, number] => [part, us / total])
    .sort((a, b) => b[1] - a[1]);
};

const { values } = parseArgs({
  options: {
    only: { type: "string", default: "GetTeam" },
    seconds: { type: "string", default: "10" },
    help: { type: "boolean", short: "h" },
  },
});
if (values.help) {
  console.log(help);
  process.exit(0);
}
const operation = operationOf(values.only);
const seconds = Number(values.seconds);
const stand = await openStand();
try {
  await load(stand.admin, usual);
  const folder = join(stand.folder, "profile");
  const flags = ["--cpu-prof", `--cpu-prof-dir=${folder}`, "--cpu-prof-interval=200"];
  const served = await stand.serveRoster(stand.urls, flags);
  await stand.measure(served, operation.name, 5);
  await stand.measure(served, operation.name, seconds);
  await stand.stopServing(served);
  const [file = ""] = readdirSync(folder);
  const profile: Profile = JSON.parse(readFileSync(join(folder, file), "utf8"));
  console.log(`| ${operation.name}: part | share of busy time |\n| --- | --- |`);
  for (const [part, share] of sharesOf(profile, seconds)) {
    if (share >= 0.005) console.log(`| ${part} | ${(share * 100).toFixed(1)} % |`);
  }
} finally {
  await stand.stop();
}
