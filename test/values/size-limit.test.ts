/** A value that is too large is refused by name and size at every way in, before anything is written. */
import { expect, test } from "@jest/globals";
import { type GraphSpec, type Ledger, LedgerError, WorkflowAddition, WorkflowBuilder } from "../../src/index.ts";
import { codeOf, errorOf, leased } from "../jobs/fixtures.ts";
import { globally } from "../runs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";
import { everythingIn, ledgerWith } from "./support.ts";

const database = await createTestDatabase();
const ledger = ledgerWith(database, { maxBytes: 100 });

const secret = "too-secret";
/** 101 bytes as JSON; with `fits` 100. */
const large = secret.padEnd(99, "x");
const fits = "x".repeat(98);

const lease = (await leased(ledger, "held")).lease;
const other = (await leased(ledger, "held")).lease;
const gated = new WorkflowBuilder("gated");
gated.external("gate");
gated.job("work", "gated.work", {}, { onSuccess: [] });
const { id: runId } = await ledger.runs.enqueue(gated.build());
const [step] = await ledger.jobs.claim({ workerId: "w", limit: 1, types: ["gated.work"] });
if (step === undefined) throw new Error("no step to claim");

const graphOf = (payload: unknown, more: Partial<GraphSpec["steps"][number]> = {}): GraphSpec => ({
  type: "sized",
  resultStep: null,
  steps: [{ key: "s", dependencies: [], job: { type: "sized.s", payload }, ...more }],
});
const gateOf = (output: unknown): GraphSpec => ({
  type: "sized",
  resultStep: null,
  steps: [{ key: "g", dependencies: [], expires: { afterSeconds: 60, outcome: "SUCCEEDED", output } }],
});
const childOf = (graph: GraphSpec): GraphSpec => ({
  type: "sized",
  resultStep: null,
  steps: [{ key: "c", dependencies: [], child: { graph } }],
});
const additionOf = (payload: unknown) => {
  const addition = new WorkflowAddition();
  addition.job("added", "sized.added", payload);
  return addition.build();
};

type Call = (ledger: Ledger, value: unknown) => Promise<unknown>;
const entries: readonly (readonly [string, string, Call])[] = [
  ["jobs.enqueue", "payload", (l, value) => l.jobs.enqueue("t", value)],
  [
    "jobs.enqueueMany",
    "jobs[1].payload",
    (l, value) =>
      l.jobs.enqueueMany([
        { type: "t", payload: 1 },
        { type: "t", payload: value },
      ]),
  ],
  ["jobs.checkpoint", "checkpoint", (l, value) => l.jobs.checkpoint(lease, value)],
  ["jobs.log", "fields", (l, value) => l.jobs.log(lease, [{ level: "info", message: "m", fields: value }])],
  [
    "jobs.log of two lines",
    "lines[1].fields",
    (l, value) =>
      l.jobs.log(lease, [
        { level: "info", message: "m" },
        { level: "info", message: "m", fields: value },
      ]),
  ],
  ["jobs.complete", "output", (l, value) => l.jobs.complete(lease, { output: value })],
  [
    "jobs.complete with a body",
    "output",
    (l, value) =>
      l.jobs.complete(lease, { output: value }, async () => {
        throw new Error("it was run");
      }),
  ],
  [
    "jobs.settle",
    "settlements[1].output",
    (l, value) =>
      l.jobs.settle([
        { lease: other, success: { output: 1 } },
        { lease, success: { output: value } },
      ]),
  ],
  [
    "jobs.complete with an addition",
    "added: payload",
    (l, value) => l.jobs.complete(step.lease, { append: { key: "k", graph: additionOf(value) } }),
  ],
  ["runs.enqueue", "s: payload", (l, value) => l.runs.enqueue(graphOf(value))],
  [
    "runs.enqueueMany",
    "runs[1].s: payload",
    (l, value) => l.runs.enqueueMany([{ graph: graphOf(1) }, { graph: graphOf(value) }]),
  ],
  ["runs.enqueue with an expiring gate", "g: expires.output", (l, value) => l.runs.enqueue(gateOf(value))],
  ["runs.enqueue with a child", "c: child: s: payload", (l, value) => l.runs.enqueue(childOf(graphOf(value)))],
  [
    "runs.enqueue with a child's child",
    "c: child: c: child: s: payload",
    (l, value) => l.runs.enqueue(childOf(childOf(graphOf(value)))),
  ],
  [
    "runs.enqueue with a child's gate",
    "c: child: g: expires.output",
    (l, value) => l.runs.enqueue(childOf(gateOf(value))),
  ],
  [
    "runs.append",
    "added: payload",
    (l, value) => l.runs.append(runId, { ...globally, key: "k", graph: additionOf(value) }),
  ],
  ["steps.complete", "output", (l, value) => l.steps.complete(runId, "gate", { ...globally, output: value })],
];

test.each(entries)("%s refuses it as %s", async (_name, argument, call) => {
  const before = await everythingIn(database);
  const { result: error, statements } = await database.record(() => errorOf(call(ledger, large)));

  expect(error).toBeInstanceOf(LedgerError);
  expect(JSON.parse(JSON.stringify(error))).toEqual({
    code: "payload.too_large",
    category: "validation",
    retryable: false,
    message: `${argument} has 101 bytes as JSON, and at most 100 are allowed.`,
    details: { argument, bytes: 101, maxBytes: 100 },
  });
  expect(JSON.stringify(error)).not.toContain(secret);
  expect(statements).toEqual([]);
  expect(await everythingIn(database)).toBe(before);
});

test.each(entries.slice(0, 5))("%s takes what is just not too large", async (_name, _argument, call) => {
  await expect(call(ledger, fits)).resolves.not.toThrow();
});

test("bytes are counted as UTF-8 has them", async () => {
  const bytes = (text: string) => codeOf(() => ledger.jobs.enqueue("utf-8", text));

  expect(await bytes("ü".repeat(49))).toHaveProperty("resolved");
  expect(await bytes(`${"ü".repeat(49)}x`)).toBe("payload.too_large");
  expect(await bytes("€".repeat(33))).toBe("payload.too_large");
});

test("a graph of many payloads, each within the limit, is no payload", async () => {
  const graph = { ...graphOf(1), steps: [1, 2, 3].map((n) => ({ ...graphOf(fits).steps[0], key: `s${n}` })) };
  const call = () => ledger.runs.enqueue(childOf(graph as GraphSpec));

  await expect(call()).resolves.toMatchObject({ disposition: "inserted" });
});

test("without an option a mebibyte is the limit", async () => {
  const standard = ledgerWith(database, {});

  expect(await codeOf(() => standard.jobs.enqueue("t", "x".repeat(1_048_574)))).toHaveProperty("resolved");
  expect(await codeOf(() => standard.jobs.enqueue("t", "x".repeat(1_048_575)))).toBe("payload.too_large");
});

test.each([0, -1, 1.5, Number.NaN, 300 * 1_048_576])("%s is no limit", (maxBytes) => {
  expect(() => ledgerWith(database, { maxBytes })).toThrow(expect.objectContaining({ code: "config.invalid" }));
});
