/** Writes down what goes over the wire, so that a test can hold a function to its number of round trips. */
import pg from "pg";

export interface Recording<T> {
  readonly result: T;
  /** The text of each statement in the order sent, `begin` and `commit` included. */
  readonly statements: readonly string[];
}

export interface RecordingPool {
  readonly pool: pg.Pool;
  record<T>(action: () => Promise<T>): Promise<Recording<T>>;
}

/** A pool like any other, that knows which statements it sent. `pg` waits for each answer: one statement, one round trip. */
export function recordingPool(config: pg.PoolConfig): RecordingPool {
  const listeners = new Set<(text: string) => void>();
  const pool = new pg.Pool(config);
  pool.on("error", () => {});
  pool.on("connect", (client) => {
    // A connection that breaks while it is in use tells the query, and this event too.
    client.on("error", () => {});
    const query = client.query;
    client.query = new Proxy(query, {
      apply: (target, self, args: unknown[]) => {
        const text = textOf(args[0]);
        // What has been committed is announced after its answer, and nobody waits for that.
        if (!text.startsWith("/* runledger:announce */")) for (const listener of listeners) listener(text);
        return Reflect.apply(target, self, args);
      },
    });
  });

  return {
    pool,
    record: async (action) => {
      const statements: string[] = [];
      const listener = (text: string) => statements.push(text);
      listeners.add(listener);
      try {
        return { result: await action(), statements };
      } finally {
        listeners.delete(listener);
      }
    },
  };
}

function textOf(query: unknown): string {
  if (typeof query === "string") return query;
  if (typeof query === "object" && query !== null && "text" in query) return String(query.text);
  return String(query);
}
