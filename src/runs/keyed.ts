/** Enqueue of runs of which some have keys: idempotency keys, and active keys that a run holds until it ends (FEATURES F-W2, F-J12). */
import { type QueryCreator, type RawBuilder, sql } from "kysely";
import { announcing } from "../database/announce.ts";
import type { Executor } from "../database/executor.ts";
import { sameTenant } from "../database/live-keys.ts";
import { type Placeholders, rowsOf } from "../database/parameters.ts";
import { inRounds } from "../database/rounds.ts";
import { reading, writing } from "../database/statement.ts";
import { decodeRunStatus } from "../database/statuses.ts";
import type { LedgerTables } from "../database/tables.ts";
import { allOrNothing, inTransaction, requireReadCommitted } from "../database/transaction.ts";
import { type Remembered, sameRequest } from "../database/values/sameness.ts";
import { LedgerError } from "../errors.ts";
import { boundedHere, boundedInCaller, lockWaitFor } from "../locks/wait.ts";
import { type EnqueuedRun, insertRunRows, runArrayParameters, runArrays, runColumns, withGraphs } from "./insertion.ts";
import type { PreparedRun } from "./prepare.ts";

type Answers = Map<string, EnqueuedRun>;

/** Throws `workflow.enqueue_conflicting_retry`, and in a caller's transaction a `workflow.enqueue_*_unsupported_isolation`. Round trips: see `enqueueRuns`. */
export async function enqueueKeyedRuns(executor: Executor, runs: readonly PreparedRun[]): Promise<EnqueuedRun[]> {
  const kind = runs.find(({ key }) => key !== null)?.key?.kind ?? "idempotency";
  await requireReadCommitted(
    executor,
    kind === "active"
      ? "workflow.enqueue_active_key_unsupported_isolation"
      : "workflow.enqueue_idempotency_unsupported_isolation",
  );
  // A single run whose key is taken has written nothing, so there is nothing to take back.
  if (runs.length === 1) return boundedInCaller(executor, () => takeOrFind(executor, runs));
  return inTransaction(executor, (trx) => allOrNothing(trx, () => boundedInCaller(trx, () => takeOrFind(trx, runs))));
}

/** Inserts runs without a key and those whose key is free or has expired, and finds those of the other keys. */
async function takeOrFind(executor: Executor, runs: readonly PreparedRun[]): Promise<EnqueuedRun[]> {
  // Most keys are new or live: only who has found one that has expired pays for the looking for such.
  let statement = take;
  const answers = await inRounds(
    runs,
    ({ runId }) => runId,
    async (rest) => {
      const taken = await takeKeys(executor, statement, rest);
      statement = takeAnew;
      const kept = rest.filter(({ runId }) => !taken.has(runId));
      const existing = kept.filter(({ key }) => key?.kind === "idempotency");
      const active = kept.filter(({ key }) => key?.kind === "active");
      return new Map([...taken, ...(await findExisting(executor, existing)), ...(await findActive(executor, active))]);
    },
  );
  return runs.map(({ runId }) => {
    const answer = answers.get(runId);
    if (answer === undefined) throw new LedgerError("workflow.internal_state");
    return answer;
  });
}

async function takeKeys(executor: Executor, statement: typeof take, runs: readonly PreparedRun[]): Promise<Answers> {
  const news = announcing(executor);
  const rows = await statement.execute(executor, {
    ...runArrays(runs),
    ...keyArrays(runs),
    lockWait: lockWaitFor(executor),
    notify: news.notify,
  });
  news.after({ jobs: rows.some(({ due }) => due) });
  return new Map(rows.map(({ id, status }) => [id, { id, status: decodeRunStatus(status), disposition: "inserted" }]));
}

