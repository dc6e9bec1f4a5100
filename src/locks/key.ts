import { validUuid } from "../database/ids.ts";

const NAMESPACE = 0x72756e6c9e3779b9n;

/**
 * The advisory lock key of a run (LOCKS.md §1): the two halves of its UUID and the namespace, XORed,
 * as a signed 64-bit integer. Two runs with one key only make each other wait.
 */
export function runReleaseKey(runId: string): bigint {
  const bits = BigInt(`0x${validUuid(runId, "runId").replaceAll("-", "")}`);
  return BigInt.asIntN(64, (bits >> 64n) ^ BigInt.asUintN(64, bits) ^ NAMESPACE);
}

/** The distinct keys of several runs in the order in which they are locked, as the server takes them. */
export function sortedRunReleaseKeys(runIds: readonly string[]): string[] {
  return [...new Set(runIds.map(runReleaseKey))].sort((a, b) => (a < b ? -1 : a > b ? 1 : 0)).map(String);
}
