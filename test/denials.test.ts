import { describe, expect, test } from "vitest";
import { AuditOutcome } from "../src/gen/roster/v1/audit_pb.ts";
import { Allowance } from "../src/interceptors/denials.ts";
import { log } from "./audit-log.ts";
import { refusal, useHarness } from "./harness.ts";
import { makeTeam } from "./made-team.ts";

const harness = useHarness();

describe("A caller who is refused again and again", () => {
  test("is on record ten times, then once a second, and others are meanwhile", async () => {
    const { orgId, owner, member, memberId, guest, guestId } = await harness.current.tenant();
    const denials = async (subject: string) =>
      (await log(owner, orgId, 100)).filter(
        ({ outcome, actor }) => outcome === AuditOutcome.DENIED && actor?.subject === subject,
      ).length;
    const start = performance.now();
    for (let i = 0; i < 40; i++)
      expect(await refusal(makeTeam(member, { orgId, name: "Crew" }))).toMatchObject({
        reason: "PERMISSION_MISSING",
      });
    const most = 10 + Math.ceil((performance.now() - start) / 1_000);
    const seen = await denials(memberId);
    expect(seen).toBeGreaterThanOrEqual(10);
    expect(seen).toBeLessThanOrEqual(most);
    await refusal(makeTeam(guest, { orgId, name: "Crew" }));
    expect(await denials(guestId)).toBe(1);
    // A second later one more is, and the log says how many were not.
    await new Promise((resolve) => setTimeout(resolve, 1_100));
    await refusal(makeTeam(member, { orgId, name: "Crew" }));
    expect(await denials(memberId)).toBeGreaterThan(seen);
    const passedOver = harness.current.logs
      .filter(({ caller, passed_over }) => caller === memberId && passed_over !== undefined)
      .reduce((sum, { passed_over }) => sum + Number(passed_over), 0);
    expect((await denials(memberId)) + passedOver).toBe(41);
  });
});

describe("The allowance of refusals", () => {
  test("is ten at once, fills up by one a second to ten again, and tells what was passed over", () => {
    const allowance = new Allowance();
    const take = (nowMs: number, count: number) =>
      Array.from({ length: count }, () => allowance.take("a", nowMs)).filter(
        (taken) => taken !== undefined,
      );
    expect(take(0, 15)).toEqual(Array(10).fill(0));
    expect(take(900, 1)).toEqual([]);
    expect(take(1_000, 2)).toEqual([6]);
    expect(take(4_000, 9)).toEqual([1, 0, 0]);
    expect(take(1_000_000, 20)).toHaveLength(10);
  });

  test("remembers ten thousand callers, and forgets who came first", () => {
    const allowance = new Allowance();
    for (let i = 0; i < 10; i++) allowance.take("first", 0);
    expect(allowance.take("first", 0)).toBeUndefined();
    for (let i = 0; i < 9_999; i++) allowance.take(`caller ${i}`, 0);
    expect(allowance.take("first", 0)).toBeUndefined();
    for (let i = 0; i < 10_000; i++) allowance.take(`other ${i}`, 0);
    expect(allowance.take("first", 0)).toBe(0);
  });
});
