#!/usr/bin/env node
import { ConfigError } from "../config.ts";
import { UsageError } from "./usage.ts";

const commands = {
  serve: () => import("./serve.ts").then(({ serve, help }) => ({ run: serve, help })),
  migrate: () => import("./migrate.ts").then(({ migrate, help }) => ({ run: migrate, help })),
  token: () => import("./token.ts").then(({ token, help }) => ({ run: token, help })),
};

const overview = `usage: npx --no roster COMMAND

  serve    serve gRPC
  migrate  bring the database's schema up to this version
  token    print a development token

npx --no roster COMMAND --help says more. The README lists the environment variables.`;

const run = async (name: string | undefined, args: readonly string[]): Promise<void> => {
  if (name === undefined || name === "--help" || name === "help") {
    console.log(overview);
    return;
  }
  if (!Object.hasOwn(commands, name))
    throw new UsageError(`there is no command ${name}\n\n${overview}`);
  const { run: command, help } = await commands[name as keyof typeof commands]();
  if (args.includes("--help")) console.log(help);
  else if (args.length > 0 && name !== "token")
    throw new UsageError(`${name} takes no arguments\n\n${help}`);
  else await command(args);
};

/** What went wrong, and what to do about it where that is known. */
const messageOf = (error: unknown): string => {
  // Node tries every address of a host and then says nothing but that all failed.
  if (error instanceof AggregateError) return error.errors.map(messageOf).join("\n");
  const { message } = error as Error;
  if (/^cannot listen .*EADDRINUSE/.test(message))
    return `${message}\nAnother program, perhaps a Roster, has this port; set GRPC_ADDR to another.`;
  return /^cannot listen/.test(message) ? `${message}\nGRPC_ADDR names the address.` : message;
};

const [name, ...args] = process.argv.slice(2);
try {
  await run(name, args);
  process.exitCode = 0;
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
