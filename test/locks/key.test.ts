/** The release lock's key (LOCKS.md §1): the contract's vectors, and the same reckoning made by PostgreSQL. */
import { expect, test } from "@jest/globals";
import fc from "fast-check";
import { runReleaseKey, sortedRunReleaseKeys } from "../../src/locks/key.ts";
import { lockRunReleaseExclusiveAfterJobs, lockRunReleaseShared } from "../../src/locks/release.ts";
import { codeOf, executorOf } from "../jobs/fixtures.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase();

const vectors = [
  ["00000000-0000-0000-0000-000000000000", 8247619705388890553n],
  ["ffffffff-ffff-ffff-ffff-ffffffffffff", 8247619705388890553n],
  ["0190a5f0-7b1c-7e3a-9f00-0123456789ab", -1376471186714882520n],
  ["00000000-0000-0000-8d8a-919361c88646", -1n],
] as const;

/** The same rule in the server's own words: bit strings, from the uuid's bytes. */
const byServer = `
  select ((('x' || left(hex, 16))::bit(64) # ('x' || right(hex, 16))::bit(64)) # x'72756E6C9E3779B9')::bigint::text as key
  from unnest($1::uuid[]) with ordinality as given(id, place), replace(id::text, '-', '') as hex
  order by place`;

test.each(vectors)("the key of %s is %s", (id, key) => {
  expect(runReleaseKey(id)).toBe(key);
});

test("the key is what PostgreSQL reckons from the uuid, whatever the uuid", async () => {
  await fc.assert(
    fc.asyncProperty(fc.array(fc.uuid(), { minLength: 1, maxLength: 50 }), async (ids) => {
      const { rows } = await database.pool.query<{ key: string }>(byServer, [ids]);
      expect(ids.map((id) => String(runReleaseKey(id)))).toEqual(rows.map(({ key }) => key));
    }),
    { numRuns: 50 },
  );
});

test("any 128 bits have a key, and it is a signed 64-bit integer", () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 0n, max: 2n ** 128n - 1n }), (bits) => {
      const key = runReleaseKey(uuidOf(bits));
      expect(BigInt.asIntN(64, key)).toBe(key);
      // Turning the halves round changes nothing: XOR does not know their order.
      expect(runReleaseKey(uuidOf(((bits & (2n ** 64n - 1n)) << 64n) | (bits >> 64n)))).toBe(key);
    }),
  );
});

test("the case of the id does not matter", () => {
  fc.assert(fc.property(fc.uuid(), (id) => runReleaseKey(id.toUpperCase()) === runReleaseKey(id)));
});

test.each(["", "x", "0190a5f0-7b1c-7e3a-9f00-0123456789a", "0190a5f07b1c7e3a9f000123456789ab"])(
  "'%s' has no key",
  async (id) => {
    expect(await codeOf(async () => runReleaseKey(id))).toBe("input.invalid");
  },
);

test("the keys of several runs are distinct and ascend as numbers, not as text", () => {
  fc.assert(
    fc.property(fc.array(fc.uuid(), { maxLength: 30 }), (ids) => {
      const keys = sortedRunReleaseKeys([...ids, ...ids]).map(BigInt);
      expect(new Set(keys)).toEqual(new Set(ids.map(runReleaseKey)));
      expect(keys.every((key, place) => place === 0 || (keys[place - 1] ?? key) < key)).toBe(true);
    }),
  );
  expect(sortedRunReleaseKeys(vectors.map(([id]) => id))).toEqual([
    "-1376471186714882520",
    "-1",
    "8247619705388890553",
  ]);
});

test.each(vectors)("the key of %s reaches the server unharmed", async (id, key) => {
  await database.db.transaction().execute(async (trx) => {
    await lockRunReleaseExclusiveAfterJobs(executorOf(trx), [id]);
    expect(await lockedKeys()).toEqual([`${key} ExclusiveLock`]);
  });
  await database.db.transaction().execute(async (trx) => {
    await lockRunReleaseShared(executorOf(trx), [id]);
    expect(await lockedKeys()).toEqual([`${key} ShareLock`]);
  });
  expect(await lockedKeys()).toEqual([]);
});

test("the keys of random runs reach the server unharmed", async () => {
  const ids = fc.sample(fc.uuid(), 100);

  await database.db.transaction().execute(async (trx) => {
    await lockRunReleaseShared(executorOf(trx), ids);
    expect(new Set(await lockedKeys())).toEqual(new Set(ids.map((id) => `${runReleaseKey(id)} ShareLock`)));
  });
});

/** A bigint key stands in pg_locks as its upper (classid) and lower (objid) half. */
async function lockedKeys(): Promise<string[]> {
  const { rows } = await database.pool.query<{ key: string }>(`
    select ((classid::bigint << 32) | objid::bigint)::text || ' ' || mode as key
    from pg_locks where locktype = 'advisory' and objsubid = 1
      and database = (select oid from pg_database where datname = current_database())`);
  return rows.map(({ key }) => key);
}

function uuidOf(bits: bigint): string {
  const hex = bits.toString(16).padStart(32, "0");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
