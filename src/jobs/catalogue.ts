/** The catalogue: job definitions declared in code, kept in step with the database at start-up (FEATURES F-J1). */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import { ownJson, type StoredJson } from "../database/json.ts";
import { rowsOf } from "../database/parameters.ts";
import { writing } from "../database/statement.ts";
import { LedgerError } from "../errors.ts";
import { validInteger, validName } from "./arguments.ts";
import { backoffDefaults } from "./backoff.ts";
import { jobDefaults } from "./defaults.ts";
import type { AnyJobDefinition, BackoffPolicy, BackoffTiming } from "./definition.ts";
import { validSettings } from "./request.ts";

export interface SyncOptions {
  /**
   * `additive` (the default) only writes what differs. `exact` also disables what this catalogue wrote
   * before and no longer holds. An operator's pause is kept by both.
   */
  readonly mode?: "additive" | "exact";
  /** Whose definitions these are: the owned scope of `exact`. Default `default`. */
  readonly catalogue?: string;
}

export interface SyncedDefinitions {
  /** Types that were written because they were new or differed. */
  readonly written: readonly string[];
  /** Types that were disabled because the catalogue no longer holds them. */
  readonly disabled: readonly string[];
}

/** Writes the definitions that differ. One round trip. Throws `input.invalid`. */
export async function syncDefinitions(
  executor: Executor,
  definitions: readonly AnyJobDefinition[],
  options: SyncOptions = {},
): Promise<SyncedDefinitions> {
  const { mode = "additive", catalogue = "default" } = options;
  if (mode !== "additive" && mode !== "exact") {
    throw new LedgerError("input.invalid", { message: "mode must be additive or exact." });
  }
  const sorted = [...definitions].sort((a, b) => (a.type < b.type ? -1 : 1));
  refuseDuplicates(sorted);
  const settings = sorted.map(({ defaults, type }) => validSettings(defaults, `${type}: `));
  const backoffs = sorted.map(({ backoff, type }) => validBackoff(backoff, type));
  const row = await sync.executeFirst(executor, {
    types: sorted.map(({ type }) => validName(type, "type")),
    versions: sorted.map(({ version, type }) => validInteger(version, `${type}: version`, 1) ?? 1),
    priorities: settings.map(({ priority }) => priority ?? jobDefaults.priority),
    maxAttempts: settings.map(({ maxAttempts }) => maxAttempts ?? jobDefaults.maxAttempts),
    timeouts: settings.map(({ timeoutSeconds }) => timeoutSeconds ?? jobDefaults.timeoutSeconds),
    initials: backoffs.map(({ initialSeconds }) => initialSeconds),
    factors: backoffs.map(({ factor }) => factor),
    maxima: backoffs.map(({ maxSeconds }) => maxSeconds),
    jitters: backoffs.map(({ jitter }) => jitter),
    byCodes: sorted.map(({ backoff, type }, place) => backoffByCode(backoff, backoffs[place] ?? {}, type)),
    catalogue: validName(catalogue, "catalogue"),
    exact: mode === "exact",
  });
  return { written: row?.written ?? [], disabled: row?.disabled ?? [] };
}

/** Pauses or resumes job types: paused jobs are accepted and kept, and not started. One round trip. */
export async function setPaused(executor: Executor, types: readonly string[], paused: boolean): Promise<void> {
  if (types.length === 0) return;
  await pause.execute(executor, { types: types.map((type) => validName(type, "type")).sort(), paused });
}

function refuseDuplicates(sorted: readonly AnyJobDefinition[]): void {
  const twice = sorted.find(({ type }, place) => sorted[place - 1]?.type === type);
  if (twice) throw new LedgerError("input.invalid", { message: `The job type ${twice.type} is defined twice.` });
}

/** What failures of certain codes have in place of the type's own policy, as it is stored; null when there are none. */
function backoffByCode({ byCode = {} }: BackoffPolicy, policy: BackoffTiming, type: string): StoredJson | null {
  const timings = Object.entries(byCode).map(([code, timing]) => {
    if (typeof timing !== "object" || timing === null) {
      throw new LedgerError("input.invalid", { message: `${type}: backoff.byCode must hold a policy for each code.` });
    }
    return [validName(code, `${type}: backoff.byCode`), validBackoff({ ...policy, ...timing }, `${type}, ${code}`)];
  });
  return timings.length === 0 ? null : ownJson(Object.fromEntries(timings));
}

