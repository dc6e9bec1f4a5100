/** Runs works: the contestants take turns, so that a noisy machine is noisy for all. */
import { Databases } from "./databases.ts";
import { ContestantProcess } from "./player.ts";
import type { Entry } from "./roster.ts";
import type { SizeName } from "./sizes.ts";
import type { Stage, Work } from "./work.ts";

/** What one contestant made of one work. */
export interface Outcome {
  readonly contestant: string;
  /** For each repetition, a value for each metric of the work. */
  readonly values: (readonly number[])[];
  /** Why a repetition has no values. */
  error?: string;
}

export interface Result {
  readonly work: Work;
  readonly outcomes: readonly Outcome[];
}

export interface CompareOptions {
  readonly server: string;
  readonly works: readonly Work[];
  readonly entries: readonly Entry[];
  readonly size: SizeName;
  readonly repetitions: number;
  readonly onResult: (result: Result) => void;
}

export async function compare(options: CompareOptions): Promise<Result[]> {
  const databases = new Databases(options.server);
  const results: Result[] = [];
  for (const work of options.works) {
    const entries = options.entries.filter((entry) => work.can(entry));
    const result = { work, outcomes: entries.map(({ name }): Outcome => ({ contestant: name, values: [] })) };
    for (let repetition = 0; repetition < options.repetitions; repetition += 1) {
      for (const [place, entry] of entries.entries()) {
        const outcome = result.outcomes[place];
        if (outcome !== undefined) await repeat(work, entry, databases, options.size, outcome);
      }
    }
    results.push(result);
    options.onResult(result);
  }
  return results;
}

async function repeat(work: Work, entry: Entry, databases: Databases, size: SizeName, outcome: Outcome) {
  const players: ContestantProcess[] = [];
  try {
    const database = await databases.fresh(entry, size === "full");
    const stage: Stage = {
      entry,
      url: database.url,
      join: async () => {
        const { name } = entry;
        const player = await ContestantProcess.start({ name, tuning: work.tuning, size, url: database.url }, work.id);
        players.push(player);
        return player;
      },
    };
    outcome.values.push(await work.run(stage).finally(() => Promise.all(players.map((player) => player.stop()))));
    await database.drop();
  } catch (error) {
    outcome.error = error instanceof Error ? error.message : String(error);
  }
}
