/** How much of each work is done. */

export interface Sizes {
  readonly repetitions: number;
  /** Works whose ids begin so are left out, unless they are asked for. */
  readonly skip: readonly string[];
  /** Jobs enqueued one at a time, by all clients together. */
  readonly single: number;
  /** Batches of 1000 jobs. */
  readonly batches: number;
  readonly drain: number;
  /** Jobs that a work with defaults begins with, and after how many seconds it takes the rate. */
  readonly drainDefaults: number;
  readonly patienceSeconds: number;
  /** How many latencies are measured on an idle system, unless that takes longer than so many seconds. */
  readonly samples: number;
  readonly sampleSeconds: number;
  /** How many jobs the peak is taken from, and for how many seconds the load is at half of it. */
  readonly peak: number;
  readonly loadSeconds: number;
  readonly chains: number;
  readonly fan: number;
  readonly wideFan: number;
}

export type SizeName = "full" | "quick" | "smoke";

export const sizes: Readonly<Record<SizeName, Sizes>> = {
  full: {
    repetitions: 5,
    skip: [],
    single: 2_000,
    batches: 30,
    drain: 50_000,
    drainDefaults: 10_000,
    patienceSeconds: 10,
    samples: 200,
    sampleSeconds: 20,
    peak: 20_000,
    loadSeconds: 10,
    chains: 1_000,
    fan: 1_000,
    wideFan: 10_000,
  },
  quick: {
    repetitions: 1,
    skip: ["enqueue-16", "drain-defaults", "latency-idle-defaults", "latency-loaded", "fan-1000", "fan-200-children"],
    single: 300,
    batches: 5,
    drain: 5_000,
    drainDefaults: 1_000,
    patienceSeconds: 2,
    samples: 20,
    sampleSeconds: 2,
    peak: 3_000,
    loadSeconds: 1,
    chains: 50,
    fan: 200,
    wideFan: 1_000,
  },
  /** Shows that everything works; its figures mean nothing. */
  smoke: {
    repetitions: 1,
    skip: [],
    single: 32,
    batches: 1,
    drain: 300,
    drainDefaults: 20,
    patienceSeconds: 2,
    samples: 3,
    sampleSeconds: 4,
    peak: 300,
    loadSeconds: 0.5,
    chains: 5,
    fan: 20,
    wideFan: 30,
  },
};
