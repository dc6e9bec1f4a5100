/** How far the default suite looks, and how far it looks when it is asked to. */
const asked = process.env.RUNLEDGER_TEST_EXPLORER_SCHEDULES;

/** Schedules of three and four operations. RUNLEDGER_TEST_EXPLORER_SCHEDULES=20000 looks further. */
export const SAMPLE = Number(asked ?? 120);

/** Orders of two operations that are all played; of more, so many in order and so many at random. */
export const MOST_OF_A_PAIR = asked === undefined ? 25 : Number.POSITIVE_INFINITY;
