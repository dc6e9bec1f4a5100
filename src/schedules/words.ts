/** The words of options and answers, and the database's own for the same. */
import type { ScheduleCatchUp, ScheduleFireOutcome, ScheduleOverlap } from "../database/tables.generated.ts";
import { LedgerError } from "../errors.ts";

/** What becomes of the ticks that nobody fired in time. */
export type CatchUp = "skip" | "once" | "backfill";
/** What becomes of a tick while the fire before it lives. */
export type Overlap = "allow" | "skip" | "queue";
/** What became of a tick, or `triggered`: fired by hand. */
export type FireOutcome = "fired" | "triggered" | "skipped";

export const catchUps: Readonly<Record<CatchUp, ScheduleCatchUp>> = {
  skip: "SKIP",
  once: "ONCE",
  backfill: "BACKFILL",
};
export const overlaps: Readonly<Record<Overlap, ScheduleOverlap>> = { allow: "ALLOW", skip: "SKIP", queue: "QUEUE" };
export const outcomes: Readonly<Record<FireOutcome, ScheduleFireOutcome>> = {
  fired: "FIRED",
  triggered: "TRIGGERED",
  skipped: "SKIPPED",
};

export const decodeCatchUp = decoder(catchUps);
export const decodeOverlap = decoder(overlaps);
export const decodeOutcome = decoder(outcomes);

/** The database's word for an option's, or `input.invalid`. */
export function encoded<Word extends string, Stored>(
  words: Readonly<Record<Word, Stored>>,
  given: Word,
  argument: string,
): Stored {
  if (Object.hasOwn(words, given)) return words[given];
  throw new LedgerError("input.invalid", { message: `${argument} must be one of ${Object.keys(words).join(", ")}.` });
}

function decoder<Word extends string>(words: Readonly<Record<Word, string>>): (stored: string) => Word {
  const known = Object.keys(words).filter((word): word is Word => word in words);
  return (stored) => {
    const word = known.find((candidate) => words[candidate] === stored);
    if (word === undefined)
      throw new LedgerError("db.error", { message: "Unknown word of a schedule in the database." });
    return word;
  };
}
