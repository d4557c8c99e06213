/** What deploy/ has for containers, read as their tools would: no engine is needed. */
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { isBuiltin } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { DockerfileParser, type Instruction } from "dockerfile-ast";
import { describe, expect, test } from "vitest";
import { parse, parseAllDocuments } from "yaml";
import { inspectConfig } from "../src/config.ts";

const root = fileURLToPath(new URL("..", import.meta.url));
const textOf = (path: string): string => readFileSync(join(root, path), "utf8");
const manifest = JSON.parse(textOf("package.json"));

/** Every variable that the configuration knows, and the files that may stand for some. */
const known = inspectConfig({}).settings.map(({ name }) => name as string);
const isKnown = (name: string): boolean =>
  known.includes(name) || (name.endsWith("_FILE") && known.includes(name.slice(0, -5)));

/** What the server would say to such an environment, but for files and secrets that are not here. */
const faultsOf = (environment: Record<string, string>): string[] => {
  const { TLS_CERT_FILE, TLS_KEY_FILE, ...rest } = environment;
  const given = Object.fromEntries(
    Object.entries(rest).map(([name, value]) =>
      // Substituted by whoever deploys it.
      name.endsWith("_FILE") ? [name.slice(0, -5), secretOf(name)] : [name, filled(name, value)],
    ),
  );
  const tls =
    TLS_CERT_FILE && TLS_KEY_FILE ? { TLS_CERT_FILE: "LICENSE", TLS_KEY_FILE: "LICENSE" } : {};
  return [...inspectConfig({ ...given, ...tls }).faults];
};
const secretOf = (name: string): string =>
  name.startsWith("TOKEN") ? "x".repeat(32) : "postgres://roster_app:x@db/roster";
const filled = (name: string, value: string): string =>
  value.replace(/^\$\{(\w+):\?.*\}$/, name === "JWKS_URL" ? "https://x.example" : "x".repeat(32));

const dockerfile = DockerfileParser.parse(textOf("deploy/Dockerfile"));
/** The text of the stage that becomes the image. */
const image =
  textOf("deploy/Dockerfile")
    .split(/^FROM /m)
    .at(-1) ?? "";
const instructions = dockerfile.getInstructions();
const argumentsOf = (instruction: Instruction): string => instruction.getArgumentsContent() ?? "";
/** Those of the stage that becomes the image. */
const last = instructions.slice(instructions.findLastIndex((i) => i.getInstruction() === "FROM"));
const lastOf = (name: string): string[] =>
  last.filter((i) => i.getInstruction() === name).map(argumentsOf);
const imageEnv = Object.fromEntries(
  lastOf("ENV").flatMap((text) =>
    text.split(" ").map((pair) => pair.split("=") as [string, string]),
  ),
);
const exposed = lastOf("EXPOSE").flatMap((text) => text.split(" ").map(Number));

