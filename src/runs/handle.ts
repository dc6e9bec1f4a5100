/** A handle on one run, for who holds on to it: status, result and cancel without its id and scope each time (FEATURES F-W10). */
import type { JsonValue } from "../database/column-types.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import type { Listener } from "../database/listener.ts";
import { type Scope, scopeArguments } from "../database/scope.ts";
import type { ReadOptions } from "../database/values/read.ts";
import { type CanceledRun, type CancelRunOptions, cancelRun } from "./cancel.ts";
import { getRun, getRunStatus, type Run, type RunStatusView } from "./read.ts";
import { getResult, type ResultOptions } from "./result.ts";
import type { WorkflowDefinition } from "./spec.ts";

/** What a result's type is taken from. Without the input's type, which stands in both directions and would fit no other workflow's. */
export type ResultType<Result> = Pick<WorkflowDefinition<string, never, Result>, "type" | "result">;

export interface HandleOptions<Result> {
  readonly scope: Scope;
  /** Carries the result's type. */
  readonly workflow?: ResultType<Result>;
}

/**
 * One run. Nothing is sent, and no connection held, until one of its functions is called; any number of
 * handles wait over one listener. Made by `ledger.runs.handle()`.
 */
export class RunHandle<Result = JsonValue> {
  readonly id: string;
  readonly #executor: Executor;
  readonly #listener: Listener | null;
  readonly #scope: Scope;

  /** @internal Throws `input.invalid`, `scope.required`. */
  constructor(executor: Executor, listener: Listener | null, runId: string, { scope }: HandleOptions<Result>) {
    scopeArguments(scope);
    this.id = validUuid(runId, "runId");
    this.#executor = executor;
    this.#listener = listener;
    this.#scope = scope;
  }

  /** Status and counters. One round trip. Throws `workflow.run_not_found`. */
  getStatus(): Promise<RunStatusView> {
    return getRunStatus(this.#executor, this.id, this.#scope);
  }

  /** The run with all its steps. Round trips and errors as `runs.get`. */
  getRun(options?: ReadOptions): Promise<Run> {
    return getRun(this.#executor, this.id, this.#scope, options);
  }

  /** The result step's output, once the run has succeeded: waits for that up to `timeoutMs`. Round trips and errors as `runs.getResult`. */
  getResult(options?: Omit<ResultOptions, "scope">): Promise<Result>;
  getResult(options?: Omit<ResultOptions, "scope">): Promise<unknown> {
    return getResult(this.#executor, this.#listener, this.id, { ...options, scope: this.#scope });
  }

  /** Cancels the run and its child runs. Round trips and errors as `runs.cancel`. */
  cancel(options: Omit<CancelRunOptions, "scope"> = {}): Promise<CanceledRun> {
    return cancelRun(this.#executor, this.id, { ...options, scope: this.#scope });
  }
}
