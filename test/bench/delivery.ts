/** How long after its commit a change arrives at who watches, while many are written. */
import { setTimeout as delay } from "node:timers/promises";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import grpc from "@grpc/grpc-js";
import { ChangeService } from "../../src/gen/roster/v1/change_service_pb.ts";
import { TeamService } from "../../src/gen/roster/v1/team_service_pb.ts";
import { idOf, memberOf, usual } from "./data.ts";
import { pathOf } from "./operations.ts";
import type { Served } from "./process.ts";
import type { Stand } from "./stand.ts";

export const deliveryName = "WatchChanges";
const [writesPerSecond, mostMs] = [200, 250];
const { watchChanges } = ChangeService.method;
const { updateTeam } = TeamService.method;

/** Orgs that are written and watched, one after the other. */
const orgs = Array.from({ length: 20 }, (_, i) => usual.largeOrgs + i);

/** What was measured, and whether it is enough. */
export interface Delivered {
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly perSecond: number;
  readonly budget: string;
  readonly met: boolean;
}

/** Writes to the orgs' teams in a steady rhythm, and takes the time from each answer to the change at its watcher. */
export const measureDelivery = async (
  stand: Stand,
  served: Served,
  seconds: number,
): Promise<Delivered> => {
  const client = new grpc.Client(`127.0.0.1:${served.port}`, grpc.credentials.createInsecure());
  const bytes = (given: Buffer): Buffer => given;
  const callers = await Promise.all(
    orgs.map(async (org) => {
      const metadata = new grpc.Metadata();
      const token = await stand.tokenOf(idOf("user", memberOf(usual, org, 0)));
      metadata.set("authorization", `Bearer ${token}`);
      return { orgId: idOf("org", org), teamId: idOf("team", org * usual.teams), metadata };
    }),
  );
  const [committed, heard] = [new Map<string, number>(), new Map<string, number>()];
  const streams = callers.map(({ orgId, metadata }) =>
    client.makeServerStreamRequest(
      `/${watchChanges.parent.typeName}/${watchChanges.name}`,
      bytes,
      bytes,
      Buffer.from(toBinary(watchChanges.input, create(watchChanges.input, { orgId }))),
      metadata,
    ),
  );
  let over = false;
  const begun = streams.map(
    (stream) =>
      new Promise((resolve, reject) => {
        stream.once("data", resolve);
        stream.on("error", (error) => over || reject(error));
      }),
  );
  for (const stream of streams) {
    stream.on("data", (message: Buffer) => {
      for (const { resource } of fromBinary(watchChanges.output, message).changes)
        if (resource.case === "team") heard.set(resource.value.description, performance.now());
    });
  }
  await Promise.all(begun);

  let writes = 0;
  const write = async (): Promise<void> => {
    const number = writes++;
    const { orgId, teamId, metadata } = callers[
      number % callers.length
    ] as (typeof callers)[number];
    const description = `write ${number}`;
    const request = create(updateTeam.input, { team: { orgId, id: teamId, description } });
    await new Promise<void>((resolve, reject) => {
      client.makeUnaryRequest(
        pathOf(updateTeam),
        bytes,
        bytes,
        Buffer.from(toBinary(updateTeam.input, request)),
        metadata,
        (error) => (error ? reject(error) : resolve()),
      );
    });
    committed.set(description, performance.now());
  };
  const start = performance.now();
  const running = new Set<Promise<void>>();
  while (performance.now() - start < seconds * 1_000) {
    const due = ((performance.now() - start) / 1_000) * writesPerSecond;
    while (writes < due) {
      const work: Promise<void> = write().finally(() => running.delete(work));
      running.add(work);
    }
    await delay(2);
  }
  await Promise.all(running);
  const tookSeconds = (performance.now() - start) / 1_000;
  for (let waits = 0; heard.size < committed.size; waits++) {
    if (waits === 100) throw new Error(`${committed.size - heard.size} changes never came`);
    await delay(100);
  }
  over = true;
  for (const stream of streams) stream.cancel();
  client.close();

  const late = [...committed]
    .map(([text, ms]) => Math.max(0, (heard.get(text) as number) - ms))
    .sort((a, b) => a - b);
  const at = (share: number): number => late[Math.floor(late.length * share)] as number;
  const perSecond = writes / tookSeconds;
  return {
    p50Ms: at(0.5),
    p99Ms: at(0.99),
    perSecond,
    budget: `p99 ${at(0.99).toFixed(0)} ms ≤ ${mostMs} ms after the commit, at ${perSecond.toFixed(0)} writes/s`,
    met: at(0.99) <= mostMs,
  };
};
