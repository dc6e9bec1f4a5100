/** Every test that changes rows ends here: whatever happened, the invariants hold, and nobody was in a deadlock. */
import { expect } from "@jest/globals";
import { createExecutor } from "../src/database/executor.ts";
import { checkInvariants } from "../src/invariants/check.ts";
import type { TestDatabase } from "./support/database.ts";

export async function expectInvariants(database: Pick<TestDatabase, "db">): Promise<void> {
  const executor = createExecutor(database.db, "runledger", { notify: false, lockWaitMs: 5000 });
  expect(await checkInvariants(executor)).toEqual([]);
}

/**
 * Looks at every answer that comes through the pool from now on: a deadlock that a retry hides is seen
 * too. Call it before the first connection is made.
 */
export function watchForDeadlocks({ pool }: Pick<TestDatabase, "pool">): () => void {
  const seen: string[] = [];
  pool.on("connect", (client) => {
    const query = client.query;
    client.query = new Proxy(query, {
      apply: (target, self, args: unknown[]) => {
        const answer: unknown = Reflect.apply(target, self, args);
        if (answer instanceof Promise) {
          answer.catch((error: { code?: string; detail?: string }) => {
            if (error.code === "40P01") seen.push(`${error.detail}\n${JSON.stringify(args[0])}`);
          });
        }
        return answer;
      },
    });
  });
  return () => expect(seen.splice(0)).toEqual([]);
}
