import { parsed } from "../jobs/definition.ts";
import type { RunRequest } from "./enqueue.ts";
import type { RunOptions } from "./prepare.ts";
import type { BuildContext, WorkflowDefinition } from "./spec.ts";

/** A request for a run of a defined workflow: its input is checked, then its graph is built. Throws `payload.invalid`. */
export async function requestOf<Input>(
  workflow: WorkflowDefinition<string, Input, unknown>,
  input: Input,
  options: RunOptions = {},
  context?: BuildContext,
): Promise<RunRequest> {
  if (workflow.input !== undefined) await parsed(workflow.input, input);
  return { ...options, graph: workflow.graph(input, context) };
}
