import { existsSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test, vi } from "vitest";
import { token } from "../src/cli/token.ts";
import { UsageError } from "../src/cli/usage.ts";
import { folder, roster } from "./command.ts";

// Each starts several processes, which takes its time on a busy machine.
vi.setConfig({ testTimeout: 60_000 });

describe("a server with a database of its own", () => {
  const production = {
    DATABASE_URL: "postgres://roster_app:x@localhost:1/roster",
    DIRECTORY_DATABASE_URL: "postgres://roster_directory:x@localhost:1/roster",
    JWKS_URL: "https://issuer.example/jwks.json",
    JWT_ISSUER: "https://issuer.example",
    JWT_AUDIENCE: "roster",
    TOKEN_SECRET: "x".repeat(32),
  };

  test("exits with 1 and says which address does not answer", async () => {
    const { code, stderr } = await roster(["serve"], { ...production, GRPC_ADDR: "127.0.0.1:0" });
    expect(code).toBe(1);
    expect(stderr).toContain("ECONNREFUSED");
    expect(stderr).toContain(":1");
  });

  test("exits with 2 and all faults of the configuration", async () => {
    const env = { POOL_SIZE: "many", GRPC_ADDR: "0.0.0.0:50051", LOG_LEVEL: "loud" };
    const { code, stdout, stderr } = await roster(["serve"], env);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    const names = stderr.split("\n").map((line) => /^ {2}([A-Z_]+): /.exec(line)?.[1]);
    expect(names.filter(Boolean).sort()).toEqual(
      ["DATABASE_URL", "GRPC_ADDR", "JWKS_URL", "LOG_LEVEL", "POOL_SIZE", "TOKEN_SECRET"].sort(),
    );
  });

  test("is migrated as roster_migrator or not at all", async () => {
    const { code, stderr } = await roster(["migrate"], production);
    expect(code).toBe(2);
    expect(stderr).toContain("MIGRATION_DATABASE_URL");
    // What concerns serving alone is not judged.
    const MIGRATION_DATABASE_URL = "postgres://roster_migrator:x@127.0.0.1:1/roster";
    const env = { MIGRATION_DATABASE_URL, GRPC_ADDR: "0.0.0.0:50051", JWKS_FILE: "/nowhere" };
    expect(await roster(["migrate"], env)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("ECONNREFUSED 127.0.0.1:1"),
    });
  });
});

describe("token", () => {
  const id = "0192f0c1-2345-7890-abcd-ef0123456789";

  test("prints the token and nothing else, also where no server ever ran", async () => {
    const ROSTER_DATA_DIR = join(folder, "fresh");
    const args = ["token", "--user", id, "--org", id, "--scope", "org.get", "--scope", "teams.get"];
    const { code, stdout, stderr } = await roster([...args, "--ttl", "30s"], { ROSTER_DATA_DIR });
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/^[\w-]+\.[\w-]+\.[\w-]+\n$/);
    const claims = JSON.parse(Buffer.from(stdout.split(".")[1] ?? "", "base64url").toString());
    expect(claims).toMatchObject({ sub: id, org: id, scope: "org.get teams.get" });
    expect(claims.exp - claims.iat).toBe(30);
    expect(existsSync(join(ROSTER_DATA_DIR, "postgres"))).toBe(false);
  });

  test("exits with 2 and all faults of the call", async () => {
    const args = [
      "--user",
      "ada",
      "--service",
      "a b",
      "--org",
      "acme",
      "--scope",
      "X",
      "--ttl",
      "1",
    ];
    const { code, stdout, stderr } = await roster(["token", ...args]);
    expect({ code, stdout }).toEqual({ code: 2, stdout: "" });
    for (const name of ["--user", "--service", "--org", "--scope", "--ttl"])
      expect(stderr).toContain(`${name}: `);
    expect(stderr).toContain("one of --user and --service");
  });

  test.each([[[]], [["--user"]], [["--nobody"]], [["ada"]]])("takes no %j", async (args) => {
    await expect(token(args)).rejects.toThrow(UsageError);
  });
});

describe("roster", () => {
  test("helps with each command, and exits with 0", async () => {
    const commands = [
      "serve",
      "migrate",
      "token",
      "config",
      "purge",
      "seal",
      "audit",
      "health",
      "doctor",
    ];
    for (const command of ["", ...commands.map((name) => `${name} `)]) {
      const { code, stdout, stderr } = await roster(`${command}--help`.split(" "));
      expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
      expect(stdout).toContain(`usage: npx --no roster ${command.trim()}`);
      if (command !== "") expect(stdout).toContain("Exit codes: 0 ");
    }
  });

  test("exits with 2 for a command that is not there, and for arguments that a command does not take", async () => {
    for (const args of [["constructor"], ["migrate", "--all"], ["doctor", "--json"]]) {
      const { code, stdout, stderr } = await roster(args);
      expect({ code, stdout }, args.join(" ")).toEqual({ code: 2, stdout: "" });
      expect(stderr).toContain("usage:");
    }
  });
});
