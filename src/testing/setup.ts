/**
 * runledger/testing/setup: what jest and vitest take as `globalSetup`. Starts the server of the test run; the function that
 * vitest is given stops it. Under jest a server that was started for the run ends with the process.
 */
import { startTestServer } from "./run/test-server.ts";

export default async function setUp(): Promise<() => Promise<void>> {
  const server = await startTestServer();
  return server.stop;
}
