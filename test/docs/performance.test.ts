/** docs/performance.md says what the budget says, and its chart what was measured. */
import { readFile } from "node:fs/promises";
import { expect, test } from "@jest/globals";
import { chart, chartFile, claimCost } from "../../docs/draw-chart.ts";
import { budgetTable } from "../../docs/generate-budget.ts";
import { performancePage, withPart } from "../../docs/parts.ts";

test("docs/performance.md has the budget (else: npm run docs:budget)", async () => {
  const page = await readFile(performancePage, "utf8");

  expect(page).toBe(withPart(page, "budget", budgetTable()));
});

test("docs/performance-chart.svg shows the claim costs that were measured (else: npm run docs:chart)", async () => {
  expect(await readFile(chartFile, "utf8")).toBe(chart(await claimCost()));
});
