/** The approval: shows what is to be published, gets an answer, and completes the gate with it. */
import type { Ledger } from "../../src/index.ts";
import { GATE, type Report } from "./graph.ts";
import type { Options } from "./options.ts";
import { printable, type Terminal } from "./terminal.ts";

export interface GateOptions {
  readonly ledger: Ledger;
  readonly terminal: Terminal;
  readonly runId: string;
  readonly answer: Options["answer"];
  readonly signal: AbortSignal;
}

const scope = { global: true } as const;

/** Throws when the signal aborts: the gate stays open then. */
export async function answerGate({ ledger, terminal, runId, answer, signal }: GateOptions): Promise<void> {
  const { steps } = await ledger.runs.get(runId, scope);
  const output = steps.find(({ key }) => key === "report")?.output;
  for (const line of summary(output as unknown as Report)) terminal.line(line);

  const completedBy = answer === null ? (process.env.USER ?? "somebody at the terminal") : `--${flags[answer]}`;
  if ((answer ?? (await asked(terminal, signal))) === "approve") {
    await ledger.steps.complete(runId, GATE, { scope, output: { approvedBy: completedBy }, completedBy });
    terminal.line("Approved.");
  } else {
    await ledger.steps.complete(runId, GATE, { scope, outcome: "FAILED", reason: "refused", completedBy });
    terminal.line("Refused: the report will not be published.");
  }
}

const flags = { approve: "yes", reject: "reject" } as const;

async function asked(terminal: Terminal, signal: AbortSignal): Promise<"approve" | "reject"> {
  for (;;) {
    const answer = (await terminal.ask("Publish this report? [y/n] ", signal)).trim().toLowerCase();
    signal.throwIfAborted();
    if (answer === "y" || answer === "yes") return "approve";
    if (answer === "n" || answer === "no") return "reject";
  }
}

const LANGUAGES = 4;

function summary({ files, lines, words, bytes, languages, unread }: Report): string[] {
  const most = languages.slice(0, LANGUAGES).map((total) => `${total.language} ${total.files}`);
  const more = languages.length > LANGUAGES ? `, ${languages.length - LANGUAGES} more` : "";
  return [
    `The report is ready: ${files} files, ${lines} lines, ${words} words, ${bytes} bytes (${most.join(", ")}${more}).`,
    ...unread.map(({ path, reason }) => `  not read: ${printable(path)}: ${reason}`),
  ];
}
