/** What the explorer has found, each in the fewest steps that show it. */
import { expect, test } from "@jest/globals";
import { graphOf } from "../runs/fixtures.ts";
import { completesGate } from "./acts.ts";
import { alone, inTransaction } from "./operations.ts";
import { bind } from "./pairs.ts";
import { play } from "./play.ts";
import { Stage } from "./stage.ts";

const stage = await Stage.open();

test("a gate's completion that waited for the same completion finds it done, though the plan goes row by row", async () => {
  const { id } = await stage.ledger.runs.enqueue(
    graphOf("gates", { gate: [], d0: ["gate"], d1: ["gate"], d2: ["gate"], d3: ["gate"], d4: ["gate"], d5: ["gate"] }),
  );
  const reset = await stage.keep();
  const gate = completesGate("the run", id);

  await reset();
  const first = inTransaction(gate, bind);
  const { outcomes, waits } = await play(stage, [first, alone(gate, bind)], (options, _, depth) =>
    // The first up to its commit, then the second until it waits.
    depth < 5 ? 0 : (options.at(-1) ?? null),
  );

  expect(waits).toMatchObject([{ statement: "lock_workflow_step_closure_for_update" }]);
  expect(outcomes).toEqual([{ value: true }, { value: false }]);
});
