/** From a request to the values that are stored: checked, and with an id, before anything is sent. */
import { newIds, validUuid } from "../database/ids.ts";
import type { JsonText, StoredJson } from "../database/json.ts";
import type { ValueRules } from "../database/values/rules.ts";
import { type Remembered, remembered } from "../database/values/sameness.ts";
import { storedValues, valueText } from "../database/values/write.ts";
import { LedgerError } from "../errors.ts";
import { MAX_INT4, validInteger, validName } from "./arguments.ts";
import { type JobDefaults, type JobRequest, parsed } from "./definition.ts";
import { type PreparedLimit, preparedLimit } from "./limits.ts";
import { metadataOf } from "./tick.ts";

/** A request ready to be sent. What was not requested is null and resolves in the database. */
export interface PreparedJob {
  readonly id: string;
  readonly type: string;
  readonly payload: StoredJson;
  readonly settings: JobSettings;
  /** Those of the settings that the request itself names, without the definition's. */
  readonly requestedSettings: JobSettings;
  readonly runAt: string | null;
  readonly organizationId: string | null;
  readonly tags: string | null;
  readonly metadata: StoredJson | null;
  readonly limit: PreparedLimit | null;
  /** What an idempotency key remembers besides the run-at: a changed default does not turn a retry into a conflict. */
  readonly requested: Remembered;
}

/** What is null resolves in the database: from the type's definition, else from the library's defaults. */
export interface JobSettings {
  readonly priority: number | null;
  readonly maxAttempts: number | null;
  readonly timeoutSeconds: number | null;
}

/** A request that has been checked, before its payload takes the form that is stored. */
interface DraftJob extends Omit<PreparedJob, "payload" | "requested"> {
  readonly payload: JsonText;
  /** Null without a key that would remember it. */
  readonly requested: JsonText | null;
}

/**
 * Throws `input.invalid`, `payload.not_json`, `payload.too_large`, `payload.reserved` or `payload.invalid`, naming the
 * request by its place in the batch; `payload.unencodable`, `payload.codec_unavailable`.
 */
export async function prepareJobs(rules: ValueRules, requests: readonly JobRequest[]): Promise<PreparedJob[]> {
  for (const request of requests) {
    if (request.schema !== undefined) await parsed(request.schema, request.payload);
  }
  const ids = newIds(requests.length);
  const drafts = requests.map((request, place) =>
    drafted(rules, request, ids[place] ?? "", requests.length > 1 ? `jobs[${place}].` : ""),
  );
  const payload = await storedValues(
    rules,
    "payload",
    drafts.map((draft) => draft.payload),
  );
  const requested = await remembered(
    rules,
    drafts.map((draft) => draft.requested),
  );
  return drafts.map((draft, place) => ({ ...draft, payload: payload(place), requested: requested(place) }));
}

function drafted(rules: ValueRules, request: JobRequest, id: string, at: string): DraftJob {
  const type = validName(request.type, `${at}type`);
  const payload = valueText(rules, request.payload, `${at}payload`);
  const requested = validSettings(request, at);
  const defaults = validSettings(request.defaults ?? {}, at);
  const tags = request.tags === undefined ? null : textArray(request.tags, `${at}tags`);
  return {
    id,
    type,
    payload,
    settings: {
      priority: requested.priority ?? defaults.priority,
      maxAttempts: requested.maxAttempts ?? defaults.maxAttempts,
      timeoutSeconds: requested.timeoutSeconds ?? defaults.timeoutSeconds,
    },
    requestedSettings: requested,
    runAt: request.runAt === undefined ? null : validTime(request.runAt, `${at}runAt`),
    organizationId: validOrganization(request.organizationId, `${at}organizationId`),
    tags,
    metadata: metadataOf(request.schedule),
    limit: preparedLimit(request.limit, request.definedLimit?.(), at),
    requested:
      request.idempotencyKey === undefined
        ? null
        : `{"payload":${payload},"settings":${JSON.stringify({ ...requested, tags, limit: request.limit })}}`,
  };
}

/** Priority, attempts and timeout within their ranges, or `input.invalid`. */
export function validSettings(settings: JobDefaults, at: string): JobSettings {
  return {
    priority: validInteger(settings.priority, `${at}priority`, -MAX_INT4),
    maxAttempts: validInteger(settings.maxAttempts, `${at}maxAttempts`, 1),
    timeoutSeconds: validInteger(settings.timeoutSeconds, `${at}timeoutSeconds`, 1),
  };
}

/** A time as text: a string keeps the microseconds that a Date would lose. */
export function validTime(value: unknown, argument: string): string {
  const date = value instanceof Date ? value : typeof value === "string" ? new Date(value) : undefined;
  if (date === undefined || Number.isNaN(date.getTime())) {
    throw new LedgerError("input.invalid", { message: `${argument} must be a Date or an ISO 8601 string.` });
  }
  // Only a full ISO 8601 time goes as it is: PostgreSQL reads a bare day in the session's time zone,
  // and `GMT+0200` with the opposite sign.
  const zoned =
    typeof value === "string" && /^\d{4}-\d\d-\d\d[T ]\d\d:\d\d[:.\d]*(?:Z|[+-]\d\d(?::?\d\d)?)$/i.test(value.trim());
  return zoned ? value.trim() : date.toISOString();
}

export function validOrganization(value: unknown, argument: string): string | null {
  return value === undefined || value === null ? null : validUuid(value, argument);
}

/** A PostgreSQL array literal: unnest cannot take arrays of arrays of different lengths. */
function textArray(values: readonly string[], argument: string): string {
  const elements = values.map((value, place) => validName(value, `${argument}[${place}]`));
  return `{${elements.map((element) => `"${element.replace(/["\\]/g, "\\$&")}"`).join(",")}}`;
}
