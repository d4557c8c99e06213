import { randomUUID } from "node:crypto";
import type { Message } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import { beforeAll, describe, expect, test } from "vitest";
import { Scope } from "../src/gen/roster/v1/access_pb.ts";
import { type Callers, refusal, useHarness } from "./harness.ts";
import { makeWorld, type World } from "./samples/world.ts";
import {
  callersFor,
  contentsOf,
  entriesOf,
  etagPath,
  heard,
  idPaths,
  methods,
  requestOf,
  samples,
  send,
  serviceWith,
  told,
  type Way,
  ways,
  withField,
} from "./samples.ts";

const harness = useHarness();

const canary = "Canary7e3f";
let home: World;
let other: World;

beforeAll(async () => {
  home = await makeWorld(harness.current);
  other = await makeWorld(harness.current, canary);
});

/** A service with these permissions, pinned where an org is named. */
const service = (scope: string, org = ""): Promise<Callers> =>
  serviceWith(harness.current, scope, org);

const reads = ways.filter(({ method }) => method.idempotency === Idempotency.NO_SIDE_EFFECTS);
const mutations = ways.filter((way) => !reads.includes(way));
const contents = (...without: string[]) => contentsOf(harness.current, ...without);
const listed = (some: readonly Way[]) => some.map((way) => [way.name, way] as const);
const having = (field: string, some: readonly Way[] = ways) =>
  listed(some.filter(({ method }) => method.input.fields.some(({ name }) => name === field)));

/** A world that the sample may take apart. */
const worldFor = async ({ name }: Way): Promise<World> =>
  name === "OrgService.DeleteOrg" ? makeWorld(harness.current) : home;

describe("Every RPC", () => {
  test("has a sample request", () => {
    expect(methods.size).toBeGreaterThan(30);
    expect([...methods.keys()].filter((name) => !(name in samples))).toEqual([]);
  });

  test.each(listed(ways))("%s answers its sample request", async (_name, way) => {
    const world = await worldFor(way);
    await send(
      await callersFor(harness.current, way, world),
      way.method,
      await requestOf(way, world),
    );
  });
});

