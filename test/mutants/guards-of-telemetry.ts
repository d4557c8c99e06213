/** What logs and spans may tell. */
import { type Guard, inSource } from "./guard.ts";

const noText = "no log and no span has what people wrote";

export const telemetry: readonly Guard[] = [
  inSource("src/interceptors/errors.ts")(
    "PostgreSQL's message stays out of the log where it may quote a row",
    "harmless ? error.message : undefined",
    "error.message",
    "log-privacy",
    noText,
  ),
  inSource("src/interceptors/tracing.ts")(
    "what is no trace context is not logged as one",
    "isSpanContextValid(span) ? span : undefined",
    "span",
    "traces",
    "what is no traceparent is passed over",
  ),
];
