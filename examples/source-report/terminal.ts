/** The terminal: lines that stay, and one below them that is written over. */
import { createInterface } from "node:readline/promises";

export type Colour = "green" | "red" | "yellow" | "dim";

const codes: Readonly<Record<Colour, number>> = { green: 32, red: 31, yellow: 33, dim: 2 };

export class Terminal {
  /** Whether somebody is there to read and to answer. */
  readonly interactive = Boolean(process.stdin.isTTY && process.stdout.isTTY);
  readonly #live = Boolean(process.stdout.isTTY);
  readonly #colours = this.#live && !process.env.NO_COLOR && process.env.TERM !== "dumb";
  #shown = false;

  constructor() {
    // Whoever read this has gone (`| head`): the run goes on all the same.
    process.stdout.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "EPIPE") throw error;
    });
  }

  /** Writes a line that stays. */
  line(text = ""): void {
    this.#clear();
    process.stdout.write(`${text}\n`);
  }

  /** Writes the line that is written over; nothing where that is not possible. */
  update(text: string): void {
    if (!this.#live) return;
    this.#clear();
    process.stdout.write(text.slice(0, (process.stdout.columns || 80) - 1));
    this.#shown = true;
  }

  /** Asks and waits for a line. Ctrl-C and the end of the input interrupt the program; throws when the signal aborts. */
  async ask(question: string, signal: AbortSignal): Promise<string> {
    this.#clear();
    const readline = createInterface({ input: process.stdin, output: process.stdout });
    // In raw mode Ctrl-C is a key, not a signal.
    const interrupt = () => process.kill(process.pid, "SIGINT");
    readline.on("SIGINT", interrupt).on("close", interrupt);
    try {
      return await readline.question(question, { signal });
    } finally {
      readline.off("close", interrupt).close();
    }
  }

  paint(text: string, colour: Colour): string {
    return this.#colours ? `\u001b[${codes[colour]}m${text}\u001b[0m` : text;
  }

  #clear(): void {
    if (this.#shown) process.stdout.write("\r\u001b[2K");
    this.#shown = false;
  }
}

/** A name that may come from the disk: it must not steer the terminal. */
export function printable(text: string): string {
  return text.replaceAll(/\p{Cc}/gu, "?");
}
