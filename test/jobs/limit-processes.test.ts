/** Eight processes on two hundred keys: the handlers' own records show that no two jobs of a key ran at once. */
import { fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { expect, test } from "@jest/globals";
import { createLedger } from "../../src/index.ts";
import { expectInvariants } from "../invariants.ts";
import { createTestDatabase } from "../support/database.ts";

const KEYS = 200;
const PROCESSES = 8;
const JOBS = 600;

const database = await createTestDatabase();
const ledger = createLedger({ db: database.db });
const program = fileURLToPath(new URL("limited-worker.ts", import.meta.url));
const loader = import.meta.resolve("tsx");

test("eight processes never run two jobs of a key at once, one of them killed, and all jobs are done", async () => {
  await database.pool.query(`
    create table public.handled (
      id bigint generated always as identity primary key,
      job_id uuid not null, key text not null, worker text not null, began_at timestamptz not null, ended_at timestamptz
    )`);
  await ledger.jobs.enqueueMany(
    Array.from({ length: JOBS }, (_, n) => {
      const key = `key-${n % KEYS}`;
      return { type: "limited", payload: { key }, limit: { key, concurrency: 1 } };
    }),
  );
  const processes = Array.from({ length: PROCESSES }, (_, n) =>
    fork(program, [database.url, `worker-${n}`], { execArgv: ["--import", loader] }),
  );
  database.defer(() => processes.map((child) => child.kill("SIGKILL")));
  const [killed, ...others] = processes;
  if (killed === undefined) throw new Error("there are eight");
  await once(killed, "message");
  killed.kill("SIGKILL");

  await Promise.all(others.map((child) => once(child, "exit")));

  const { rows: overlaps } = await database.pool.query(`
    select a.key, a.worker, b.worker from public.handled a
    join public.handled b on b.key = a.key and b.id <> a.id and b.began_at >= a.began_at
      and b.began_at < coalesce(a.ended_at, a.began_at)`);
  expect(overlaps).toEqual([]);
  const { rows } = await database.pool.query(`
    select (select count(distinct job_id)::int from public.handled where ended_at is not null) as handled,
      (select count(*)::int from runledger.job_ledger where status = 'SUCCEEDED') as succeeded`);
  expect(rows).toEqual([{ handled: JOBS, succeeded: JOBS }]);
  await expectInvariants(database);
}, 240_000);
