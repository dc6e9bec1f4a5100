/**
 * What a job and a step may cost: WAL bytes, row versions, statements. A change that costs more fails here, and so
 * does one that costs much less, until the budget says so: otherwise the next change could take it back unseen.
 *
 * RUNLEDGER_TEST_BUDGET_FIGURES=1 prints what was measured, and a budget that fits it, in the form of budget.ts.
 */
import { describe, expect, test } from "@jest/globals";
import { budget } from "./budget.ts";
import { costOf, type Figures } from "./count.ts";
import { startCountedServer } from "./server.ts";
import { type Work, works } from "./works.ts";

const server = await startCountedServer();
const measured = new Map<string, Figures>();
for (const [name, work] of Object.entries<Work>(works)) measured.set(name, await measure(work));
if (process.env.RUNLEDGER_TEST_BUDGET_FIGURES !== undefined) print();

/** Below this share of what is allowed, the budget is not one. */
const LEAST_SHARE = 0.8;

describe.each(Object.keys(works).filter(isWork))("%s", (name) => {
  test("costs what its budget says", () => expect(deviations(figuresOf(name), budget[name])).toEqual([]));
});

test("a job that does nothing is enqueued with at most 450 bytes of WAL", () => {
  expect(figuresOf("enqueue, 1000 at once")["WAL bytes"]).toBeLessThanOrEqual(450);
});

test("a job that does nothing goes from its claim to the ledger with at most 1000 bytes of WAL", () => {
  expect(figuresOf("from claim to ledger")["WAL bytes"]).toBeLessThanOrEqual(1000);
});

test("no copies of whole pages are among the bytes", () => {
  for (const figures of measured.values()) expect(figures["full page images"]).toBeUndefined();
});

/** Alone in the queue, and twice: the first time pages are new, and statements are planned without any experience. */
async function measure(work: Work): Promise<Figures> {
  await server.pool.query("truncate runledger.job_queue");
  await work.prepare?.(server.ledger);
  await work.run(server.ledger, (_, call) => call());
  await work.prepare?.(server.ledger);
  return costOf(server, work.units, (calls) => work.run(server.ledger, calls));
}

function figuresOf(name: keyof typeof works): Figures {
  const figures = measured.get(name);
  if (figures === undefined) throw new Error(`${name} was not measured`);
  return figures;
}

function deviations(figures: Figures, allowed: Figures): string[] {
  const names = [...new Set([...Object.keys(allowed), ...Object.keys(figures)])];
  return names.flatMap((name) => {
    const [cost = 0, most = 0] = [figures[name], allowed[name]];
    if (cost > most) return [`${name}: ${shown(cost)}, more than the ${most} of the budget`];
    if (cost < most * LEAST_SHARE) return [`${name}: ${shown(cost)} of ${most}: tighten the budget`];
    return [];
  });
}

function isWork(name: string): name is keyof typeof works {
  return name in works;
}

function print(): void {
  for (const [name, figures] of measured) {
    const lines = Object.entries(figures).map(
      ([what, cost]) => `    ${JSON.stringify(what)}: ${budgeted(what, cost)}, // ${shown(cost)}`,
    );
    process.stdout.write([`  ${JSON.stringify(name)}: {`, ...lines, "  },", ""].join("\n"));
  }
}

/** Rows and statements are the same each time; bytes differ with the splits of index pages. */
function budgeted(what: string, cost: number): number {
  if (what === "WAL bytes") return Math.ceil((cost * 1.02) / 10) * 10;
  const unit = 10 ** (Math.floor(Math.log10(cost)) - 2);
  return Number((Math.ceil(cost / unit - 1e-9) * unit).toPrecision(3));
}

function shown(count: number): string {
  return String(Number(count.toPrecision(4)));
}