describe("Every id in every request", () => {
  const fields = ways.flatMap((way) =>
    idPaths(way.method).map((path) => [`${path} of ${way.name}`, way, path] as const),
  );
  const heeded = fields.filter(([, way, path]) => !way.ignored?.includes(path));
  const selecting = heeded.filter(([, { rule }, path]) => path === rule.org);
  const [inviting, orgs] = [true, false].map((invites) =>
    selecting.filter(([, { rule }]) => (rule.scope === Scope.INVITEE) === invites),
  ) as [typeof selecting, typeof selecting];
  const others = heeded.filter(([, { rule }, path]) => path !== rule.org);
  const [unknowns, resources] = [true, false].map((may) =>
    others.filter(([, { unknown }, path]) => (unknown?.includes(path) ?? false) === may),
  ) as [typeof others, typeof others];

  test("is of a kind that these tests know", () => {
    expect(new Set(resources.map(([, , path]) => path.split(".").at(-1)))).toEqual(
      new Set([
        "id",
        "user_id",
        "owner_user_id",
        "from_user_id",
        "to_user_id",
        "org_id",
        "team_id",
        "parent_team_id",
        "audit_entry_id",
        "invitation_id",
      ]),
    );
  });

  /** Another tenant's id and a deleted one, of the kind that the field holds. */
  const strangers = (path: string): { foreign: string; deleted?: string } =>
    path.includes("team") && !path.endsWith("user_id")
      ? { foreign: other.teamId, deleted: home.deletedTeamId }
      : path === "audit_entry_id"
        ? { foreign: other.auditEntryId }
        : path === "org_id"
          ? { foreign: other.orgId, deleted: home.deletedOrgId }
          : path === "invitation_id"
            ? { foreign: other.invitationId }
            : { foreign: other.mateId, deleted: home.deletedUserId };

  const alike = async (
    way: Way,
    callers: Callers,
    request: Message,
    path: string,
    ids: string[],
  ) => {
    const ask = (id: string) =>
      refusal(send(callers, way.method, withField(way.method, request, path, id)));
    const random = randomUUID();
    const absent = await ask(random);
    for (const id of ids) {
      const refused = await ask(id);
      expect(told(refused, id)).toBe(told(absent, random));
    }
    return absent;
  };

  test.each(orgs)("PERMISSION_DENIED for an org not the caller's: %s", async (_name, way, path) => {
    const request = await requestOf(way, home);
    const ids = [other.orgId, home.deletedOrgId];
    const { permission } = way.rule;
    const scope = `${permission} ${permission.replace("users.", "members.")} roster.platform`;
    const pinned = await service(scope, home.orgId);
    for (const callers of [home.owner, pinned]) {
      const refused = await alike(way, callers, request, path, ids);
      expect(refused).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
    }
  });

  test.each(orgs)(
    "NOT_FOUND to platform and services for an org that is not there: %s",
    async (_name, way, path) => {
      const request = await requestOf(way, home);
      const { permission, deletedOrg } = way.rule;
      const scope = permission.replace("users.", "members.");
      const unpinned = await service(scope);
      for (const callers of [harness.current.ops, unpinned]) {
        // Platform may read a deleted org where the rule says so.
        const platform = callers !== unpinned || permission === "roster.platform";
        const shown = deletedOrg && platform;
        const ids = shown ? [] : [home.deletedOrgId];
        const refused = await alike(way, callers, request, path, ids);
        expect(refused).toMatchObject({ code: "NotFound", reason: "ORG_NOT_FOUND" });
      }
    },
  );

  test.each(inviting)(
    "NOT_FOUND for an org that did not invite, whatever it is: %s",
    async (_name, way, path) => {
      const request = await requestOf(way, home);
      const { userId } = request as Message & { userId: string };
      const ids = [other.orgId, home.deletedOrgId];
      const invited = await harness.current.as(userId);
      for (const callers of [invited, await service(way.rule.permission)]) {
        const refused = await alike(way, callers, request, path, ids);
        expect(refused).toMatchObject({ code: "NotFound", reason: "INVITATION_NOT_FOUND" });
      }
      const pinned = await service(way.rule.permission, home.orgId);
      const refused = await alike(way, pinned, request, path, ids);
      expect(refused).toMatchObject({ code: "PermissionDenied", reason: "ORG_NOT_ALLOWED" });
    },
  );

  test.each(resources)(
    "NOT_FOUND for what is not there, whatever it is: %s",
    async (_name, way, path) => {
      const { foreign, deleted } = strangers(path);
      const everywhere = way.by === "platform" || way.by === "service";
      // A live user may be added by whoever knows their id: the one exception.
      const known = everywhere || way.name === "OrgService.AddOrgMember";
      // What is to be brought back or removed for good is deleted; of deleted users all is exported that is still held.
      const gone = /^(Undelete|Purge|Erase|Export)/.test(way.method.name) ? undefined : deleted;
      const ids = [...(known ? [] : [foreign]), ...(gone ? [gone] : [])];
      const request = await requestOf(way, home);
      const refused = await alike(
        way,
        await callersFor(harness.current, way, home),
        request,
        path,
        ids,
      );
      expect(refused.code).toBe("NotFound");
      if (everywhere) {
        const denied = await alike(way, home.member, request, path, [foreign]);
        expect(["PERMISSION_MISSING", "ORG_REQUIRED"]).toContain(denied.reason);
      }
    },
  );

  // To the platform nothing is foreign.
  const blind = unknowns.filter(([, { by }]) => by !== "platform");

  test.each(blind)("is answered alike, be it of nothing: %s", async (_name, way, path) => {
    const { foreign, deleted } = strangers(path);
    const request = await requestOf(way, home);
    const ask = (id = "") => send(home.owner, way.method, withField(way.method, request, path, id));
    const answer = await ask(randomUUID());
    expect(await ask(foreign)).toBe(answer);
    // That something was deleted is a change.
    if (way.rule.permission !== "changes.read") expect(await ask(deleted)).toBe(answer);
    expect(await send(home.owner, way.method, request)).not.toBe(answer);
  });

  test.each(heeded)(
    "INVALID_ARGUMENT names it when it is malformed: %s",
    async (_name, way, path) => {
      const request = withField(way.method, await requestOf(way, home), path, "not-an-id");
      const refused = await refusal(
        send(await callersFor(harness.current, way, home), way.method, request),
      );
      expect(refused).toMatchObject({ code: "InvalidArgument", fields: [path] });
    },
  );

  test.each(fields.filter(([, way, path]) => way.ignored?.includes(path)))(
    "has no effect where the RPC does not read it: %s",
    async (_name, way, path) => {
      const { foreign } = strangers(path);
      const request = withField(way.method, await requestOf(way, home), path, foreign);
      const answer = await send(await callersFor(harness.current, way, home), way.method, request);
      expect(answer).not.toContain(foreign);
    },
  );
});

