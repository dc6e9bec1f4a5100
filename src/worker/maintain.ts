/** Keeps the ledger in order: partitions ahead, counts folded, keys that expired or are idle gone, and what is past by its policy. */
import { performance } from "node:perf_hooks";
import { isLedgerError, type Ledger, type RetentionPolicies } from "../index.ts";
import type { Emit } from "./events.ts";
import { jittered } from "./reaper.ts";

export interface MaintainSettings {
  readonly intervalMs: number;
  /** Null: nothing that has ended is deleted. */
  readonly retention: RetentionPolicies | null;
  readonly retentionIntervalMs: number;
}

/** Of one statement; a full batch is followed by the next. */
const FOLD = 10_000;

export class Maintainer {
  readonly #ledger: Ledger;
  readonly #emit: Emit;
  readonly #settings: MaintainSettings;
  readonly #stopping = new AbortController();
  #retainAt: number;

  constructor(ledger: Ledger, emit: Emit, settings: MaintainSettings) {
    this.#ledger = ledger;
    this.#emit = emit;
    this.#settings = settings;
    this.#retainAt = performance.now();
  }

  /** One round of everything that is due. Answers when the next is, in milliseconds. */
  async turn(): Promise<number> {
    await this.#makePartitions();
    const { folded } = await this.#ledger.maintenance.compactCounts({ limit: FOLD });
    await this.#ledger.maintenance.sweepLimits();
    await this.#retain();
    return folded >= FOLD ? 0 : jittered(this.#settings.intervalMs);
  }

  /** Ends a pass of retention after its batch. */
  stop(): void {
    this.#stopping.abort();
  }

  /** A role that may work on jobs need not be allowed to make tables: somebody else has to, then. */
  async #makePartitions(): Promise<void> {
    try {
      const made = await this.#ledger.maintenance.ensurePartitions();
      if (made.length > 0) this.#emit({ type: "partitions_made", partitions: made });
    } catch (error) {
      const passes = isLedgerError(error) && (error.code === "db.forbidden" || error.code === "db.lock_timeout");
      if (!passes) throw error;
      this.#emit({ type: "error", during: "maintain", error, fatal: false });
    }
  }

  /** Without policies, or between two passes, only expired keys go. */
  async #retain(): Promise<void> {
    const { retention, retentionIntervalMs } = this.#settings;
    const isDue = retention !== null && performance.now() >= this.#retainAt;
    if (isDue) this.#retainAt = performance.now() + jittered(retentionIntervalMs);
    const policies = isDue ? retention : {};
    const retained = await this.#ledger.maintenance.retain({ policies, signal: this.#stopping.signal });
    const { jobs, runs, keys, fires, droppedPartitions, blockedPartitions } = retained;
    const changed = jobs + runs + keys + fires + droppedPartitions.length + blockedPartitions.length;
    if (changed > 0) this.#emit({ type: "retained", ...retained });
  }
}
