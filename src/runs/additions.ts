/** From the steps that a caller wants to add to what is stored (FEATURES F-W7). */
import type { JsonText } from "../database/json.ts";
import type { ValueRules } from "../database/values/rules.ts";
import { remembered } from "../database/values/sameness.ts";
import { validName } from "../jobs/arguments.ts";
import type { AddedStep, Addition } from "../steps/additions.ts";
import { preparePayloads, type StoredDraft, stepDrafts, storedDrafts } from "./drafts.ts";
import { requestOfSteps } from "./prepare.ts";
import type { AdditionSpec } from "./spec.ts";
import { topologicallySortedAddition } from "./validate.ts";

/** Steps to add to a run, once. */
export interface AppendRequest {
  /** The mutation key, 1 to 512 bytes: the same key and steps are added to a run once. */
  readonly key: string;
  /** Made by a `WorkflowAddition`. */
  readonly graph: AdditionSpec;
}

/** Throws a `workflow.invalid_dag_*` code, `input.invalid` or a `payload.*` code. */
export async function prepareAddition(
  rules: ValueRules,
  runId: string,
  { key, graph }: AppendRequest,
): Promise<Addition> {
  const mutationKey = validName(key, "key");
  const sorted = topologicallySortedAddition(graph);
  await preparePayloads(sorted);
  const { drafts } = stepDrafts(rules, sorted);
  const request: JsonText = `{"steps":${requestOfSteps(drafts)}}`;
  const requested = await remembered(rules, [request]);
  const stored = await storedDrafts(rules, drafts);
  return { runId, mutationKey, requested: requested(0), steps: stored.map(addedStep) };
}

function addedStep({ id, key, kind, job, map, expiry, spec }: StoredDraft): AddedStep {
  const over = spec.map?.over;
  return {
    id,
    key,
    kind,
    job,
    expiry,
    dependencies: spec.dependencies,
    map: map === null || over === undefined ? null : { over, itemEdge: map.itemEdge },
  };
}
