import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("..", import.meta.url));

const filesUnder = (folder: string): string[] =>
  readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.(ts|sql)$/.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)))
    .filter((path) => !path.startsWith("src/gen/"));

const sources = filesUnder("src");
const textOf = (path: string): string => readFileSync(join(root, path), "utf8");

/** The room of a file: its folder under src, or its own name where it stands in src itself. */
const roomOf = (path: string): string => {
  const [first = "", second] = relative("src", path).split("/");
  return second === undefined ? first.replace(/\.ts$/, "") : first;
};

/** Who may import whom. A file beside the named ones may be imported from within its own room. */
const mayImport: Record<string, readonly string[]> = {
  main: ["config", "transport", "database", "interceptors", "jobs", "renewed", "routes", "spiffe"],
  routes: ["gen", "services"],
  transport: ["routes", "context", "errors", "gen"],
  interceptors: ["gen", "context", "errors", "database", "spiffe"],
  services: ["gen", "context", "errors", "database"],
  errors: ["gen", "database"],
  context: ["database"],
  database: [],
  cli: ["config", "database", "jobs", "main", "gen"],
  jobs: ["database"],
  config: ["spiffe"],
  spiffe: [],
  client: ["gen"],
  renewed: [],
};

/** Of the database, services see the query vocabulary, pages and the feed, nothing that could reach a pool. */
const databaseForServices = ["sql", "page", "feed", "positions"].map(
  (name) => `src/database/${name}.ts`,
);

interface Import {
  readonly from: string;
  readonly to: string;
}

const importsOf = (path: string, text: string): Import[] =>
  [...text.matchAll(/(?:from|import\()\s*"(\.{1,2}\/[^"]+)"/g)].map(([, target = ""]) => ({
    from: path,
    to: relative(root, join(root, dirname(path), target)),
  }));

const forbidden = ({ from, to }: Import): boolean => {
  const [here, there] = [roomOf(from), roomOf(to)];
  if (here === there) return false;
  if (here === "services" && there === "database") return !databaseForServices.includes(to);
  return !mayImport[here]?.includes(there);
};

const findings = (rule: RegExp, paths: readonly string[]): string[] =>
  paths.flatMap((path) =>
    textOf(path)
      .split("\n")
      .flatMap((line, index) => (rule.test(line) ? [`${path}:${index + 1} ${line.trim()}`] : [])),
  );

describe("the house", () => {
  test("keeps its lines of import", () => {
    const imports = sources.flatMap((path) => importsOf(path, textOf(path)));
    expect(imports.length).toBeGreaterThan(100);
    expect(imports.filter(forbidden)).toEqual([]);
  });

  test("would notice a service that reaches for a pool, and a database that knows the corridor", () => {
    const planted = [
      ...importsOf("src/services/users.ts", 'import { openPool } from "../database/pool.ts";'),
      ...importsOf("src/database/pool.ts", 'import { caller } from "../context.ts";'),
      ...importsOf("src/interceptors/access.ts", 'import { users } from "../services/users.ts";'),
    ];
    expect(planted.filter(forbidden)).toHaveLength(3);
  });

  test("reads the environment in config.ts and the commands alone", () => {
    const others = sources.filter(
      (path) => path !== "src/config.ts" && !path.startsWith("src/cli/"),
    );
    expect(findings(/process\.env/, others)).toEqual([]);
  });

  test("knows Connect and gRPC nowhere in the database", () => {
    expect(findings(/@connectrpc|@grpc\//, filesUnder("src/database"))).toEqual([]);
  });

  test("has no unsafe SQL, no default exports and no catch that hides an error", () => {
    expect(findings(/sql\.unsafe/, sources)).toEqual([]);
    expect(findings(/^export default/, sources)).toEqual([]);
    expect(findings(/catch\s*(\([^)]*\)\s*)?\{\s*\}/, sources)).toEqual([]);
  });

  test("has no line above 120 columns and no file above 500 lines", () => {
    const all = [...sources, ...filesUnder("sql"), ...filesUnder("test")];
    const long = all.flatMap((path) =>
      textOf(path)
        .split("\n")
        .flatMap((line, index) => (line.length > 120 ? [`${path}:${index + 1}`] : [])),
    );
    expect(long).toEqual([]);
    expect(all.filter((path) => textOf(path).split("\n").length > 500)).toEqual([]);
  });

  test("locks no package to anything but the public registry", () => {
    const lock = readFileSync(join(root, "package-lock.json"), "utf8");
    const elsewhere = [...lock.matchAll(/"resolved": "([^"]*)"/g)]
      .map(([, url = ""]) => url)
      .filter((url) => !url.startsWith("https://registry.npmjs.org/"));
    expect(elsewhere).toEqual([]);
  });

  test("commits nothing that is generated, gathered or kept by a server", () => {
    const tracked = execFileSync("git", ["ls-files"], { cwd: root, encoding: "utf8" }).split("\n");
    const strays = tracked.filter((path) =>
      /^(src\/gen|third_party|node_modules|\.roster)\//.test(path),
    );
    expect(strays).toEqual([]);
  });
});
