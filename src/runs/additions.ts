/** From the steps that a caller wants to add to what is stored (FEATURES F-W7). */
import type { JsonText } from "../database/json.ts";
import { validName } from "../jobs/request.ts";
import type { AddedStep, Addition } from "../steps/additions.ts";
import { preparePayloads, type StepDraft, stepDrafts } from "./drafts.ts";
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

/** Throws a `workflow.invalid_dag_*` code, `input.invalid`, `payload.not_json` or `payload.invalid`. */
export async function prepareAddition(runId: string, { key, graph }: AppendRequest): Promise<Addition> {
  const mutationKey = validName(key, "key");
  const sorted = topologicallySortedAddition(graph);
  await preparePayloads(sorted);
  const { drafts } = stepDrafts(sorted);
  const requested: JsonText = `{"steps":${requestOfSteps(drafts)}}`;
  return { runId, mutationKey, requested, steps: drafts.map(addedStep) };
}

function addedStep({ id, key, kind, job, map, expiry, spec }: StepDraft): AddedStep {
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
