/** The graph of a workflow run, built in code: JOB and EXTERNAL steps, and what each depends on (FEATURES F-W1). */
import type { StandardSchemaV1 } from "@standard-schema/spec";
import type { DependencyKind } from "../database/statuses.ts";
import type { AnyJobDefinition, InputOf, JobDefaults, OutputOf, PrerequisitesOf } from "../jobs/definition.ts";

/** A step of a graph under construction: its key and the type of its output. */
export interface StepRef<Key extends string = string, Output = unknown> {
  readonly key: Key;
  /** Carries the type; never set. */
  readonly output?: Output;
}

/** A step as plain data. */
export interface StepSpec {
  readonly key: string;
  /** What a JOB step runs; absent for an EXTERNAL step. */
  readonly job?: StepJobSpec;
  readonly dependencies: readonly DependencySpec[];
}

export interface StepJobSpec extends JobDefaults {
  readonly type: string;
  readonly payload: unknown;
  readonly schema?: StandardSchemaV1 | undefined;
  readonly defaults?: JobDefaults;
}

export interface DependencySpec {
  readonly key: string;
  readonly kind: DependencyKind;
}

/** A whole graph as plain data. */
export interface GraphSpec {
  readonly type: string;
  readonly steps: readonly StepSpec[];
  /** The step whose output is the run's result. */
  readonly resultStep: string | null;
}

type Refs = readonly StepRef[];

/** What a step waits for. */
export interface StepDependencies<Success extends Refs = Refs, Terminal extends Refs = Refs> {
  /** These must succeed; when one does not, the step is cancelled. */
  readonly onSuccess?: Success;
  /** These must only end, in whatever way. */
  readonly onTerminal?: Terminal;
}

/** What an external gate waits for, and what it hands to its dependents. */
export interface GateOptions<Output> extends StepDependencies {
  /** Carries the output's type, as `typed<T>()`; what completes the gate is not checked. */
  readonly output?: StandardSchemaV1<unknown, Output>;
}

/** The outputs that a step finds: of an ON_TERMINAL prerequisite only when it succeeded. */
export type OutputsOf<Success extends Refs, Terminal extends Refs> = {
  readonly [R in Success[number] as R["key"]]: R extends StepRef<string, infer Output> ? Output : never;
} & {
  readonly [R in Terminal[number] as R["key"]]?: R extends StepRef<string, infer Output> ? Output : never;
};

/** The dependencies of a step of job `D`; a compile error when they lack an output that its definition needs. */
type Fitting<D extends AnyJobDefinition, Success extends Refs, Terminal extends Refs> =
  OutputsOf<Success, Terminal> extends PrerequisitesOf<D> ? unknown : { readonly missing: PrerequisitesOf<D> };

export type StepOptions<Success extends Refs, Terminal extends Refs> = StepDependencies<Success, Terminal> &
  JobDefaults;

/**
 * Builds a graph. Steps may be added in any order that their references allow; the graph is validated
 * when it is enqueued.
 *
 * ```ts
 * const graph = new WorkflowBuilder("order");
 * const reserve = graph.job("reserve", reserveStock, { orderId });
 * const approved = graph.external("approve", { output: typed<Approval>(), onSuccess: [reserve] });
 * graph.result(graph.job("charge", chargeCard, { orderId }, { onSuccess: [reserve, approved] }));
 * ```
 */
export class WorkflowBuilder {
  readonly #type: string;
  readonly #steps: StepSpec[] = [];
  #resultStep: string | null = null;

  constructor(type: string) {
    this.#type = type;
  }

  /** Adds a step that runs a job. A type without a definition is given as a string, with any payload. */
  job<
    const Key extends string,
    D extends AnyJobDefinition,
    const Success extends Refs = [],
    const Terminal extends Refs = [],
  >(
    key: Key,
    job: D,
    payload: InputOf<D>,
    ...options: unknown extends Fitting<D, Success, Terminal>
      ? [options?: StepOptions<Success, Terminal>]
      : [options: StepOptions<Success, Terminal> & Fitting<D, Success, Terminal>]
  ): StepRef<Key, OutputOf<D>>;
  job<const Key extends string>(
    key: Key,
    job: string,
    payload: unknown,
    options?: StepOptions<Refs, Refs>,
  ): StepRef<Key>;
  job(key: string, job: AnyJobDefinition | string, payload: unknown, options: StepOptions<Refs, Refs> = {}): StepRef {
    const { onSuccess, onTerminal, ...settings } = options;
    const spec: StepJobSpec =
      typeof job === "string"
        ? { ...settings, type: job, payload }
        : { ...settings, type: job.type, payload, schema: job.input, defaults: job.defaults };
    this.#steps.push({ key, job: spec, dependencies: dependenciesOf({ onSuccess, onTerminal }) });
    return { key };
  }

  /** Adds an external gate: it waits until somebody completes it. */
  external<Output = unknown, const Key extends string = string>(
    key: Key,
    options: GateOptions<Output> = {},
  ): StepRef<Key, Output> {
    this.#steps.push({ key, dependencies: dependenciesOf(options) });
    return { key };
  }

  /** Declares the step whose output is the run's result. */
  result(step: StepRef): void {
    this.#resultStep = step.key;
  }

  build(): GraphSpec {
    return { type: this.#type, steps: [...this.#steps], resultStep: this.#resultStep };
  }
}

function dependenciesOf({
  onSuccess = [],
  onTerminal = [],
}: {
  onSuccess?: Refs | undefined;
  onTerminal?: Refs | undefined;
}): DependencySpec[] {
  return [
    ...onSuccess.map(({ key }) => ({ key, kind: "ON_SUCCESS" as const })),
    ...onTerminal.map(({ key }) => ({ key, kind: "ON_TERMINAL" as const })),
  ];
}

/** A workflow type whose graph is made from an input. */
export interface WorkflowDefinition<Type extends string = string, Input = unknown, Result = unknown> {
  readonly type: Type;
  readonly input: StandardSchemaV1<Input, unknown> | undefined;
  /** The graph for one input. */
  graph(input: Input): GraphSpec;
  /** Carries the result's type; never set. */
  readonly result?: Result;
}

export interface DefineWorkflowOptions<Input, Parsed, Result> {
  /** Any Standard Schema, or `typed<T>()`. */
  readonly input?: StandardSchemaV1<Input, Parsed>;
  /** Adds the steps, and returns the one whose output is the run's result, if it has one. */
  build(graph: WorkflowBuilder, input: Input): StepRef<string, Result> | undefined;
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
    graph(input: Input): GraphSpec {
      const builder = new WorkflowBuilder(type);
      const result = options.build(builder, input);
      if (result) builder.result(result);
      return builder.build();
    },
  });
}
