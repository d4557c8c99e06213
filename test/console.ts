import { randomUUID } from "node:crypto";
import type pg from "pg";

/**
 * Changes rows as an operator with a database console would: past the RPCs, under every trigger. The settings
 * are those that `roster.enter` makes for a mutation, without which the triggers refuse.
 */
export const byHand = async (
  admin: pg.ClientBase,
  text: string,
  values: readonly unknown[] = [],
): Promise<void> => {
  await admin.query("begin");
  try {
    await admin.query(
      `select set_config('roster.entry_id', $1, true), set_config('roster.held_permissions', '*', true),
        set_config('roster.subject', 'service:console', true), set_config('roster.method', 'console', true),
        set_config('roster.correlation_id', 'console', true), set_config('roster.team_sight', 'all', true)`,
      [randomUUID()],
    );
    await admin.query(text, [...values]);
    await admin.query("commit");
  } catch (error) {
    await admin.query("rollback");
    throw error;
  }
};
