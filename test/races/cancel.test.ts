/** A cancel of a run at which many sessions are at work gets through, and nothing starts after it. */
import { afterEach, expect, test } from "@jest/globals";
import type { GraphSpec, StepSpec } from "../../src/index.ts";
import { isLedgerError } from "../../src/index.ts";
import { expectInvariants, watchForDeadlocks } from "../invariants.ts";
import { countOf, failure, globally, ledgerOf } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const ROUNDS = Math.ceil(Number(process.env.RUNLEDGER_RACE_ROUNDS ?? 200) / 25);
const WORKERS = 6;

const database = await createTestDatabase();
const expectNoDeadlocks = watchForDeadlocks(database);
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  expectNoDeadlocks();
});

test("with six workers that complete and fail its steps all the while", async () => {
  for (let round = 0; round < ROUNDS; round += 1) {
    const type = `busy-${round}`;
    const { id } = await ledger.runs.enqueue(busy(type));
    let canceled = false;
    let settled = 0;
    let begun = () => {};
    const started = new Promise<void>((resolve) => {
      begun = resolve;
    });
    const work = async (worker: number) => {
      for (let n = 0; !canceled; n += 1) {
        const jobs = await ledger.jobs.claim({ workerId: `w${worker}`, limit: 1 + ((n + worker) % 3), types: [type] });
        const results = await ledger.jobs.settle(
          jobs.map(({ lease }) => ((n + worker) % 7 === 0 ? { lease, failure } : { lease, success: {} })),
        );
        for (const result of results) if (!result.ok) expect(expectedAfterCancel(result.error)).toBe(true);
        settled += results.length;
        if (settled > 60) begun();
      }
    };
    const workers = Array.from({ length: WORKERS }, (_, worker) => work(worker));
    await started;

    const answers = await Promise.all([ledger.runs.cancel(id, globally), ledger.runs.cancel(id, globally)]);
    const live = await countOf(database, "runledger.job_queue where type = $1", [type]);
    canceled = true;
    await Promise.all(workers);

    expect(live).toBe(0);
    expect(answers.map(({ status }) => status)).toEqual(["CANCELED", "CANCELED"]);
    expect(answers.filter((answer) => answer.canceled)).toHaveLength(1);
    expect(await countOf(database, "runledger.job_queue where type = $1", [type])).toBe(0);
  }
});

function expectedAfterCancel(error: unknown): boolean {
  return isLedgerError(error) && ["job.lease_owner_mismatch", "workflow.release_conflict"].includes(error.code);
}

/** Forty chains of twenty steps; each step's end is enough for the next, so that failures release too. */
function busy(type: string): GraphSpec {
  const steps = Array.from({ length: 40 * 20 }, (_, n): StepSpec => {
    const needs = n < 40 ? [] : [{ key: `s${n - 40}`, kind: "ON_TERMINAL" as const }];
    return { key: `s${n}`, dependencies: needs, job: { type, payload: null, maxAttempts: 1 } };
  });
  return { type, steps, resultStep: null };
}
