/** Building the graph of a workflow run in code: steps, and what each depends on (FEATURES F-W1). */
import type { StandardSchemaV1 } from "@standard-schema/spec";
import {
  type AnyJobDefinition,
  type InputOf,
  type JobDefaults,
  limitOf,
  type OutputOf,
  type PrerequisitesOf,
} from "../jobs/definition.ts";
import type { RequestedLimit } from "../jobs/limits.ts";
import type {
  AdditionSpec,
  DependencySpec,
  GateExpiry,
  GraphSpec,
  MapSpec,
  StepJobSpec,
  StepSpec,
  WorkflowDefinition,
} from "./spec.ts";

/** A step of a graph under construction: its key and the type of its output. */
export interface StepRef<Key extends string = string, Output = unknown> {
  readonly key: Key;
  /** Carries the type; never set. */
  readonly output?: Output;
}

type Refs = readonly StepRef[];

/** What a step waits for. */
export interface StepDependencies<Success extends Refs = Refs, Terminal extends Refs = Refs> {
  /** These must succeed; when one does not, the step is cancelled. */
  readonly onSuccess?: Success;
  /** These must only end, in whatever way. */
  readonly onTerminal?: Terminal;
}

/** The settings of a step's job. */
export interface StepSettings extends JobDefaults {
  /** How long after its release the step may start, in seconds. Default: at once. */
  readonly delaySeconds?: number;
}

/** The same of a step whose job runs by itself. */
export interface JobStepSettings extends StepSettings {
  /** How many jobs of a key run at once or start in a period. What is left out comes from the job's definition. */
  readonly limit?: RequestedLimit;
  /** The job may continue as its next run (`jobs.continue`); the step ends with the last. Default false. */
  readonly continues?: boolean;
}

/** What an external gate waits for, what it hands to its dependents, and how long it stays open. */
export interface GateOptions<Output> extends StepDependencies {
  /** Carries the output's type, as `typed<T>()`; what completes the gate is not checked. */
  readonly output?: StandardSchemaV1<unknown, Output>;
  /** What becomes of the gate when nobody completes it. Default: it stays open. */
  readonly expires?: GateExpiry;
}

/** What a map step fans out over, and what else it waits for. */
export interface MapOptions<Item, Failure extends NonNullable<MapSpec["onItemFailure"]>>
  extends StepDependencies,
    JobStepSettings {
  /** The step whose output is the array; the map step waits for its success. */
  readonly over: StepRef<string, readonly Item[]>;
  /** `cancel`: an item that does not succeed cancels the map step. `continue`: its place in the output is null. Default `cancel`. */
  readonly onItemFailure?: Failure;
}

export interface ChildOptions extends StepDependencies, StepSettings {
  /** The child run is cancelled this many seconds after its start. Default: it has no deadline of its own. */
  readonly deadlineSeconds?: number;
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
  JobStepSettings;

/** Collects steps: what the graph of a new run and an addition to a live one have in common. */
abstract class StepsBuilder {
  protected readonly steps: StepSpec[] = [];

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
    this.steps.push({
      key,
      job: { ...jobOf(job, settings), ...definedLimitOf(job, payload), payload },
      dependencies: dependenciesOf({ onSuccess, onTerminal }),
    });
    return { key };
  }

