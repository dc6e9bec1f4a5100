/** Declares the tests of a world: every two of its operations, in every order of their statements. */
import { test } from "@jest/globals";
import { createLedger } from "../../src/index.ts";
import { playAll, playSome } from "./explore.ts";
import { alone, type LedgerOf, type Operation, type Player, playersOf } from "./operations.ts";
import { Proof } from "./proof.ts";
import type { Stage } from "./stage.ts";
import type { World } from "./worlds.ts";

export interface PairOptions {
  /** Each operation in the service's own transaction too. */
  readonly inTransactions: boolean;
  /** A pair that has more orders than these is played so often in order, and half as often at random. */
  readonly most: number;
}

/** On a busy machine a schedule takes a tenth of a second. */
const TIMEOUT_MS = 300_000;

/** Announcements follow an operation whenever they can, and are no part of it. */
export const bind: LedgerOf = (db) => createLedger({ db, notify: false });

export function everyTwo(stage: Stage, { reset, operations }: World, options: PairOptions): void {
  const ways = (operation: Operation): Player[] =>
    options.inTransactions ? playersOf(operation, bind) : [alone(operation, bind)];
  const players = Object.values(operations).flatMap(ways);
  const pairs = players.flatMap((one, place) =>
    players.slice(place).map((other) => [one.name, other.name, one, other] as const),
  );
  test.each(pairs)(
    "%s / %s",
    async (_one, _other, one, other) => {
      const proof = new Proof(stage, { reset, players: [one, other] });
      const { all } = await playAll((direct) => proof.play(direct), options.most);
      if (!all) await playSome(options.most / 2, 1, (direct) => proof.play(direct));
    },
    TIMEOUT_MS,
  );
}
