/** The list of open gates: scoped, filtered, in pages (FEATURES F-W6). */
import { afterEach, describe, expect, test } from "@jest/globals";
import type { OpenGate, OpenGatesOptions, Scope } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { codeOf, globally, graphOf, ledgerOf, otherOrganization, someOrganization, TestRun } from "../runs/fixtures.ts";
import { startExpiring } from "../runs/timed.ts";
import { createTestDatabase } from "../support/database.ts";
import { planOf } from "../support/explain.ts";

const database = await createTestDatabase({ max: 4 });
const ledger = ledgerOf(database);

afterEach(async () => {
  await expectInvariants(database);
  await database.pool.query("truncate runledger.workflow_runs, runledger.job_queue cascade");
});

const start = (steps: Record<string, string[]>, options = {}) => TestRun.start(database, ledger, steps, options);
const list = async (options: Partial<OpenGatesOptions> = {}) =>
  (await ledger.steps.openGates({ ...globally, ...options })).gates;
const placeOf = ({ runId, stepKey }: OpenGate) => ({ runId, stepKey });

describe("a gate is listed", () => {
  test("while it is open: not before, and not after it was completed or cancelled", async () => {
    const run = await start({ a: [], gate: ["a"], gateToo: [] });
    const canceled = await start({ gate: [] });
    await ledger.runs.cancel(canceled.id, globally);
    expect((await list()).map(placeOf)).toEqual([{ runId: run.id, stepKey: "gateToo" }]);

    await run.succeed("a");
    expect((await list()).map(({ stepKey }) => stepKey)).toEqual(["gateToo", "gate"]);
    await ledger.steps.complete(run.id, "gateToo", globally);
    expect((await list()).map(({ stepKey }) => stepKey)).toEqual(["gate"]);
    await ledger.steps.complete(run.id, "gate", globally);
    expect(await list()).toEqual([]);
  });

  test("with its run's type and organization, since when it is open, and when it ends by itself", async () => {
    const run = await start({ gate: [] }, { organizationId: someOrganization });
    const timed = await startExpiring(database, ledger, { gate: [] }, { afterSeconds: 90 });
    const { rows } = await database.pool.query(
      "select open_since, expires_at from runledger.workflow_steps order by run_id",
    );

    expect(await list({ scope: { admin: true } })).toEqual([
      {
        runId: run.id,
        stepKey: "gate",
        workflowType: run.type,
        organizationId: someOrganization,
        openSince: rows[0].open_since,
        expiresAt: null,
      },
      {
        runId: timed.id,
        stepKey: "gate",
        workflowType: timed.type,
        organizationId: null,
        openSince: rows[1].open_since,
        expiresAt: rows[1].expires_at,
      },
    ]);
    expect(rows[1].expires_at - rows[1].open_since).toBe(90_000);
  });
});

test("a scope sees the gates of its own runs only", async () => {
  const runs = {
    global: await start({ gate: [] }),
    some: await start({ gate: [] }, { organizationId: someOrganization }),
    other: await start({ gate: [] }, { organizationId: otherOrganization }),
  };
  const seenBy = async (scope: Scope) => (await list({ scope })).map(({ runId }) => runId);

  expect(await seenBy({ global: true })).toEqual([runs.global.id]);
  expect(await seenBy({ organization: someOrganization })).toEqual([runs.some.id]);
  expect(await seenBy({ admin: true })).toEqual([runs.global.id, runs.some.id, runs.other.id]);
  expect(await list({ scope: { organization: someOrganization }, runId: runs.global.id })).toEqual([]);
  expect(await list({ scope: { organization: someOrganization }, type: runs.other.type })).toEqual([]);
});

test("a run and a workflow type narrow the list", async () => {
  const [one, two] = [await start({ gate: [], gateToo: [] }), await start({ gate: [] })];

  expect((await list({ runId: one.id })).map(placeOf)).toEqual([
    { runId: one.id, stepKey: "gate" },
    { runId: one.id, stepKey: "gateToo" },
  ]);
  expect(await list({ runId: one.id.toUpperCase() })).toHaveLength(2);
  expect((await list({ type: two.type })).map(placeOf)).toEqual([{ runId: two.id, stepKey: "gate" }]);
  expect(await list({ runId: one.id, type: two.type })).toEqual([]);
});

