/**
 * npm run docs:budget    writes what a job may cost into docs/performance.md
 *
 * A test fails when the page is not what test/budget/budget.ts says, and others when that is not what a job costs.
 */
import { budget } from "../test/budget/budget.ts";
import type { Figures } from "../test/budget/count.ts";
import { table } from "./markdown.ts";
import { performancePage, writePart } from "./parts.ts";

export function budgetTable(): string {
  const head = ["for one", "WAL bytes", "rows inserted", "updated", "of those not HOT", "deleted", "dead rows left"];
  return table(head, Object.entries(budget).map(cells));
}

const units: Readonly<Record<keyof typeof budget, string>> = {
  "enqueue, 1000 at once": "job enqueued, 1000 at once",
  "enqueue, one at a time": "job enqueued, alone",
  "from claim to ledger": "job from claim to ledger, in batches of 500",
  "from enqueue to ledger, 500 bytes of payload": "job with 500 bytes of payload, from enqueue to ledger, in batches",
  heartbeat: "heartbeat, in batches of 500",
  "runs of 5 steps in a chain": "step of a chain of 5, enqueue to ledger, 500 runs at once",
  "runs of 5 steps in a chain, each claimed with the end of the one before":
    "the same, each step claimed with the end of the one before",
  "runs of 1 step, 1000 after it, 1 after those": "step of a fan-out 1 → 1000 → 1, enqueue to ledger",
};

function cells([name, figures]: [string, Figures]): string[] {
  const sumOf = (ending: string) =>
    Object.entries(figures)
      .filter(([what]) => what.endsWith(ending))
      .reduce((sum, [, cost]) => sum + cost, 0);
  const endings = ["WAL bytes", " inserted", " updated", " updated, not HOT", " deleted", "dead row versions"];
  return [isWork(name) ? units[name] : name, ...endings.map((ending) => shown(sumOf(ending)))];
}

function isWork(name: string): name is keyof typeof budget {
  return name in budget;
}

function shown(cost: number): string {
  return cost >= 100 ? String(cost) : cost.toFixed(2).replace(/\.?0+$/, "");
}

if (import.meta.filename === process.argv[1]) await writePart(performancePage, "budget", budgetTable());
