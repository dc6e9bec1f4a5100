/** Assertions on enqueued jobs, for any test runner: they throw Node's AssertionError. */
import { AssertionError } from "node:assert";
import {
  type FoundJob,
  type FoundJobFilter,
  type LookedAt,
  lookAt,
  type PartialPayload,
  type TestedJob,
  type TestedPayload,
  typeOf,
} from "./enqueued.ts";
import type { KitParts } from "./tables.ts";

export interface ExpectEnqueuedOptions extends FoundJobFilter {
  /** Exactly so many. Default: at least one. */
  readonly count?: number;
}

export async function expectEnqueued<J extends TestedJob>(
  parts: KitParts,
  job: J,
  payload: PartialPayload<TestedPayload<J>> | undefined,
  { count, ...filter }: ExpectEnqueuedOptions = {},
): Promise<FoundJob<TestedPayload<J>>[]> {
  const all = await lookAt(parts, job, payload === undefined ? filter : { ...filter, payload });
  const found = all.filter(({ reasons }) => reasons.length === 0);
  if (count === undefined ? found.length === 0 : found.length !== count) {
    const wanted = count === undefined ? "a job" : count === 1 ? "1 job" : `${count} jobs`;
    const message = [
      `Expected ${wanted} ${typeOf(job)}${described(payload)} to be enqueued, found ${found.length || "none"}.`,
      ...shown(all, found.length === 0 ? `No job ${typeOf(job)} was enqueued${await instead(parts)}.` : ""),
    ].join("\n");
    throw new AssertionError({
      message,
      actual: all.map(({ job: { payload: actual } }) => actual),
      expected: payload,
      operator: "enqueued",
      stackStartFn: expectEnqueued,
    });
  }
  return found.map(({ job: fitting }) => fitting);
}

export async function expectNotEnqueued<J extends TestedJob>(
  parts: KitParts,
  job: J,
  payload: PartialPayload<TestedPayload<J>> | undefined,
  filter: FoundJobFilter = {},
): Promise<void> {
  const all = await lookAt(parts, job, payload === undefined ? filter : { ...filter, payload });
  const found = all.filter(({ reasons }) => reasons.length === 0);
  if (found.length === 0) return;
  throw new AssertionError({
    message: [
      `Expected no job ${typeOf(job)}${described(payload)} to be enqueued, found ${found.length}.`,
      ...shown(found, ""),
    ].join("\n"),
    actual: found.map(({ job: { payload: actual } }) => actual),
    expected: [],
    operator: "notEnqueued",
    stackStartFn: expectNotEnqueued,
  });
}

function described(payload: unknown): string {
  return payload === undefined ? "" : ` with payload ${JSON.stringify(payload)}`;
}

const MAX_SHOWN = 5;

/** Nearest first, each with what is wrong with it. */
function shown(all: readonly LookedAt<unknown>[], whenNone: string): string[] {
  if (all.length === 0) return whenNone === "" ? [] : [whenNone];
  const nearest = [...all].sort((a, b) => a.reasons.length - b.reasons.length).slice(0, MAX_SHOWN);
  const more = all.length - nearest.length;
  return [
    ...nearest.flatMap(({ job, reasons }) => [
      `  ${job.id} ${job.status} ${JSON.stringify(job.payload)}`,
      ...reasons.map((reason) => `    ${reason}`),
    ]),
    ...(more > 0 ? [`  and ${more} more`] : []),
  ];
}

/** What there is of other types. */
async function instead(parts: KitParts): Promise<string> {
  const others = await lookAt(parts, undefined, {});
  const counts = new Map<string, number>();
  for (const { job } of others) counts.set(job.type, (counts.get(job.type) ?? 0) + 1);
  if (counts.size === 0) return ", nor any other";
  return `; there are ${[...counts].map(([type, count]) => `${count} ${type}`).join(", ")}`;
}
