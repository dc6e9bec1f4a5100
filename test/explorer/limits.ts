/** How far the default suite looks, and how far it looks when it is asked to. */
const asked = process.env.RUNLEDGER_TEST_EXPLORER_SCHEDULES;

/** Schedules of three and four operations. RUNLEDGER_TEST_EXPLORER_SCHEDULES=20000 looks further. */
export const SAMPLE = Number(asked ?? 120);

/** Orders of two operations that are all played; of more, so many in order and half as many at random. When asked, all. */
export const MOST_OF_A_PAIR = asked === undefined ? 12 : Number.POSITIVE_INFINITY;
