/**
 * The floor: hand-written SQL on plain pg with named statements and a minimal row. It keeps no history
 * and promises nothing; no queue on this server can be faster.
 */
import pg from "pg";
import type { Scenario, Sizes } from "./measure.ts";

const BATCH = 1_000;
const CLAIM = 200;

export async function floorScenarios(url: string, sizes: Sizes) {
  const client = new pg.Client({ connectionString: url });
  await client.connect();
  await client.query(`
    create table floor_jobs (
      id bigint generated always as identity primary key,
      type text not null,
      payload jsonb not null,
      status smallint not null default 0,
      run_at timestamptz not null default now(),
      attempt int not null default 0
    );
    create index floor_jobs_pending on floor_jobs (run_at, id) where status = 0`);
  const insertMany = (count: number) =>
    client.query({
      name: "insert_many",
      text: "insert into floor_jobs (type, payload) select 'noop', p::jsonb from unnest($1::text[]) as p",
      values: [Array.from({ length: count }, (_, n) => JSON.stringify({ n }))],
    });
  const empty = async () => {
    await client.query("truncate floor_jobs");
  };

  const scenarios: Record<string, Scenario> = {
    "enqueue one at a time": {
      unit: "jobs",
      prepare: empty,
      async run() {
        for (let n = 0; n < sizes.single; n += 1) {
          const values = ["noop", JSON.stringify({ n })];
          await client.query({
            name: "insert",
            text: "insert into floor_jobs (type, payload) values ($1, $2::jsonb)",
            values,
          });
        }
        return sizes.single;
      },
    },
    "enqueue in batches of 1000": {
      unit: "jobs",
      prepare: empty,
      async run() {
        for (let batch = 0; batch < sizes.batches; batch += 1) await insertMany(BATCH);
        return sizes.batches * BATCH;
      },
    },
    "claim and complete in batches of 200": {
      unit: "jobs",
      async prepare() {
        await empty();
        await insertMany(sizes.drain);
      },
      async run() {
        for (let done = 0; done < sizes.drain; ) {
          const { rows } = await client.query<{ id: string }>({ name: "claim", text: claim, values: [CLAIM] });
          await client.query({
            name: "delete",
            text: "delete from floor_jobs where id = any($1::bigint[])",
            values: [rows.map(({ id }) => id)],
          });
          done += rows.length;
        }
        return sizes.drain;
      },
    },
  };
  return { scenarios, close: () => client.end() };
}

const claim = `
  update floor_jobs set status = 1, attempt = attempt + 1
  where id = any(array(
    select id from floor_jobs where status = 0 and run_at <= now() order by run_at, id limit $1 for update skip locked
  ))
  returning id, type, payload`;