/** The runs that hold the idempotency keys, by the id that the request would have got; none for a key that has expired or gone. */
async function findExisting(executor: Executor, runs: readonly PreparedRun[]): Promise<Answers> {
  if (runs.length === 0) return new Map();
  const { ids, types, organizations } = runArrays(runs);
  const { keys, requested } = keyArrays(runs);
  const rows = await existing.execute(executor, { ids, types, organizations, keys, requested });
  const requests = new Map(runs.map((run) => [run.runId, run.requested]));
  for (const { id, same, stored } of rows) {
    const request = requests.get(id) ?? null;
    if (same || (await isSame(executor, stored, request))) continue;
    throw new LedgerError("workflow.enqueue_conflicting_retry");
  }
  return new Map(
    rows.map(({ id, run_id, status }) => {
      if (status === null) {
        throw new LedgerError("workflow.run_not_found", { message: "The run of an idempotency key is gone." });
      }
      return [id, { id: run_id, status: decodeRunStatus(status), disposition: "existing" }];
    }),
  );
}

function isSame({ settings }: Executor, stored: string | null, request: Remembered | null) {
  return stored !== null && request !== null && sameRequest(settings.values, stored, request);
}

/** The live runs that hold the active keys; none for one that has ended meanwhile. */
async function findActive(executor: Executor, runs: readonly PreparedRun[]): Promise<Answers> {
  if (runs.length === 0) return new Map();
  const { ids, types, organizations } = runArrays(runs);
  const { activeKeys } = keyArrays(runs);
  const rows = await active.execute(executor, { ids, types, organizations, activeKeys });
  return new Map(
    rows.map(({ id, run_id, status }) => [
      id,
      { id: run_id, status: decodeRunStatus(status), disposition: "existing_active" },
    ]),
  );
}

function keyArrays(runs: readonly PreparedRun[]) {
  return {
    keys: runs.map(({ key }) => (key?.kind === "idempotency" ? key.key : null)),
    ttls: runs.map(({ key }) => (key?.kind === "idempotency" ? key.ttlSeconds : null)),
    activeKeys: runs.map(({ key }) => (key?.kind === "active" ? key.key : null)),
    requested: runs.map(({ requested }) => requested?.stored ?? null),
  };
}

const takeParameters = {
  ...runArrayParameters,
  keys: "text?[]",
  ttls: "float8?[]",
  activeKeys: "text?[]",
  requested: "jsonb?[]",
  lockWait: "int4?",
} as const;

function keyedRows(p: Placeholders<typeof takeParameters>) {
  return rowsOf("given", {
    ...runColumns(p),
    key: p.keys,
    ttl_seconds: p.ttls,
    active_key: p.activeKeys,
    requested: p.requested,
  });
}

// Keys are taken in their own order, so that two batches which share keys cannot wait for each other; one that is
// named twice goes to the first.
const take = writing("enqueue_keyed_workflow_runs", takeParameters, (db, p, schema) =>
  taking(withInput(db, p), p, schema, null),
);

// A key that has expired is locked in the order of keys too, and deleted before the insert looks for it; others are not
// locked at all.
const takeAnew = writing("enqueue_workflow_runs_with_expired_keys", takeParameters, (db, p, schema) =>
  taking(
    withInput(db, p)
      .with("stale", (qb) =>
        qb
          .selectFrom((eb) =>
            eb
              .selectFrom("input")
              .where("input.key", "is not", null)
              .where(boundedHere(p.lockWait))
              .select(["input.type", "input.organization_id", "input.key"])
              .orderBy("input.type")
              .orderBy("input.organization_id")
              .orderBy("input.key")
              .as("wanted"),
          )
          .innerJoinLateral(
            (eb) =>
              eb
                .selectFrom("workflow_idempotency_keys as k")
                .whereRef("k.type", "=", "wanted.type")
                .where(sql<boolean>`k.tenant = coalesce(wanted.organization_id::text, 'global')`)
                .whereRef("k.key", "=", "wanted.key")
                .where("k.expires_at", "<=", sql<Date>`clock_timestamp()`)
                .select(sql<string>`k.ctid`.as("place"))
                .forUpdate("k")
                .as("found"),
            (join) => join.onTrue(),
          )
          .select("found.place"),
      )
      .with("expired", (qb) =>
        qb
          .deleteFrom("workflow_idempotency_keys as k")
          .where(sql<boolean>`k.ctid = any(array(select place from stale))`)
          .returning("k.run_id"),
      ),
    p,
    schema,
    // Says nothing, but has the delete done first.
    sql`(select count(*) from expired) >= 0`,
  ),
);

