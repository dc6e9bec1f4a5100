/**
 * What the functions of a ledger do to the statuses of jobs, steps and runs, seen by triggers that only the test's
 * database has, and under which locks, seen by the statements on the wire.
 */
import type pg from "pg";
import type { Lock, Machine } from "../../../src/database/transitions.ts";
import { createLedger, type Ledger } from "../../../src/index.ts";
import type { TestDatabase } from "../../support/database.ts";

export interface SeenTransition {
  readonly machine: Machine;
  readonly from: string | null;
  /** `gone`: the row was deleted, and a job did not reach the ledger. */
  readonly to: string;
  /** The name of the statement. */
  readonly statement: string;
  /** As a call on a ledger. */
  readonly call: string;
  /** The locks that the transaction took until the end of the statement. */
  readonly locks: readonly Lock[];
}

export interface Recorder {
  /** A ledger whose calls are watched. To be used by one caller at a time. */
  readonly ledger: Ledger;
  readonly seen: readonly SeenTransition[];
  /** Every call that was made, whether or not it changed a status. */
  readonly calls: ReadonlySet<string>;
}

export async function recordTransitions(database: TestDatabase): Promise<Recorder> {
  const session = await database.connect();
  await session.query(triggers);
  const seen: SeenTransition[] = [];
  const calls = new Set<string>();
  const watch = async (call: string, action: () => Promise<unknown>) => {
    calls.add(call);
    const { result, statements } = await database.record(action);
    const transactions = transactionsOf(statements);
    for (const change of await drained(session)) {
      seen.push({ ...change, call, locks: locksOf(transactions, change.statement) });
    }
    return result;
  };
  return { ledger: watched(createLedger({ db: database.db }), watch), seen, calls };
}

type Watch = (call: string, action: () => Promise<unknown>) => Promise<unknown>;

function watched(ledger: Ledger, watch: Watch): Ledger {
  return new Proxy(ledger, {
    get(target, aggregate) {
      const value: unknown = Reflect.get(target, aggregate);
      return isObject(value) ? watchedAggregate(value, String(aggregate), watch) : value;
    },
  });
}

function watchedAggregate(aggregate: object, name: string, watch: Watch): object {
  return new Proxy(aggregate, {
    get(target, key) {
      const value: unknown = Reflect.get(target, key);
      if (typeof value !== "function") return value;
      return (...args: unknown[]) => watch(`${name}.${String(key)}`, () => Reflect.apply(value, target, args));
    },
  });
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null;
}

interface Change {
  readonly machine: Machine;
  readonly from: string | null;
  readonly to: string;
  readonly statement: string;
}

/** The changes since the last look. A job that leaves the queue goes to where its run is in the ledger. */
async function drained(session: pg.Client): Promise<Change[]> {
  const { rows } = await session.query<Change>(`
    with seen as (delete from seen_changes returning *)
    select s.machine, s.before as "from",
      coalesce(s.after, (select l.after from seen as l where l.machine = 'ledger' and l.run = s.run), 'gone') as "to",
      s.statement
    from seen as s where s.machine <> 'ledger'
    union all
    select 'job', null, l.after, l.statement from seen as l
    where l.machine = 'ledger' and l.run not in (select run from seen where machine = 'job' and after is null)`);
  return rows;
}

/** Each statement is a transaction of its own, unless it stands between a begin and its commit. */
function transactionsOf(statements: readonly string[]): string[][] {
  const transactions: string[][] = [];
  let open: string[] | undefined;
  for (const statement of statements) {
    if (/^(begin|start transaction)/i.test(statement)) {
      open = [];
      transactions.push(open);
    } else if (open === undefined) transactions.push([statement]);
    else open.push(statement);
    if (/^(commit|rollback)$/i.test(statement)) open = undefined;
  }
  return transactions;
}

// A job row that is changed without a lock of its own has none here, and the table says that it has. The statement that
// does not wait for the release lock has its own name: elsewhere a failed try is followed by a wait.
const lockPattern = new RegExp(
  [
    "(?<tried>runledger:try_lock_workflow_run_release_shared)",
    'for (?<strength>update|share) of "(?<alias>[qsr])"(?<skip> skip locked)?',
    '(?<key>for update of "k" skip locked)',
    // Only a new key's advisory lock is made from a text.
    "(?<advisory>pg_(?:try_)?advisory_xact_lock(?:_shared)?)\\((?!hashtextextended)",
    'update "runledger"\\."(?<table>workflow_steps|workflow_runs)"',
  ].join("|"),
  "g",
);

