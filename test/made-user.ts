import { randomUUID } from "node:crypto";
import type { MessageInitShape } from "@bufbuild/protobuf";
import { expect } from "vitest";
import type { UserSchema } from "../src/gen/roster/v1/user_pb.ts";
import type { Harness } from "./harness.ts";

/** What a test may say of a user. */
export type UserInit = MessageInitShape<typeof UserSchema>;

/** An address that nobody has. */
export const address = (): string => `${randomUUID()}@example.com`;

/** A new user with what the test wants of it. */
export const makeUser = async ({ ops }: Harness, user: UserInit = {}) => {
  const init = { email: address(), name: "Some One", ...user } as UserInit;
  const response = await ops.users.createUser({ user: init });
  return response.user ?? expect.fail("no user came back");
};
