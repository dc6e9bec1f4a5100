/** Why something did not come about, for the steps that clean up after it. */
import type { PrerequisiteFailures } from "../../src/index.ts";

/** Of the prerequisites that did not succeed the one that began it: others were cancelled only because of it. */
export function causeOf(failures: PrerequisiteFailures): string {
  for (const [key, failure] of Object.entries(failures)) {
    if (failure === undefined || failure.errorCode === "workflow.dependency_unsatisfied") continue;
    return `${key}: ${failure.reason ?? failure.errorMessage ?? failure.errorCode}`;
  }
  return "an earlier step did not succeed";
}
