/** The explorer itself: operations that are wrong on purpose are found out. */
import { describe, expect, test } from "@jest/globals";
import { sql, type Transaction } from "kysely";
import type { RunledgerDatabase } from "../../src/database/tables.ts";
import { playAll } from "./explore.ts";
import type { Player } from "./operations.ts";
import type { Actor } from "./play.ts";
import { Proof } from "./proof.ts";
import { Stage } from "./stage.ts";
import { twoRuns } from "./worlds.ts";

const stage = await Stage.open();
const { reset } = await twoRuns(stage);

type Statements = (trx: Transaction<RunledgerDatabase>) => Promise<unknown>;

function player(name: string, run: Actor["run"]): Player {
  return { name, run, operation: { name, call: async () => null } };
}

function inOneTransaction(name: string, statements: Statements): Player {
  return player(name, ({ db }) =>
    db.transaction().execute(async (trx) => {
      await statements(trx);
    }),
  );
}

async function explored(players: readonly Player[], obstacles: readonly Actor[] = []): Promise<string> {
  const proof = new Proof(stage, { reset, players, obstacles });
  try {
    await playAll((direct) => proof.play(direct));
  } catch (error) {
    return String(error);
  }
  return "nothing was found";
}

const run = (type: string, strength: string) =>
  sql`select from runledger.workflow_runs where type = ${type} ${sql.raw(strength)}`;
const touched = (type: string) => sql`update runledger.workflow_runs set canceled_reason = 'x' where type = ${type}`;

describe("a deadlock:", () => {
  test("a lock that is shared first and exclusive then", async () => {
    const upgrade: Statements = async (trx) => {
      await run("a", "for share").execute(trx);
      await touched("a").execute(trx);
    };
    const found = await explored([inOneTransaction("one", upgrade), inOneTransaction("other", upgrade)]);

    expect(found).toMatch(/all wait for each other: one in update .* for other; other in update .* for one/);
    expect(found).toContain("deadlock in");
  });

  test("two rows that are locked in opposite order", async () => {
    const inOrder =
      (...types: string[]): Statements =>
      async (trx) => {
        for (const type of types) await run(type, "for update").execute(trx);
      };
    const found = await explored([
      inOneTransaction("one", inOrder("a", "b")),
      inOneTransaction("other", inOrder("b", "a")),
    ]);

    expect(found).toContain("deadlock in");
  });

  test("a statement that locks its rows in the order given, once something stands in the middle of them", async () => {
    const keys = ["both", "d1", "d2"];
    const unsorted =
      (steps: readonly string[]): Statements =>
      (trx) =>
        sql`select from unnest(${steps}::text[]) as given cross join lateral (
          select from runledger.workflow_steps
          where run_id = (select id from runledger.workflow_runs where type = 'a') and step_key = given for update
        ) as locked`.execute(trx);
    const players = [inOneTransaction("one", unsorted(keys)), inOneTransaction("other", unsorted([...keys].reverse()))];
    const obstacle: Actor = {
      name: "obstacle",
      obstacle: "until nobody else can go on",
      run: ({ db }) => db.transaction().execute(unsorted(["d1"])),
    };

    expect(await explored(players)).toBe("nothing was found");
    expect(await explored(players, [obstacle])).toContain("deadlock in");
  });

  test("one that a retry hides", async () => {
    const again = (first: string, then: string) =>
      player(first, async ({ db }) => {
        for (let tries = 1; ; tries += 1) {
          try {
            return await db.transaction().execute(async (trx) => {
              await run(first, "for update").execute(trx);
              await run(then, "for update").execute(trx);
            });
          } catch (error) {
            if (tries === 3) throw error;
          }
        }
      });

    expect(await explored([again("a", "b"), again("b", "a")])).toContain("deadlock in");
  });
});

test("a state between two commits that breaks an invariant", async () => {
  const halves = player("halves", async ({ db }) => {
    await sql`update runledger.workflow_runs set open_count = open_count - 1 where type = 'a'`.execute(db);
    await sql`update runledger.workflow_runs set open_count = open_count + 1 where type = 'a'`.execute(db);
  });

  expect(await explored([halves])).toContain("run_open_count: 1");
});

test("an update that is lost, though every invariant holds", async () => {
  const countUp = inOneTransaction("count", async (trx) => {
    const read = sql<{ run_number: number }>`select run_number from runledger.job_queue where type = 'a.r1'`;
    const number = (await read.execute(trx)).rows[0]?.run_number ?? 0;
    await sql`update runledger.job_queue set run_number = ${number + 1} where type = 'a.r1'`.execute(trx);
  });

  expect(await explored([countUp, countUp])).toContain("no order of the operations one by one gives");
});

test("a wait that has no bound", async () => {
  const waits = inOneTransaction("waits", (trx) => run("a", "for update").execute(trx));
  const obstacle: Actor = { ...waits, name: "obstacle", obstacle: "until all others have ended" };

  expect(await explored([waits], [obstacle])).toContain("nothing ends the wait: waits in select from");
});

test("nothing, where nothing is wrong", async () => {
  const one = inOneTransaction("one", (trx) => touched("a").execute(trx));
  const other = inOneTransaction("other", (trx) => touched("b").execute(trx));

  expect(await explored([one, other])).toBe("nothing was found");
});
