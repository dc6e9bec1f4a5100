/** Kits for the tests of the kit: made as a user makes them, on the server of this run. */
import { afterAll } from "@jest/globals";
import { type RunledgerDatabase, typed } from "../../../src/index.ts";
import {
  startTestServer,
  type TestDatabaseKit,
  type TestDatabaseOptions,
  testDatabase,
} from "../../../src/testing/index.ts";
import { expectInvariants } from "../../invariants.ts";
import { testServer } from "../../support/database.ts";

const server = await startTestServer({ url: testServer() });
const kits: TestDatabaseKit<RunledgerDatabase>[] = [];

afterAll(async () => {
  for (const kit of kits) {
    await expectInvariants({ db: kit.db });
    await kit.drop();
  }
  await server.stop();
});

/** Closed after the file, where the ledger's invariants must hold. */
export async function newKit(options: TestDatabaseOptions = {}): Promise<TestDatabaseKit<RunledgerDatabase>> {
  const kit = await testDatabase(options);
  kits.push(kit);
  return kit;
}

export const everywhere = { admin: true } as const;
export const orderInput = typed<{ readonly orderId: string; readonly lines?: readonly { readonly sku: string }[] }>();
