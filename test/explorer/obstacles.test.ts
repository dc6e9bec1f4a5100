/** Two operations that need many rows meet in the middle of a statement, at a row that a third session holds. */
import { describe, expect, test } from "@jest/globals";
import { sql } from "kysely";
import { playAll } from "./explore.ts";
import { alone, named } from "./operations.ts";
import { bind } from "./pairs.ts";
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

describe.each(Object.entries(rows))("at %s", (name, lock) => {
  const obstacle: Actor = {
    name: `who holds ${name}`,
    obstacle: "until nobody else can go on",
    run: ({ db }) => db.transaction().execute((trx) => sql.raw(lock).execute(trx)),
  };
  test.each(pairs)("%s / %s", async (one, other) => {
    const players = [one, other].map((key) => alone(named(operations, key), bind));
    const proof = new Proof(stage, { reset, players, obstacles: [obstacle] });
    await playAll((direct) => proof.play(direct));
  });
});

test("the server has seen no deadlock", async () => {
  expect(await stage.deadlocks()).toBe(0);
});