function validBackoff(policy: BackoffTiming, type: string): Required<BackoffTiming> {
  const { initialSeconds, factor, maxSeconds, jitter } = { ...backoffDefaults, ...policy };
  const fits = initialSeconds >= 0 && factor >= 1 && factor <= 1000 && jitter >= 0 && jitter <= 1;
  if (!fits || !(maxSeconds >= initialSeconds) || maxSeconds === Number.POSITIVE_INFINITY) {
    throw new LedgerError("input.invalid", { message: `${type}: the backoff policy is out of range.` });
  }
  return { initialSeconds, factor, maxSeconds, jitter };
}

const syncParameters = {
  types: "text[]",
  versions: "int4[]",
  priorities: "int4[]",
  maxAttempts: "int4[]",
  timeouts: "int4[]",
  initials: "float8[]",
  factors: "float8[]",
  maxima: "float8[]",
  jitters: "float8[]",
  byCodes: "jsonb?[]",
  catalogue: "text",
  exact: "bool",
} as const;

const sync = writing("sync_job_definitions", syncParameters, (db, p) =>
  db
    .with("input", (qb) =>
      qb
        .selectFrom(
          rowsOf("given", {
            type: p.types,
            version: p.versions,
            priority: p.priorities,
            max_attempts: p.maxAttempts,
            timeout_seconds: p.timeouts,
            backoff_initial_seconds: p.initials,
            backoff_factor: p.factors,
            backoff_max_seconds: p.maxima,
            backoff_jitter: p.jitters,
            backoff_by_code: p.byCodes,
          }),
        )
        .selectAll(),
    )
    .with("written", (qb) =>
      qb
        .insertInto("job_definitions")
        .columns([
          "type",
          "version",
          "priority",
          "max_attempts",
          "timeout_seconds",
          "backoff_initial_seconds",
          "backoff_factor",
          "backoff_max_seconds",
          "backoff_jitter",
          "backoff_by_code",
          "enabled",
          "catalogue",
        ])
        .expression((eb) =>
          eb
            .selectFrom("input")
            .selectAll()
            .select([sql<boolean>`true`.as("enabled"), p.catalogue.as("catalogue")]),
        )
        .onConflict((conflict) =>
          conflict
            .column("type")
            .doUpdateSet((eb) => ({
              version: eb.ref("excluded.version"),
              priority: eb.ref("excluded.priority"),
              max_attempts: eb.ref("excluded.max_attempts"),
              timeout_seconds: eb.ref("excluded.timeout_seconds"),
              backoff_initial_seconds: eb.ref("excluded.backoff_initial_seconds"),
              backoff_factor: eb.ref("excluded.backoff_factor"),
              backoff_max_seconds: eb.ref("excluded.backoff_max_seconds"),
              backoff_jitter: eb.ref("excluded.backoff_jitter"),
              backoff_by_code: sql<string | null>`excluded.backoff_by_code`,
              enabled: true,
              catalogue: eb.ref("excluded.catalogue"),
              updated_at: sql<Date>`now()`,
            }))
            .where(
              sql<boolean>`(job_definitions.version, job_definitions.priority, job_definitions.max_attempts, job_definitions.timeout_seconds, job_definitions.backoff_initial_seconds,
                job_definitions.backoff_factor, job_definitions.backoff_max_seconds, job_definitions.backoff_jitter, job_definitions.backoff_by_code, job_definitions.enabled,
                job_definitions.catalogue)
              is distinct from (excluded.version, excluded.priority, excluded.max_attempts, excluded.timeout_seconds,
                excluded.backoff_initial_seconds, excluded.backoff_factor, excluded.backoff_max_seconds,
                excluded.backoff_jitter, excluded.backoff_by_code, excluded.enabled, excluded.catalogue)`,
            ),
        )
        .returning("type"),
    )
    .with("disabled", (qb) =>
      qb
        .updateTable("job_definitions as d")
        .where(p.exact)
        .where("d.catalogue", "=", p.catalogue)
        .where("d.enabled", "=", true)
        .where(sql<boolean>`d.type <> all (${p.types})`)
        .set({ enabled: false, updated_at: sql<Date>`now()` })
        .returning("d.type"),
    )
    .selectNoFrom([
      sql<string[]>`array(select type from written order by type)`.as("written"),
      sql<string[]>`array(select type from disabled order by type)`.as("disabled"),
    ]),
);

const pause = writing("pause_job_types", { types: "text[]", paused: "bool" }, (db, p) =>
  db
    .insertInto("job_definitions")
    .columns(["type", "paused"])
    .expression((eb) => eb.selectFrom(rowsOf("given", { type: p.types })).select(["given.type", p.paused.as("paused")]))
    .onConflict((conflict) =>
      conflict
        .column("type")
        .doUpdateSet((eb) => ({ paused: eb.ref("excluded.paused"), updated_at: sql<Date>`now()` })),
    ),
);
