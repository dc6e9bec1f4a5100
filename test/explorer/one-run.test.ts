/** Every two operations on one run, in every order of their statements (LOCKS.md §6). */
import { expect, test } from "@jest/globals";
import { MOST_ON_ONE_RUN } from "./limits.ts";
import { everyTwo } from "./pairs.ts";
import { Stage } from "./stage.ts";
import { oneRun } from "./worlds.ts";

const stage = await Stage.open();
everyTwo(stage, await oneRun(stage), { inTransactions: true, most: MOST_ON_ONE_RUN });

test("the server has seen no deadlock", async () => {
  expect(await stage.deadlocks()).toBe(0);
});
