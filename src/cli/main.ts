#!/usr/bin/env node
import { ConfigError } from "../config.ts";
import { messageOf } from "./message.ts";
import { UsageError } from "./usage.ts";

const commands = {
  serve: () => import("./serve.ts").then(({ serve, help }) => ({ run: serve, help })),
  migrate: () => import("./migrate.ts").then(({ migrate, help }) => ({ run: migrate, help })),
  token: () => import("./token.ts").then(({ token, help }) => ({ run: token, help })),
  config: () => import("./config.ts").then(({ config, help }) => ({ run: config, help })),
  purge: () => import("./purge.ts").then(({ purge, help }) => ({ run: purge, help })),
  seal: () => import("./seal.ts").then(({ seal, help }) => ({ run: seal, help })),
  audit: () => import("./audit.ts").then(({ audit, help }) => ({ run: audit, help })),
  health: () => import("./health.ts").then(({ health, help }) => ({ run: health, help })),
  doctor: () => import("./doctor.ts").then(({ doctor, help }) => ({ run: doctor, help })),
};

/** Runs to its end; a number is the exit code. */
type Command = (args: readonly string[]) => Promise<unknown>;

const overview = `usage: npx --no roster COMMAND

  serve    serve gRPC and HTTP
  migrate  bring the database's schema up to this version
  token    print a development token
  config   print the configuration in force, without secrets
  purge    remove for good what was deleted and is due
  seal     seal what the audit log has got since
  audit    prove that the audit log is as it was written, print its seals' roots
  health   ask the server on this machine whether it is ready
  doctor   say what is wrong with a deployment and how to mend it

npx --no roster COMMAND --help says more. The README lists the environment variables.`;

const run = async (name: string | undefined, args: readonly string[]): Promise<number> => {
  if (name === undefined || name === "--help" || name === "help") {
    console.log(overview);
    return 0;
  }
  if (!Object.hasOwn(commands, name))
    throw new UsageError(`there is no command ${name}\n\n${overview}`);
  const { run: command, help } = await commands[name as keyof typeof commands]();
  if (args.includes("--help")) {
    console.log(help);
    return 0;
  }
  if (args.length > 0 && command.length === 0)
    throw new UsageError(`${name} takes no arguments\n\n${help}`);
  const code = await (command as Command)(args);
  return typeof code === "number" ? code : 0;
};

const [name, ...args] = process.argv.slice(2);
try {
  process.exitCode = await run(name, args);
} catch (error) {
  if (error instanceof ConfigError || error instanceof UsageError) {
    console.error(
      error instanceof ConfigError
        ? `The configuration is wrong:\n  ${error.faults.join("\n  ")}`
        : error.message,
    );
    process.exitCode = 2;
  } else {
    console.error(messageOf(error));
    process.exitCode = 1;
  }
}
