/** From a definition to the values that are stored: checked before anything is sent. */
import { newId } from "../database/ids.ts";
import type { JsonText, StoredJson } from "../database/json.ts";
import type { ScheduleCatchUp, ScheduleOverlap, ScheduleTarget as TargetWord } from "../database/tables.generated.ts";
import type { ValueRules } from "../database/values/rules.ts";
import { remembered } from "../database/values/sameness.ts";
import { storedValue, valueText } from "../database/values/write.ts";
import { LedgerError } from "../errors.ts";
import { validDuration, validInteger, validName } from "../jobs/arguments.ts";
import { type JobRequest, parsed } from "../jobs/definition.ts";
import type { PreparedLimit } from "../jobs/limits.ts";
import { type JobSettings, prepareJobs, validOrganization, validTime } from "../jobs/request.ts";
import { requireTimes, type Timetable } from "./cron.ts";
import type { ScheduleDefinition, ScheduleTiming } from "./definition.ts";
import { catchUps, encoded, overlaps } from "./words.ts";

/** A schedule ready to be sent. Its first tick is not here: that takes the database's clock. */
export interface PreparedSchedule extends Timetable {
  readonly id: string;
  readonly name: string;
  readonly organizationId: string | null;
  readonly target: PreparedTarget;
  readonly catchUp: ScheduleCatchUp;
  readonly backfillLimit: number;
  readonly graceSeconds: number;
  readonly overlap: ScheduleOverlap;
  readonly jitterSeconds: number;
  readonly enabled: boolean;
}

interface PreparedTarget {
  readonly kind: TargetWord;
  readonly type: string;
  readonly payload: StoredJson;
  /** What an encoded payload is compared by: encoding the same value twice gives two texts. */
  readonly digest: StoredJson | null;
  readonly settings: JobSettings;
  readonly tags: string | null;
  readonly limit: PreparedLimit | null;
  readonly deadlineSeconds: number | null;
}

const DEFAULTS = { backfillLimit: 100, graceSeconds: 60, jitterSeconds: 0 } as const;
const MAX_BACKFILL = 1000;

/**
 * Sorted as they are locked, by tenant and name. Throws `input.invalid`, `payload.*`, `schedule.cron_invalid`,
 * `schedule.time_zone_invalid`.
 */
export async function prepareSchedules(
  rules: ValueRules,
  definitions: readonly ScheduleDefinition[],
): Promise<PreparedSchedule[]> {
  const schedules: PreparedSchedule[] = [];
  for (const definition of definitions) schedules.push(await prepared(rules, definition));
  const sorted = schedules.sort((a, b) => compared(keyOf(a), keyOf(b)));
  const twice = sorted.find((schedule, place) => keyOf(schedule) === keyOf(sorted[place - 1] ?? { name: "" }));
  if (twice) throw new LedgerError("input.invalid", { message: `The schedule ${twice.name} is defined twice.` });
  return sorted;
}

function keyOf({ organizationId, name }: { organizationId?: string | null; name: string }): string {
  return `${organizationId ?? "global"} ${name}`;
}

function compared(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

async function prepared(rules: ValueRules, { name, timing, target }: ScheduleDefinition): Promise<PreparedSchedule> {
  const at = `${validName(name, "name")}: `;
  const { catchUp = "once", overlap = "allow", enabled = true } = timing;
  if (typeof enabled !== "boolean")
    throw new LedgerError("input.invalid", { message: `${at}enabled must be a boolean.` });
  return {
    ...timetableOf(timing, at),
    id: newId(),
    name,
    organizationId: validOrganization(timing.organizationId, `${at}organizationId`),
    target: await preparedTarget(rules, target, at),
    catchUp: encoded(catchUps, catchUp, `${at}catchUp`),
    overlap: encoded(overlaps, overlap, `${at}overlap`),
    backfillLimit: validInteger(timing.backfillLimit, `${at}backfillLimit`, 1, MAX_BACKFILL) ?? DEFAULTS.backfillLimit,
    graceSeconds: validInteger(timing.graceSeconds, `${at}graceSeconds`, 0) ?? DEFAULTS.graceSeconds,
    jitterSeconds: validInteger(timing.jitterSeconds, `${at}jitterSeconds`, 0) ?? DEFAULTS.jitterSeconds,
    enabled,
  };
}

function timetableOf({ cron, timeZone = "UTC", startAt, endAt }: ScheduleTiming, at: string): Timetable {
  const timetable = {
    cron: validName(cron, `${at}cron`).trim(),
    timeZone: validName(timeZone, `${at}timeZone`),
    startsAt: timeOf(startAt, `${at}startAt`),
    endsAt: timeOf(endAt, `${at}endAt`),
  };
  if (timetable.startsAt !== null && timetable.endsAt !== null && timetable.startsAt >= timetable.endsAt) {
    throw new LedgerError("input.invalid", { message: `${at}startAt must be before endAt.` });
  }
  requireTimes(timetable);
  return timetable;
}

function timeOf(value: unknown, argument: string): Date | null {
  return value === undefined ? null : new Date(validTime(value, argument));
}

async function preparedTarget(
  rules: ValueRules,
  target: ScheduleDefinition["target"],
  at: string,
): Promise<PreparedTarget> {
  return target.kind === "job" ? preparedJob(rules, target.request, at) : preparedRun(rules, target, at);
}

async function preparedJob(rules: ValueRules, request: JobRequest, at: string): Promise<PreparedTarget> {
  const [job] = await prepareJobs(rules, [request]);
  if (job === undefined) throw new LedgerError("input.invalid");
  const { type, payload, settings, tags, limit } = job;
  const digest = await digestOf(rules, valueText(rules, request.payload, `${at}payload`));
  return { kind: "JOB", type, payload, digest, settings, tags, limit, deadlineSeconds: null };
}

async function preparedRun(
  rules: ValueRules,
  { type, input, schema, deadlineSeconds }: Extract<ScheduleDefinition["target"], { kind: "workflow" }>,
  at: string,
): Promise<PreparedTarget> {
  if (schema !== undefined) await parsed(schema, input);
  const text = valueText(rules, input, `${at}input`);
  return {
    kind: "WORKFLOW",
    type: validName(type, `${at}workflow`),
    payload: await storedValue(rules, "payload", text),
    digest: await digestOf(rules, text),
    settings: { priority: null, maxAttempts: null, timeoutSeconds: null },
    tags: null,
    limit: null,
    deadlineSeconds: validDuration(deadlineSeconds, `${at}deadlineSeconds`),
  };
}

async function digestOf(rules: ValueRules, text: JsonText): Promise<StoredJson | null> {
  return rules.codec === null ? null : (await remembered(rules, [text]))(0).stored;
}
