import type { DescMessage, Message } from "@bufbuild/protobuf";
import { type Path, pathToString } from "@bufbuild/protobuf/reflect";
import { createValidator, type Violation as RuleViolation } from "@bufbuild/protovalidate";
import type { ContextValues, Interceptor } from "@connectrpc/connect";
import { fail, type Violation } from "../errors.ts";
import { reading, type Sessions } from "./unit-of-work.ts";

// The patterns of our protos mean the same to JavaScript as to RE2, and run many times faster there.
const patterns = new Map<string, RegExp>();
const matches = (pattern: string, text: string): boolean => {
  let compiled = patterns.get(pattern);
  if (!compiled) {
    compiled = new RegExp(pattern, "u");
    patterns.set(pattern, compiled);
  }
  return compiled.test(text);
};

/** A field's path. Of a oneof that must be set it names the fields, which are what a caller can set. */
const nameOf = (path: Path): string => {
  const last = path.at(-1);
  return last?.kind === "oneof"
    ? last.fields.map(({ name }) => pathToString([...path.slice(0, -1)]) + name).join(" or ")
    : pathToString(path);
};

/**
 * Holds the request to the rules that stand in its proto. Before the caller is told what is wrong with it,
 * the session is entered alone, so that who lacks the permission learns nothing else (AIP-211).
 */
export const validate = (sessions: Sessions): Interceptor => {
  const validator = createValidator({ regexMatch: matches });
  return (next) => (request) => {
    const result = validator.validate(
      request.method.input as DescMessage,
      request.message as Message,
    );
    if (result.kind === "valid") return next(request);
    if (result.kind === "error") throw result.error;
    return refuse(sessions, request.contextValues, result.violations);
  };
};

const refuse = async (
  sessions: Sessions,
  values: ContextValues,
  found: readonly RuleViolation[],
): Promise<never> => {
  const violations: Violation[] = found.map(({ field, message }) => ({
    field: nameOf(field),
    rule: message,
  }));
  await reading(sessions, values).enter();
  const [first] = violations;
  const reason = found[0]?.ruleId === "required" ? "FIELD_REQUIRED" : "FIELD_INVALID";
  throw fail(reason, { field: first?.field ?? "", rule: first?.rule ?? "" }, violations);
};
