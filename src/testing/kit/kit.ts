/** TestKit: what a test does with a ledger besides calling it. */
import type { Kysely, Transaction } from "kysely";
import type { Ledger } from "../../index.ts";
import { advance, advanceTo, type Duration, secondsOf } from "./advance.ts";
import { type Drained, type DrainOptions, drain } from "./drain.ts";
import {
  type EnqueuedFilter,
  type FoundJob,
  type FoundJobFilter,
  lookAt,
  type PartialPayload,
  type TestedJob,
  type TestedPayload,
} from "./enqueued.ts";
import { type ExpectEnqueuedOptions, expectEnqueued, expectNotEnqueued } from "./expect.ts";
import { type RanJob, type RunJobOptions, runJob } from "./run.ts";
import type { KitParts } from "./tables.ts";

/** Asks which jobs were enqueued: in the database, or as a transaction sees it that is still open. */
export class EnqueuedJobs {
  readonly #parts: KitParts;

  /** @internal */
  constructor(parts: KitParts) {
    this.#parts = parts;
  }

  /**
   * The jobs that were enqueued, in that order: of a definition with its typed payload, of a type, or all. Without
   * `statuses` those that have not ended. One round trip, and where values are encoded one for each job.
   *
   * ```ts
   * const [receipt] = await kit.enqueued(sendReceipt, { payload: { orderId: "o-1" }, tags: ["eu"] });
   * ```
   */
  async enqueued<J extends TestedJob>(
    job?: J,
    filter: EnqueuedFilter<TestedPayload<J>> = {},
  ): Promise<FoundJob<TestedPayload<J>>[]> {
    const all = await lookAt(this.#parts, job, filter);
    return all.filter(({ reasons }) => reasons.length === 0).map(({ job: found }) => found);
  }

  /**
   * Throws an `AssertionError` unless such a job was enqueued, or exactly `count` of them; it shows the nearest ones and how
   * they differ. `payload` is contained in the job's: further keys and elements do not matter. Answers the jobs.
   *
   * ```ts
   * await kit.expectEnqueued(sendReceipt, { orderId: "o-1" }, { count: 1 });
   * ```
   */
  expectEnqueued<J extends TestedJob>(
    job: J,
    payload?: PartialPayload<TestedPayload<J>>,
    options?: ExpectEnqueuedOptions,
  ): Promise<FoundJob<TestedPayload<J>>[]> {
    return expectEnqueued(this.#parts, job, payload, options);
  }

  /** Throws an `AssertionError` that shows them when there are such jobs. */
  expectNotEnqueued<J extends TestedJob>(
    job: J,
    payload?: PartialPayload<TestedPayload<J>>,
    filter?: FoundJobFilter,
  ): Promise<void> {
    return expectNotEnqueued(this.#parts, job, payload, filter);
  }
}

/**
 * Runs, ages and inspects the jobs of a ledger. `testDatabase` makes one with its database; for a database of
 * one's own there is `new TestKit({ db, ledger })`.
 */
export class TestKit<DB> extends EnqueuedJobs {
  /** The service's Kysely instance. */
  readonly db: Kysely<DB>;
  readonly ledger: Ledger<DB>;

  constructor({ db, ledger }: { readonly db: Kysely<DB>; readonly ledger: Ledger<DB> }) {
    super({ db, ledger });
    this.db = db;
    this.ledger = ledger;
  }

  /** The same questions inside a transaction that has not ended. */
  in(trx: Transaction<DB>): EnqueuedJobs {
    return new EnqueuedJobs({ db: trx, ledger: this.ledger.in(trx) });
  }

  /**
   * Claims one PENDING job, runs its handler in this process and answers what came of it. It need not be due: a
   * retry can be run at once. Throws when it is not PENDING, is held back (paused, a limit), or `job.not_found`.
   *
   * ```ts
   * const [job] = await kit.expectEnqueued(sendReceipt);
   * const { status, output } = await kit.run(job, { handlers });
   * ```
   */
  run(job: string | { readonly id: string }, options: RunJobOptions): Promise<RanJob> {
    return runJob(this.#parts, typeof job === "string" ? job : job.id, options);
  }

  /**
   * Runs all jobs that are due, and those that they enqueue or release, until none is due; gates that are past their time, deadlines,
   * expired leases and schedules are dealt with as by a worker. A handler that fails does not stop it. Throws when there are
   * more than `maxJobs` attempts.
   *
   * ```ts
   * expect(await kit.drain({ handlers })).toMatchObject({ succeeded: 3, failures: [], left: [] });
   * ```
   */
  drain(options: DrainOptions): Promise<Drained> {
    return drain(this.#parts, options);
  }

  /**
   * Lets time pass for the ledger: every time in its tables becomes so much older, those that are due as well as history and leases. Times in
   * payloads, in ids and in the service's own tables stay. The clock that cron expressions are about stays, too: advance by whole
   * periods of a schedule where the number of its ticks matters. No worker should be at work meanwhile.
   *
   * ```ts
   * await kit.advance({ hours: 2 });
   * ```
   */
  async advance(duration: Duration): Promise<void> {
    await advance(this.#parts, secondsOf(duration));
  }

  /** Lets time pass until what is stored for this time is due, such as a job's `runAt`; not at all when it is. */
  advanceTo(time: Date): Promise<void> {
    return advanceTo(this.#parts, time);
  }

  get #parts(): KitParts {
    return { db: this.db, ledger: this.ledger };
  }
}
