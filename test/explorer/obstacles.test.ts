/** Two operations that need many rows meet in the middle of a statement, at a row that a third session holds. */
import { describe, expect, test } from "@jest/globals";
import { sql } from "kysely";
import { createLedger } from "../../src/index.ts";
import { playAll } from "./explore.ts";
import { alone, type Operation } from "./operations.ts";
import type { Actor } from "./play.ts";
import { Proof } from "./proof.ts";
import { Stage } from "./stage.ts";
import { wide } from "./worlds.ts";

const stage = await Stage.open();
const { reset, operations, rows } = await wide(stage);

const pairs = [
  ["complete the first roots", "complete the second roots"],
  ["fail the first roots", "fail the second roots"],
  ["complete the first roots", "fail the second roots"],
  ["complete all", "fail all, last first"],
  ["fail all", "complete all, last first"],
  ["complete all", "cancel v"],
  ["fail all, last first", "cancel v"],
] as const;

let total = 0;
describe.each(Object.entries(rows))("at %s", (name, lock) => {
  const obstacle: Actor = {
    name: `who holds ${name}`,
    obstacle: "until nobody else can go on",
    run: ({ db }) => db.transaction().execute((trx) => sql.raw(lock).execute(trx)),
  };
  test.each(pairs)("%s / %s", async (one, other) => {
    const began = performance.now();
    const players = [one, other].map((key) => alone(operations[key] as Operation, (db) => createLedger({ db })));
    const proof = new Proof(stage, { reset, players, obstacles: [obstacle] });
    const count = await playAll((direct) => proof.play(direct));
    total += count;
    process.stderr.write(
      `${one} / ${other} at ${name}: ${count} ${Math.round(performance.now() - began)} ms; ${total}\n`,
    );
  });
});

test("the server has seen no deadlock", async () => {
  expect(await stage.deadlocks()).toBe(0);
});