type TakePlaceholders = Placeholders<typeof takeParameters>;

function withInput(db: QueryCreator<LedgerTables>, p: TakePlaceholders) {
  return db.with("input", (qb) => qb.selectFrom(keyedRows(p)).selectAll());
}

/** Takes the keys when `ready`, and inserts the runs that got theirs or have none. */
function taking(
  db: ReturnType<typeof withInput>,
  p: TakePlaceholders,
  schema: string,
  ready: RawBuilder<boolean> | null,
) {
  const withRuns = db
    .with("taken", (qb) =>
      qb
        .insertInto("workflow_idempotency_keys")
        .columns(["run_id", "type", "organization_id", "key", "requested", "expires_at"])
        .expression((eb) =>
          eb
            .selectFrom("input")
            .where("input.key", "is not", null)
            .where(boundedHere(p.lockWait))
            .$call((query) => (ready === null ? query : query.where(ready)))
            .select([
              "input.id",
              "input.type",
              "input.organization_id",
              "input.key",
              "input.requested",
              sql<Date | null>`clock_timestamp() + make_interval(secs => input.ttl_seconds)`.as("expires_at"),
            ])
            .orderBy("input.type")
            .orderBy("input.organization_id")
            .orderBy("input.key")
            .orderBy("input.id"),
        )
        .onConflict((conflict) => conflict.doNothing())
        .returning("run_id"),
    )
    .with("runs", (qb) =>
      insertRunRows(
        qb,
        schema,
        sql`${boundedHere(p.lockWait)} and (i.key is null or i.id in (select run_id from taken))`,
        ["active_key"],
      ),
    );
  return withGraphs(withRuns, p, schema);
}

const existing = reading(
  "find_keyed_workflow_runs",
  { ids: "uuid[]", types: "text[]", organizations: "uuid?[]", keys: "text?[]", requested: "jsonb?[]" },
  (db, p) =>
    db
      .selectFrom(
        rowsOf("keyed", {
          id: p.ids,
          type: p.types,
          organization_id: p.organizations,
          key: p.keys,
          requested: p.requested,
        }),
      )
      .innerJoin("workflow_idempotency_keys as k", (join) =>
        join
          .onRef("k.type", "=", "keyed.type")
          .on(sql<boolean>`k.tenant = coalesce(keyed.organization_id::text, 'global')`)
          .onRef("k.key", "=", "keyed.key"),
      )
      .leftJoin("workflow_runs as r", "r.id", "k.run_id")
      .where(sql<boolean>`(k.expires_at > clock_timestamp()) is not false`)
      .select([
        "keyed.id",
        "k.run_id",
        "r.status",
        sql<boolean>`k.requested = keyed.requested`.as("same"),
        sql<string | null>`case when k.requested <> keyed.requested then k.requested::text end`.as("stored"),
      ]),
);

const active = reading(
  "find_active_workflow_runs",
  { ids: "uuid[]", types: "text[]", organizations: "uuid?[]", activeKeys: "text?[]" },
  (db, p) =>
    db
      .selectFrom(
        rowsOf("keyed", { id: p.ids, type: p.types, organization_id: p.organizations, active_key: p.activeKeys }),
      )
      .innerJoinLateral(
        (eb) =>
          eb
            .selectFrom("workflow_runs as r")
            // As the index of active keys has it, and no other: see there.
            .where(sql<boolean>`r.type = keyed.type collate "C"`)
            .where(sameTenant("r", "keyed"))
            .whereRef("r.active_key", "=", "keyed.active_key")
            .where("r.active_key", "is not", null)
            .where("r.ended_at", "is", null)
            .select(["r.id as run_id", "r.status"])
            .limit(1)
            .as("run"),
        (join) => join.onTrue(),
      )
      .select(["keyed.id", "run.run_id", "run.status"]),
);
