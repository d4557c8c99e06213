import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, test } from "vitest";
import { refusal, type Tenant, useHarness } from "./harness.ts";

const harness = useHarness();
const readme = readFileSync(new URL("../README.md", import.meta.url), "utf8");
const section = readme.slice(readme.indexOf("## Filters"), readme.indexOf("## Configuration"));

/** Rows of the section's tables that begin with a list. */
const rows = section
  .split("\n")
  .filter((line) => line.startsWith("| List"))
  .map((line) => line.split("|").map((cell) => cell.trim()))
  .map(([, list = "", ...cells]) => ({ list, cells: cells.filter((cell) => cell !== "") }));
const tables = rows.filter(({ cells }) => cells.length === 2);
const examples = rows.filter(({ cells }) => cells.length === 1);

const spoken = (cell = ""): string[] =>
  [...cell.matchAll(/`([^`]+)`/g)].map(([, word = ""]) => word);

let tenant: Tenant;
beforeAll(async () => {
  tenant = await harness.current.tenant();
});

type Ask = { readonly filter?: string; readonly orderBy?: string };
const lists: Record<string, (ask: Ask) => Promise<unknown>> = {
  ListUsers: (ask) => tenant.owner.users.listUsers({ orgId: tenant.orgId, ...ask }),
  ListOrgs: (ask) => harness.current.ops.orgs.listOrgs(ask),
  ListOrgMembers: (ask) => tenant.owner.orgs.listOrgMembers({ orgId: tenant.orgId, ...ask }),
  ListInvitations: (ask) => tenant.owner.orgs.listInvitations({ orgId: tenant.orgId, ...ask }),
  ListTeams: (ask) => tenant.owner.teams.listTeams({ orgId: tenant.orgId, ...ask }),
  ListAuditEntries: (ask) => tenant.owner.audit.listAuditEntries({ orgId: tenant.orgId, ...ask }),
};
const call = (list: string, ask: Ask) => lists[list]?.(ask) ?? expect.fail(list);

describe("README's filters", () => {
  test("are told of every list that takes one", () => {
    expect(tables.map(({ list }) => list)).toEqual(Object.keys(lists));
    expect(examples.length).toBeGreaterThan(6);
  });

  test.each(tables)(
    "name the fields and orders of $list, no more and no fewer",
    async ({ list, cells }) => {
      const [fields, orders] = cells.map(spoken);
      const refused = await refusal(call(list, { filter: "nothing = 1" }));
      expect(refused.message).toContain(`there is ${fields?.join(", ")}`);
      const order = await refusal(call(list, { orderBy: "nothing" }));
      expect(order.message).toContain(`there is ${orders?.join(", ")}`);
    },
  );

  test.each(examples)("$cells of $list is understood", async ({ list, cells }) => {
    const filters = spoken(cells[0]);
    expect(filters).toHaveLength(1);
    for (const filter of filters) await call(list, { filter });
  });

  test.each(tables)("are told in the contract of $list too", ({ list, cells }) => {
    const services = ["user", "org", "team", "audit"];
    const contract = services
      .map((name) => new URL(`../proto/roster/v1/${name}_service.proto`, import.meta.url))
      .map((file) => readFileSync(file, "utf8"))
      .join("");
    const message =
      new RegExp(`message ${list}Request {([\\s\\S]*?)\\n}`).exec(contract)?.[1] ?? "";
    const comments = message.replace(/\n\s*\/\//g, "");
    const [fields = [], orders = []] = cells.map(spoken);
    expect(comments).toContain(`Fields: ${fields.map((field) => `\`${field}\``).join(", ")}.`);
    for (const order of orders) expect(comments).toContain(`\`${order}`);
  });
});
