/** Filters of bulk operations: what a caller may say, checked before anything is sent. */
import { LedgerError } from "../errors.ts";
import { validInteger, validName } from "./arguments.ts";
import { validTime } from "./request.ts";

/** Which jobs a bulk operation is about: those that fit all that is given. Jobs of workflow runs never fit. */
export interface JobFilter {
  readonly type?: string;
  /** The job has all of these tags. */
  readonly tags?: readonly string[];
  /** Only jobs enqueued at this time or later; of a job that was put back, when it was last. */
  readonly enqueuedAfter?: Date | string;
  /** Only jobs enqueued before this time. */
  readonly enqueuedBefore?: Date | string;
}

export interface EndedJobFilter extends JobFilter {
  /** Only jobs that ended at this time or later. */
  readonly endedAfter?: Date | string;
  /** Only jobs that ended before this time. */
  readonly endedBefore?: Date | string;
}

/** How a bulk operation goes about it. */
export interface BulkOptions<Progress> {
  /** At most this many jobs in one transaction, 1 to 1000. Default 100. */
  readonly batchSize?: number;
  /** At most this many jobs in all. Default: as many as there are. */
  readonly limit?: number;
  /** Called, and waited for, after each batch. What it throws ends the call; what was done before stays. */
  readonly onProgress?: (progress: Progress) => void | Promise<void>;
}

/** A filter ready to be sent; null does not narrow. */
export interface PreparedFilter {
  readonly type: string | null;
  readonly statuses: readonly string[] | null;
  readonly tags: readonly string[] | null;
  readonly errorCode: string | null;
  readonly enqueuedAfter: string | null;
  readonly enqueuedBefore: string | null;
  readonly endedAfter: string | null;
  readonly endedBefore: string | null;
}

type Given = EndedJobFilter & { readonly statuses?: unknown; readonly errorCode?: string };

/** Throws `input.invalid`, also for a key that the operation does not know: what is misspelt would make the filter wider than it looks. */
export function preparedFilter(filter: Given, known: readonly string[]): PreparedFilter {
  requireKnownKeys(filter, known);
  const name = (value: string | undefined, key: string) =>
    value === undefined ? null : validName(value, `filter.${key}`);
  const time = (value: Date | string | undefined, key: string) =>
    value === undefined ? null : validTime(value, `filter.${key}`);
  return {
    type: name(filter.type, "type"),
    statuses: filter.statuses === undefined ? null : arrayOf(filter.statuses, "filter.statuses").map(liveStatus),
    tags:
      filter.tags === undefined
        ? null
        : arrayOf(filter.tags, "filter.tags").map((tag) => validName(tag, "filter.tags")),
    errorCode: name(filter.errorCode, "errorCode"),
    enqueuedAfter: time(filter.enqueuedAfter, "enqueuedAfter"),
    enqueuedBefore: time(filter.enqueuedBefore, "enqueuedBefore"),
    endedAfter: time(filter.endedAfter, "endedAfter"),
    endedBefore: time(filter.endedBefore, "endedBefore"),
  };
}

/** Throws `input.invalid` unless the filter is an object of these keys, each with a value. */
export function requireKnownKeys(filter: unknown, known: readonly string[]): void {
  if (typeof filter !== "object" || filter === null || Array.isArray(filter)) {
    throw new LedgerError("input.invalid", { message: "filter must be given: {} does not narrow the scope." });
  }
  for (const [key, value] of Object.entries(filter)) {
    if (!known.includes(key) || value === undefined || value === null) {
      throw new LedgerError("input.invalid", { message: `filter.${key} is unknown or has no value.` });
    }
  }
}

export function arrayOf(value: unknown, argument: string): readonly unknown[] {
  if (!Array.isArray(value)) throw new LedgerError("input.invalid", { message: `${argument} must be an array.` });
  return value;
}

function liveStatus(value: unknown): string {
  if (value === "PENDING" || value === "LEASED") return value;
  throw new LedgerError("input.invalid", { message: "filter.statuses may name PENDING and LEASED." });
}

const DEFAULT_BATCH = 100;
const MAX_BATCH = 1000;

export function validBatchSize(value: number | undefined): number {
  return validInteger(value, "batchSize", 1, MAX_BATCH) ?? DEFAULT_BATCH;
}

export function requireFunction(value: unknown, argument: string): void {
  if (value !== undefined && typeof value !== "function") {
    throw new LedgerError("input.invalid", { message: `${argument} must be a function.` });
  }
}
