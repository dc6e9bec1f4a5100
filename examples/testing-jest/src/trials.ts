/** Trials: who signs up is greeted at once, reminded after ten days, and loses the trial after fourteen. */
import { type Kysely, sql } from "kysely";
import { defineJob, type Ledger, type RunledgerDatabase, typed } from "runledger";
import { type Handler, handle, TerminalError } from "runledger/worker";

export interface TrialTables {
  accounts: { email: string; plan: "trial" | "paid" | "ended" };
}

export type TrialDatabase = RunledgerDatabase & TrialTables;

export async function createTables<DB>(db: Kysely<DB>): Promise<void> {
  await sql`create table accounts (email text primary key, plan text not null)`.execute(db);
}

interface Account {
  readonly email: string;
}

export const greet = defineJob("trial.greet", { input: typed<Account>(), maxAttempts: 3 });
export const remind = defineJob("trial.remind", { input: typed<Account & { readonly daysLeft: number }>() });
export const end = defineJob("trial.end", { input: typed<Account>() });

const DAY_MS = 86_400_000;

/** Opens the account, and in the same transaction plans what happens to it. */
export async function signUp(ledger: Ledger<TrialDatabase>, db: Kysely<TrialDatabase>, email: string): Promise<void> {
  await db.transaction().execute(async (trx) => {
    await trx.insertInto("accounts").values({ email, plan: "trial" }).execute();
    await ledger
      .in(trx)
      .jobs.enqueueMany([
        greet.request({ email }),
        remind.request({ email, daysLeft: 4 }, { runAt: new Date(Date.now() + 10 * DAY_MS) }),
        end.request({ email }, { runAt: new Date(Date.now() + 14 * DAY_MS) }),
      ]);
  });
}

export interface Mailer {
  send(email: string, text: string): Promise<void>;
}

export function trialHandlers(db: Kysely<TrialDatabase>, mailer: Mailer): Handler[] {
  const planOf = async (email: string) => {
    const account = await db.selectFrom("accounts").select("plan").where("email", "=", email).executeTakeFirst();
    return account?.plan;
  };
  return [
    handle(greet, async ({ payload: { email } }) => {
      if (!email.includes("@")) throw new TerminalError("email.invalid", "That is no address.");
      await mailer.send(email, "Welcome!");
    }),
    handle(remind, async ({ payload: { email, daysLeft } }) => {
      if ((await planOf(email)) === "trial") await mailer.send(email, `${daysLeft} days left.`);
    }),
    handle(end, async ({ payload: { email } }) => {
      await db
        .updateTable("accounts")
        .set({ plan: "ended" })
        .where("email", "=", email)
        .where("plan", "=", "trial")
        .execute();
    }),
  ];
}
