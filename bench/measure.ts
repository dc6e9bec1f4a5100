/** Repetitions, medians and ratios. */

/** Does the work once and answers how many units it did; set-up that is not to be timed goes into `prepare`. */
export interface Scenario {
  readonly unit: string;
  prepare?(): Promise<void>;
  run(): Promise<number>;
}

export interface Sizes {
  readonly single: number;
  readonly batches: number;
  readonly drain: number;
  readonly fan: number;
  readonly repetitions: number;
}

export interface Measured {
  readonly name: string;
  readonly unit: string;
  /** Units a second, one for each repetition. */
  readonly ours: readonly number[];
  readonly floor: readonly number[];
}

/** Runs both in turns, after one round that is not counted. */
export async function measured(
  name: string,
  ours: Scenario,
  floor: Scenario | undefined,
  repetitions: number,
): Promise<Measured> {
  const result = { name, unit: ours.unit, ours: [] as number[], floor: [] as number[] };
  for (let repetition = 0; repetition <= repetitions; repetition += 1) {
    const rates = { ours: await rate(ours), floor: floor === undefined ? undefined : await rate(floor) };
    if (repetition === 0) continue;
    result.ours.push(rates.ours);
    if (rates.floor !== undefined) result.floor.push(rates.floor);
  }
  return result;
}

async function rate(scenario: Scenario): Promise<number> {
  await scenario.prepare?.();
  const started = performance.now();
  const units = await scenario.run();
  return (units * 1000) / (performance.now() - started);
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? Number.NaN;
}

export function table(results: readonly Measured[]): string {
  const rows = results.map(({ name, unit, ours, floor }) => [
    name,
    unit,
    figures(ours),
    floor.length === 0 ? "-" : figures(floor),
    floor.length === 0 ? "-" : median(ours.map((value, turn) => value / (floor[turn] ?? Number.NaN))).toFixed(2),
  ]);
  const all = [["work", "unit", "runledger /s (min-max)", "floor /s (min-max)", "ratio"], ...rows];
  const widths = all[0]?.map((_, column) => Math.max(...all.map((row) => row[column]?.length ?? 0))) ?? [];
  return all.map((row) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ")).join("\n");
}

function figures(values: readonly number[]): string {
  const [middle, low, high] = [median(values), Math.min(...values), Math.max(...values)].map(Math.round);
  return `${middle} (${low}-${high})`;
}
