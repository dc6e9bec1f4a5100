/** Expiry: a gate that nobody completed in its time ends with the outcome that its graph chose (FEATURES F-W6). */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { inHalves } from "../database/halves.ts";
import type { StoredJson } from "../database/json.ts";
import { rowsOf } from "../database/parameters.ts";
import { reading } from "../database/statement.ts";
import { allOrNothing, inTransaction, rollbackToSavepoint } from "../database/transaction.ts";
import type { LedgerError } from "../errors.ts";
import { tryLockRunReleaseShared } from "../locks/release.ts";
import { withBoundedWait } from "../locks/wait.ts";
import type { StepEnding } from "./apply.ts";
import { changeRuns, type RunChange } from "./changes.ts";
import type { TerminalStatus } from "./resolve.ts";

/** A gate whose time was over when somebody looked. */
export interface DueGate {
  readonly runId: string;
  readonly stepId: string;
  readonly stepKey: string;
  readonly outcome: TerminalStatus;
  readonly output: StoredJson | null;
}

export interface ExpiredGates {
  readonly expired: readonly DueGate[];
  /** Gates that were in somebody's way, or somebody in theirs: untouched. */
  readonly setAside: readonly { readonly gate: DueGate; readonly error: LedgerError }[];
}

/**
 * Ends those of the gates that are still due, as a completion from outside would. Never waits for a run's
 * release lock. Where nothing is in the way ten round trips for all of them, nine when nothing depends on
 * them. In a caller's transaction a gate that is in the way ends the call with its error.
 */
export async function expireGates(executor: Executor, due: readonly DueGate[]): Promise<ExpiredGates> {
  const expired: DueGate[] = [];
  const setAside: { gate: DueGate; error: LedgerError }[] = [];
  await inHalves(
    executor,
    due,
    async (gates) => {
      expired.push(...(await inTransaction(executor, (trx) => expireTogether(trx, gates))));
    },
    (gate, error) => setAside.push({ gate, error }),
  );
  return { expired, setAside };
}

/** All of the gates that are still due, or none. The release locks come first: whose run is being cancelled is known soonest. */
function expireTogether(trx: Executor, gates: readonly DueGate[]): Promise<readonly DueGate[]> {
  return allOrNothing(trx, () =>
    withBoundedWait(trx, async () => {
      await tryLockRunReleaseShared(
        trx,
        gates.map(({ runId }) => runId),
      );
      return expireLocked(trx, gates);
    }),
  );
}

/** What was completed meanwhile is known once its row is locked: then the others are locked anew, without it. */
async function expireLocked(trx: Executor, gates: readonly DueGate[]): Promise<readonly DueGate[]> {
  if (gates.length === 0) return [];
  try {
    await changeRuns(trx, changeOf(gates), async () => {
      const left = await stillDue(trx, gates);
      if (left.length < gates.length) throw new Overtaken(left);
    });
    return gates;
  } catch (error) {
    if (!(error instanceof Overtaken)) throw error;
    await rollbackToSavepoint(trx);
    return expireLocked(trx, error.left);
  }
}

/** Some gates were not due any more once they were locked. */
class Overtaken extends Error {
  readonly left: readonly DueGate[];

  constructor(left: readonly DueGate[]) {
    super();
    this.left = left;
  }
}

function changeOf(gates: readonly DueGate[]): RunChange {
  return {
    ending: gates.map(({ runId, stepId, outcome, output }) => ({ runId, id: stepId, status: outcome, output })),
    endings: new Map(gates.map((gate) => [gate.stepId, endingOf(gate)])),
    outcomes: [],
    additions: [],
    alsoLock: [],
  };
}

function endingOf({ outcome, output }: DueGate): StepEnding {
  return {
    output,
    errorCode: outcome === "SUCCEEDED" ? null : "workflow.external_expired",
    errorMessage: null,
    completedBy: "runledger",
    reason: "expired",
  };
}

async function stillDue(trx: Executor, gates: readonly DueGate[]): Promise<DueGate[]> {
  const rows = await due.execute(trx, {
    runIds: gates.map(({ runId }) => runId),
    stepIds: gates.map(({ stepId }) => stepId),
  });
  const ids = new Set(rows.map(({ id }) => id));
  return gates.filter(({ stepId }) => ids.has(stepId));
}

// After the rows are locked, so that it sees what whoever had them before has made of them.
const due = reading("due_gates", { runIds: "uuid[]", stepIds: "uuid[]" }, (db, p) =>
  db
    .selectFrom(rowsOf("given", { run_id: p.runIds, id: p.stepIds }))
    .innerJoin("workflow_steps as s", (join) =>
      join.onRef("s.run_id", "=", "given.run_id").onRef("s.id", "=", "given.id"),
    )
    .where("s.open_since", "is not", null)
    .where("s.expires_at", "<=", sql<Date>`statement_timestamp()`)
    .select("s.id"),
);
