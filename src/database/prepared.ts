/** Sends the ledger's statements by name, so that a connection parses and plans each of them once. */
import { createHash } from "node:crypto";

/** What `prepared` needs of a pool; a `pg.Pool` fits. */
export interface ConnectingPool<Client extends PreparingClient = PreparingClient> {
  on(event: "connect", listener: (client: Client) => void): unknown;
}

/** What `prepared` needs of a pool's client; one of `pg` fits. */
export interface PreparingClient {
  // Only handed on: whatever it is called with beside a text and its values is the driver's own affair.
  query(...call: never[]): unknown;
}

/**
 * Makes the pool's connections, from the next one on, send the ledger's statements as named prepared statements;
 * whatever else goes through the pool stays as it is. Answers the same pool.
 *
 * ```ts
 * const pool = prepared(new pg.Pool({ connectionString }));
 * ```
 *
 * Planning costs more than running where a call is about few jobs. Not for a pooler that gives each transaction another
 * connection and does not know prepared statements, as PgBouncer before 1.21.
 */
export function prepared<Pool extends ConnectingPool>(pool: Pool): Pool {
  pool.on("connect", (client) => {
    client.query = new Proxy(client.query, {
      apply: (query, self, call: unknown[]) => {
        const statement = named(call);
        return statement === null ? Reflect.apply(query, self, call) : answered(query, self, statement);
      },
    });
  });
  return pool;
}

interface NamedStatement {
  readonly name: string;
  readonly text: string;
  readonly values: unknown[];
}

const MARKER = "/* runledger:";
const names = new Map<string, string>();

/** The driver takes a name in an object only. Null for what is not the ledger's, or is answered to a callback of its own. */
function named([text, values, ...rest]: unknown[]): NamedStatement | null {
  if (typeof text !== "string" || !Array.isArray(values) || !text.startsWith(MARKER) || rest.length > 0) return null;
  return { name: nameOf(text), text, values };
}

/**
 * By a callback: the promise of `pg` 8 is one that V8's young collections keep, with all rows of the answer, until a full
 * one. They then take ten times as long, which every job under way waits for.
 */
function answered(query: PreparingClient["query"], self: unknown, statement: NamedStatement): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const answer = (error: unknown, result: unknown) => (error ? reject(error) : resolve(result));
    Reflect.apply(query, self, [statement, answer]);
  });
}

/** The statement's own name, and a digest: in another schema, or of another version, it has another text. */
function nameOf(text: string): string {
  const known = names.get(text);
  if (known !== undefined) return known;
  const own = text.slice(MARKER.length, text.indexOf(" ", MARKER.length));
  const name = `${own.slice(0, 50)}:${createHash("sha256").update(text).digest("hex").slice(0, 12)}`;
  names.set(text, name);
  return name;
}