describe("pages", () => {
  const pagesOf = async (options: Partial<OpenGatesOptions>) => {
    const pages: string[][] = [];
    let after: string | null | undefined;
    while (after !== null) {
      const page = await ledger.steps.openGates({ ...globally, ...options, ...(after === undefined ? {} : { after }) });
      pages.push(page.gates.map(({ runId, stepKey }) => `${runId} ${stepKey}`));
      after = page.next;
    }
    return pages;
  };

  test.each([1, 2, 3, 4, 6, 7])("of %p hold every gate once, in one order, and the last says so", async (limit) => {
    for (let n = 0; n < 3; n += 1) await start({ gate: [], gateToo: [] });
    const all = (await list()).map(({ runId, stepKey }) => `${runId} ${stepKey}`);
    expect(all).toHaveLength(6);

    const pages = await pagesOf({ limit });

    expect(pages.flat()).toEqual(all);
    expect(pages).toHaveLength(Math.ceil(6 / limit));
  });

  test("neither skip nor repeat a gate when others close and open meanwhile", async () => {
    const runs = [await start({ gate: [], gateToo: [] }), await start({ gate: [] }), await start({ gate: [] })];
    const first = await ledger.steps.openGates({ ...globally, limit: 2 });
    await ledger.steps.complete(runs[0]?.id ?? "", "gate", globally);
    await ledger.steps.complete(runs[0]?.id ?? "", "gateToo", globally);
    const late = await start({ gate: [] });

    const rest = await list({ after: first.next ?? "" });

    expect(first.gates.map(({ runId }) => runId)).toEqual([runs[0]?.id, runs[0]?.id]);
    expect(rest.map(({ runId }) => runId)).toEqual([runs[1]?.id, runs[2]?.id, late.id]);
  });

  test("within a run go on in it", async () => {
    const run = await start({ gate: [], gateToo: [], gate3: [] });
    await start({ gate: [] });

    expect(await pagesOf({ runId: run.id, limit: 2 })).toEqual([
      [`${run.id} gate`, `${run.id} gateToo`],
      [`${run.id} gate3`],
    ]);
  });
});

test.each<[string, Partial<OpenGatesOptions>, string]>([
  ["no scope", { scope: undefined as never }, "scope.required"],
  ["a scope of nobody", { scope: {} as never }, "scope.required"],
  ["a run that is no id", { runId: "1" }, "input.invalid"],
  ["a blank type", { type: " " }, "input.invalid"],
  ["a limit of 0", { limit: 0 }, "input.invalid"],
  ["too large a limit", { limit: 10_001 }, "input.invalid"],
  ["a place that no page gave", { after: someOrganization }, "input.invalid"],
  ["a place with too much", { after: `${someOrganization}/${someOrganization}/` }, "input.invalid"],
  ["a place that is no text", { after: 7 as never }, "input.invalid"],
])("%s is refused before anything is sent", async (_, options, code) => {
  const { result, statements } = await database.record(() => codeOf(list(options)));

  expect(result).toBe(code);
  expect(statements).toEqual([]);
});

test("a page reads what it shows by index, however many gates are open and however many steps there are", async () => {
  await ledger.runs.enqueueMany(Array(3000).fill({ graph: graphOf("open", { gate: [], gateToo: [], a: [], b: [] }) }));
  const wide = Object.fromEntries(Array.from({ length: 3000 }, (_, n): [string, string[]] => [`gate${n}`, []]));
  const { id } = await ledger.runs.enqueue(graphOf("wide", wide));
  await database.pool.query("vacuum (analyze) runledger.workflow_steps, runledger.workflow_runs");
  const middle = (await ledger.steps.openGates({ ...globally, limit: 5000 })).next;
  if (middle === null) throw new Error("there is no second page");

  for (const mode of ["force_generic_plan", "force_custom_plan"] as const) {
    for (const options of [{}, { after: middle }, { runId: id }, { scope: { admin: true } } as const]) {
      const { scans, buffers } = await planOf(database, mode, (l) =>
        l.steps.openGates({ ...globally, limit: 20, ...options }),
      );
      expect(scans).toEqual(["Index Scan workflow_runs_pkey", "Index Scan workflow_steps_open_gates"]);
      expect(buffers).toBeLessThan(150);
    }
  }
});
