import { toBinary } from "@bufbuild/protobuf";
import { afterEach, describe, expect, test, vi } from "vitest";
import { ListUsersResponseSchema } from "../src/gen/roster/v1/user_service_pb.ts";
import { View } from "../src/gen/roster/v1/view_pb.ts";
import { byHand } from "./console.ts";
import { refusal, slug, useHarness } from "./harness.ts";

const harness = useHarness();

const invalidToken = {
  code: "InvalidArgument",
  reason: "PAGE_TOKEN_INVALID",
  fields: ["page_token"],
};

interface Page {
  readonly pageSize?: number;
  readonly pageToken?: string;
}

/** A list with rows of its own, which a test can add to and take from. */
interface Shelf {
  readonly list: (page: Page) => Promise<{ ids: string[]; next: string }>;
  readonly add: () => Promise<string>;
  readonly remove: (id: string) => Promise<unknown>;
}

const idsOf = (items: readonly { id: string }[]): string[] => items.map(({ id }) => id);

const newOrg = async (ownerUserId: string): Promise<string> => {
  const org = { name: "Org", slug: slug() };
  const response = await harness.current.ops.orgs.createOrg({ org, ownerUserId });
  return response.org?.id ?? "";
};

/** An org to which members can be added. */
const crowd = async () => {
  const { ops } = harness.current;
  const orgId = await newOrg(await harness.current.user());
  return {
    orgId,
    add: async () => {
      const userId = await harness.current.user();
      await ops.orgs.addOrgMember({ orgId, userId });
      return userId;
    },
    remove: (userId: string) => ops.orgs.removeOrgMember({ orgId, userId }),
  };
};

const shelves: Record<string, () => Promise<Shelf>> = {
  "ListUsers of the platform": async () => {
    const { users } = harness.current.ops;
    return {
      list: async (page) => {
        const { users: rows, nextPageToken } = await users.listUsers(page);
        return { ids: idsOf(rows), next: nextPageToken };
      },
      add: () => harness.current.user(),
      remove: (userId) => users.deleteUser({ userId }),
    };
  },
  "ListUsers of an org": async () => {
    const { orgId, add, remove } = await crowd();
    const list = async (page: Page) => {
      const { users, nextPageToken } = await harness.current.ops.users.listUsers({
        ...page,
        orgId,
      });
      return { ids: idsOf(users), next: nextPageToken };
    };
    return { list, add, remove };
  },
  ListOrgMembers: async () => {
    const { orgId, add, remove } = await crowd();
    const list = async (page: Page) => {
      const response = await harness.current.ops.orgs.listOrgMembers({ ...page, orgId });
      return { ids: response.members.map(({ userId }) => userId), next: response.nextPageToken };
    };
    return { list, add, remove };
  },
  ListOrgs: async () => {
    const { orgs } = harness.current.ops;
    const ownerId = await harness.current.user();
    return {
      list: async (page) => {
        const { orgs: rows, nextPageToken } = await orgs.listOrgs(page);
        return { ids: idsOf(rows), next: nextPageToken };
      },
      add: () => newOrg(ownerId),
      remove: (orgId) => orgs.deleteOrg({ orgId }),
    };
  },
  ListUserOrgs: async () => {
    const { ops } = harness.current;
    const userId = await harness.current.user();
    const ownerId = await harness.current.user();
    return {
      list: async (page) => {
        const { userOrgs, nextPageToken } = await ops.users.listUserOrgs({ ...page, userId });
        return { ids: userOrgs.map(({ org }) => org?.id ?? ""), next: nextPageToken };
      },
      add: async () => {
        const orgId = await newOrg(ownerId);
        await ops.orgs.addOrgMember({ orgId, userId });
        return orgId;
      },
      remove: (orgId) => ops.orgs.removeOrgMember({ orgId, userId }),
    };
  },
};
const names = Object.keys(shelves);
const shelf = (name: string): Promise<Shelf> => shelves[name]?.() ?? expect.fail(name);

/** So many users at once, members of an org where one is named. */
const bulk = async (count: number, labels: string, orgId?: string): Promise<void> => {
  const { admin } = harness.current;
  await byHand(
    admin,
    `with u as (
      insert into roster.users (id, email, name, labels)
      select gen_random_uuid(), gen_random_uuid() || '@example.com', 'Bulk', ${labels}
      from generate_series(1, $1) returning id)
    insert into roster.org_members (org_id, user_id) select $2::uuid, id from u where $2 is not null`,
    [count, orgId ?? null],
  );
};

