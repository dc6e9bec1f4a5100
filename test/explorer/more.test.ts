/** Three and four operations at the same time: a few in every order, the others in a sample of orders. */
import { describe, expect, test } from "@jest/globals";
import { playAll, playSome, randomness } from "./explore.ts";
import { SAMPLE } from "./limits.ts";
import { alone, named, playersOf } from "./operations.ts";
import { bind } from "./pairs.ts";
import { Proof } from "./proof.ts";
import { Stage } from "./stage.ts";
import { ended, family, growing, maps, oneRun, twoRuns, type World } from "./worlds.ts";

/** Schedules of one choice of operations. */
const EACH = 10;

const stage = await Stage.open();
const worlds = {
  "one run": await oneRun(stage),
  "two runs": await twoRuns(stage),
  "a run that grows": await growing(stage),
  "a run that has ended": await ended(stage),
  "a run with children": await family(stage),
  "runs that fan out": await maps(stage),
};
/** Each world, with three operations and with four. */
const SAMPLES = 2 * Object.keys(worlds).length;

describe("every order of", () => {
  const triples: [keyof typeof worlds, string, string, string][] = [
    // A release that the cancel waits for adds a job, and a worker takes and completes it before the cancel goes on.
    ["one run", "cancel the run", "gate of one succeeds", "work on one.freed"],
    ["one run", "complete a", "complete b", "cancel the run"],
    ["two runs", "complete a1 b1", "complete b2 a2", "cancel a"],
  ];
  test.each(triples)(
    "%s: %s / %s / %s",
    async (name, ...keys) => {
      const { reset, operations } = worlds[name];
      const players = keys.map((key) => alone(named(operations, key), bind));
      const proof = new Proof(stage, { reset, players });
      await playAll((direct) => proof.play(direct));
    },
    300_000,
  );
});

describe.each(Object.entries(worlds))("%s: a sample of orders of", (_, world) => {
  test.each([3, 4])(
    "%i operations",
    async (size) => {
      const random = randomness(size);
      for (let n = 0; n < SAMPLE / SAMPLES / EACH; n += 1) {
        const proof = new Proof(stage, { reset: world.reset, players: chosen(world, size, random) });
        await playSome(EACH, n, (direct) => proof.play(direct));
      }
    },
    600_000,
  );
});

/** So many of the world's players, some perhaps twice. */
function chosen({ operations }: World, size: number, random: () => number) {
  const players = Object.values(operations).flatMap((operation) => playersOf(operation, bind));
  return Array.from({ length: size }, () => {
    const player = players[Math.floor(random() * players.length)];
    if (player === undefined) throw new Error("there are no players");
    return player;
  });
}

test("the server has seen no deadlock", async () => {
  expect(await stage.deadlocks()).toBe(0);
});
