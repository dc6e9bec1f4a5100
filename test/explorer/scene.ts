/** What the sessions of one schedule share: who got on, what is committed, what failed. */
export class Scene {
  /** Stands for what was committed when everybody last stood still. */
  version = 0;
  /** Whether a transaction has ended since. */
  committed = false;
  /** Errors of the server that no operation may meet, whatever a retry makes of them. */
  readonly deadlocks: string[] = [];
  /** Ids that are the same in every schedule. */
  readonly known = new Set<string>();
  #waiting: (() => void)[] = [];

  clear(): void {
    this.committed = true;
    this.deadlocks.length = 0;
  }

  changed(): void {
    for (const wake of this.#waiting.splice(0)) wake();
  }

  change(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiting.push(resolve);
    });
  }

  /** Notes an error of the server and returns its SQLSTATE. */
  failed(statement: string, error: unknown): string {
    const { code, detail } = Object(error) as { code?: string; detail?: string };
    if (code === "40P01") this.deadlocks.push(`${statement}: ${detail}`);
    return String(code);
  }

  /** Rows as text, without times and ids that are new in each schedule. */
  digest(rows: unknown): string {
    return JSON.stringify(rows ?? null)
      .replaceAll(/"\d{4}-\d\d-\d\dT[\d:.]+Z"/g, '"time"')
      .replaceAll(/"[0-9a-f]{8}-[0-9a-f-]{27}"/g, (id) => (this.known.has(id) ? id : '"new"'));
  }
}
