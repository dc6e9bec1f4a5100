/**
 * Runs, steps and jobs do what the reference model does: random graphs and random operations, and after
 * each operation its answer and all that can be seen are compared.
 *
 * RUNLEDGER_MODEL_CASES=5000       looks longer
 * RUNLEDGER_MODEL_SEED=17          plays the cases of another seed
 * RUNLEDGER_MODEL_PATH=3:1:0       goes straight to a counterexample of that seed
 */
import { test } from "@jest/globals";
import fc from "fast-check";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";
import { firstOperation } from "./operations.ts";
import { anyTurn, Play, type Turn } from "./play.ts";

const CASES = Number(process.env.RUNLEDGER_MODEL_CASES ?? 70);
/** The same cases each time by default: what is new should fail for its own reason. */
const SEED = Number(process.env.RUNLEDGER_MODEL_SEED ?? 20_261_121);
const PATH = process.env.RUNLEDGER_MODEL_PATH;
const MAX_TURNS = 30;
/** Far more than a case takes: only a hang is ended by it. */
const CASE_TIMEOUT_MS = 2_000;

const database = await createTestDatabase();

const firstTurn = firstOperation.map(
  (operation): Turn => ({ operations: [operation], transaction: "none", toString: () => String(operation) }),
);
const anyTurns = fc
  .tuple(firstTurn, fc.array(anyTurn, { minLength: 1, maxLength: MAX_TURNS, size: "max" }))
  .map(([first, others]) => [first, ...others]);

test(
  "whatever is done to runs, the ledger and the model agree",
  async () => {
    await fc.assert(
      fc.asyncProperty(anyTurns, async (turns) => {
        const play = new Play(database.db);
        await play.prepare();
        await play.turns(turns);
        await expectInvariants(database);
      }),
      {
        numRuns: CASES,
        includeErrorInReport: true,
        seed: SEED,
        ...(PATH === undefined ? {} : { path: PATH }),
      },
    );
  },
  60_000 + CASES * CASE_TIMEOUT_MS,
);
