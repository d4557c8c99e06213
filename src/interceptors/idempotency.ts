import { hash } from "node:crypto";
import { type DescMessage, fromBinary, type Message, toBinary } from "@bufbuild/protobuf";
import { MethodOptions_IdempotencyLevel as Idempotency } from "@bufbuild/protobuf/wkt";
import type { Interceptor, UnaryRequest, UnaryResponse } from "@connectrpc/connect";
import { z } from "zod";
import { callerOf, keys } from "../context.ts";
import { sql } from "../database/sql.ts";
import type { DatabaseError } from "../database/unit-of-work.ts";
import { fail } from "../errors.ts";
import { answer, type Mutation, type Next, reading, type Sessions } from "./unit-of-work.ts";

/**
 * By which gRPC clients tell that their retry policy sends a call again.
 * https://github.com/grpc/proposal/blob/master/A6-client-retries.md
 */
const retryHeader = "grpc-previous-rpc-attempts";

/**
 * Answers a mutation that was sent again as it was answered the first time. The key is claimed in the mutation's own
 * transaction before its first change, and the answer is kept there as it commits: there is never one without
 * the other. Errors and rehearsals leave no key. What a client sends again by itself without
 * a key is refused, for it might be done twice. What is not to be kept of an answer is put in as it leaves.
 */
export const idempotency =
  (sessions: Sessions): Interceptor =>
  (next) =>
  (request) => {
    const { requestId = "", validateOnly = false } = request.message as Mutation;
    const reads = request.method.idempotency === Idempotency.NO_SIDE_EFFECTS;
    if (reads || validateOnly) return next(request);
    if (requestId === "" && request.header.has(retryHeader)) throw fail("RETRY_WITHOUT_REQUEST_ID");
    return completed(sessions, request as UnaryRequest, requestId, next as Next);
  };

const completed = async (
  sessions: Sessions,
  request: UnaryRequest,
  requestId: string,
  next: Next,
): Promise<UnaryResponse> => {
  const answered = requestId === "" ? next(request) : claimed(sessions, request, requestId, next);
  const response = await answered;
  request.contextValues.get(keys.completion)?.(response.message);
  return response;
};

const claimed = async (
  sessions: Sessions,
  request: UnaryRequest,
  requestId: string,
  next: Next,
): Promise<UnaryResponse> => {
  const { contextValues: values, method } = request;
  const { subject } = callerOf(values);
  const name = `${method.parent.typeName}/${method.name}`;
  const key = [subject, name, requestId];
  const digest = digestOf(request.message);
  values.set(keys.claim, {
    claiming: {
      text: "select roster.claim_request($1, $2, $3, $4)",
      values: [...key, digest],
    },
    storing: (message) => ({
      text: "select roster.store_response($1, $2, $3, $4)",
      values: [...key, Buffer.from(toBinary(method.output as DescMessage, message))],
    }),
  });
  try {
    return await next(request);
  } catch (error) {
    if (!isReplay(error as DatabaseError)) throw error;
  }
  const { response } = await reading(sessions, values).one(
    sql.type(storedRow)`
      select roster.stored_response(${subject}, ${name}, ${requestId}, ${sql.binary(digest)}) as response`,
    () => new Error("a function without a result"),
  );
  // Kept for a day, and that has just passed.
  if (response === null) throw fail("CONFLICT_RETRY");
  return answer(request, fromBinary(method.output as DescMessage, response));
};

const storedRow = z.object({ response: z.instanceof(Uint8Array).nullable() });

const isReplay = ({ code }: DatabaseError): boolean => code === "RS002";

/**
 * What makes two requests the same. Not their bytes: other languages write maps in any order. Not their `request_id`,
 * by which they are compared.
 */
const digestOf = (message: Message): Buffer => {
  const text = JSON.stringify({ ...message, requestId: "" }, (_name, value: unknown) => {
    if (typeof value === "bigint") return `${value}`;
    if (value instanceof Uint8Array) return Buffer.from(value).toString("base64");
    if (typeof value !== "object" || value === null || Array.isArray(value)) return value;
    return Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)));
  });
  return hash("sha256", text, "buffer");
};
