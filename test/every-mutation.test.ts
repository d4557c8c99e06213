import { randomUUID } from "node:crypto";
import type { Message } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { beforeAll, describe, expect, test } from "vitest";
import { type Callers, refusal, useHarness } from "./harness.ts";
import { makeWorld, type World } from "./samples/world.ts";
import {
  callersFor,
  contentsOf,
  entriesOf,
  etagPath,
  methods,
  requestOf,
  send,
  type Way,
  ways,
  withField,
} from "./samples.ts";

const harness = useHarness();

let home: World;

beforeAll(async () => {
  home = await makeWorld(harness.current);
});

const mutations = ways.filter(({ method }) => method.idempotency !== Idempotency.NO_SIDE_EFFECTS);
const listed = (some: readonly Way[]) => some.map((way) => [way.name, way] as const);
const removals = listed(mutations.filter(({ method }) => /^(Delete|Remove)/.test(method.name)));
const has = ({ method }: Way, field: string): boolean =>
  method.input.fields.some(({ name }) => name === field);

const contents = (...without: string[]) => contentsOf(harness.current, ...without);

/** A request that its caller may send, in a world that it may take apart. */
const prepared = async (
  way: Way,
): Promise<{ callers: Callers; request: Message; world: World }> => {
  const world = way.name === "OrgService.DeleteOrg" ? await makeWorld(harness.current) : home;
  return {
    world,
    callers: await callersFor(harness.current, way, world),
    request: await requestOf(way, world),
  };
};

/** Another request of the same RPC. */
const another = (way: Way, request: Message, world: World): Promise<Message> | Message => {
  const path = etagPath(way);
  return path && !way.fault ? withField(way.method, request, path, '"98"') : requestOf(way, world);
};

describe("Every mutation", () => {
  test.each(listed(mutations))("takes a request_id and validate_only: %s", (_name, way) => {
    expect([has(way, "request_id"), has(way, "validate_only")]).toEqual([true, true]);
  });

  test("takes allow_missing where it takes something away, and nothing else does", () => {
    const taking = [...methods.values()].filter(({ input }) =>
      input.fields.some(({ name }) => name === "allow_missing"),
    );
    expect(taking.map(({ name }) => name).sort()).toEqual(
      [...methods.values()]
        .map(({ name }) => name)
        .filter((name) => /^(Delete|Remove)/.test(name))
        .sort(),
    );
  });

  test.each(listed(mutations))("is replayed, and done once: %s", async (_name, way) => {
    const { callers, request } = await prepared(way);
    const again = withField(way.method, request, "request_id", randomUUID());
    const first = await send(callers, way.method, again);
    const before = await contents();
    // Of an org that it deleted, only platform may still hear.
    const gone = way.name === "OrgService.DeleteOrg";
    if (gone)
      expect((await refusal(send(callers, way.method, again))).code).toBe("PermissionDenied");
    else expect(await send(callers, way.method, again)).toBe(first);
    expect(await contents(...(gone ? ["roster.audit_entries"] : []))).toEqual(
      gone ? before.filter(({ t }) => t !== "roster.audit_entries") : before,
    );
  });

  test.each(listed(mutations))(
    "INVALID_ARGUMENT when its request_id comes with another request: %s",
    async (name, way) => {
      const { callers, request, world } = await prepared(way);
      const requestId = randomUUID();
      await send(callers, way.method, withField(way.method, request, "request_id", requestId));
      // Of the one its owner has no org any more in which to be told; the other says nothing but the org.
      if (name === "OrgService.DeleteOrg" || name === "OrgService.UndeleteOrg") return;
      const other = withField(
        way.method,
        await another(way, request, world),
        "request_id",
        requestId,
      );
      const before = await contents();
      expect(await refusal(send(callers, way.method, other))).toMatchObject({
        code: "InvalidArgument",
        reason: "REQUEST_ID_REUSED",
        fields: ["request_id"],
      });
      expect(await contents()).toEqual(before);
    },
  );

  test.each(listed(mutations))(
    "INVALID_ARGUMENT for a malformed request_id: %s",
    async (_name, way) => {
      const callers = await callersFor(harness.current, way, home);
      const malformed = withField(way.method, await requestOf(way, home), "request_id", "again");
      expect(await refusal(send(callers, way.method, malformed))).toMatchObject({
        code: "InvalidArgument",
        fields: ["request_id"],
      });
    },
  );

  test.each(listed(mutations))("writes nothing when it only validates: %s", async (_name, way) => {
    const { callers, request } = await prepared(way);
    const id = randomUUID();
    const rehearsal = withField(
      way.method,
      withField(way.method, request, "request_id", randomUUID()),
      "validate_only",
      true,
    );
    const before = await contents();
    const answer = await send(callers, way.method, rehearsal, { "x-request-id": id });
    expect(await contents()).toEqual(before);
    expect(await entriesOf(harness.current, id)).toEqual([]);
    // It tells what the call will come to.
    const keys = (text: string) => Object.keys(JSON.parse(text)).sort();
    expect(keys(answer)).toEqual(keys(await send(callers, way.method, request)));
    expect(await contents()).not.toEqual(before);
  });

  test.each(listed(mutations))("fails alike when it only validates: %s", async (_name, way) => {
    const { callers, request } = await prepared(way);
    const path = etagPath(way);
    if (path || way.fault) {
      const faulty = way.fault
        ? withField(way.method, request, ...way.fault)
        : withField(way.method, request, path as string, '"99"');
      const rehearsal = withField(way.method, faulty, "validate_only", true);
      const [real, rehearsed] = [
        await refusal(send(callers, way.method, faulty)),
        await refusal(send(callers, way.method, rehearsal)),
      ];
      expect(rehearsed).toMatchObject({
        code: real.code,
        reason: real.reason,
        message: real.message,
      });
    }
    const id = randomUUID();
    const before = await contents();
    const denied = withField(way.method, request, "validate_only", true);
    const call = send(home.outsider, way.method, denied, { "x-request-id": id });
    expect((await refusal(call)).code).toBe("PermissionDenied");
    expect(await contents()).toEqual(before);
  });
});

describe("Every delete and remove", () => {
  test.each(removals)(
    "NOT_FOUND the second time, unless that is allowed: %s",
    async (name, way) => {
      const { callers: own, request } = await prepared(way);
      await send(own, way.method, request);
      const callers = name === "OrgService.DeleteOrg" ? harness.current.ops : own;
      expect((await refusal(send(callers, way.method, request))).code).toBe("NotFound");
      const allowed = withField(way.method, request, "allow_missing", true);
      const data = ["roster.audit_entries", "roster.idempotency_keys"];
      const before = await contents(...data);
      expect(await send(callers, way.method, allowed)).toBe("{}");
      const again = withField(way.method, allowed, "request_id", randomUUID());
      expect(await send(callers, way.method, again)).toBe("{}");
      expect(await send(callers, way.method, again)).toBe("{}");
      expect(await contents(...data)).toEqual(before);
    },
  );

  test.each(removals)("tells nothing by allow_missing to who may not: %s", async (_name, way) => {
    const { request } = await prepared(way);
    const allowed = withField(way.method, request, "allow_missing", true);
    expect((await refusal(send(home.outsider, way.method, allowed))).code).toBe("PermissionDenied");
  });
});
