/**
 * Keeps a copy of an org in SQLite: `node_modules/.bin/node examples/mirror.ts HOST:PORT ORG_ID FILE`, with a token in
 * TOKEN. What comes up to a position is written in one transaction with it, so a kill at any moment loses and doubles
 * nothing.
 */
import { DatabaseSync } from "node:sqlite";
import { toJsonString } from "@bufbuild/protobuf";
import { createRoster } from "roster/client";
import { type Change, ChangeSchema } from "roster/v1/change";

const [address = "", orgId = "", file = ""] = process.argv.slice(2);
const roster = createRoster({ address, token: process.env.TOKEN ?? "" });

const db = new DatabaseSync(file);
db.exec(`pragma journal_mode = wal; pragma busy_timeout = 5000;
  create table if not exists resources (type text, id text, user text, json text, primary key (type, id));
  create table if not exists place (one integer primary key, position text not null)`);
const put = db.prepare("insert or replace into resources values (?, ?, ?, ?)");
const drop = db.prepare("delete from resources where (type = ? and id = ?) or user = ?");
const place = db.prepare("insert or replace into place values (1, ?)");
const held = db.prepare("select position from place").get();

const apply = (change: Change): void => {
  const { resourceType: type, resourceId: id, resource } = change;
  const user = type === "user" ? id : ((resource.value as { userId?: string })?.userId ?? "");
  if (resource.case !== undefined) put.run(type, id, user, toJsonString(ChangeSchema, change));
  // With a membership goes all that the org knew of the person.
  else drop.run(type, id, type === "org_member" ? id : "nobody");
};

const request = { orgId, position: String(held?.position ?? ""), snapshot: true };
for await (const { changes, position, snapshot } of roster.watch(request)) {
  db.exec("begin immediate");
  if (snapshot) db.exec("delete from resources");
  changes.forEach(apply);
  place.run(position);
  db.exec("commit");
}
