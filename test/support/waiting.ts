/** Waits for what the server itself shows, in place of sleeping: a race test starts from a known standstill. */
import { setTimeout as sleep } from "node:timers/promises";
import type pg from "pg";

export interface WaitForBackendOptions {
  /** Any connection that is free to look; not one of those that wait. */
  readonly client: pg.ClientBase | pg.Pool;
  /** Part of the statement that the backend runs. */
  readonly marker?: string;
  readonly pid?: number;
  /** What it waits for. Default: a lock. */
  readonly waitEventType?: "Lock" | "Client";
  /** How many such backends there must be. Default 1. */
  readonly count?: number;
  /** Default: 10 seconds. */
  readonly deadlineMs?: number;
}

export interface WaitingBackend {
  readonly pid: number;
  readonly query: string;
  readonly waitEvent: string | null;
}

/** Resolves with the first backend seen waiting; fails, showing all activity, when none is in time. */
export async function waitForBackend(options: WaitForBackendOptions): Promise<WaitingBackend> {
  const { client, marker = "", pid = null, waitEventType = "Lock", count = 1, deadlineMs = 10_000 } = options;
  const deadline = Date.now() + deadlineMs;
  for (;;) {
    const activity = await currentActivity(client);
    const waiting = activity.filter(
      (backend) =>
        backend.waitEventType === waitEventType &&
        backend.query.includes(marker) &&
        (pid === null || backend.pid === pid),
    );
    const [first] = waiting;
    if (first !== undefined && waiting.length >= count) return first;
    if (Date.now() > deadline) throw new Error(`${describe(options)} was not seen. Activity:\n${shown(activity)}`);
    await sleep(5);
  }
}

/** The backends that the given one waits for. */
export async function blockingPids(client: pg.ClientBase | pg.Pool, pid: number): Promise<number[]> {
  const { rows } = await client.query<{ pids: number[] }>("select pg_blocking_pids($1) as pids", [pid]);
  return rows[0]?.pids ?? [];
}

/** Resolves when the backend has ended, whatever it did last. */
export async function backendGone(client: pg.ClientBase | pg.Pool, pid: number): Promise<void> {
  for (;;) {
    const { rowCount } = await client.query("select from pg_stat_activity where pid = $1", [pid]);
    if (rowCount === 0) return;
  }
}

/** The connection's own process id on the server. */
export async function backendPid(client: pg.ClientBase): Promise<number> {
  const { rows } = await client.query<{ pid: number }>("select pg_backend_pid() as pid");
  const [row] = rows;
  if (row === undefined) throw new Error("the server answered no process id");
  return row.pid;
}

interface Backend extends WaitingBackend {
  readonly state: string | null;
  readonly waitEventType: string | null;
}

async function currentActivity(client: pg.ClientBase | pg.Pool): Promise<Backend[]> {
  // Within a transaction the server would go on showing its first answer.
  await client.query("select pg_stat_clear_snapshot()");
  const { rows } = await client.query<Backend>(`
    select pid, state, query, wait_event as "waitEvent", wait_event_type as "waitEventType"
    from pg_stat_activity
    where datname = current_database() and backend_type = 'client backend' and pid <> pg_backend_pid()
    order by backend_start`);
  return rows;
}

function describe({ marker, pid, waitEventType = "Lock", count = 1 }: WaitForBackendOptions): string {
  const which = [pid === undefined ? "" : ` ${pid}`, marker === undefined ? "" : ` running "${marker}"`].join("");
  return `${count} backend(s)${which} waiting for ${waitEventType}`;
}

function shown(activity: readonly Backend[]): string {
  return activity
    .map(({ pid, state, query, waitEventType, waitEvent }) => {
      return `  ${pid} ${state} ${waitEventType ?? "-"}/${waitEvent ?? "-"}: ${query.replaceAll(/\s+/g, " ")}`;
    })
    .join("\n");
}

/** Waits for what a process itself can see. */
export async function until(condition: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 10_000;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error("it did not come to pass within ten seconds");
    await sleep(5);
  }
}
