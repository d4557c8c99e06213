import { randomUUID } from "node:crypto";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import { describe, expect, test } from "vitest";
import { ErrorInfoSchema } from "../src/gen/google/rpc/error_details_pb.ts";
import { TeamRole } from "../src/gen/roster/v1/team_member_pb.ts";
import type { SetTeamMembersResult } from "../src/gen/roster/v1/team_service_pb.ts";
import { newest } from "./audit-log.ts";
import { byHand } from "./console.ts";
import { type Callers, pipelined, refusal, useHarness } from "./harness.ts";
import { makeTeam, tenantWithTeam } from "./made-team.ts";
import { overlap } from "./overlap.ts";
import { told } from "./samples.ts";

const harness = useHarness();

const { MEMBER, MAINTAINER } = TeamRole;

/** New members of an org, in the order of their ids. */
const newMembers = async (orgId: string, count: number): Promise<string[]> => {
  const { ops } = harness.current;
  const { results } = await ops.users.batchCreateUsers({
    users: Array.from({ length: count }, () => ({
      user: { email: `${randomUUID()}@example.com`, name: "Some One" },
    })),
  });
  const ids = results.map(({ result }) => (result.case === "user" ? result.value.id : ""));
  await ops.orgs.batchAddOrgMembers({ orgId, members: ids.map((userId) => ({ userId })) });
  return ids.sort();
};

/** An org with a team, and people in the org. */
const world = async (count = 4) => {
  const tenant = await tenantWithTeam(harness.current);
  const { orgId, owner, team } = tenant;
  const people = await newMembers(orgId, count);
  const teamId = team.id;
  const set = async ({ teams }: Callers, members: { userId: string; role?: TeamRole }[]) =>
    teams.setTeamMembers({ orgId, teamId, members });
  /** Who is in the team now. */
  const now = async () => {
    const { members } = await owner.teams.listTeamMembers({ orgId, teamId, pageSize: 1_000 });
    return members;
  };
  const idsNow = async () => (await now()).map(({ userId }) => userId);
  return { ...tenant, teamId, people, set, now, idsNow };
};

/** What became of an item: the role, or what was wrong and with which field. */
const outcomeOf = ({ result }: SetTeamMembersResult): string => {
  if (result.case === "member") return result.value.role === MAINTAINER ? "MAINTAINER" : "MEMBER";
  const [detail] = result.value?.details ?? [];
  const info = detail && anyUnpack(detail, ErrorInfoSchema);
  return `${info?.reason} ${info?.metadata.field}`;
};

