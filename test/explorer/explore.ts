/** Enumerates schedules: every one, up to those that come to the same, or a sample. */
import type { Decision, Director, Played } from "./play.ts";

/**
 * Plays every schedule, depth first, but not more than `most`. A schedule that comes to a situation from
 * which all has been played already is given up there: what each session did and saw, and what is
 * committed, decide all that follows.
 */
export async function playAll(
  play: (direct: Director) => Promise<Played>,
  most = Number.POSITIVE_INFINITY,
): Promise<{ readonly all: boolean }> {
  const known = new Set<string>();
  let prefix: number[] | null = [];
  let count = 0;
  while (prefix !== null && count < most) {
    const given: readonly number[] = prefix;
    const { decisions } = await play((options, situation, depth) => {
      const forced = given[depth];
      // The server decided otherwise than in the schedule before: the next one in order stands for it.
      if (forced !== undefined) return options.find((option) => option >= forced) ?? options.at(-1) ?? null;
      const here = situation();
      if (known.has(here)) return null;
      known.add(here);
      return options[0] ?? null;
    });
    prefix = nextPrefix(decisions, given);
    count += 1;
  }
  return { all: prefix === null };
}

/** The deepest decision that has an option left, taken that way. */
function nextPrefix(decisions: readonly Decision[], given: readonly number[]): number[] | null {
  for (let depth = decisions.length - 1; depth >= 0; depth -= 1) {
    const decision = decisions[depth];
    const from = Math.max(decision?.chosen ?? 0, given[depth] ?? 0);
    const next = decision?.options.find((option) => option > from);
    if (next !== undefined) return [...decisions.slice(0, depth).map(({ chosen }) => chosen), next];
  }
  return null;
}

/** Plays so many schedules, each chosen at random. */
export async function playSome(
  count: number,
  seed: number,
  play: (direct: Director) => Promise<Played>,
): Promise<void> {
  const random = randomness(seed);
  for (let n = 0; n < count; n += 1) {
    await play((options) => options[Math.floor(random() * options.length)] ?? null);
  }
}

/** mulberry32: the same numbers for the same seed. */
export function randomness(seed: number): () => number {
  let state = seed * 0x9e3779b1;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}
