/** Every two operations that touch two runs, batches in opposite order among them. */
import { expect, test } from "@jest/globals";
import { createLedger } from "../../src/index.ts";
import { playAll } from "./explore.ts";
import { playersOf } from "./operations.ts";
import { Proof } from "./proof.ts";
import { Stage } from "./stage.ts";
import { twoRuns } from "./worlds.ts";

const stage = await Stage.open();
const { reset, operations } = await twoRuns(stage);

const players = Object.values(operations).flatMap((operation) => playersOf(operation, (db) => createLedger({ db })));
const pairs = players.flatMap((one, place) =>
  players.slice(place).map((other) => [one.name, other.name, one, other] as const),
);

let total = 0;
test.each(pairs)("%s / %s", async (_one, _other, one, other) => {
  const began = performance.now();
  const proof = new Proof(stage, { reset, players: [one, other] });
  const count = await playAll((direct) => proof.play(direct));
  total += count;
  process.stderr.write(`${one.name} / ${other.name}: ${count} ${Math.round(performance.now() - began)} ms; ${total}\n`);
});

test("the server has seen no deadlock", async () => {
  expect(await stage.deadlocks()).toBe(0);
});