afterEach(() => {
  vi.useRealTimers();
});

describe("Every list", () => {
  test.each(names)("%s gives each row once, also while rows come and go", async (name) => {
    const { list, add, remove } = await shelf(name);
    const staying = new Set<string>();
    const going: string[] = [];
    for (let i = 0; i < 16; i++) {
      const id = await add();
      if (i % 4 === 3) going.push(id);
      else staying.add(id);
    }
    const seen: string[] = [];
    let pageToken = "";
    do {
      const { ids, next } = await list({ pageSize: 3, pageToken });
      expect(ids.length).toBeLessThanOrEqual(3);
      seen.push(...ids);
      pageToken = next;
      // The row that the token stands on goes, and one that is still to come, and a new one comes.
      const last = ids.at(-1);
      if (last !== undefined && staying.delete(last)) await remove(last);
      const ahead = going.pop();
      if (ahead !== undefined && !seen.includes(ahead)) await remove(ahead);
      if (seen.length < 9) await add();
    } while (pageToken !== "");
    expect(new Set(seen).size).toBe(seen.length);
    expect(staying.size).toBeGreaterThan(4);
    expect(seen).toEqual(expect.arrayContaining([...staying]));
  });

  test.each(names)("%s ends with an empty token, also on a full last page", async (name) => {
    const { list, add } = await shelf(name);
    for (let i = 0; i < 3; i++) await add();
    const { ids, next } = await list({ pageSize: 1000 });
    expect(next).toBe("");
    expect((await list({ pageSize: ids.length })).next).toBe("");
    expect((await list({ pageSize: ids.length - 1 })).next).not.toBe("");
  });

  test.each(names)("%s: INVALID_ARGUMENT for a negative page_size", async (name) => {
    const { list } = await shelf(name);
    const refused = await refusal(list({ pageSize: -1 }));
    expect(refused).toMatchObject({ code: "InvalidArgument", reason: "FIELD_INVALID" });
    expect(refused.fields).toEqual(["page_size"]);
  });

  test.each(names)(
    "%s: INVALID_ARGUMENT for a token that was touched, or moved to another caller",
    async (name) => {
      const { list, add } = await shelf(name);
      for (let i = 0; i < 3; i++) await add();
      const { next } = await list({ pageSize: 1 });
      expect((await list({ pageSize: 2, pageToken: next })).ids).toHaveLength(2);
      const touched = [...next].map(
        (letter, i) => `${next.slice(0, i)}${letter === "A" ? "B" : "A"}${next.slice(i + 1)}`,
      );
      const wrong = [
        "x",
        "!",
        next.slice(1),
        next.slice(0, -1),
        `${next}A`,
        `${next}=`,
        `${next} `,
      ];
      for (const pageToken of [
        ...touched.filter((_, i) => i % 7 === 0),
        ...touched.slice(-1),
        ...wrong,
      ]) {
        expect(await refusal(list({ pageSize: 1, pageToken })), pageToken).toMatchObject(
          invalidToken,
        );
      }
      const other = (await shelf(name)).list({ pageSize: 1, pageToken: next });
      // Lists of the whole platform are the same list to the same caller.
      if (/platform|ListOrgs$/.test(name)) expect((await other).ids).toHaveLength(1);
      else expect(await refusal(other)).toMatchObject(invalidToken);
    },
  );

  test("gives 50 rows unless asked otherwise, and at most 1,000", async () => {
    const { orgId } = await crowd();
    await bulk(1_004, "'{}'", orgId);
    const { orgs } = harness.current.ops;
    for (const [pageSize, count] of [
      [0, 50],
      [1, 1],
      [999, 999],
      [1_000, 1_000],
      [1_001, 1_000],
      [2_147_483_647, 1_000],
    ] as const) {
      const { members, nextPageToken } = await orgs.listOrgMembers({ orgId, pageSize });
      expect(members).toHaveLength(count);
      const rest = await orgs.listOrgMembers({ orgId, pageToken: nextPageToken, pageSize: 1_000 });
      expect(rest.members).toHaveLength(Math.min(1_000, 1_005 - count));
    }
  });
});

