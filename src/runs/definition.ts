/** Workflow definitions in code: a type name, and the graph that an input makes. */
import type { StandardSchemaV1 } from "@standard-schema/spec";
import { type StepRef, WorkflowBuilder } from "./graph.ts";
import type { BuildContext, GraphSpec, WorkflowDefinition } from "./spec.ts";

export interface DefineWorkflowOptions<Input, Parsed, Result> {
  /** Any Standard Schema, or `typed<T>()`. */
  readonly input?: StandardSchemaV1<Input, Parsed>;
  /** Adds the steps, and returns the one whose output is the run's result, if it has one. */
  build(graph: WorkflowBuilder, input: Input, context: BuildContext): StepRef<string, Result> | undefined;
}

/**
 * Defines a workflow type.
 *
 * ```ts
 * const order = defineWorkflow("order", {
 *   input: typed<{ orderId: string }>(),
 *   build(graph, { orderId }) {
 *     const reserve = graph.job("reserve", reserveStock, { orderId });
 *     return graph.job("charge", chargeCard, { orderId }, { onSuccess: [reserve] });
 *   },
 * });
 * await ledger.runs.enqueue(order, { orderId: "o-1" });
 * ```
 */
export function defineWorkflow<const Type extends string, Input = unknown, Parsed = Input, Result = unknown>(
  type: Type,
  options: DefineWorkflowOptions<Input, Parsed, Result>,
): WorkflowDefinition<Type, Input, Result> {
  return Object.freeze({
    type,
    input: options.input,
    graph(input: Input, context: BuildContext = { schedule: null }): GraphSpec {
      const builder = new WorkflowBuilder(type);
      const result = options.build(builder, input, context);
      if (result) builder.result(result);
      return builder.build();
    },
  });
}
