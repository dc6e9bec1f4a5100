import { afterAll, beforeAll, beforeEach, expect, test } from "@jest/globals";
import { type TestDatabaseKit, testDatabase } from "runledger/testing";
import {
  createTables,
  end,
  greet,
  remind,
  signUp,
  type TrialDatabase,
  type TrialTables,
  trialHandlers,
} from "../src/trials.ts";

// One database for the file: each test signs up somebody else.
let kit: TestDatabaseKit<TrialDatabase>;
beforeAll(async () => {
  kit = await testDatabase<TrialTables>({ prepare: createTables });
}, 60_000);
afterAll(() => kit.drop());

let mails: string[];
let mailer: { send(email: string, text: string): Promise<void> };
beforeEach(() => {
  mails = [];
  mailer = { send: async (email, text) => void mails.push(`${email}: ${text}`) };
});

const drain = () => kit.drain({ handlers: trialHandlers(kit.db, mailer) });
const planOf = async (email: string) =>
  (await kit.db.selectFrom("accounts").select("plan").where("email", "=", email).executeTakeFirstOrThrow()).plan;

test("signing up plans the whole trial, or nothing", async () => {
  await signUp(kit.ledger, kit.db, "ann@example.com");
  await expect(signUp(kit.ledger, kit.db, "ann@example.com")).rejects.toThrow(/duplicate key/);

  const tenDays = Date.now() + 10 * 86_400_000;
  await kit.expectEnqueued(greet, { email: "ann@example.com" }, { count: 1 });
  await kit.expectEnqueued(
    remind,
    { email: "ann@example.com", daysLeft: 4 },
    { count: 1, runAt: { from: new Date(tenDays - 60_000), to: new Date(tenDays) } },
  );
  await kit.expectEnqueued(end, { email: "ann@example.com" }, { count: 1 });
});

test("a transaction can be asked before it commits", async () => {
  await kit.db.transaction().execute(async (trx) => {
    await kit.ledger.in(trx).jobs.enqueue(greet, { email: "dan@example.com" });
    await kit.in(trx).expectEnqueued(greet, { email: "dan@example.com" });
    await kit.expectNotEnqueued(greet, { email: "dan@example.com" });
  });
});

test("the trial takes its course", async () => {
  await signUp(kit.ledger, kit.db, "bob@example.com");
  await drain();
  expect(mails).toContain("bob@example.com: Welcome!");

  await kit.advance({ days: 10 });
  await drain();
  expect(mails).toContain("bob@example.com: 4 days left.");
  expect(await planOf("bob@example.com")).toBe("trial");

  await kit.advance({ days: 4 });
  await drain();
  expect(await planOf("bob@example.com")).toBe("ended");
});

test("a mailer that is down is tried again", async () => {
  await signUp(kit.ledger, kit.db, "cleo@example.com");
  const [job] = await kit.expectEnqueued(greet, { email: "cleo@example.com" });
  const down = { send: () => Promise.reject(new Error("SMTP: 421")) };

  const first = await kit.run(job?.id ?? "", { handlers: trialHandlers(kit.db, down) });
  expect(first).toMatchObject({ outcome: "retried", failure: { message: "SMTP: 421" } });
  expect(first.runAt.getTime()).toBeGreaterThan(Date.now() - 1000);

  const second = await kit.run(job?.id ?? "", { handlers: trialHandlers(kit.db, mailer) });
  expect(second.status).toBe("SUCCEEDED");
  expect(mails).toEqual(["cleo@example.com: Welcome!"]);
});

test("an address that is none is not tried again", async () => {
  await signUp(kit.ledger, kit.db, "nobody");
  const [job] = await kit.expectEnqueued(greet, { email: "nobody" });

  const run = kit.run(job?.id ?? "", { handlers: trialHandlers(kit.db, mailer), rethrow: true });
  await expect(run).rejects.toThrow("That is no address.");
  await kit.expectEnqueued(greet, { email: "nobody" }, { statuses: ["DEAD_LETTERED"], count: 1 });
});
