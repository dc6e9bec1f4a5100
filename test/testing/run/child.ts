/** A process of a test run: makes a database, tells its parent, and stays until it is ended. */
import { sql } from "kysely";
import { startTestServer, testDatabase } from "../../../src/testing/index.ts";

const [url, prepareKey] = process.argv.slice(2);
// Without a server given, that of the parent's run.
if (url) await startTestServer({ url });
const kit = await testDatabase({
  prepare: async (db) => {
    await sql`create table prepared_by as select pg_backend_pid() as pid, clock_timestamp() as at`.execute(db);
  },
  ...(prepareKey ? { prepareKey } : {}),
});
const { rows } = await sql<{ pid: number }>`select pid from prepared_by`.execute(kit.db);
console.log(JSON.stringify({ name: kit.name, preparedBy: rows.map(({ pid }) => pid) }));
await kit.db.destroy();
process.stdin.resume();
