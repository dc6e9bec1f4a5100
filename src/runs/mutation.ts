/** Mutations of a run that a key makes idempotent: what was made of the key, and the run as it stands. */
import { sql } from "kysely";
import type { Executor } from "../database/executor.ts";
import type { JsonText, StoredJson } from "../database/json.ts";
import { inScope, type Scope, scopeArguments, scopeParameters } from "../database/scope.ts";
import { reading } from "../database/statement.ts";
import { decodeRunStatus, type RunStatus } from "../database/statuses.ts";
import { LedgerError, type LedgerErrorCode } from "../errors.ts";
import { validName } from "../jobs/arguments.ts";

/** A request to change a run. */
export interface Mutation {
  readonly runId: string;
  readonly scope: Scope;
  /** Null: every call is a request of its own. */
  readonly key: string | null;
  readonly mutation: "retry" | "recover" | "rerun";
  /** What is compared, as jsonb, when the key is used again. */
  readonly requested: StoredJson;
}

export interface FoundMutation {
  readonly run: { readonly status: RunStatus; readonly parentRunId: string | null };
  /** What came of the same request before, or null. */
  readonly result: JsonText | null;
}

/** Step keys of a request, each once, in an order of their own: the same steps are the same request. Throws `input.invalid`. */
export function validStepKeys(keys: unknown, argument: string): string[] {
  if (!Array.isArray(keys) || keys.length === 0) {
    throw new LedgerError("input.invalid", { message: `${argument} must be an array of step keys that is not empty.` });
  }
  return [...new Set(keys.map((key, place) => validName(key, `${argument}[${place}]`)))].sort();
}

/** One round trip. Throws `workflow.run_not_found`, and `conflict` when the key was used for another request. */
export async function findMutation(
  executor: Executor,
  { runId, scope, ...request }: Mutation,
  conflict: LedgerErrorCode,
): Promise<FoundMutation> {
  const row = await find.executeFirst(executor, { runId, ...request, ...scopeArguments(scope) });
  if (row === undefined) throw new LedgerError("workflow.run_not_found");
  if (row.same === false) throw new LedgerError(conflict);
  return { run: { status: decodeRunStatus(row.status), parentRunId: row.parent_run_id }, result: row.result };
}

const findParameters = {
  runId: "uuid",
  key: "text?",
  mutation: "text",
  requested: "jsonb",
  ...scopeParameters,
} as const;

const find = reading("find_workflow_run_mutation", findParameters, (db, p) =>
  db
    .selectFrom("workflow_runs as r")
    .leftJoin("workflow_run_mutations as m", (join) =>
      join.onRef("m.run_id", "=", "r.id").on(sql<boolean>`m.mutation_key = ${p.key}`),
    )
    .where("r.id", "=", p.runId)
    .where(inScope("r.organization_id", p))
    .select([
      "r.status",
      "r.parent_run_id",
      sql<string | null>`m.result::text`.as("result"),
      sql<boolean | null>`m.mutation = ${p.mutation} and m.requested = ${p.requested}`.as("same"),
    ]),
);
