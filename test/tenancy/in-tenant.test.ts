/** `ledger.inTenant`: whose transaction it is, and that nothing of it stays. */
import { expect, test } from "@jest/globals";
import { sql } from "kysely";
import { createLedger, type Ledger, type Scope } from "../../src/index.ts";
import { createTestDatabase } from "../support/database.ts";

const database = await createTestDatabase({ max: 1 });
const ledger = createLedger({ db: database.db });
const organization = "0190a5f0-7b1c-7e3a-9f00-0123456789ab";
const tenant = { organization } as const;
type Handle = Parameters<ReturnType<typeof sql>["execute"]>[0];

async function setting(of: Handle = database.db): Promise<string | null> {
  const { rows } = await sql<{ setting: string | null }>`
    select nullif(current_setting('runledger.organization_id', true), '') as setting`.execute(of);
  return rows[0]?.setting ?? null;
}

test("it is the organization's, in lower case, or the global tenant's, and then nobody's on the same connection", async () => {
  const upper = { organization: organization.toUpperCase() };
  expect(await ledger.inTenant(upper, (_, trx) => setting(trx))).toBe(organization);
  expect(await setting()).toBeNull();
  expect(await ledger.inTenant({ global: true }, (_, trx) => setting(trx))).toBe("global");
  expect(await setting()).toBeNull();
});

test("what is done in it is committed together, or not at all", async () => {
  const enqueue = (own: Ledger, key: string) =>
    own.jobs.enqueue("mail", {}, { organizationId: organization, idempotencyKey: key });
  const done = await ledger.inTenant(tenant, (own) => enqueue(own, "a"));
  expect(await ledger.jobs.get(done.id, tenant)).toMatchObject({ status: "PENDING" });

  let lost = "";
  const undone = ledger.inTenant(tenant, async (own) => {
    lost = (await enqueue(own, "b")).id;
    throw new Error("undone");
  });
  await expect(undone).rejects.toThrow("undone");
  await expect(ledger.jobs.get(lost, tenant)).rejects.toMatchObject({ code: "job.not_found" });
  expect(await setting()).toBeNull();
});

test("it takes three round trips of its own, and two in a transaction", async () => {
  const own = await database.record(() => ledger.inTenant(tenant, async () => {}));
  expect(own.statements.map((text) => text.replace(/^\/\* runledger:(\w+) .*$/s, "$1"))).toEqual([
    "start transaction isolation level read committed",
    "set_tenant",
    "commit",
  ]);
  const nested = await database.record(() =>
    database.db.transaction().execute((trx) => ledger.in(trx).inTenant(tenant, async () => {})),
  );
  expect(nested.statements).toHaveLength(4);
});

test("in a caller's transaction the setting is the tenant's for the body, and then what it was", async () => {
  await database.db.transaction().execute(async (trx) => {
    const inside = ledger.in(trx);
    expect(await inside.inTenant(tenant, (_, own) => setting(own))).toBe(organization);
    expect(await setting(trx)).toBeNull();
    await inside.inTenant({ global: true }, async (own) => {
      await own.inTenant(tenant, async (_, innermost) => {
        expect(await setting(innermost)).toBe(organization);
      });
      expect(await setting(trx)).toBe("global");
      await expect(
        own.inTenant(tenant, () => {
          throw new Error("no");
        }),
      ).rejects.toThrow("no");
      expect(await setting(trx)).toBe("global");
    });
    expect(await setting(trx)).toBeNull();
  });
});

test("it goes on after an error of the ledger that the body deals with", async () => {
  const options = { organizationId: organization, idempotencyKey: "twice" };
  const job = await ledger.inTenant(tenant, async (own) => {
    await own.jobs.enqueue("mail", { n: 1 }, options);
    await expect(own.jobs.enqueue("mail", { n: 2 }, options)).rejects.toMatchObject({
      code: "job.idempotency_conflict",
    });
    return own.jobs.enqueue("mail", { n: 3 }, { organizationId: organization });
  });
  expect(await ledger.jobs.get(job.id, tenant)).toMatchObject({ payload: { n: 3 } });
});

test("an error that killed the transaction is no commit, and one that a savepoint took back is none", async () => {
  const wrong = (own: Ledger) => own.jobs.enqueue("mail", {}, { runAt: "9999999-01-01T00:00:00Z" }).catch(() => {});
  const broken = (own: Ledger) => own.jobs.enqueue("mail", {}, { runAt: "2024-02-31T00:00:00Z" }).catch(() => {});
  await expect(ledger.inTenant(tenant, broken)).rejects.toMatchObject({ code: "db.transaction_aborted" });

  const job = await ledger.inTenant(tenant, async (own, trx) => {
    await sql`savepoint mine`.execute(trx);
    await broken(own);
    await sql`rollback to savepoint mine`.execute(trx);
    await wrong(own);
    return own.jobs.enqueue("mail", {}, { organizationId: organization });
  });
  expect(await ledger.jobs.get(job.id, tenant)).toMatchObject({ status: "PENDING" });
});

test("it is of one tenant: anything else is refused before a statement is sent", async () => {
  const refused: unknown[] = [{ admin: true }, {}, null, { organization: "x" }, { global: true, organization }];
  const { statements } = await database.record(async () => {
    for (const scope of refused) {
      await expect(ledger.inTenant(scope as Exclude<Scope, { admin: true }>, async () => {})).rejects.toMatchObject({
        code: "scope.required",
      });
    }
  });
  expect(statements).toEqual([]);
});
