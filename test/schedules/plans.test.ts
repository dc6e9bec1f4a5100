/** Looking for due schedules costs a few pages, however many schedules and fires there are, before any ANALYZE and after. */
import { describe, expect, test } from "@jest/globals";
import { createTestDatabase } from "../support/database.ts";
import { planOf } from "../support/explain.ts";
import { global, globally } from "./fixtures.ts";

const database = await createTestDatabase();
const modes = ["force_generic_plan", "force_custom_plan"] as const;

await database.pool.query(`
  insert into runledger.job_schedules (id, name, cron, target, target_type, payload, due_at, intended_at, enabled, paused)
  select gen_random_uuid(), 'many-' || n, '0 0 1 1 *', 'JOB', 'many', '{}',
    case when n % 3 = 0 then now() + interval '1 day' * n end, case when n % 3 = 0 then now() + interval '1 day' * n end,
    n % 3 <> 1, n % 3 = 2
  from generate_series(1, 30000) as n`);
await database.pool.query(`
  insert into runledger.job_schedule_fires (schedule_id, intended_at)
  select id, now() - interval '1 minute' * n from runledger.job_schedules, generate_series(1, 30) as n
  where name like 'many-1%9'`);

describe.each(["before any ANALYZE", "after"])("%s", (when) => {
  test("looking reads along the index of what has a next time", async () => {
    if (when === "after") {
      await database.pool.query("vacuum (analyze) runledger.job_schedules, runledger.job_schedule_fires");
    }
    for (const mode of modes) {
      const { scans, buffers } = await planOf(database, mode, (l) => l.schedules.fireDue());
      expect(scans).toEqual(["Index Scan job_schedules_due", "Index Scan job_schedules_due"]);
      expect(buffers).toBeLessThan(20);
    }
  });

  test("a name, a page of a list and a page of fires are found by index", async () => {
    for (const mode of modes) {
      const got = await planOf(database, mode, (l) => l.schedules.get("many-3", global));
      const listed = await planOf(database, mode, (l) => l.schedules.list({ ...globally, limit: 20 }));
      expect([got.scans, listed.scans]).toEqual([
        ["Index Scan job_schedules_name_key"],
        ["Index Scan job_schedules_by_tenant"],
      ]);
      expect(got.buffers).toBeLessThan(20);
      expect(listed.buffers).toBeLessThan(60);
    }
  });
});

test("those that are due are locked by primary key, and their fires are found by index", async () => {
  for (const mode of modes) {
    await database.pool.query(
      `update runledger.job_schedules set due_at = now(), intended_at = now()
       where name in (select 'many-' || n * 3 from generate_series(1, 100) as n)`,
    );
    const { scans } = await planOf(database, mode, (l) => l.schedules.fireDue(), "hold_due_schedules");
    // As a bitmap or not: the ids are looked up.
    const found = scans.map((scan) => scan.replace(/^Bitmap Heap|^Index( Only)?/, "Found").replace("_pkey", "")).sort();
    expect(found).toEqual([
      "Found Scan job_queue",
      "Found Scan job_schedule_fires",
      "Found Scan job_schedules",
      "Found Scan workflow_runs",
    ]);
  }
});

test("fires that are past are found schedule by schedule, along their key", async () => {
  for (const mode of modes) {
    const { scans } = await planOf(
      database,
      mode,
      (l) => l.maintenance.retain({ policies: { fires: 1 / 72 } }),
      "forget_schedule_fires",
    );
    expect(scans.filter((scan) => /^Seq Scan job_/.test(scan))).toEqual([]);
    expect(scans.join()).toContain("job_schedule_fires_pkey");
  }
});