describe("A page token", () => {
  test("INVALID_ARGUMENT in another RPC, for another caller, in another org, with other arguments", async () => {
    const { orgId, memberId, owner, admin, member } = await harness.current.tenant();
    const other = await harness.current.tenant();
    await other.owner.orgs.addOrgMember({ orgId: other.orgId, userId: memberId });
    const { nextPageToken: pageToken } = await member.users.listUsers({ orgId, pageSize: 1 });
    const pinned = await harness.current.as(memberId, { org: orgId });
    for (const call of [
      () => member.orgs.listOrgMembers({ orgId, pageToken }),
      () => member.teams.listTeams({ orgId, pageToken }),
      () => owner.users.listUsers({ orgId, pageToken }),
      () => admin.users.listUsers({ orgId, pageToken }),
      () => harness.current.ops.users.listUsers({ orgId, pageToken }),
      () => harness.current.ops.users.listUsers({ pageToken }),
      () => member.users.listUsers({ orgId: other.orgId, pageToken }),
      () => member.users.listUsers({ orgId, pageToken, view: View.FULL }),
      () => member.users.listUsers({ orgId, pageToken, showDeleted: true }),
    ]) {
      expect(await refusal(call()), call.toString()).toMatchObject(invalidToken);
    }
    const inOrg = (id: string) => harness.current.as(memberId, {}, { "roster-org-id": id });
    const headed = await (await inOrg(orgId)).users.listUsers({ pageSize: 1 });
    const moved = (await inOrg(other.orgId)).users.listUsers({ pageToken: headed.nextPageToken });
    expect(await refusal(moved)).toMatchObject(invalidToken);
    // Another credential of the same caller does as well, and so does another page size.
    expect((await pinned.users.listUsers({ orgId, pageToken, pageSize: 7 })).users).toHaveLength(3);
  });

  test("does not show what it holds", async () => {
    const { orgId, member } = await harness.current.tenant();
    const { users, nextPageToken } = await member.users.listUsers({ orgId, pageSize: 1 });
    const held = Buffer.from(nextPageToken, "base64url").toString("latin1");
    expect(held.length).toBeGreaterThan(40);
    expect(held).not.toContain(users[0]?.id.slice(0, 8));
    // The same page twice has two tokens.
    const again = await member.users.listUsers({ orgId, pageSize: 1 });
    expect(again.nextPageToken).not.toBe(nextPageToken);
  });

  test("says nothing to who may not list", async () => {
    const { orgId, guest } = await harness.current.tenant();
    const refused = await refusal(guest.users.listUsers({ orgId, pageToken: "x", pageSize: -1 }));
    expect(refused).toMatchObject({ code: "PermissionDenied", reason: "PERMISSION_MISSING" });
    const token = await refusal(guest.users.listUsers({ orgId, pageToken: "x" }));
    expect(token).toMatchObject({ code: "PermissionDenied", reason: "PERMISSION_MISSING" });
  });

  test("INVALID_ARGUMENT once it is older than 24 hours", async () => {
    const { orgId, memberId } = await harness.current.tenant();
    const { users } = await harness.current.as(memberId, { expires: "3d" });
    const { nextPageToken: pageToken } = await users.listUsers({ orgId, pageSize: 1 });
    const hour = 3_600_000;
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + 23.9 * hour });
    expect((await users.listUsers({ orgId, pageToken })).users).toHaveLength(3);
    vi.setSystemTime(Date.now() + 0.2 * hour);
    expect(await refusal(users.listUsers({ orgId, pageToken }))).toMatchObject(invalidToken);
  });
});

describe("A heavy page", () => {
  test.each([
    ["one byte", "v"],
    ["three bytes", "語"],
  ])("stays below 2 MiB and loses no row, with letters of %s", async (_, letter) => {
    const { orgId } = await crowd();
    const labels = `(select jsonb_object_agg(rpad(i::text, 63, 'k'), repeat('${letter}', 255))
      from generate_series(1, 64) i)`;
    await bulk(150, labels, orgId);
    const seen: string[] = [];
    let pages = 0;
    let pageToken = "";
    do {
      const page = await harness.current.ops.users.listUsers({ orgId, pageSize: 1_000, pageToken });
      expect(toBinary(ListUsersResponseSchema, page).length).toBeLessThanOrEqual(2 * 1024 * 1024);
      seen.push(...idsOf(page.users));
      pageToken = page.nextPageToken;
      pages++;
    } while (pageToken !== "");
    expect(pages).toBeGreaterThan(1);
    expect(new Set(seen).size).toBe(151);
    expect(seen).toHaveLength(151);
  });
});