describe("Every list of ids", () => {
  const lists = ways.flatMap((way) =>
    way.method.input.fields
      .filter(({ name, fieldKind }) => fieldKind === "list" && name.endsWith("_ids"))
      .map((field) => [`${field.name} of ${way.name}`, way, field] as const),
  );

  test("is of a kind that these tests know", () => {
    expect(new Set(lists.map(([, , { name }]) => name))).toEqual(
      new Set(["user_ids", "org_ids", "team_ids"]),
    );
  });

  test.each(lists)(
    "misses what is not the caller's to see, whatever it is: %s",
    async (...[, way, { name }]) => {
      const request = await requestOf(way, home);
      const [own = "", foreign = "", deleted = ""] =
        {
          user_ids: [home.mateId, other.mateId, home.deletedUserId],
          org_ids: [home.orgId, other.orgId, home.deletedOrgId],
          team_ids: [home.teamId, other.teamId, home.deletedTeamId],
        }[name] ?? [];
      const ids = [foreign, own, randomUUID(), deleted, own, foreign];
      const missing = ids.filter((id) => id !== own);
      const everywhere = way.by === "service";
      const caller = await callersFor(harness.current, way, home);
      for (const callers of everywhere && way.rule.own ? [caller, home.member] : [caller]) {
        const known = callers === caller && everywhere ? [own, foreign] : [own];
        const answer = await send(callers, way.method, withField(way.method, request, name, ids));
        const { missingIds, ...rest } = JSON.parse(answer);
        const [found] = Object.values(rest) as { id: string }[][];
        expect(found?.map(({ id }) => id)).toEqual(ids.filter((id) => known.includes(id)));
        expect(missingIds).toEqual(missing.filter((id) => !known.includes(id)));
      }
    },
  );

  test.each(lists)(
    "INVALID_ARGUMENT for a malformed id or too many: %s",
    async (...[, way, { name }]) => {
      const request = await requestOf(way, home);
      const ids = Array.from({ length: 1_001 }, () => randomUUID());
      for (const [value, field] of [
        [[ids[0], "not-an-id"], `${name}[1]`],
        [ids, name],
      ] as const) {
        const call = send(
          await callersFor(harness.current, way, home),
          way.method,
          withField(way.method, request, name, value),
        );
        expect(await refusal(call)).toMatchObject({ code: "InvalidArgument", fields: [field] });
      }
    },
  );
});

describe("Every update, list and etag", () => {
  test.each(having("update_mask"))(
    "INVALID_ARGUMENT for an unknown path in the mask: %s",
    async (_name, way) => {
      for (const path of ["no_such_field", "etag"]) {
        const updateMask = { paths: [path] };
        const request = withField(
          way.method,
          await requestOf(way, home),
          "update_mask",
          updateMask,
        );
        expect(
          await refusal(send(await callersFor(harness.current, way, home), way.method, request)),
        ).toMatchObject({
          code: "InvalidArgument",
          reason: "UPDATE_MASK_INVALID",
          fields: ["update_mask"],
        });
      }
    },
  );

  test.each(having("page_size"))("INVALID_ARGUMENT for a bad page: %s", async (_name, way) => {
    const sample = await requestOf(way, home);
    const callers = await callersFor(harness.current, way, home);
    for (const [path, value, reason] of [
      ["page_size", -1, "FIELD_INVALID"],
      ["page_token", "garbage", "PAGE_TOKEN_INVALID"],
      ["page_token", Buffer.alloc(64).toString("base64url"), "PAGE_TOKEN_INVALID"],
    ] as const) {
      // The feed goes on by positions instead.
      if (!way.method.input.fields.some(({ name }) => name === path)) continue;
      const request = withField(way.method, sample, path, value);
      const refused = await refusal(send(callers, way.method, request));
      expect(refused).toMatchObject({ code: "InvalidArgument", reason, fields: [path] });
    }
  });
});

