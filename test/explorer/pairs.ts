/** Declares the tests of a world: every two of its operations, in each way to call them. */
import { test } from "@jest/globals";
import { createLedger } from "../../src/index.ts";
import { playAll } from "./explore.ts";
import { type LedgerOf, playersOf } from "./operations.ts";
import { Proof } from "./proof.ts";
import type { Stage } from "./stage.ts";
import type { World } from "./worlds.ts";

const bind: LedgerOf = (db) => createLedger({ db });

let total = 0;
export function everyTwo(stage: Stage, { reset, operations }: World): void {
  const players = Object.values(operations).flatMap((operation) => playersOf(operation, bind));
  const pairs = players.flatMap((one, place) =>
    players.slice(place).map((other) => [one.name, other.name, one, other] as const),
  );
  test.each(pairs)("%s / %s", async (_one, _other, one, other) => {
    const began = performance.now();
    const proof = new Proof(stage, { reset, players: [one, other] });
    const n = await playAll((direct) => proof.play(direct));
    total += n;
    process.stderr.write(`${one.name} / ${other.name}: ${n} ${Math.round(performance.now() - began)} ms; ${total}\n`);
  });
}
