/** Codecs to test with, and a look at everything that a database holds. */
import { randomBytes } from "node:crypto";
import { expect } from "@jest/globals";
import { aesGcmCodec, createLedger, type Ledger, type ValueCodec, type ValueOptions } from "../../src/index.ts";
import type { TestDatabase } from "../support/database.ts";

export const keys = { k1: randomBytes(32), k2: randomBytes(32) };
export const codec = aesGcmCodec({ keys: { k1: keys.k1 }, current: "k1" });
export const rotated = aesGcmCodec({ keys, current: "k2" });

export function ledgerWith(database: TestDatabase, values: ValueOptions): Ledger {
  return createLedger({ db: database.db, values });
}

/** Every row of every table of the ledger, as text. */
export async function everythingIn(database: TestDatabase): Promise<string> {
  const { rows: tables } = await database.pool.query<{ name: string }>(
    "select format('%I.%I', schemaname, tablename) as name from pg_tables where schemaname = 'runledger'",
  );
  const texts = await Promise.all(
    tables.map(async ({ name }) => (await database.pool.query(`select t::text as row from ${name} as t`)).rows),
  );
  return texts
    .flat()
    .map(({ row }) => row)
    .join("\n");
}

/** One value of one row, as it is stored. */
export async function stored(database: TestDatabase, text: string, id: string): Promise<unknown> {
  const { rows } = await database.pool.query({ text, values: [id], rowMode: "array" });
  return rows[0]?.[0];
}

/** What an encoded value looks like under a key. */
export const sealedBy = (id: string) => ({ $runledger: expect.stringMatching(new RegExp(`^${id}\\.[\\w-]+$`)) });

/** Answers from elsewhere, as a key service does, and can be away. */
export function remoteCodec(inner: ValueCodec = codec) {
  const state = { away: false, calls: 0 };
  const remote = async (answer: () => string | Promise<string>): Promise<string> => {
    state.calls += 1;
    await new Promise((resolve) => setImmediate(resolve));
    if (state.away) throw Object.assign(new Error("the key service is away"), { retryable: true });
    return answer();
  };
  const remoteCodec: ValueCodec = {
    encode: (text, context) => remote(() => inner.encode(text, context)),
    decode: (text, context) => remote(() => inner.decode(text, context)),
    digest: (text, like) => remote(() => inner.digest(text, like)),
  };
  return { codec: remoteCodec, state };
}