describe("Every read", () => {
  test.each(listed(reads))("writes nothing: %s", async (_name, way) => {
    const request = await requestOf(way, home);
    const before = await contents();
    const callers = [
      await callersFor(harness.current, way, home),
      home.owner,
      home.guest,
      home.outsider,
    ];
    for (const caller of callers.filter((one) => one !== harness.current.ops))
      await heard(send(caller, way.method, request));
    expect(await contents()).toEqual(before);
  });

  test.each(listed(reads))(
    "of an operator leaves an entry, and that alone: %s",
    async (name, way) => {
      const { ops } = harness.current;
      const request = await requestOf(way, home);
      const before = await contents("roster.audit_entries");
      const id = randomUUID();
      await send(ops, way.method, request, { "x-request-id": id, "roster-reason": "ticket 7" });
      expect(await contents("roster.audit_entries")).toEqual(before);
      const method = `roster.v1.${name.split(" ")[0]?.replace(".", "/")}`;
      expect(await entriesOf(harness.current, id)).toEqual([{ method, outcome: "SUCCEEDED" }]);
    },
  );
});

describe("Every mutation", () => {
  test.each(listed(mutations))(
    "leaves one audit entry, and none when it fails: %s",
    async (name, way) => {
      const world = await worldFor(way);
      const callers = await callersFor(harness.current, way, world);
      const request = await requestOf(way, world);
      const [first, second] = [randomUUID(), randomUUID()];
      const ask = (message: Message, id: string) =>
        send(callers, way.method, message, { "x-request-id": id });
      const fail = async (message: Message, code: string) => {
        const before = await contents();
        expect((await refusal(ask(message, second))).code).toBe(code);
        expect(await contents()).toEqual(before);
      };
      const path = way.fault ? undefined : etagPath(way);
      if (path) await fail(withField(way.method, request, path, '"99"'), "Aborted");
      if (way.fault) await fail(withField(way.method, request, ...way.fault), "InvalidArgument");
      await ask(request, first);
      if (!path && !way.fault) await fail(request, "AlreadyExists");
      const method = `roster.v1.${name.split(" ")[0]?.replace(".", "/")}`;
      expect(await entriesOf(harness.current, first)).toEqual([{ method, outcome: "SUCCEEDED" }]);
      expect(await entriesOf(harness.current, second)).toEqual([]);
    },
  );

  test.each(listed(mutations))("changes nothing for who may not: %s", async (_name, way) => {
    const request = await requestOf(way, home);
    // Of one caller's refusals only so many are recorded.
    const outsider = await harness.current.as(await harness.current.user());
    const before = await contents("roster.audit_entries");
    const id = randomUUID();
    const call = send(outsider, way.method, request, { "x-request-id": id });
    expect((await refusal(call)).code).toBe("PermissionDenied");
    expect(await contents("roster.audit_entries")).toEqual(before);
    expect(await entriesOf(harness.current, id)).toMatchObject([{ outcome: "DENIED" }]);
  });
});

describe("The other tenant", () => {
  test.each(listed(ways))("stays unheard and unseen: %s", async (_name, way) => {
    const { owner, member, guest, orgId } = home;
    const scope =
      "org.get members.get members.update teams.get teams.update audit.read changes.read users.get";
    const pinned = await service(scope, orgId);
    const theirs = await requestOf(way, other);
    const requests = [theirs, await requestOf(way, home)];
    if (way.rule.org !== "") requests.push(withField(way.method, theirs, way.rule.org, orgId));
    const callers = [owner, member, guest, pinned];
    // An owner may delete their org, and with it the rest of these tests.
    if (way.name === "OrgService.DeleteOrg") callers.shift();
    const answers = callers.flatMap((caller) =>
      requests.map((request) => heard(send(caller, way.method, request))),
    );
    expect((await Promise.all(answers)).join("\n")).not.toContain(canary);
  });

  test("is no empty promise: they hear of themselves, and platform hears of them", async () => {
    const { users } = harness.current.ops;
    const { user } = await users.getUser({ userId: other.mateId });
    expect(user?.name).toContain(canary);
    const list = ways.find(({ name }) => name === "TeamService.ListTeams") as Way;
    expect(await send(other.owner, list.method, await requestOf(list, other))).toContain(canary);
  });
});

describe("The log", () => {
  test("names every call and no person: neither email nor name nor anything written by one", async () => {
    const text = JSON.stringify(harness.current.logs);
    expect(harness.current.logs.length).toBeGreaterThan(500);
    expect(text).toContain(home.ownerId);
    expect(text).not.toContain(canary);
    expect(text).not.toMatch(/example\.com|Some One|World/i);
  });
});