/** The locks in the order of the text, which is the order of the statements' parts: each kind where it is first taken. */
function locksOf(transactions: readonly (readonly string[])[], name: string): Lock[] {
  const marker = `/* runledger:${name} */`;
  const transaction = transactions.find((statements) => statements.some((sent) => sent.startsWith(marker))) ?? [];
  const last = transaction.findLastIndex((sent) => sent.startsWith(marker));
  const locks = new Map<string, Lock>();
  for (const { groups = {} } of transaction
    .slice(0, last + 1)
    .join("\n")
    .matchAll(lockPattern)) {
    const [kind, lock] = lockOf(groups);
    if (!locks.has(kind)) locks.set(kind, lock);
  }
  return [...locks.values()];
}

function lockOf(groups: Record<string, string | undefined>): [string, Lock] {
  const { tried, key, strength, alias, skip, advisory, table } = groups;
  if (key !== undefined) return ["key", "limit keys that nobody holds"];
  if (tried !== undefined) return ["release", "release lock shared, if free"];
  if (advisory !== undefined) {
    return ["release", advisory.endsWith("_shared") ? "release lock shared" : "release lock exclusive"];
  }
  if (alias === "q") {
    return ["job", skip === undefined ? "job rows" : "job rows that nobody holds"];
  }
  if (alias === "s" || table === "workflow_steps") return ["step", "step rows"];
  return ["run", strength === "share" ? "source run row, in share mode" : "run rows"];
}

const triggers = `
  create table seen_changes (machine text, before text, after text, run text, statement text);

  create function note_change(machine text, before text, after text, run text) returns void language sql as $$
    insert into seen_changes
    values (machine, before, after, run, coalesce(substring(current_query() from 'runledger:(\\w+)'), '?'))
  $$;

  -- A run of a job that is put back comes from how the run before it ended.
  create function note_job() returns trigger language plpgsql as $$ begin
    if tg_op = 'INSERT' then
      perform note_change('job', (
        select l.status::text from runledger.job_ledger as l
        where l.id = new.id and l.run_number < new.run_number order by l.run_number desc limit 1
      ), new.status::text, null);
    elsif tg_op = 'DELETE' then
      perform note_change('job', old.status::text, null, old.id || ' ' || old.run_number);
    elsif old.run_number <> new.run_number then
      perform note_change('job', old.status::text, null, old.id || ' ' || old.run_number);
      perform note_change('job', (
        select l.status::text from runledger.job_ledger as l where l.id = old.id and l.run_number = old.run_number
      ), new.status::text, null);
    elsif old.status <> new.status then
      perform note_change('job', old.status::text, new.status::text, null);
    end if;
    return null;
  end $$;

  create function note_ledger() returns trigger language plpgsql as $$ begin
    perform note_change('ledger', null, case when tg_op = 'INSERT' then new.status::text else 'changed' end,
      coalesce(new.id, old.id) || ' ' || coalesce(new.run_number, old.run_number));
    return null;
  end $$;

  create function note_status() returns trigger language plpgsql as $$ begin
    if tg_op = 'INSERT' then
      perform note_change(tg_argv[0], null, new.status::text, null);
    elsif tg_op = 'DELETE' then
      perform note_change(tg_argv[0], old.status::text, 'gone', null);
    elsif old.status <> new.status then
      perform note_change(tg_argv[0], old.status::text, new.status::text, null);
    end if;
    return null;
  end $$;

  create trigger note_job after insert or update or delete on runledger.job_queue
    for each row execute function note_job();
  create trigger note_ledger after insert or update or delete on runledger.job_ledger
    for each row execute function note_ledger();
  create trigger note_step after insert or update or delete on runledger.workflow_steps
    for each row execute function note_status('step');
  create trigger note_run after insert or update or delete on runledger.workflow_runs
    for each row execute function note_status('run')`;
