/** Redaction: the values of named fields, taken out of what people read. */
import type { JsonValue } from "../column-types.ts";
import { isArray } from "./envelope.ts";

const REDACTED = "[redacted]";

/** Shorter texts stand in any message by chance. */
const MIN_SECRET_LENGTH = 3;

export class Redaction {
  readonly #names: ReadonlySet<string>;
  /** With the dot in front that keeps `discard.number` apart from `card.number`. */
  readonly #suffixes: readonly string[];

  constructor(paths: readonly string[]) {
    this.#names = new Set(paths.filter((path) => !path.includes(".")));
    this.#suffixes = paths.filter((path) => path.includes(".")).map((path) => `.${path}`);
  }

  /** The value without those of named fields. */
  redacted(value: JsonValue | null): JsonValue | null {
    const shown = unlessTooDeep(() => this.#redacted(value, ""));
    return shown === undefined ? REDACTED : shown;
  }

  /** Takes out of texts what named fields of the values hold now: strings and numbers, as they are and as JSON writes them. */
  redactorOf(values: readonly (JsonValue | null)[]): (text: string) => string {
    const secrets = unlessTooDeep(() => this.#secretsOf(values));
    if (secrets === undefined) return () => REDACTED;
    // The longest first: one secret may be part of another.
    const ordered = [...secrets].sort((a, b) => b.length - a.length);
    return (text) => ordered.reduce((left, secret) => left.replaceAll(secret, REDACTED), text);
  }

  #redacted(value: JsonValue, path: string): JsonValue {
    if (typeof value !== "object" || value === null) return value;
    // Elements of a list are fields of what holds the list.
    if (isArray(value)) return value.map((element) => this.#redacted(element, path));
    return Object.fromEntries(
      Object.entries(value).map(([name, entry]) => {
        const at = `${path}.${name}`;
        return [name, this.#isNamed(name, at) ? REDACTED : this.#redacted(entry, at)];
      }),
    );
  }

  #secretsOf(values: readonly (JsonValue | null)[]): Set<string> {
    const secrets = new Set<string>();
    for (const value of values) this.#collect(value, "", false, secrets);
    return secrets;
  }

  #collect(value: JsonValue, path: string, secret: boolean, secrets: Set<string>): void {
    if (typeof value !== "object" || value === null) {
      if (secret && (typeof value === "string" || typeof value === "number")) addForms(String(value), secrets);
      return;
    }
    if (isArray(value)) {
      for (const element of value) this.#collect(element, path, secret, secrets);
      return;
    }
    for (const [name, entry] of Object.entries(value)) {
      const at = `${path}.${name}`;
      this.#collect(entry, at, secret || this.#isNamed(name, at), secrets);
    }
  }

  #isNamed(name: string, path: string): boolean {
    return this.#names.has(name) || this.#suffixes.some((suffix) => path.endsWith(suffix));
  }
}

/** Undefined for a value that is nested deeper than the stack is: then all of it goes. */
function unlessTooDeep<T>(walk: () => T): T | undefined {
  try {
    return walk();
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

function addForms(text: string, secrets: Set<string>): void {
  if (text.length < MIN_SECRET_LENGTH) return;
  secrets.add(text);
  secrets.add(JSON.stringify(text).slice(1, -1));
}
