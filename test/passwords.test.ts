/** Passwords of the database that are replaced while the server runs. */
import { randomUUID } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import pg from "pg";
import { afterAll, describe, expect, test } from "vitest";
import { rereadPassword, withPasswordNow } from "../src/database/passwords.ts";
import { withWorker } from "../src/jobs/worker.ts";
import { startHarness, useHarness } from "./harness.ts";

const data = useHarness();
const folder = mkdtempSync(join(tmpdir(), "roster-passwords-"));
afterAll(() => rmSync(folder, { recursive: true }));

/** A login of its own in a role, since those of the roles are every test's, with its URL in a file. */
const loginIn = async (role: "app" | "directory" | "worker") => {
  const { admin, urls } = data.current;
  const user = `roster_test_${randomUUID().replaceAll("-", "").slice(0, 12)}`;
  await admin.query(`create role ${user} login password 'first' in role roster_${role}`);
  const file = join(folder, user);
  const urlWith = (password: string): string => {
    const url = new URL(urls[role]);
    url.username = user;
    url.password = password;
    return url.href;
  };
  writeFileSync(file, urlWith("first"));
  return {
    url: urlWith("first"),
    file,
    /** Replaces the password there and in the file, and ends what has logged in by the old one. */
    rotate: async (password: string): Promise<void> => {
      await admin.query(`alter role ${user} password ${pg.escapeLiteral(password)}`);
      writeFileSync(file, `${urlWith(encodeURIComponent(password))}\n`);
      await admin.query(
        "select pg_terminate_backend(pid) from pg_stat_activity where usename = $1",
        [user],
      );
    },
    drop: () => admin.query(`drop role ${user}`),
  };
};

describe("a password of the database", () => {
  test("is read from its file for each connection, so that a new one needs no restart", async () => {
    const [app, directory, worker] = await Promise.all([
      loginIn("app"),
      loginIn("directory"),
      loginIn("worker"),
    ]);
    const logins = [app, directory, worker];
    for (const { url, file } of logins) rereadPassword(url, file);
    const urls = { app: app.url, directory: directory.url, worker: undefined };
    const { orgId, owner } = await data.current.tenant();
    const rotated = await startHarness({ database: urls });
    const calls = async (): Promise<string> => {
      const { orgs, users } = await rotated.as((await owner.users.getCaller({})).subject);
      const work = () => withWorker(worker.url, {}, (client) => client.query("select"));
      return Promise.all([orgs.getOrg({ orgId }), users.getCaller({}), work()]).then(
        () => "OK",
        String,
      );
    };
    const readyz = async () =>
      (await fetch(`http://127.0.0.1:${rotated.server.httpPort}/readyz`)).status;
    expect(await calls()).toBe("OK");
    for (const password of ["second", "p@ss/w:rd %41"]) {
      for (const { rotate } of logins) await rotate(password);
      await expect.poll(calls).toBe("OK");
      await expect.poll(readyz).toBe(200);
    }
    await rotated.stop();
    for (const { drop } of logins) await drop();
  });

  test("is all that is taken from the file, and stays while that holds no URL", () => {
    const url = "postgres://roster_app:first@db:5433/roster?sslmode=require";
    const file = join(folder, "url");
    expect(withPasswordNow(url)).toBe(url);
    rereadPassword(url, file);
    expect(withPasswordNow(url)).toBe(url);
    for (const [text, password] of [
      ["postgres://postgres:second@elsewhere/other", "second"],
      ["half a", "first"],
      ["postgres://roster_app@db/roster?password=third", "third"],
    ] as const) {
      writeFileSync(file, text);
      const client = new pg.Client({ connectionString: withPasswordNow(url) });
      const { user, host, port, database } = client;
      expect({ user, host, port, database, password: client.password }).toEqual({
        user: "roster_app",
        host: "db",
        port: 5433,
        database: "roster",
        password,
      });
    }
  });
});
