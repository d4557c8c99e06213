/**
 * The naive composition: connect-node and Slonik as they come, with the very statements that Roster sends.
 * Each call is one `transaction`, which enters first. Rows are not parsed by zod, which would cost it more;
 * no token is verified, no rule is checked, nothing is logged.
 */
import { createServer } from "node:http2";
import type { AddressInfo } from "node:net";
import type { Message } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import { createPool, createSqlTag, type DatabasePool, type QuerySqlToken } from "slonik";
import { v7 as uuid } from "uuid";
import { z } from "zod";
import type { Step } from "../../src/database/exchange.ts";
import { OrgService } from "../../src/gen/roster/v1/org_service_pb.ts";
import { TeamService } from "../../src/gen/roster/v1/team_service_pb.ts";
import { UserService } from "../../src/gen/roster/v1/user_service_pb.ts";
import { answers, type Row } from "./answers.ts";
import { type Operation, operationOf } from "./operations.ts";
import { ready, type SystemOptions, systemOptions } from "./process.ts";
import { fillerOf, isOutsideOrgs } from "./statements.ts";

const sql = createSqlTag();

/** What Slonik's tag would make of a statement with these values. */
const tokenOf = ({ text, values }: Step): QuerySqlToken => ({
  ...sql.type(z.any())``,
  sql: text,
  values: values as QuerySqlToken["values"],
});

const timeColumn = /_time$/;

/** Slonik reads a time as milliseconds. */
const withTimes = (row: Row): Row => {
  const copy: Row = { ...row };
  for (const [name, value] of Object.entries(row)) {
    if (timeColumn.test(name) && value !== null) {
      copy[name] = { seconds: BigInt(Math.floor(value / 1000)), nanos: (value % 1000) * 1_000_000 };
    }
  }
  return copy;
};

type Handler = (request: Message, context: HandlerContext) => Promise<object>;

const handlerOf = (
  { name }: Operation,
  { statements }: SystemOptions,
  pools: { app: DatabasePool; directory: DatabasePool },
): Handler => {
  const templates = statements[name] ?? [];
  const fill = fillerOf(templates, uuid);
  const answer = answers[name];
  if (!answer) throw new Error(`${name}: no answer`);
  const pool = isOutsideOrgs(templates) ? pools.directory : pools.app;
  return async (request, { requestHeader }) => {
    const steps = fill(requestHeader.get("actor") ?? undefined, request)
      .flat()
      .filter(({ text }) => text !== "begin" && text !== "commit");
    const rows = await pool.transaction(async (transaction) => {
      let found: readonly Row[] = [];
      for (const step of steps)
        found = (await transaction.query(tokenOf(step))).rows as readonly Row[];
      return found;
    });
    return answer(rows.map(withTimes));
  };
};

const serve = async (options: SystemOptions): Promise<number> => {
  const poolOptions = { maxPoolSize: options.poolSize };
  const pools = {
    app: await createPool(options.urls.app, poolOptions),
    directory: await createPool(options.urls.directory, poolOptions),
  };
  const handler = connectNodeAdapter({
    routes: (router) => {
      for (const service of [UserService, OrgService, TeamService]) {
        const operations = Object.keys(options.statements).map(operationOf);
        const own = operations.filter(({ method }) => method.parent === service);
        const implementation = Object.fromEntries(
          own.map((operation) => [
            operation.method.localName,
            handlerOf(operation, options, pools),
          ]),
        );
        router.service(service, implementation as Partial<ServiceImpl<typeof service>>);
      }
    },
  });
  const server = createServer(handler);
  return new Promise((resolve) => {
    server.listen(0, "127.0.0.1", () => resolve((server.address() as AddressInfo).port));
  });
};

ready(await serve(systemOptions()));
