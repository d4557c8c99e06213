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
    const { code, message } = error as NodeJS.ErrnoException;
    console.error(
      code === "EADDRINUSE" || /EADDRINUSE/.test(message)
        ? `${message}\nAnother program has this port; set GRPC_ADDR to another.`
        : message,
    );
    process.exitCode = 1;
  }
}
