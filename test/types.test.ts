import { randomUUID } from "node:crypto";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { formatInstant, parseInstant, parserOf } from "../src/database/types.ts";
import { CreateUserRequestSchema, UserService } from "../src/gen/roster/v1/user_service_pb.ts";
import { refusal, useHarness } from "./harness.ts";
import { RawClient } from "./raw-client.ts";

const harness = useHarness();

const email = (): string => `${randomUUID()}@example.com`;

/** Makes a user and reads them back. */
const made = async (
  user: Record<string, unknown>,
  profile: MessageInitShape<typeof CreateUserRequestSchema>["profile"] = {},
) => {
  const { users } = harness.current.ops;
  const answer = await users.createUser({ user: { email: email(), name: "Some One", ...user }, profile });
  const { user: read } = await users.getUser({ userId: answer.user?.id ?? "", view: 2 });
  expect(read).toEqual(answer.user);
  return read;
};
