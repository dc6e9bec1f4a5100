/** The channels of a ledger's announcements. */

/** On which the arrival of runnable jobs is announced, without a payload. */
export function jobsChannel(schema: string): string {
  return `${schema}_jobs`;
}

/** On which ended workflow runs are announced, by id. */
export function runsChannel(schema: string): string {
  return `${schema}_runs`;
}
