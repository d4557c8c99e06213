/** Who listens to spans. */
import { context, propagation, trace } from "@opentelemetry/api";
import {
  InMemorySpanExporter,
  NodeTracerProvider,
  SimpleSpanProcessor,
} from "@opentelemetry/sdk-trace-node";
import { onTestFinished } from "vitest";

/** Registers an SDK until the test is over, as an operator would before the server starts. */
export const listening = (): InMemorySpanExporter => {
  const exporter = new InMemorySpanExporter();
  new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(exporter)] }).register();
  onTestFinished(() => {
    for (const api of [trace, context, propagation]) api.disable();
  });
  return exporter;
};
