/** A run's result: the output of its result step, waited for without holding a connection (FEATURES F-W10). */

import { sql } from "kysely";
import { runsChannel } from "../database/channels.ts";
import type { JsonValue } from "../database/column-types.ts";
import type { Executor } from "../database/executor.ts";
import { validUuid } from "../database/ids.ts";
import type { Listener } from "../database/listener.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { decodeRunStatus, isTerminalRun } from "../database/statuses.ts";
import { readValue } from "../database/values/read.ts";
import { LedgerError } from "../errors.ts";

export interface ResultOptions {
  readonly scope: Scope;
  /** How long to wait for the run to end, in milliseconds. Default 0: only a look. */
  readonly timeoutMs?: number;
}

/** How often a waiter looks by itself, in milliseconds: often without a listener, else only to be sure. */
const POLL_MS = 500;
const LISTENING_POLL_MS = 10_000;

/**
 * The result of a run, once it has succeeded. One round trip a look: at the start, when the run's end is
 * announced, from time to time, and at the deadline. Throws `workflow.result_not_declared`,
 * `workflow.result_missing`, `workflow.result_unsuccessful_terminal`, `workflow.result_wait_timeout`,
 * `workflow.run_not_found`, `payload.undecodable`, `payload.codec_unavailable`, `scope.required`, `input.invalid`.
 */
export async function getResult(
  executor: Executor,
  listener: Listener | null,
  runId: string,
  options: ResultOptions,
): Promise<JsonValue> {
  const { timeoutMs = 0 } = options;
  if (!Number.isFinite(timeoutMs) || timeoutMs < 0) {
    throw new LedgerError("input.invalid", { message: "timeoutMs must be a number of milliseconds, 0 or more." });
  }
  const id = validUuid(runId, "runId");
  const look = () => resultNow(executor, id, options.scope);
  const deadline = performance.now() + timeoutMs;
  const first = await look();
  if (first !== undefined) return first.result;
  if (timeoutMs === 0) throw new LedgerError("workflow.result_wait_timeout");
  const changes = new Changes(listener, runsChannel(executor.schema), id);
  try {
    for (;;) {
      const left = deadline - performance.now();
      await changes.next(Math.min(left, changes.listening ? LISTENING_POLL_MS : POLL_MS));
      const found = await look();
      if (found !== undefined) return found.result;
      if (left <= 0) throw new LedgerError("workflow.result_wait_timeout");
    }
  } finally {
    changes.close();
  }
}

/** The result if the run has ended well, undefined while it is live. */
async function resultNow(executor: Executor, id: string, scope: Scope): Promise<{ result: JsonValue } | undefined> {
  const row = await read.executeFirst(executor, { id, ...scopeArguments(scope) });
  if (row === undefined) throw new LedgerError("workflow.run_not_found");
  if (row.result_step_id === null) throw new LedgerError("workflow.result_not_declared");
  const status = decodeRunStatus(row.status);
  if (!isTerminalRun(status)) return undefined;
  if (status !== "SUCCEEDED") throw new LedgerError("workflow.result_unsuccessful_terminal", { details: { status } });
  if (row.output === null) throw new LedgerError("workflow.result_missing");
  return { result: await readValue(executor.settings.values, "output", row.output) };
}

const read = reading("get_workflow_result", { id: "uuid", ...scopeParameters }, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .leftJoin("workflow_steps as s", (join) =>
      join.onRef("s.run_id", "=", "r.id").onRef("s.id", "=", "r.result_step_id"),
    )
    .where("r.id", "=", p.id)
    .where(inScope("r.organization_id", p))
    .select(["r.status", "r.result_step_id", sql<string | null>`s.output::text`.as("output")]),
);

/** Announcements that concern one run, one waiter at a time. */
class Changes {
  readonly #unsubscribe: () => void;
  #listening = false;
  #announced = false;
  #wake: (() => void) | undefined;

  constructor(listener: Listener | null, channel: string, runId: string) {
    this.#unsubscribe =
      listener?.subscribe(channel, (payload) => {
        // Null when the channel begins to be listened to: the run may have ended since the last look.
        if (payload === null) this.#listening = true;
        if (payload === null || payload === runId) this.#announce();
      }) ?? (() => {});
  }

  /** Whether announcements have been heard from some time on; a connection may never be made. */
  get listening(): boolean {
    return this.#listening;
  }

  #announce(): void {
    this.#announced = true;
    this.#wake?.();
  }

  /** Resolves at the next announcement, or after the given time. */
  async next(ms: number): Promise<void> {
    if (!this.#announced) {
      let timer: NodeJS.Timeout | undefined;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        timer = setTimeout(resolve, Math.max(0, ms));
      });
      clearTimeout(timer);
    }
    this.#announced = false;
    this.#wake = undefined;
  }

  close(): void {
    this.#unsubscribe();
  }
}
