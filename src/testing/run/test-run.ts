/** How test files learn of the run's server: runners hand their environment on to the processes and threads that run tests. */

/** One run of the tests. */
export interface TestRun {
  /** In the names of its databases. */
  readonly id: string;
  /** Connection string of a user who may create databases. */
  readonly url: string;
}

const VARIABLE = "RUNLEDGER_TEST_RUN";

export function announceRun(run: TestRun): void {
  process.env[VARIABLE] = JSON.stringify(run);
}

export function withdrawRun(): void {
  delete process.env[VARIABLE];
}

export function announcedRun(): TestRun | undefined {
  const text = process.env[VARIABLE];
  return text === undefined ? undefined : JSON.parse(text);
}

/** Throws when no global set-up has started a server. */
export function currentRun(): TestRun {
  const run = announcedRun();
  if (run !== undefined) return run;
  throw new Error(
    'No test server is running. Name "runledger/testing/setup" as the globalSetup of your test runner, ' +
      "or call startTestServer() of runledger/testing before the tests.",
  );
}
