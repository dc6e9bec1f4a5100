/** The other end of `child.ts`: starts a contestant's process, gives it orders, and ends it. */
import { type ChildProcess, fork } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import type { Answer, ChildArguments, Order } from "./child.ts";
import { benchNode } from "./node.ts";
import type { Player, Report } from "./work.ts";

const CLOSE_MS = 3_000;

interface Waiting {
  resolve(report: Report): void;
  reject(error: Error): void;
}

export class ContestantProcess implements Player {
  readonly #child: ChildProcess;
  readonly #work: string;
  readonly #waiting = new Map<number, Waiting>();
  #orders = 0;

  private constructor(child: ChildProcess, work: string) {
    this.#child = child;
    this.#work = work;
    child.on("message", (answer: Answer) => this.#answered(answer));
    child.on("exit", (code, signal) => this.#lost(`ended with ${signal ?? code}`));
    child.on("error", ({ message }) => this.#lost(message));
  }

  /** Resolves when the process has opened the database. */
  static async start(options: ChildArguments, work: string): Promise<ContestantProcess> {
    const child = fork(fileURLToPath(new URL("child.ts", import.meta.url)), [JSON.stringify(options)], {
      execPath: benchNode().path,
      execArgv: ["--disable-warning=DeprecationWarning", ...typescript()],
      // What peers log must not stand between our figures.
      stdio: ["ignore", "ignore", "inherit", "ipc"],
    });
    const started = new ContestantProcess(child, work);
    await started.#answer(0);
    return started;
  }

  install(): Promise<Report> {
    return this.#order((id) => ({ id, install: true }));
  }

  play(part: string, value = 0): Promise<Report> {
    return this.#order((id) => ({ id, work: this.#work, part, value }));
  }

  /** Whoever cannot stop at once is killed: what it did not do was not measured either. */
  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, "exit");
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), CLOSE_MS);
    if (this.#child.connected) this.#child.send({ stop: true } satisfies Order);
    else this.#child.kill("SIGKILL");
    await exited;
    clearTimeout(timer);
  }

  #order(make: (id: number) => Order): Promise<Report> {
    this.#orders += 1;
    const answer = this.#answer(this.#orders);
    this.#child.send(make(this.#orders));
    return answer;
  }

  #answer(id: number): Promise<Report> {
    return new Promise((resolve, reject) => this.#waiting.set(id, { resolve, reject }));
  }

  #answered(answer: Answer): void {
    const waiting = this.#waiting.get(answer.id);
    this.#waiting.delete(answer.id);
    if ("report" in answer) waiting?.resolve(answer.report);
    else waiting?.reject(new Error(answer.error));
  }

  #lost(reason: string): void {
    for (const { reject } of this.#waiting.values()) reject(new Error(`its process ${reason}`));
    this.#waiting.clear();
  }
}

/** A Node that reads TypeScript by itself runs it as it is; what tsx makes of it takes longer for each function that is made. */
function typescript(): string[] {
  return benchNode().readsTypeScript ? [] : [`--import=${import.meta.resolve("tsx")}`];
}
