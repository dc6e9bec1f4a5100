/** --cancel-after: counts the workers' successes and cancels the run. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Ledger } from "../../src/index.ts";
import type { WorkerEvent } from "../../src/worker/index.ts";
import { examine } from "./graph.ts";
import type { Terminal } from "./terminal.ts";

export interface CancelerOptions {
  readonly ledger: Ledger;
  readonly terminal: Terminal;
  readonly runId: string;
  /** Null: only when it is told to. */
  readonly after: number | null;
}

/** How long the workers are given, after the cancel, to start something that they should not. */
const ASKING_MS = 500;

/** Cancels the run in mid-flight, once so many of its file steps have succeeded. */
export class Canceler {
  readonly #options: CancelerOptions;
  #succeeded = 0;
  #canceled: Promise<void> | undefined;

  constructor(options: CancelerOptions) {
    this.#options = options;
  }

  see(event: WorkerEvent): void {
    const { runId, after } = this.#options;
    if (event.type !== "succeeded" || event.job.workflowRunId !== runId || event.job.type !== examine.type) return;
    this.#succeeded += 1;
    // An error is thrown again by settled().
    if (this.#succeeded === after) this.cancel().catch(() => {});
  }

  /** Resolves when the workers have gone on asking for jobs for a moment. */
  cancel(): Promise<void> {
    this.#canceled ??= this.#cancel();
    return this.#canceled;
  }

  async settled(): Promise<void> {
    await this.#canceled;
  }

  async #cancel(): Promise<void> {
    const { ledger, terminal, runId, after } = this.#options;
    await ledger.runs.cancel(runId, { scope: { global: true }, reason: `--cancel-after ${after}` });
    terminal.line(`Canceled after ${this.#succeeded} file steps; the workers go on asking for jobs.`);
    await sleep(ASKING_MS);
  }
}
