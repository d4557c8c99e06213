/** One request for each RPC of UserService. */
import { randomUUID } from "node:crypto";
import type { Harness } from "../harness.ts";
import type { Samples } from "./world.ts";

const email = (): string => `${randomUUID()}@example.com`;
const emailOf = async ({ ops }: Harness, userId: string): Promise<string> =>
  (await ops.users.getUser({ userId })).user?.email ?? "";

const deletedUser = async (harness: Harness): Promise<string> => {
  const userId = await harness.user();
  await harness.ops.users.deleteUser({ userId });
  return userId;
};

export const userSamples: Samples = {
  "UserService.GetCaller": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "UserService.CreateUser": {
    by: "platform",
    request: () => ({ user: { email: email(), name: "New" }, profile: { bio: "Hi" } }),
    ignored: ["user.id", "profile.id", "profile.user_id", "profile.org_id"],
  },
  "UserService.BatchCreateUsers": {
    by: "platform",
    request: () => ({
      users: [1, 2].map(() => ({ user: { email: email(), name: "New" }, profile: { bio: "Hi" } })),
    }),
    fault: ["users", []],
  },
  "UserService.GetUser": {
    by: "member",
    request: ({ orgId, mateId: userId }) => ({ orgId, userId }),
  },
  "UserService.GetUser outside": { by: "service", request: ({ mateId: userId }) => ({ userId }) },
  "UserService.BatchGetUsers": {
    by: "member",
    request: ({ orgId, mateId }) => ({ orgId, userIds: [mateId] }),
  },
  "UserService.BatchGetUsers outside": {
    by: "service",
    request: ({ mateId }) => ({ userIds: [mateId] }),
  },
  "UserService.LookupUser": {
    by: "member",
    request: async ({ harness, orgId, mateId }) => ({
      orgId,
      key: { case: "email", value: await emailOf(harness, mateId) },
    }),
  },
  "UserService.LookupUser outside": {
    by: "service",
    request: async ({ harness, mateId }) => ({
      key: { case: "email", value: await emailOf(harness, mateId) },
    }),
  },
  "UserService.ListUsers": { by: "member", request: ({ orgId }) => ({ orgId }) },
  "UserService.ListUsers outside": { by: "service", request: () => ({}) },
  "UserService.UpdateUser": {
    by: "platform",
    request: async ({ harness }) => ({ user: { id: await harness.user(), name: "Renamed" } }),
  },
  "UserService.UpdateUser email": {
    by: "platform",
    request: async ({ harness }) => ({ user: { id: await harness.user(), email: email() } }),
  },
  "UserService.DeleteUser": {
    by: "platform",
    request: async ({ harness }) => ({ userId: await harness.user() }),
  },
  "UserService.UndeleteUser": {
    by: "platform",
    request: async ({ harness }) => ({ userId: await deletedUser(harness) }),
  },
  "UserService.SuspendUser": {
    by: "platform",
    request: async ({ harness }) => ({ userId: await harness.user() }),
  },
  "UserService.ReactivateUser": {
    by: "platform",
    request: async ({ harness }) => {
      const userId = await harness.user();
      await harness.ops.users.suspendUser({ userId });
      return { userId };
    },
  },
  "UserService.PurgeUser": {
    by: "platform",
    request: async ({ harness }) => ({ userId: await deletedUser(harness) }),
    fault: ["user_id", "not-an-id"],
  },
  "UserService.EraseUser": {
    by: "platform",
    request: async ({ harness }) => ({ userId: await deletedUser(harness) }),
    fault: ["user_id", "not-an-id"],
  },
  "UserService.GetProfile": {
    by: "member",
    request: ({ orgId, mateId: userId }) => ({ orgId, userId }),
  },
  "UserService.GetProfile outside": {
    by: "service",
    request: ({ mateId: userId }) => ({ userId }),
  },
  "UserService.UpdateProfile": {
    by: "owner",
    request: ({ orgId, mateId: userId }) => ({ profile: { orgId, userId, bio: randomUUID() } }),
    ignored: ["profile.id"],
  },
  "UserService.UpdateProfile outside": {
    by: "service",
    request: ({ mateId: userId }) => ({ profile: { userId, bio: randomUUID() } }),
    ignored: ["profile.id"],
  },
  "UserService.ListUserOrgs": { by: "service", request: ({ mateId: userId }) => ({ userId }) },
  "UserService.ExportUser": { by: "platform", request: ({ mateId: userId }) => ({ userId }) },
};
