/** Every two operations on two runs at once, and on runs that grow, live again, have children or fan out, in every order. */
import { describe, expect, test } from "@jest/globals";
import { MOST_OF_A_PAIR } from "./limits.ts";
import { everyTwo } from "./pairs.ts";
import { Stage } from "./stage.ts";
import { ended, family, growing, maps, twoRuns } from "./worlds.ts";

const stage = await Stage.open();
const worlds = {
  "two runs": await twoRuns(stage),
  "a run that grows": await growing(stage),
  "a run that has ended": await ended(stage),
  "a run with children": await family(stage),
  "runs that fan out": await maps(stage),
};

describe.each(Object.entries(worlds))("%s", (_, world) => {
  everyTwo(stage, world, { inTransactions: false, most: MOST_OF_A_PAIR });
});

test("the server has seen no deadlock", async () => {
  expect(await stage.deadlocks()).toBe(0);
});