describe("the Dockerfile", () => {
  test("runs the Node by which all is tested, as nobody of rank", () => {
    const bases = dockerfile.getFROMs().map((from) => from.getImage());
    expect(bases[0]).toBe(`node:${manifest.dependencies.node}-bookworm-slim`);
    expect(new Set(bases.slice(1))).toEqual(new Set(["base"]));
    expect(lastOf("USER")).toEqual(["1000:1000"]);
    expect(lastOf("RUN")).toEqual([]);
  });

  test("copies what is there, and all that the image needs", () => {
    const ignored = textOf("deploy/Dockerfile.dockerignore").split("\n");
    const copied: string[] = [];
    for (const copy of dockerfile.getCOPYs()) {
      const sources = copy.getArguments().slice(0, -1).map(String);
      if (copy.getFromFlag()) continue;
      for (const source of sources) {
        expect(existsSync(join(root, source)), source).toBe(true);
        expect(ignored, source).toContain(`!${source.split("/")[0]}`);
        copied.push(source);
      }
    }
    expect(ignored).toContain("src/gen");
    expect(copied).toEqual(expect.arrayContaining(["src", "sql", "package.json", "proto"]));
    expect(image).toContain("\nCOPY --from=generated /roster/src/gen src/gen\n");
  });

  test("has no tools in the image, which needs none", () => {
    const installs = instructions.map(argumentsOf).filter((text) => text.includes("npm ci"));
    expect(installs).toHaveLength(2);
    expect(installs[1]).toContain("--omit=dev");
    expect(image).toContain("\nCOPY --from=packages /roster/node_modules node_modules\n");
    const packages = readdirSync(join(root, "src"), { recursive: true, encoding: "utf8" })
      .filter((path) => /\.(ts|js)$/.test(path))
      .flatMap((path) => [...textOf(`src/${path}`).matchAll(/(?:from|import\() ?"([^."][^"]*)"/g)])
      .map(([, name = ""]) => (name.startsWith("@") ? /^@[^/]+\/[^/]+/ : /^[^/]+/).exec(name)?.[0])
      .filter((name) => name !== undefined && !isBuiltin(name));
    expect(packages.length).toBeGreaterThan(50);
    expect([...new Set(packages)].filter((name) => !(`${name}` in manifest.dependencies))).toEqual(
      [],
    );
  });

  test("serves on the ports that it exposes, and asks itself whether it is ready", () => {
    const { NODE_ENV, ...settings } = imageEnv;
    expect(NODE_ENV).toBe("production");
    expect(Object.keys(settings).filter((name) => !isKnown(name))).toEqual([]);
    expect(exposed).toEqual(
      [settings.GRPC_ADDR, settings.HTTP_ADDR].map((at) => Number(at?.split(":")[1])),
    );
    expect(JSON.parse(lastOf("ENTRYPOINT").join())).toEqual(["node", "src/cli/roster.js"]);
    expect(JSON.parse(lastOf("CMD").join())).toEqual(["serve"]);
    expect(lastOf("HEALTHCHECK").join()).toContain('"src/cli/roster.js", "health"]');
  });
});

describe("the compose file", () => {
  const { services } = parse(textOf("deploy/compose.yaml"), { merge: true });

  test("gives Roster an environment that it takes, and none that it does not know", () => {
    const { roster, migrate } = services;
    for (const { environment } of [roster, migrate])
      expect(Object.keys(environment).filter((name) => !isKnown(name))).toEqual([]);
    expect(faultsOf({ ...imageEnv, ...roster.environment })).toEqual([]);
    expect(migrate.command).toEqual(["migrate"]);
  });

  test("keeps both containers small in rights, and stops them in their time", () => {
    for (const { read_only, cap_drop, security_opt, user } of [services.roster, services.migrate])
      expect({ read_only, cap_drop, security_opt, user }).toEqual({
        read_only: true,
        cap_drop: ["ALL"],
        security_opt: ["no-new-privileges:true"],
        user: undefined,
      });
    expect(Number.parseInt(services.roster.stop_grace_period, 10)).toBeGreaterThan(15);
    const ports = services.roster.ports.map((port: string) => Number(port.split(":").at(-1)));
    expect(ports).toEqual(exposed);
  });

  test("mounts files that are there", () => {
    const mounts: string[] = services.postgres.volumes.map((mount: string) => mount.split(":")[0]);
    const files = mounts.filter((path) => path.startsWith("."));
    expect(files).toHaveLength(2);
    for (const path of files) expect(existsSync(join(root, "deploy", path)), path).toBe(true);
    const { context, dockerfile: file } = services.migrate.build;
    expect(existsSync(join(root, "deploy", context, file))).toBe(true);
  });
});

describe("the Kubernetes example", () => {
  const documents = parseAllDocuments(textOf("deploy/kubernetes.yaml"));
  const objects = documents.map((document) => document.toJS());
  const ofKind = (kind: string) => objects.find((object) => object.kind === kind);
  const pods = ["Job", "Deployment"].map((kind) => ofKind(kind).spec.template.spec);
  const [, pod] = pods;
  const [container] = pod.containers;
  const envOf = ({ env }: typeof container): Record<string, string> =>
    Object.fromEntries(env.map(({ name, value }: Record<string, string>) => [name, value]));

  test("is YAML without a fault", () => {
    expect(documents.flatMap(({ errors, warnings }) => [...errors, ...warnings])).toEqual([]);
    expect(objects.map(({ kind }) => kind)).toEqual([
      "Job",
      "Deployment",
      "Service",
      "PodDisruptionBudget",
    ]);
  });

  test("gives Roster an environment that it takes, from files that are mounted", () => {
    for (const { containers, volumes } of pods) {
      const [{ env, volumeMounts }] = containers;
      for (const { name, value } of env) {
        expect(isKnown(name), name).toBe(true);
        if (!name.endsWith("_FILE")) continue;
        const mount = volumeMounts.find(({ mountPath }: Record<string, string>) =>
          value.startsWith(`${mountPath}/`),
        );
        const { secret } = volumes.find(
          (volume: Record<string, string>) => volume.name === mount.name,
        );
        const keys = secret.items?.map(({ path }: Record<string, string>) => path) ?? [
          "tls.crt",
          "tls.key",
        ];
        expect(keys, name).toContain(value.slice(mount.mountPath.length + 1));
      }
    }
    expect(faultsOf({ ...imageEnv, ...envOf(container) })).toEqual([]);
  });

  test("runs as the image does, small in rights", () => {
    const uid = Number(lastOf("USER").join().split(":")[0]);
    for (const { securityContext, containers, automountServiceAccountToken } of pods) {
      expect(automountServiceAccountToken).toBe(false);
      expect(securityContext).toMatchObject({ runAsNonRoot: true, runAsUser: uid });
      expect(containers[0].securityContext).toEqual({
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ["ALL"] },
      });
    }
  });

  test("asks the right port, and waits until a stopped server has drained", () => {
    expect(
      container.ports.map(({ containerPort }: Record<string, number>) => containerPort),
    ).toEqual(exposed);
    const names = container.ports.map(({ name }: Record<string, string>) => name);
    const { startupProbe, livenessProbe, readinessProbe, lifecycle } = container;
    for (const [probe, path] of [
      [startupProbe, "/livez"],
      [livenessProbe, "/livez"],
      [readinessProbe, "/readyz"],
    ])
      expect(probe.httpGet).toEqual({ path, port: "http", scheme: "HTTPS" });
    const { selector, template } = ofKind("Deployment").spec;
    const { spec } = ofKind("Service");
    expect(template.metadata.labels).toMatchObject(selector.matchLabels);
    expect(template.metadata.labels).toMatchObject(spec.selector);
    for (const { targetPort, port } of spec.ports) {
      expect(names).toContain(targetPort);
      expect(exposed).toContain(port);
    }
    // src/main.ts gives notice and lets running calls have 10 s; 5 s are for what closes then.
    const notice = inspectConfig({}).values.SHUTDOWN_NOTICE_SECONDS;
    const needed = lifecycle.preStop.sleep.seconds + notice + 10 + 5;
    expect(pod.terminationGracePeriodSeconds).toBeGreaterThanOrEqual(needed);
  });
});
