/** Plans of what a server asked, as PostgreSQL noted them after it had run them. */
import pg from "pg";
import { expect } from "vitest";

/** A node of a plan as auto_explain writes it after the statement has run. */
export interface Node {
  readonly "Node Type": string;
  readonly "Relation Name"?: string;
  readonly "Parent Relationship"?: string;
  readonly "Actual Rows": number;
  readonly "Actual Loops": number;
  readonly "Rows Removed by Filter"?: number;
  readonly Filter?: string;
  readonly "Index Cond"?: string;
  readonly "Join Filter"?: string;
  readonly "One-Time Filter"?: string;
  readonly Plans?: readonly Node[];
}

/** The plans noted since this was last emptied. */
export const plans: Node[] = [];
/** The names under which statements were run since this was last emptied; `<unnamed>` for one that is not kept. */
export const names: string[] = [];
// What PostgreSQL notes on a connection of the server. It stays so for other files of the worker, whose connections
// note nothing.
const { connect } = pg.Client.prototype;
pg.Client.prototype.connect = function (this: pg.Client, ...callback: never) {
  this.on("notice", ({ message = "" }) => {
    // The server looks now and then whether the schema is there.
    if (message.includes("roster.schema_migrations")) return;
    const name = /^execute (\S+): (?!select (?:roster\.|set_config\())/.exec(message)?.[1];
    if (name) names.push(name);
    if (/^duration: .* plan:/.test(message))
      plans.push(JSON.parse(message.slice(message.indexOf("{"))).Plan);
  });
  return connect.apply(this, callback);
} as typeof connect;

const explaining = {
  session_preload_libraries: "auto_explain",
  "auto_explain.log_min_duration": "0",
  "auto_explain.log_analyze": "on",
  "auto_explain.log_timing": "off",
  "auto_explain.log_format": "json",
  client_min_messages: "log",
  log_statement: "all",
  log_min_messages: "fatal",
};

/** Lets every connection that is made from now on note its plans. */
export const explain = async (admin: pg.Client): Promise<void> => {
  const { rows } = await admin.query("select current_database() as name");
  for (const role of ["roster_app", "roster_directory"])
    for (const [name, value] of Object.entries(explaining))
      await admin.query(`alter role ${role} in database ${rows[0].name} set ${name} = '${value}'`);
};

/** A node and all below it. */
export const nodesOf = (plan: Node): readonly Node[] => [
  plan,
  ...(plan.Plans ?? []).flatMap(nodesOf),
];

/** The nodes by which a call reads tables. */
export const nodesOfCall = async (call: () => Promise<unknown>): Promise<readonly Node[]> => {
  plans.length = 0;
  await call();
  const reading = plans.map(nodesOf).filter((nodes) => nodes.some((node) => node["Relation Name"]));
  // Entering reads inside its function, whose plans are not noted.
  expect(reading).toHaveLength(1);
  return reading.flat();
};

/** After five uses PostgreSQL may plan a prepared statement once for all values. */
export const useTenTimes = async (call: () => Promise<unknown>): Promise<void> => {
  for (let i = 0; i < 10; i++) await call();
};

/** Names what a hot query must not do. */
export const faultsOf = (nodes: readonly Node[], mostRows: number): string[] => {
  const faults = nodes.flatMap((node) => {
    const { "Node Type": type, "Relation Name": table = "" } = node;
    const conditions = [
      node.Filter,
      node["Index Cond"],
      node["Join Filter"],
      node["One-Time Filter"],
    ].join();
    const read =
      (node["Actual Rows"] + (node["Rows Removed by Filter"] ?? 0)) * node["Actual Loops"];
    return [
      // A month without rows has no page to read.
      type === "Seq Scan" &&
        read > 0 &&
        /users|member|teams|profiles|orgs|slugs|invitations|roles|audit/.test(table) &&
        `${type} on ${table}`,
      /hashed SubPlan/.test(conditions) && `hashed SubPlan on ${table}`,
      /current_setting|roster\.(current_|is_platform|team_sight)/.test(conditions) &&
        `not once: ${conditions}`,
      read > mostRows && `${type} ${table} reads ${read} rows: ${conditions}`,
    ];
  });
  if (!nodes.some((node) => node["Parent Relationship"] === "InitPlan")) faults.push("no InitPlan");
  return faults.filter((fault) => typeof fault === "string");
};
