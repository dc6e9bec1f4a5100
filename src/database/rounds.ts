/** Asking again for what got no answer, because it changed between two statements. */
import { LedgerError } from "../errors.ts";

/** Each takes that somebody ends or takes away what was found, just between two statements. */
const MAX_ROUNDS = 10;

/**
 * Answers for all items, by id: `answer` is asked for those that have none yet, until all have one. Throws
 * `db.serialization_conflict` when some get none.
 */
export async function inRounds<Item, Answer>(
  items: readonly Item[],
  idOf: (item: Item) => string,
  answer: (items: readonly Item[]) => Promise<ReadonlyMap<string, Answer>>,
): Promise<Map<string, Answer>> {
  const answers = new Map<string, Answer>();
  let rest = items;
  for (let round = 1; rest.length > 0; round += 1) {
    if (round > MAX_ROUNDS) throw new LedgerError("db.serialization_conflict");
    for (const [id, found] of await answer(rest)) answers.set(id, found);
    rest = rest.filter((item) => !answers.has(idOf(item)));
  }
  return answers;
}
