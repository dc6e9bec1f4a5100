/**
 * Ends a server together with the process that started it, however that process ends.
 *
 * Exit and signal handlers would not run on SIGKILL, and a library should not take over its host's
 * signals. So a small shell waits at the other end of a pipe: the operating system closes the pipe when
 * the owner is gone, and the shell stops the server and removes its directory.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";

/** The running guard. */
export interface Guard {
  /** Names the process to stop, in place of the one named before. */
  watch(pid: number | undefined): void;
  /** Stops the process now and resolves when it has ended and its directory is removed. */
  release(): Promise<void>;
}

/** What the guard does in the end. */
export interface GuardOptions {
  /** `INT` lets PostgreSQL finish with a checkpoint, `QUIT` ends it at once. */
  readonly signal: "INT" | "QUIT";
  /** The server's own directory. */
  readonly directory: string;
  /** Whether the directory goes with the server. */
  readonly temporary: boolean;
}

// Each line names the process to stop; the last one counts. A server removes its lock file when it has ended:
// its process id may stay visible for seconds, until the system's first process collects it.
const SCRIPT = `
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ] && kill -s "$1" "$pid" 2>/dev/null; then
  tries=0
  while [ -e "$2/data/postmaster.pid" ] && kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 1500 ]; do
    sleep 0.02
    tries=$((tries + 1))
  done
fi
[ "$3" = keep ] || rm -rf "$2" 2>/dev/null || { sleep 0.5; rm -rf "$2"; }
`;

/** Starts the guard, in a session of its own so that the terminal's Ctrl-C does not reach it. */
export function startGuard({ signal, directory, temporary }: GuardOptions): Guard {
  const shell = spawn("/bin/sh", ["-c", SCRIPT, "sh", signal, directory, temporary ? "remove" : "keep"], {
    cwd: "/",
    detached: true,
    stdio: ["pipe", "ignore", "ignore"],
  });
  const gone = once(shell, "exit");
  gone.catch(() => {});
  shell.stdin.on("error", () => {});
  shell.unref();

  return {
    watch: (pid) => {
      shell.stdin.write(`${pid ?? ""}\n`);
    },
    release: async () => {
      shell.ref();
      shell.stdin.end();
      await gone;
    },
  };
}
