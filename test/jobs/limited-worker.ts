/** One process of limit-processes.test.ts: works until the queue is empty, and writes down when each handler ran. */
import { setTimeout as sleep } from "node:timers/promises";
import { Kysely, PostgresDialect } from "kysely";
import pg from "pg";
import { createLedger, defineJob, typed } from "../../src/index.ts";
import { createWorker, handle } from "../../src/worker/index.ts";

const [, , url, workerId] = process.argv;
if (url === undefined || workerId === undefined) throw new Error("usage: limited-worker <url> <workerId>");

const pool = new pg.Pool({ connectionString: url, max: 5 });
pool.on("error", () => {});
const ledger = createLedger({ db: new Kysely<unknown>({ dialect: new PostgresDialect({ pool }) }) });
const limited = defineJob("limited", { input: typed<{ key: string }>() });

const run = handle(limited, async ({ payload: { key }, job }) => {
  const { rows } = await pool.query<{ id: string }>(
    "insert into public.handled (job_id, key, worker, began_at) values ($1, $2, $3, clock_timestamp()) returning id",
    [job.lease.jobId, key, workerId],
  );
  process.send?.("running");
  await pool.query("update public.handled set ended_at = clock_timestamp() where id = $1", [rows[0]?.id]);
});

// Short leases: what the killed process held is reaped by the others.
const worker = createWorker({
  ledger,
  handlers: [run],
  concurrency: 10,
  workerId,
  leaseSeconds: 5,
  pollIntervalMs: 200,
  reap: { intervalMs: 500 },
});
await worker.start();
for (;;) {
  const { rowCount } = await pool.query("select from runledger.job_queue limit 1");
  if (rowCount === 0) break;
  await sleep(250);
}
await worker.stop();
await pool.end();
process.disconnect();
