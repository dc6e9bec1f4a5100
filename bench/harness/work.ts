/** A work: something that is measured. One file in `works/` each, which says what happens in which process. */
import type { Contestant } from "./contestant.ts";
import type { Entry } from "./roster.ts";
import type { Starts } from "./starts.ts";

/** What a part answers: how many units it did in what time, and how long each waited, in milliseconds. */
export interface Report {
  readonly units: number;
  readonly ms: number;
  readonly waits: readonly number[];
}

/** A process of a contestant, seen from inside. */
export interface Host {
  readonly contestant: Contestant;
  /** What its handlers have seen, once `contestant.work(starts.started)` was called. */
  readonly starts: Starts;
  /** How many jobs or runs have not ended, by the database. */
  pending(): Promise<number>;
}

/** Runs in a process of the contestant; `value` is what the work says, such as how many. */
export type Part = (host: Host, value: number) => Promise<Report>;

/** A process of the contestant on the database of this repetition. */
export interface Player {
  /** Runs one of the work's parts there. */
  play(part: string, value?: number): Promise<Report>;
}

/** One repetition of a work by one contestant. */
export interface Stage {
  readonly entry: Entry;
  /** The contestant's database; it was made for this repetition. */
  readonly url: string;
  /** Starts a process; it is stopped when the repetition has ended. */
  join(): Promise<Player>;
}

export interface Metric {
  readonly name: string;
  /** Which is better. Ratios say by how much runledger is. */
  readonly better: "more" | "less";
}

export interface Work {
  /** What `--only` takes; a prefix is enough. */
  readonly id: string;
  readonly title: string;
  readonly tuning: "tuned" | "defaults";
  readonly metrics: readonly Metric[];
  readonly parts: Readonly<Record<string, Part>>;
  can(entry: Entry): boolean;
  /** One value for each metric, in their order. */
  run(stage: Stage): Promise<readonly number[]>;
}

/** Of a part that answers nothing. */
export const nothing: Report = { units: 0, ms: 0, waits: [] };
