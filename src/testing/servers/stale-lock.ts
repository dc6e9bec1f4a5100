/**
 * PostgreSQL keeps its process id in `postmaster.pid` and refuses to start while a process of that
 * number lives. After a crash the number may by now belong to any other program, most of all in a
 * container where numbers are small; then the file only stands in the way.
 */
import { execFile } from "node:child_process";
import { readFile, rm } from "node:fs/promises";
import { platform } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";

const run = promisify(execFile);
const ENDING_PATIENCE_MS = 5_000;

/** Removes a lock that no server holds; waits a little for a server that is just ending. */
export async function clearStaleLock(data: string): Promise<void> {
  const deadline = Date.now() + ENDING_PATIENCE_MS;
  for (;;) {
    const pid = await lockedBy(data);
    if (pid === undefined) return;
    if (!(await isServerOf(data, pid))) {
      await rm(join(data, "postmaster.pid"), { force: true });
      return;
    }
    if (Date.now() > deadline) throw new Error(`${data} is in use by another PostgreSQL server (process ${pid}).`);
    await sleep(50);
  }
}

async function lockedBy(data: string): Promise<number | undefined> {
  const text = await readFile(join(data, "postmaster.pid"), "utf8").catch(() => "");
  const pid = Number.parseInt(text, 10);
  return pid > 0 ? pid : undefined;
}

async function isServerOf(data: string, pid: number): Promise<boolean> {
  const command = await commandLine(pid);
  return command.includes("postgres") && command.includes(data);
}

/** Small Linux images have no `ps`, other systems have no `/proc`. */
async function commandLine(pid: number): Promise<string> {
  if (platform() === "linux") return readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
  const shown = await run("ps", ["-p", String(pid), "-o", "args="]).catch(() => ({ stdout: "" }));
  return shown.stdout;
}
