/** What the comparison with the model has found, each as the shortest way to it. */
import { expect, test } from "@jest/globals";
import { createLedger } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });

const globally = { scope: { global: true } } as const;

const graphOf = (type: string) => ({
  type,
  resultStep: null,
  steps: [{ key: "a", dependencies: [], job: { type, payload: {} } }],
});

test("settle: a lease that was lost does not spoil the one that is held of the same job and attempt", async () => {
  await ledger.runs.enqueue(graphOf("rivals"));
  await ledger.jobs.enqueue("rivals", {});
  const claimAs = (workerId: string) => ledger.jobs.claim({ workerId, limit: 2, types: ["rivals"] });
  const lost = (await claimAs("first")).map(({ lease }) => lease);
  await ledger.jobs.handBack(lost);
  const held = (await claimAs("second")).map(({ lease }) => lease);

  const results = await ledger.jobs.settle([...lost, ...held].map((lease) => ({ lease, success: {} })));

  expect(results.map(({ ok }) => ok)).toEqual([false, false, true, true]);
});

test("settle: a later attempt whose claim was rolled back does not spoil the one that is held", async () => {
  await ledger.runs.enqueue(graphOf("phantom"));
  const claim = (on = ledger) => on.jobs.claim({ workerId: "worker", limit: 1, types: ["phantom"] });
  const held = await claim();
  const trx = await database.db.startTransaction().execute();
  await ledger.in(trx).jobs.fail(held[0]?.lease ?? never(), {
    code: "test.failed",
    message: "It failed.",
    notBefore: new Date(0),
  });
  await trx
    .updateTable("runledger.job_queue")
    .set({ run_at: new Date(0) })
    .where("type", "=", "phantom")
    .execute();
  const phantom = await claim(ledger.in(trx));
  await trx.rollback().execute();

  const results = await ledger.jobs.settle([...phantom, ...held].map(({ lease }) => ({ lease, success: {} })));

  expect(results.map(({ ok }) => ok)).toEqual([false, true]);
});

test("append: a gate that opens at once is counted once", async () => {
  const { id } = await ledger.runs.enqueue({
    type: "gates",
    resultStep: null,
    steps: [{ key: "a", dependencies: [] }],
  });

  await ledger.runs.append(id, {
    key: "more",
    scope: { global: true },
    graph: { steps: [{ key: "b", dependencies: [] }] },
  });

  expect(await ledger.runs.getStatus(id, { global: true })).toMatchObject({
    stepCount: 2,
    openCount: 0,
    waitingCount: 2,
  });
});

test("keep: a gate that goes on waiting when one of its prerequisites succeeds keeps the output", async () => {
  const needs = (...keys: string[]) => keys.map((key) => ({ key, kind: "ON_SUCCESS" as const }));
  const job = { type: "kept", payload: {} };
  const { id } = await ledger.runs.enqueue({
    type: "kept",
    resultStep: "gate",
    steps: [
      { key: "a", dependencies: [], job },
      { key: "b", dependencies: [], job },
      { key: "gate", dependencies: needs("a", "b") },
    ],
  });
  await ledger.steps.complete(id, "gate", { ...globally, output: { yes: true }, keep: true });

  const [first, second] = await ledger.jobs.claim({ workerId: "worker", limit: 2, types: ["kept"] });
  await ledger.jobs.complete(first?.lease ?? never());
  await ledger.jobs.complete(second?.lease ?? never());

  expect(await ledger.runs.getResult(id, globally)).toEqual({ yes: true });
});

function never(): never {
  throw new Error("nothing was claimed");
}
