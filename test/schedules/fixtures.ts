/** Schedules whose ticks are due because a test says so, and what became of them. */
import {
  type CatchUp,
  createLedger,
  defineJob,
  defineSchedule,
  defineWorkflow,
  type Ledger,
  type ScheduleTiming,
  typed,
} from "../../src/index.ts";
import type { TestDatabase } from "../support/database.ts";

export const globally = { scope: { global: true } } as const;
export const global = { global: true } as const;
export const organizationId = "0190a5f0-0000-7000-8000-000000000001";

export const report = defineJob("report", { input: typed<{ kind: string }>(), maxAttempts: 3 });

export const audit = defineWorkflow("audit", {
  input: typed<{ area: string }>(),
  build(graph, { area }, { schedule }) {
    const look = graph.job("look", "audit.look", { area, for: schedule?.intendedAt ?? null });
    return graph.job("write", "audit.write", {}, { onSuccess: [look] });
  },
});

export function ledgerOf(database: TestDatabase): Ledger {
  return createLedger({ db: database.db });
}

let schedules = 0;

export function newName(): string {
  schedules += 1;
  return `schedule-${schedules}`;
}

/** A schedule of a job type of its own, hourly unless it says otherwise; its name is the type. */
export function hourly(timing: Partial<ScheduleTiming> = {}, name = newName()) {
  return defineSchedule(name, { cron: "0 * * * *", ...timing, job: name, payload: { of: name } });
}

export function auditing(timing: Partial<ScheduleTiming> = {}, name = newName()) {
  return defineSchedule(name, { cron: "0 * * * *", ...timing, workflow: audit, input: { area: name } });
}

/**
 * Creates an hourly schedule that nobody has fired for so many hours: its last so many ticks are due. Answers these,
 * oldest first.
 */
export async function missed(
  database: TestDatabase,
  ledger: Ledger,
  hours: number,
  timing: Partial<ScheduleTiming> & { catchUp?: CatchUp } = {},
) {
  const definition = hourly(timing);
  await ledger.schedules.upsert(definition);
  return { name: definition.name, ticks: await setBack(database, definition.name, hours) };
}

/** The schedule was last looked at so many whole hours ago: as many hourly ticks are due, which come back oldest first. */
export async function setBack(database: TestDatabase, name: string, hours: number): Promise<Date[]> {
  const { rows } = await database.pool.query<{ tick: Date }>(
    `with moved as (
       update runledger.job_schedules
       set intended_at = date_trunc('hour', now()) - make_interval(hours => $2 - 1),
           due_at = date_trunc('hour', now()) - make_interval(hours => $2 - 1)
       where name = $1 returning intended_at
     )
     select generate_series(intended_at, date_trunc('hour', now()), interval '1 hour') as tick from moved`,
    [name, hours],
  );
  return rows.map(({ tick }) => tick);
}

/** The jobs of a type that are in the queue, in the order of their enqueue, each with its tick. */
export async function jobsOf(database: TestDatabase, type: string) {
  const { rows } = await database.pool.query<{ id: string; intended: string | null; run_at: Date; payload: unknown }>(
    `select id, metadata->'schedule'->>'intendedAt' as intended, run_at, payload
     from runledger.job_queue where type = $1 order by id`,
    [type],
  );
  return rows.map(({ intended, ...row }) => ({ ...row, intendedAt: intended === null ? null : new Date(intended) }));
}

/** The history of a schedule, oldest first. */
export async function firesOf(ledger: Ledger, name: string) {
  const { fires } = await ledger.schedules.fires(name, globally);
  return [...fires].reverse();
}

/** Ends the live jobs of a type. */
export async function finish(ledger: Ledger, type: string): Promise<void> {
  for (const { lease } of await ledger.jobs.claim({ workerId: "w", limit: 100, types: [type] })) {
    await ledger.jobs.complete(lease);
  }
}
