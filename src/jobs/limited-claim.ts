/**
 * The claim where jobs with a limit are worth a look (FEATURES F-J11). One statement holds their keys, the next, with
 * a snapshot from after that, sees how much each has room for and claims. No claim waits for a lock.
 */
import type { Executor } from "../database/executor.ts";
import { inTransaction, requireReadCommitted } from "../database/transaction.ts";
import type { MaybeClaimedRow } from "./claimed.ts";
import { holdOfAll, holdOfTypes } from "./limit-holds.ts";
import { claimHeldOfAll, claimHeldOfTypes } from "./limited-rows.ts";

export interface ClaimRequest {
  readonly limit: number;
  readonly workerId: string;
  readonly leaseSeconds: number;
  /** Null: all. */
  readonly types: readonly string[] | null;
}

/** What one of the tries of a claim came to. */
export interface ClaimPart {
  /** As the statements answer them: also one without a job. */
  readonly rows: readonly MaybeClaimedRow[];
  /** There may be more to claim at once. */
  readonly more: boolean;
}

/**
 * Claims jobs with and without a limit in one order. Two round trips in a transaction of its own, three in a caller's.
 * Throws `job.claim_unsupported_isolation`.
 */
export async function claimLimited(executor: Executor, request: ClaimRequest): Promise<ClaimPart> {
  await requireReadCommitted(executor, "job.claim_unsupported_isolation");
  return inTransaction(executor, async (trx) => {
    const { held, seen, capped } = await hold(trx, request);
    const rows = await claimHeld(trx, request, held);
    const claimed = rows.some(({ id }) => id !== null);
    // Keys that others hold are looked at by them; only who got nothing at all looks again.
    return { rows, more: capped || (!claimed && held.length < seen) };
  });
}

interface HeldKey {
  readonly tenant: string;
  readonly key: string;
}

interface Hold {
  readonly held: readonly HeldKey[];
  /** Keys that wakes spoke of. */
  readonly seen: number;
  /** There may be more of them. */
  readonly capped: boolean;
}

async function hold(trx: Executor, { limit, types }: ClaimRequest): Promise<Hold> {
  const rows =
    types === null ? await holdOfAll.execute(trx, { limit }) : await holdOfTypes.execute(trx, { limit, types });
  const held = rows.flatMap(({ tenant, key }) => (tenant === null || key === null ? [] : [{ tenant, key }]));
  return { held, seen: Number(rows[0]?.seen ?? 0), capped: rows[0]?.capped === true };
}

function claimHeld(trx: Executor, request: ClaimRequest, held: readonly HeldKey[]): Promise<MaybeClaimedRow[]> {
  const { types, ...values } = request;
  const given = {
    ...values,
    tenants: held.map(({ tenant }) => tenant),
    keys: held.map(({ key }) => key),
    notify: trx.settings.notify,
  };
  return types === null ? claimHeldOfAll.execute(trx, given) : claimHeldOfTypes.execute(trx, { ...given, types });
}