  /**
   * Adds a step that runs a job for each element of the array that `over` puts out, with the element as its
   * payload: steps `key[0]`, `key[1]` and so on. It ends when they have, and its output is the array of theirs.
   */
  map<
    const Key extends string,
    D extends AnyJobDefinition,
    const Failure extends NonNullable<MapSpec["onItemFailure"]> = "cancel",
  >(
    key: Key,
    job: D,
    options: MapOptions<InputOf<D>, Failure>,
  ): StepRef<Key, (Failure extends "continue" ? OutputOf<D> | null : OutputOf<D>)[]>;
  map<const Key extends string>(
    key: Key,
    job: string,
    options: MapOptions<unknown, "cancel" | "continue">,
  ): StepRef<Key, unknown[]>;
  map(
    key: string,
    job: AnyJobDefinition | string,
    {
      over,
      onItemFailure = "cancel",
      onSuccess = [],
      onTerminal = [],
      ...settings
    }: MapOptions<never, "cancel" | "continue">,
  ): StepRef {
    const sources = onSuccess.some((step) => step.key === over.key) ? onSuccess : [over, ...onSuccess];
    this.steps.push({
      key,
      job: { ...jobOf(job, settings), ...definedLimitOfItems(job) },
      map: { over: over.key, onItemFailure },
      dependencies: dependenciesOf({ onSuccess: sources, onTerminal }),
    });
    return { key };
  }

  /** Adds a step that is a run of its own: its result is the step's output, and a cancel of this run cancels it too. */
  child<Input, Result, const Key extends string>(
    key: Key,
    workflow: WorkflowDefinition<string, Input, Result>,
    input: Input,
    { deadlineSeconds, onSuccess, onTerminal, ...settings }: ChildOptions = {},
  ): StepRef<Key, Result> {
    this.steps.push({
      key,
      child: { graph: workflow.graph(input), deadlineSeconds, ...settings },
      dependencies: dependenciesOf({ onSuccess, onTerminal }),
    });
    return { key };
  }

  /** Adds an external gate: it waits until somebody completes it, or until it expires. */
  external<Output = unknown, const Key extends string = string>(
    key: Key,
    { expires, onSuccess, onTerminal }: GateOptions<Output> = {},
  ): StepRef<Key, Output> {
    this.steps.push({ key, expires, dependencies: dependenciesOf({ onSuccess, onTerminal }) });
    return { key };
  }
}

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
export class WorkflowBuilder extends StepsBuilder {
  readonly #type: string;
  #resultStep: string | null = null;

  constructor(type: string) {
    super();
    this.#type = type;
  }

  /** Declares the step whose output is the run's result. */
  result(step: StepRef): void {
    this.#resultStep = step.key;
  }

  build(): GraphSpec {
    return { type: this.#type, steps: [...this.steps], resultStep: this.#resultStep };
  }
}

/**
 * Builds steps to add to a live run (FEATURES F-W7).
 *
 * ```ts
 * const addition = new WorkflowAddition();
 * const pages = addition.existing("list", typed<string[]>());
 * addition.map("fetch", fetchPage, { over: pages });
 * await ledger.runs.append(runId, { key: "fetch-pages", graph: addition.build(), scope: { global: true } });
 * ```
 */
export class WorkflowAddition extends StepsBuilder {
  /** Refers to a step that the run has already; `output` carries the type of its output, as `typed<T>()`. */
  existing<Output = unknown, const Key extends string = string>(
    key: Key,
    _output?: StandardSchemaV1<unknown, Output>,
  ): StepRef<Key, Output> {
    return { key };
  }

  build(): AdditionSpec {
    return { steps: [...this.steps] };
  }
}

function jobOf(job: AnyJobDefinition | string, settings: JobStepSettings): StepJobSpec {
  return typeof job === "string"
    ? { ...settings, type: job }
    : { ...settings, type: job.type, schema: job.input, defaults: job.defaults };
}

function definedLimitOf(job: AnyJobDefinition | string, payload: unknown): Pick<StepJobSpec, "definedLimit"> {
  return typeof job === "string" ? {} : { definedLimit: limitOf(job.limit, payload) };
}

/** The payloads of items are not known here, so a key that is made from them is not: the step has to name one. */
function definedLimitOfItems(job: AnyJobDefinition | string): Pick<StepJobSpec, "definedLimit"> {
  if (typeof job === "string" || job.limit === undefined) return {};
  const { key, ...settings } = job.limit;
  return { definedLimit: () => (typeof key === "function" ? settings : { ...settings, key }) };
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
