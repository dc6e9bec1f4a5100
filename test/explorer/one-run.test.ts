/** Every two operations on one run, in the orders of their statements that limits.ts asks for (LOCKS.md §6). */
import { expect, test } from "@jest/globals";
import { MOST_OF_A_PAIR } from "./limits.ts";
import { everyTwo } from "./pairs.ts";
import { Stage } from "./stage.ts";
import { oneRun } from "./worlds.ts";

const stage = await Stage.open();
everyTwo(stage, await oneRun(stage), { inTransactions: true, most: MOST_OF_A_PAIR });

test("the server has seen no deadlock", async () => {
  expect(await stage.deadlocks()).toBe(0);
});