describe("TeamService.SetTeamMembers", () => {
  test("adds who is missing, changes other roles, removes the rest and leaves who stays as they are", async () => {
    const { orgId, teamId, owner, people, set, now } = await world();
    const [a = "", b = "", c = "", d = ""] = people;
    await set(owner, [{ userId: a }, { userId: b }, { userId: c, role: MAINTAINER }]);
    const before = await now();
    const { results, removedUserIds } = await set(owner, [
      { userId: d.toUpperCase(), role: MAINTAINER },
      { userId: b, role: MAINTAINER },
      { userId: c, role: MAINTAINER },
    ]);
    expect(results.map(({ result }) => result.value)).toMatchObject([
      { orgId, teamId, userId: d, role: MAINTAINER, etag: '"1"', viaTeamIds: [] },
      { userId: b, role: MAINTAINER, etag: '"2"' },
      { userId: c, role: MAINTAINER, etag: '"1"' },
    ]);
    expect(removedUserIds).toEqual([a]);
    const after = await now();
    expect(after.map(({ userId }) => userId)).toEqual([b, c, d]);
    expect(after[1]).toEqual(before[2]);
    const { changes, changeCount } = await newest(owner, orgId);
    expect(changeCount).toBe(3);
    expect(changes.map(({ kind, resourceId }) => `${kind} ${resourceId}`).sort()).toEqual(
      [`1 ${teamId}/${d}`, `2 ${teamId}/${b}`, `3 ${teamId}/${a}`].sort(),
    );
  });

  test("changes nothing when all is as it is to be, and empties the team without members", async () => {
    const { orgId, owner, people, set, now, idsNow } = await world();
    const list = people.map((userId, n) => ({ userId, role: n % 2 ? MAINTAINER : MEMBER }));
    await set(owner, list);
    const before = await now();
    const { results, removedUserIds } = await set(owner, list.toReversed());
    expect(results.map(({ result }) => result.value)).toEqual(before.toReversed());
    expect(removedUserIds).toEqual([]);
    expect((await newest(owner, orgId)).changeCount).toBe(0);
    expect((await set(owner, [])).removedUserIds).toEqual(people);
    expect(await idsNow()).toEqual([]);
  });

  test("answers for each who is no member of the org, and sets the others", async () => {
    const { orgId, owner, outsiderId, people, set, idsNow } = await world(5);
    const [a = "", deleted = "", expired = "", left = "", b = ""] = people;
    await set(owner, [{ userId: a }, { userId: expired }]);
    await harness.current.ops.users.deleteUser({ userId: deleted });
    const expire = "update roster.org_members set expire_time = now() where user_id = $1";
    await byHand(harness.current.admin, expire, [expired]);
    await owner.orgs.removeOrgMember({ orgId, userId: left });
    const absent = [randomUUID(), outsiderId, deleted, expired, left];
    const { results, removedUserIds } = await set(owner, [
      ...absent.map((userId) => ({ userId })),
      { userId: b },
    ]);
    expect(results.map(outcomeOf)).toEqual([
      ...absent.map((_, n) => `ORG_MEMBER_NOT_FOUND members[${n}].user_id`),
      "MEMBER",
    ]);
    expect(removedUserIds).toEqual([a]);
    expect(await idsNow()).toEqual([b]);
  });

  test("of a user who is named again takes the first role, and says so where it differs", async () => {
    const { owner, people, set } = await world();
    const [a = "", b = ""] = people;
    const { results } = await set(owner, [
      { userId: a, role: MAINTAINER },
      { userId: b },
      { userId: a.toUpperCase(), role: MAINTAINER },
      { userId: b, role: MEMBER },
      { userId: a },
      { userId: b, role: MAINTAINER },
    ]);
    expect(results.map(outcomeOf)).toEqual([
      "MAINTAINER",
      "MEMBER",
      "MAINTAINER",
      "MEMBER",
      "FIELD_INVALID members[4].role",
      "FIELD_INVALID members[5].role",
    ]);
    expect(results[2]).toEqual(results[0]);
  });

  test("does not touch who is deleted, who comes back as before", async () => {
    const { owner, people, set, idsNow } = await world();
    const [a = "", b = ""] = people;
    await set(owner, [{ userId: a }, { userId: b }]);
    await harness.current.ops.users.deleteUser({ userId: a });
    expect((await set(owner, [{ userId: b }])).removedUserIds).toEqual([]);
    await harness.current.ops.users.undeleteUser({ userId: a });
    expect(await idsNow()).toEqual([a, b]);
  });

  test("takes a thousand members in as many statements as one", async () => {
    const { owner, people, set, now } = await world(1_000);
    const list = people.map((userId) => ({ userId }));
    const few = await harness.current.flushesOf(() => set(owner, list.slice(0, 1)));
    const many = await harness.current.flushesOf(() => set(owner, list));
    expect(many).toBe(few);
    expect(many).toBeLessThanOrEqual(pipelined ? 6 : 12);
    expect(await now()).toHaveLength(1_000);
    const { removedUserIds } = await set(owner, list.slice(0, 1));
    expect(removedUserIds).toEqual(people.slice(1));
    const tooMany = set(owner, [...list, { userId: randomUUID() }]);
    expect(await refusal(tooMany)).toMatchObject({ code: "InvalidArgument", fields: ["members"] });
  });

  test("NOT_FOUND for a team that is deleted, another org's or never was, all alike", async () => {
    const { orgId, owner } = await world(1);
    const gone = await makeTeam(owner, { orgId, name: "Gone" });
    await owner.teams.deleteTeam({ orgId, teamId: gone.id });
    const foreign = await tenantWithTeam(harness.current);
    const call = (teamId: string) => refusal(owner.teams.setTeamMembers({ orgId, teamId }));
    const random = randomUUID();
    const absent = await call(random);
    expect(absent).toMatchObject({ code: "NotFound", reason: "TEAM_NOT_FOUND" });
    for (const id of [gone.id, foreign.team.id])
      expect(told(await call(id), id)).toBe(told(absent, random));
  });

  test("is for maintainers of the team, who may step down and take themselves out", async () => {
    const { owner, member, memberId, people, set, idsNow } = await world();
    const [a = ""] = people;
    await set(owner, [{ userId: memberId }]);
    expect(await refusal(set(member, []))).toMatchObject({ reason: "PERMISSION_MISSING" });
    await set(owner, [{ userId: memberId, role: MAINTAINER }]);
    await set(member, [{ userId: a }]);
    expect(await idsNow()).toEqual([a]);
    // Those who come before them and those who come after, in whichever order.
    await set(owner, [{ userId: a }, { userId: memberId, role: MAINTAINER }]);
    const { results, removedUserIds } = await set(
      member,
      [memberId, ...people.slice(1)].map((userId) => ({ userId })),
    );
    expect(results.map(outcomeOf)).toEqual(results.map(() => "MEMBER"));
    expect(removedUserIds).toEqual([a]);
  });
});

