import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import {
  create,
  createFileRegistry,
  type DescMethod,
  fromBinary,
  type Message,
  toBinary,
} from "@bufbuild/protobuf";
import {
  type FileDescriptorProto,
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";
import grpc from "@grpc/grpc-js";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from "vitest";
import { TeamService } from "../src/gen/roster/v1/team_service_pb.ts";
import { routes } from "../src/routes.ts";
import { startHarness, useHarness } from "./harness.ts";
import { RawClient } from "./raw-client.ts";

const harness = useHarness();

/** Health and reflection as their protos have them. */
const registry = createFileRegistry(
  fromBinary(
    FileDescriptorSetSchema,
    readFileSync(new URL("../src/gen/roster.binpb", import.meta.url)),
  ),
);
const methodOf = (service: string, name: string): DescMethod => {
  const method = registry.getService(service)?.methods.find((one) => one.name === name);
  if (!method) throw new Error(`there is no ${service}/${name}`);
  return method;
};
const names = routes.map(({ service }) => service.typeName);

let client: RawClient;
beforeAll(() => {
  client = new RawClient(harness.current.server.port);
});
afterAll(() => client.close());

/** Opens a stream of any kind; `next` answers its next message, `status` how it ended. */
const open = (raw: RawClient, method: DescMethod, token = "") => {
  const metadata = new grpc.Metadata();
  if (token !== "") metadata.set("authorization", `Bearer ${token}`);
  const stream = raw.grpc.makeBidiStreamRequest(
    `/${method.parent.typeName}/${method.name}`,
    (bytes: Buffer) => bytes,
    (bytes: Buffer) => fromBinary(method.output, bytes) as Message & Record<string, unknown>,
    metadata,
  );
  const status = new Promise<grpc.StatusObject>((resolve) => stream.once("status", resolve));
  // The status tells it already.
  stream.on("error", () => undefined);
  const messages = stream[Symbol.asyncIterator]();
  onTestFinished(() => stream.cancel());
  return {
    send: (request: Record<string, unknown>) => {
      stream.write(Buffer.from(toBinary(method.input, create(method.input, request))));
      if (method.methodKind === "server_streaming") stream.end();
    },
    next: async () => (await messages.next()).value,
    status,
  };
};

describe("grpc.health.v1", () => {
  const serving = 1;
  const notServing = 2;

  test("Check answers SERVING for the server and each of its services, without a credential", async () => {
    for (const service of ["", ...names]) {
      const { code, response } = await client.call(methodOf("grpc.health.v1.Health", "Check"), {
        service,
      });
      expect({ code, response }, service).toMatchObject({
        code: "OK",
        response: { status: serving },
      });
    }
  });

  test("Check NOT_FOUND for a service that is not there", async () => {
    const check = methodOf("grpc.health.v1.Health", "Check");
    expect((await client.call(check, { service: "roster.v2.TeamService" })).code).toBe("NOT_FOUND");
  });

  test("List names them all", async () => {
    const { response } = await client.call(methodOf("grpc.health.v1.Health", "List"), {});
    const { statuses } = response as unknown as { statuses: Record<string, { status: number }> };
    expect(Object.keys(statuses).sort()).toEqual(["", ...names].sort());
    expect(Object.values(statuses).every(({ status }) => status === serving)).toBe(true);
  });

  test("Watch tells NOT_SERVING when the server stops, which waits for calls but not for streams", async () => {
    const own = await startHarness();
    const { orgId, owner } = await own.tenant();
    const { team } = await owner.teams.createTeam({ team: { orgId, name: "Before" } });
    const holder = new pg.Client({ connectionString: own.urls.admin });
    await holder.connect();
    onTestFinished(() => holder.end());
    await holder.query("begin");
    await holder.query("select from roster.teams where id = $1 for update", [team?.id]);

    const raw = new RawClient(own.server.port);
    onTestFinished(() => raw.close());
    const watch = open(raw, methodOf("grpc.health.v1.Health", "Watch"));
    watch.send({ service: "roster.v1.TeamService" });
    expect(await watch.next()).toMatchObject({ status: serving });
    const idle = open(raw, methodOf("grpc.reflection.v1.ServerReflection", "ServerReflectionInfo"));
    idle.send({ messageRequest: { case: "listServices", value: "" } });
    await idle.next();
    const running = raw.call(
      TeamService.method.updateTeam,
      { team: { orgId, id: team?.id ?? "", name: "After" } },
      { token: owner.token },
    );
    await expect
      .poll(async () => {
        // Other test files wait for locks in databases of the same server.
        const { rowCount } = await holder.query(`
          select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'`);
        return rowCount;
      })
      .toBe(1);

    let stopped = false;
    const stopping = own.stop().then(() => {
      stopped = true;
    });
    expect(await watch.next()).toMatchObject({ status: notServing });
    expect((await watch.status).code).toBe(grpc.status.UNAVAILABLE);
    expect((await idle.status).code).toBe(grpc.status.UNAVAILABLE);
    const late = new RawClient(own.server.port);
    onTestFinished(() => late.close());
    const refused = await late.call(TeamService.method.listTeams, { orgId }, { timeoutMs: 2_000 });
    expect(refused.code).toBe("UNAVAILABLE");
    expect(stopped).toBe(false);
    await holder.query("rollback");
    expect((await running).response?.team?.name).toBe("After");
    await expect.poll(() => stopped, { timeout: 5_000 }).toBe(true);
    await stopping;
  });
});

describe.each(["v1", "v1alpha"])("grpc.reflection.%s", (version) => {
  const info = methodOf(`grpc.reflection.${version}.ServerReflection`, "ServerReflectionInfo");
  const ask = async (stream: ReturnType<typeof open>, request: object) => {
    stream.send({ messageRequest: request });
    const { messageResponse } = (await stream.next()) as unknown as {
      messageResponse: { case: string; value: Record<string, unknown> };
    };
    return messageResponse;
  };
  const filesFor = async (
    stream: ReturnType<typeof open>,
    request: object,
  ): Promise<FileDescriptorProto[]> => {
    const answer = await ask(stream, request);
    expect(answer.case, JSON.stringify(request)).toBe("fileDescriptorResponse");
    const bytes = answer.value.fileDescriptorProto as Uint8Array[];
    return bytes.map((file) => fromBinary(FileDescriptorProtoSchema, file));
  };

  test("lists the services", async () => {
    const answer = await ask(open(client, info), { case: "listServices", value: "" });
    const listed = (answer.value.service as { name: string }[]).map(({ name }) => name);
    expect(listed).toEqual(expect.arrayContaining([...names, "grpc.health.v1.Health"]));
  });

  test("gives every file that a client needs to call and to read error details", async () => {
    const stream = open(client, info);
    const files = new Map<string, FileDescriptorProto>();
    const wanted = ["google/rpc/error_details.proto", "roster/v1/error.proto"];
    for (const value of names) {
      for (const file of await filesFor(stream, { case: "fileContainingSymbol", value })) {
        files.set(file.name, file);
        wanted.push(...file.dependency);
      }
    }
    for (let value = wanted.pop(); value !== undefined; value = wanted.pop()) {
      if (files.has(value)) continue;
      for (const file of await filesFor(stream, { case: "fileByFilename", value })) {
        files.set(file.name, file);
        wanted.push(...file.dependency);
      }
    }
    expect([...files.keys()]).toEqual(
      expect.arrayContaining([
        "google/rpc/error_details.proto",
        "buf/validate/validate.proto",
        "google/protobuf/timestamp.proto",
        "roster/v1/access.proto",
      ]),
    );
    const sorted = new Set<FileDescriptorProto>();
    const add = (file: FileDescriptorProto | undefined): void => {
      for (const name of file?.dependency ?? []) add(files.get(name));
      if (file) sorted.add(file);
    };
    for (const file of files.values()) add(file);
    const known = createFileRegistry(create(FileDescriptorSetSchema, { file: [...sorted] }));
    for (const name of names) expect(known.getService(name)).toBeDefined();
    expect(known.getMessage("google.rpc.ErrorInfo")).toBeDefined();
  });

  test("answers what is not there, and what is no question, without harm to the stream", async () => {
    const stream = open(client, info);
    for (const request of [
      { case: "fileContainingSymbol", value: "roster.v1.Nothing" },
      { case: "fileByFilename", value: "../../etc/passwd" },
      { case: "fileContainingExtension", value: { containingType: "x", extensionNumber: -1 } },
      { case: undefined },
    ]) {
      expect((await ask(stream, request)).case).toBe("errorResponse");
    }
    expect((await ask(stream, { case: "listServices", value: "" })).case).toBe(
      "listServicesResponse",
    );
  });
});

describe("Reflection outside development", () => {
  test("answers operators alone", async () => {
    const closed = await startHarness({ openReflection: false });
    const raw = new RawClient(closed.server.port);
    onTestFinished(() => closed.stop());
    onTestFinished(() => raw.close());
    const { owner } = await closed.tenant();
    for (const version of ["v1", "v1alpha"]) {
      const info = methodOf(`grpc.reflection.${version}.ServerReflection`, "ServerReflectionInfo");
      const question = { messageRequest: { case: "listServices", value: "" } };
      const asOperator = open(raw, info, closed.ops.token);
      asOperator.send(question);
      expect(await asOperator.next()).toMatchObject({
        messageResponse: { case: "listServicesResponse" },
      });
      const asOwner = open(raw, info, owner.token);
      asOwner.send(question);
      expect((await asOwner.status).code).toBe(grpc.status.PERMISSION_DENIED);
      const asNobody = open(raw, info);
      asNobody.send(question);
      expect((await asNobody.status).code).toBe(grpc.status.UNAUTHENTICATED);
    }
  });
});

describe("buf curl", () => {
  test("calls by reflection alone", async () => {
    const { orgId, owner } = await harness.current.tenant();
    await owner.teams.createTeam({ team: { orgId, name: "Crew" } });
    const buf = fileURLToPath(new URL("../node_modules/.bin/buf", import.meta.url));
    const { stdout } = await promisify(execFile)(buf, [
      ...["curl", "--protocol", "grpc", "--http2-prior-knowledge"],
      ...["-H", `authorization: Bearer ${owner.token}`, "-d", JSON.stringify({ orgId })],
      `${harness.current.baseUrl}/roster.v1.TeamService/ListTeams`,
    ]);
    expect(JSON.parse(stdout)).toMatchObject({ teams: [{ orgId, name: "Crew" }] });
  });
});
