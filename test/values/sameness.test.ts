/** Who says the same again is understood under a codec too: its keys, its additions and the gates that it completes. */
import { describe, expect, test } from "@jest/globals";
import { aesGcmCodec, type GraphSpec, type Ledger, WorkflowAddition } from "../../src/index.ts";
import { codeOf } from "../jobs/fixtures.ts";
import { globally, TestRun } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { codec, keys, ledgerWith, rotated, sealedBy, stored } from "./support.ts";

const database = await createTestDatabase();
const plain = ledgerWith(database, {});
const sealed = ledgerWith(database, { codec });
const next = ledgerWith(database, { codec: rotated });
const forgetful = ledgerWith(database, { codec: aesGcmCodec({ keys: { k2: keys.k2 }, current: "k2" }) });

let count = 0;

/** What is said first, by which ledger, and again by another. */
const pairs: readonly (readonly [string, Ledger, Ledger])[] = [
  ["under one key", sealed, sealed],
  ["before there was a codec", plain, sealed],
  ["under an earlier key", sealed, next],
];

const one = { a: 1, list: [1, { b: 2 }], text: "ü" };
const same: unknown = JSON.parse('{"text":"\\u00fc","list":[1.0,{"b":2}],"a":1e0}');
const other = { ...one, a: 2 };

/** Calls that are remembered: what they say the same of, and the code of a difference. */
interface Remembering {
  readonly start: () => Promise<(ledger: Ledger, value: unknown) => Promise<unknown>>;
  readonly again: unknown;
  readonly conflict: string;
}

const graphOf = (payload: unknown): GraphSpec => ({
  type: "same",
  resultStep: null,
  steps: [{ key: "s", dependencies: [], job: { type: "same.s", payload } }],
});

const started = (steps: Readonly<Record<string, readonly string[]>>) => {
  return TestRun.start(database, plain, steps);
};

const remembering: Readonly<Record<string, Remembering>> = {
  "an idempotency key of a job": {
    start: async () => {
      count += 1;
      const idempotencyKey = `job-${count}`;
      return (ledger, value) => ledger.jobs.enqueue("same", value, { idempotencyKey, runAt: "2030-01-01T00:00:00Z" });
    },
    again: { disposition: "existing" },
    conflict: "job.idempotency_conflict",
  },
  "an idempotency key of a run": {
    start: async () => {
      count += 1;
      const idempotencyKey = `run-${count}`;
      return (ledger, value) => ledger.runs.enqueue(graphOf(value), { idempotencyKey });
    },
    again: { disposition: "existing" },
    conflict: "workflow.enqueue_conflicting_retry",
  },
  "the key of an addition from outside": {
    start: async () => {
      const run = await started({ gate: [] });
      return (ledger, value) => ledger.runs.append(run.id, { ...globally, key: "k", graph: additionOf(value) });
    },
    again: { disposition: "already_applied" },
    conflict: "workflow.append_conflicting_retry",
  },
  "the key of a step's addition": {
    start: async () => {
      const run = await started({ a: [], b: [], c: [] });
      const leases = (await run.claimAll("a", "b", "c")).map(({ lease }) => lease);
      return async (ledger, value) => {
        const [lease] = leases.splice(0, 1);
        if (lease === undefined) throw new Error("all steps have ended");
        return ledger.jobs.complete(lease, { append: { key: "k", graph: additionOf(value) } });
      };
    },
    again: { status: "SUCCEEDED" },
    conflict: "workflow.append_conflicting_retry",
  },
  "the output of a gate": {
    start: async () => {
      const run = await started({ gate: [] });
      return (ledger, output) => ledger.steps.complete(run.id, "gate", { ...globally, output });
    },
    again: { completed: false },
    conflict: "workflow.external_step_conflicting_output_retry",
  },
  "the output that a gate keeps": {
    start: async () => {
      const run = await started({ a: [], gate: ["a"] });
      return (ledger, output) => ledger.steps.complete(run.id, "gate", { ...globally, output, keep: true });
    },
    again: { completed: false, kept: true },
    conflict: "workflow.external_step_conflicting_output_retry",
  },
};

function additionOf(payload: unknown) {
  const addition = new WorkflowAddition();
  addition.job("added", "same.added", payload);
  return addition.build();
}

describe.each(Object.entries(remembering))("%s", (_what, { start, again, conflict }) => {
  test.each(pairs)("knows what was said %s", async (_when, before, after) => {
    const call = await start();
    await call(before, one);

    expect(await call(after, same)).toMatchObject({ ...(again as object) });
    expect(await codeOf(() => call(after, other))).toBe(conflict);
  });

  test("knows a list, and one that is longer", async () => {
    const call = await start();
    await call(sealed, [1, { a: 1 }]);

    expect(await call(sealed, [1, { a: 1 }])).toMatchObject({ ...(again as object) });
    expect(await codeOf(() => call(sealed, [1, { a: 1 }, 2]))).toBe(conflict);
  });
});

test("a time that differs is another request, whatever the digest says", async () => {
  const at = (runAt: string) => sealed.jobs.enqueue("timed", one, { idempotencyKey: "timed", runAt });
  await at("2030-01-01T00:00:00Z");

  expect(await at("2030-01-01T01:00:00+01:00")).toMatchObject({ disposition: "existing" });
  expect(await codeOf(() => at("2030-01-01T00:00:01Z"))).toBe("job.idempotency_conflict");
});

test("settings that differ are another request", async () => {
  const with_ = (priority: number) => sealed.jobs.enqueue("set", one, { idempotencyKey: "set", priority });
  await with_(1);

  expect(await codeOf(() => with_(2))).toBe("job.idempotency_conflict");
});

test("many keys at once, new and old, are one call", async () => {
  const requests = (n: number) =>
    Array.from({ length: 20 }, (_, place) => ({
      type: "batch",
      payload: { place },
      ...(place < n ? { idempotencyKey: `batch-${place}` } : {}),
    }));
  await sealed.jobs.enqueueMany(requests(10));
  const answers = await next.jobs.enqueueMany(requests(15));

  expect(answers.map(({ disposition }) => disposition)).toEqual([
    ...Array.from({ length: 10 }, () => "existing"),
    ...Array.from({ length: 10 }, () => "inserted"),
  ]);
});

test("a request that is nested deeper than the stack is refused, and nothing written", async () => {
  // What JSON.stringify and PostgreSQL can still take.
  const deep: unknown = JSON.parse(`${'{"a":'.repeat(3_500)}1${"}".repeat(3_500)}`);
  const { result, statements } = await database.record(() =>
    codeOf(() => sealed.jobs.enqueue("deep", deep, { idempotencyKey: "deep" })),
  );

  expect([result, statements]).toEqual(["payload.not_json", []]);
});

test("a key that is gone does not make a conflict of what cannot be told", async () => {
  const enqueue = (ledger: Ledger) => ledger.jobs.enqueue("forgotten", one, { idempotencyKey: "forgotten" });
  await enqueue(sealed);

  expect(await codeOf(() => enqueue(forgetful))).toBe("payload.undecodable");
});

test("a request is stored as a digest under the current key", async () => {
  const { id } = await next.jobs.enqueue("digest", one, { idempotencyKey: "digest" });
  const request = await stored(database, "select requested from runledger.job_idempotency_keys where job_id = $1", id);

  expect(request).toEqual(sealedBy("k2"));
});
