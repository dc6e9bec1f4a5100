/** The tick of a schedule that a job is for: it travels in the job's metadata (FEATURES F-S2). */
import { fromJson, ownJson, type StoredJson } from "../database/json.ts";

/** A time at which a schedule wants something to happen, whenever it then does. */
export interface ScheduleTick {
  /** The schedule's name. */
  readonly name: string;
  /** The time of the tick, however late it is and however much jitter there is. */
  readonly intendedAt: Date;
}

/** The metadata of a job: null costs nothing. */
export function metadataOf(tick: ScheduleTick | undefined): StoredJson | null {
  return tick === undefined ? null : ownJson({ schedule: tick });
}

/** The tick in a job's metadata, as `metadataOf` wrote it. */
export function tickOf(metadata: string | null): ScheduleTick | null {
  const { name, intendedAt } = recordOf(recordOf(fromJson(metadata)).schedule);
  if (typeof name !== "string" || typeof intendedAt !== "string") return null;
  return { name, intendedAt: new Date(intendedAt) };
}

function recordOf(value: unknown): Partial<Record<string, unknown>> {
  return typeof value === "object" && value !== null ? { ...value } : {};
}
