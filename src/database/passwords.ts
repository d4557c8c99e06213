/** Passwords that change while the process runs. */
import { readFileSync } from "node:fs";

const files = new Map<string, string>();

/** Notes that a connection URL came from a file, in which its password may be replaced. */
export const rereadPassword = (url: string, file: string): void => void files.set(url, file);

/**
 * A connection URL with the password that its file holds now. All else stays what the start has looked at, and a file
 * that cannot be read, or holds no URL, changes nothing.
 */
export const withPasswordNow = (url: string): string => {
  const file = files.get(url);
  if (file === undefined) return url;
  let now: URL;
  try {
    now = new URL(readFileSync(file, "utf8").trim());
  } catch {
    return url;
  }
  const then = new URL(url);
  then.password = now.password;
  const parameter = now.searchParams.get("password");
  if (parameter !== null) then.searchParams.set("password", parameter);
  return then.href;
};