describe("SetTeamMembers at the same time as", () => {
  test("itself, leaves one of the lists, whole", async () => {
    const { owner, people, set, idsNow } = await world(12);
    const lists = [
      people.slice(0, 8),
      people.slice(4).toReversed(),
      people.filter((_, n) => n % 2),
    ];
    for (let round = 0; round < 8; round++) {
      const calls = lists.map((list) =>
        set(
          owner,
          list.map((userId) => ({ userId })),
        ),
      );
      for (const { results } of await Promise.all(calls))
        for (const { result } of results) expect(result.case).toBe("member");
      const left = await idsNow();
      expect(lists.map((list) => [...list].sort())).toContainEqual(left);
    }
  });

  test("itself, takes out whom the one before it brought", async () => {
    const { owner, people, set, idsNow } = await world(2);
    const [a = "", b = ""] = people;
    const [, second] = await overlap(
      harness.current,
      () => set(owner, [{ userId: a }]),
      () => set(owner, [{ userId: b }]),
    );
    expect(second).toMatchObject({ status: "fulfilled", value: { removedUserIds: [a] } });
    expect(await idsNow()).toEqual([b]);
  });

  test("AddTeamMember and RemoveTeamMember of whom it names, has them with its role", async () => {
    const { orgId, teamId, owner, people, set, now } = await world(1);
    const [userId = ""] = people;
    const ask = { orgId, teamId, userId };
    const list = [{ userId, role: MAINTAINER }];
    for (const [before, other] of [
      [[], () => owner.teams.addTeamMember(ask)],
      [list, () => owner.teams.removeTeamMember(ask)],
      [list, () => owner.teams.updateTeamMember({ member: { ...ask, role: MEMBER } })],
      [[{ userId }], () => owner.teams.updateTeamMember({ member: { ...ask, role: MAINTAINER } })],
    ] as const) {
      await set(owner, [...before]);
      const [first, second] = await overlap(harness.current, other, () => set(owner, list));
      expect([first?.status, second?.status]).toEqual(["fulfilled", "fulfilled"]);
      expect(await now()).toMatchObject([{ userId, role: MAINTAINER }]);
    }
    // And the other way round: what comes behind it meets what it left.
    await set(owner, []);
    const [, added] = await overlap(
      harness.current,
      () => set(owner, list),
      () => refusal(owner.teams.addTeamMember(ask)),
    );
    expect(added).toMatchObject({ value: { reason: "TEAM_MEMBER_EXISTS" } });
  });

  test("RemoveOrgMember, answers for who is gone as for who never was", async () => {
    const { orgId, owner, people, set, idsNow } = await world(3);
    const [a = "", b = "", c = ""] = people;
    await set(owner, [{ userId: a }, { userId: c }]);
    const [, done] = await overlap(
      harness.current,
      () => owner.orgs.removeOrgMember({ orgId, userId: a }),
      () => set(owner, [{ userId: a }, { userId: b }]),
    );
    if (done?.status !== "fulfilled") return expect.fail("was refused");
    const { results, removedUserIds } = done.value as Awaited<ReturnType<typeof set>>;
    expect(results.map(outcomeOf)).toEqual(["ORG_MEMBER_NOT_FOUND members[0].user_id", "MEMBER"]);
    expect(removedUserIds).toEqual([c]);
    expect(await idsNow()).toEqual([b]);
    // And the other way round it goes with its membership of the org.
    const [set1, left] = await overlap(
      harness.current,
      () => set(owner, [{ userId: b }, { userId: c }]),
      () => owner.orgs.removeOrgMember({ orgId, userId: c }),
    );
    expect([set1?.status, left?.status]).toEqual(["fulfilled", "fulfilled"]);
    expect(await idsNow()).toEqual([b]);
  });

  test("DeleteTeam, finds no team behind it", async () => {
    const { orgId, teamId, owner, people, set } = await world(1);
    const [, second] = await overlap(
      harness.current,
      () => owner.teams.deleteTeam({ orgId, teamId }),
      () => refusal(set(owner, [{ userId: people[0] ?? "" }])),
    );
    expect(second).toMatchObject({ value: { reason: "TEAM_NOT_FOUND" } });
  });

  test("all of these in many teams, ends without a fault", async () => {
    const { orgId, teamId, owner, people, set } = await world(10);
    const other = await makeTeam(owner, { orgId, name: "Other" });
    const again = ({ orgs }: Callers, userId: string) => orgs.addOrgMember({ orgId, userId });
    const outcomes = new Set<string>();
    for (let round = 0; round < 10; round++) {
      const some = people.filter((_, n) => (n * 7 + round) % 3 > 0).map((userId) => ({ userId }));
      const [one = "", two = ""] = [people[round % 10], people[(round * 3 + 1) % 10]];
      const calls = [
        set(owner, some),
        owner.teams.setTeamMembers({ orgId, teamId: other.id, members: some.toReversed() }),
        set(owner, some.slice(3)),
        owner.orgs.removeOrgMember({ orgId, userId: one }),
        owner.teams.addTeamMember({ orgId, teamId, userId: two }),
        owner.teams.removeTeamMember({ orgId, teamId: other.id, userId: two }),
      ];
      for (const result of await Promise.allSettled(calls))
        if (result.status === "rejected")
          outcomes.add((await refusal(Promise.reject(result.reason))).reason);
      await again(owner, one);
    }
    const known = ["ORG_MEMBER_NOT_FOUND", "TEAM_MEMBER_EXISTS", "TEAM_MEMBER_NOT_FOUND"];
    expect([...outcomes].filter((reason) => !known.includes(reason))).toEqual([]);
  });
});
