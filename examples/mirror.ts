/**
 * Keeps a copy of an org in SQLite: `node_modules/.bin/node examples/mirror.ts URL ORG_ID FILE`, with a token in TOKEN.
 * What comes up to a position is written in one transaction with it, so a kill at any moment loses and doubles nothing.
 */
import { DatabaseSync } from "node:sqlite";
import { setTimeout as delay } from "node:timers/promises";
import { toJsonString } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { type Change, ChangeSchema } from "../src/gen/roster/v1/change_pb.ts";
import { ChangeService } from "../src/gen/roster/v1/change_service_pb.ts";

const [baseUrl = "", orgId = "", file = ""] = process.argv.slice(2);
const client = createClient(ChangeService, createGrpcTransport({ baseUrl }));
const headers = { authorization: `Bearer ${process.env.TOKEN}` };

const db = new DatabaseSync(file);
db.exec(`pragma journal_mode = wal; pragma busy_timeout = 5000;
  create table if not exists resources (type text, id text, user text, json text, primary key (type, id));
  create table if not exists place (one integer primary key, position text not null)`);
const put = db.prepare("insert or replace into resources values (?, ?, ?, ?)");
const drop = db.prepare("delete from resources where (type = ? and id = ?) or user = ?");
const place = db.prepare("insert or replace into place values (1, ?)");
const read = db.prepare("select position from place");

const apply = (change: Change): void => {
  const { resourceType: type, resourceId: id, resource } = change;
  const user = type === "user" ? id : ((resource.value as { userId?: string })?.userId ?? "");
  if (resource.case !== undefined) put.run(type, id, user, toJsonString(ChangeSchema, change));
  // With a membership goes all that the org knew of the person.
  else drop.run(type, id, type === "org_member" ? id : "nobody");
};

const follow = async (): Promise<void> => {
  const position = String(read.get()?.position ?? "");
  let pending: Change[] = [];
  let began = position !== "";
  const request = { orgId, position, snapshot: position === "" };
  for await (const message of client.watchChanges(request, { headers })) {
    pending.push(...message.changes);
    if (message.position === "") continue;
    db.exec("begin immediate");
    if (!began) db.exec("delete from resources");
    pending.forEach(apply);
    place.run(message.position);
    db.exec("commit");
    [pending, began] = [[], true];
  }
};

for (;;) {
  await follow().catch((thrown: unknown) => {
    const { code, rawMessage } = ConnectError.from(thrown);
    if (code === Code.PermissionDenied || code === Code.Unauthenticated) throw thrown;
    console.error(`${Code[code]}: ${rawMessage}`);
    if (code === Code.OutOfRange) db.exec("delete from place");
  });
  await delay(200);
}
