/** Which jobs were enqueued: what a test asks for most. */
import { sql } from "kysely";
import {
  type AnyJobDefinition,
  type InputOf,
  type JobStatus,
  type JobsPage,
  type JsonValue,
  type Ledger,
  parsed,
  typed,
} from "../../index.ts";
import { differences } from "./contains.ts";
import { type KitParts, tablesOf } from "./tables.ts";

/** A job as it stands in the database. `Payload` is what was handed over on enqueueing, in its JSON form. */
export interface FoundJob<Payload = JsonValue> {
  readonly id: string;
  readonly runNumber: number;
  readonly type: string;
  readonly status: JobStatus;
  readonly payload: Payload;
  readonly organizationId: string | null;
  readonly tags: readonly string[];
  readonly priority: number;
  readonly runAt: Date;
  readonly attempt: number;
  readonly maxAttempts: number;
  readonly workflowRunId: string | null;
  readonly enqueuedAt: Date;
}

/** Any part of a payload. */
export type PartialPayload<T> = T extends Date
  ? T
  : T extends readonly (infer Element)[]
    ? readonly PartialPayload<Element>[]
    : T extends object
      ? { readonly [Key in keyof T]?: PartialPayload<T[Key]> }
      : T;

/** What else a job must be, besides of its type. */
export interface FoundJobFilter {
  /** Null is the global tenant. Default: any. */
  readonly organizationId?: string | null;
  /** It has all of these. */
  readonly tags?: readonly string[];
  /** Exactly then, to the millisecond, or within. */
  readonly runAt?: Date | { readonly from?: Date; readonly to?: Date };
  /** Default: PENDING and LEASED, those that have not ended. */
  readonly statuses?: readonly JobStatus[];
}

export interface EnqueuedFilter<Payload> extends FoundJobFilter {
  /** Contained in the payload as `@>` of jsonb has it: further keys and elements do not matter. */
  readonly payload?: PartialPayload<Payload>;
}

/** The type of a job, as `ledger.jobs.enqueue` takes it. */
export type TestedJob = AnyJobDefinition | string;
export type TestedPayload<J extends TestedJob> = J extends string ? JsonValue : InputOf<J>;

/** A job that was looked at, and why it is not what was looked for: for no reason when it is. */
export interface LookedAt<Payload> {
  readonly job: FoundJob<Payload>;
  readonly reasons: readonly string[];
}

/**
 * The jobs of a type in the order they were enqueued, each with what speaks against it. One round trip, and where some are encoded one
 * more for each 10 000 jobs.
 */
export async function lookAt<J extends TestedJob>(
  parts: KitParts,
  job: J | undefined,
  filter: EnqueuedFilter<TestedPayload<J>>,
): Promise<LookedAt<TestedPayload<J>>[]> {
  const rows = await jobsOf(parts, job === undefined ? undefined : typeOf(job));
  const payloadType = typed<TestedPayload<J>>();
  return Promise.all(
    rows.map(async (row) => ({
      job: { ...row, payload: await parsed(payloadType, row.payload) },
      reasons: reasonsAgainst(row, filter),
    })),
  );
}

export function typeOf(job: TestedJob): string {
  return typeof job === "string" ? job : job.type;
}

async function jobsOf({ db, ledger }: KitParts, type: string | undefined): Promise<FoundJob[]> {
  const rows = await tablesOf(db, ledger.schema)
    .selectFrom("jobs as j")
    .$if(type !== undefined, (query) => query.where("j.type", "=", type ?? ""))
    .select([
      "j.id",
      "j.run_number",
      "j.type",
      "j.status",
      "j.organization_id",
      "j.priority",
      "j.attempt",
      "j.max_attempts",
      "j.workflow_run_id",
      "j.tags",
      milliseconds("j.run_at").as("run_at"),
      milliseconds("j.enqueued_at").as("enqueued_at"),
      sql<string>`j.payload::text`.as("payload"),
    ])
    .orderBy("j.id")
    .execute();
  const payloadOf = rows.some(isEncoded) ? await revealed(ledger, type) : plain;
  return rows.map((row) => ({
    id: row.id,
    runNumber: row.run_number,
    type: row.type,
    status: row.status,
    payload: payloadOf(row),
    organizationId: row.organization_id,
    tags: row.tags ?? [],
    priority: row.priority,
    runAt: new Date(row.run_at),
    attempt: row.attempt,
    maxAttempts: row.max_attempts,
    workflowRunId: row.workflow_run_id,
    enqueuedAt: new Date(row.enqueued_at),
  }));
}

interface StoredPayload {
  readonly id: string;
  readonly payload: string;
}

function isEncoded({ payload }: StoredPayload): boolean {
  return payload.includes('"$runledger"');
}

function plain({ payload }: StoredPayload): JsonValue {
  return JSON.parse(payload);
}

const PAGE = 10_000;

/** What the ledger's codec has encoded only the ledger can read. */
async function revealed({ jobs }: Ledger, type: string | undefined): Promise<(row: StoredPayload) => JsonValue> {
  const options = { scope: { admin: true }, payload: true, values: "revealed", limit: PAGE } as const;
  const payloads = new Map<string, JsonValue>();
  for (let after: string | null | undefined; after !== null; ) {
    const page: JobsPage = await jobs.list({
      ...options,
      ...(type === undefined ? {} : { type }),
      ...(after === undefined ? {} : { after }),
    });
    for (const { id, payload = null } of page.jobs) payloads.set(id, payload);
    after = page.next;
  }
  // Null is a payload, too.
  return (row) => payloads.get(row.id) ?? null;
}

/** As a number: whatever the service has told its driver to make of a timestamp. */
function milliseconds(column: string) {
  return sql<number>`(extract(epoch from ${sql.ref(column)}) * 1000)::float8`;
}

const LIVE: readonly JobStatus[] = ["PENDING", "LEASED"];

function reasonsAgainst(job: FoundJob, filter: EnqueuedFilter<unknown>): string[] {
  const { organizationId, tags = [], statuses = LIVE } = filter;
  const missing = tags.filter((tag) => !job.tags.includes(tag));
  return [
    ...(statuses.includes(job.status) ? [] : [`status is ${job.status}, expected ${statuses.join(" or ")}`]),
    ...(organizationId === undefined || organizationId?.toLowerCase() === job.organizationId?.toLowerCase()
      ? []
      : [`organizationId is ${job.organizationId}, expected ${organizationId}`]),
    ...missing.map((tag) => `tags have no ${JSON.stringify(tag)}`),
    ...(isThen(job.runAt, filter.runAt) ? [] : [`runAt is ${job.runAt.toISOString()}, expected ${then(filter.runAt)}`]),
    ...(filter.payload === undefined ? [] : differences(job.payload, asJson(filter.payload), "payload")),
  ];
}

function isThen(runAt: Date, wanted: FoundJobFilter["runAt"]): boolean {
  if (wanted === undefined) return true;
  if (wanted instanceof Date) return Math.floor(runAt.getTime()) === wanted.getTime();
  return (wanted.from === undefined || runAt >= wanted.from) && (wanted.to === undefined || runAt <= wanted.to);
}

function then(wanted: FoundJobFilter["runAt"]): string {
  if (wanted === undefined || wanted instanceof Date) return String(wanted?.toISOString());
  return `${wanted.from?.toISOString() ?? ""}..${wanted.to?.toISOString() ?? ""}`;
}

/** What enqueueing would make of the value. */
function asJson(value: unknown): JsonValue {
  return JSON.parse(JSON.stringify(value));
}
