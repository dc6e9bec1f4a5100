/** Calls about one item each share a statement, and its commit, with those that come while others are under way. */
import type { LedgerError } from "../errors.ts";

/** Works on the items and says of each when it is done, or why it cannot be; throws what is wrong with none of them. */
export type WorkOn<Item> = (
  items: readonly Item[],
  settle: (item: Item, error?: LedgerError) => void,
) => Promise<unknown>;

interface Call {
  resolve(): void;
  reject(error: unknown): void;
}

/** With fewer at the same time an item goes at once and alone. */
const SIDE_BY_SIDE = 2;
/** No item waits longer than this for others to end, in milliseconds: whatever keeps them need not keep it. */
const PATIENCE_MS = 5;
const MAX_ITEMS = 500;

export class Gatherer<Item> {
  readonly #work: WorkOn<Item>;
  readonly #waiting: (readonly [Item, Call])[] = [];
  #underWay = 0;
  #timer: NodeJS.Timeout | undefined;

  constructor(work: WorkOn<Item>) {
    this.#work = work;
  }

  /** Resolves when the item is done. */
  add(item: Item): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#waiting.push([item, { resolve, reject }]);
      this.#next();
    });
  }

  #next(): void {
    if (this.#waiting.length === 0) return;
    if (this.#underWay < SIDE_BY_SIDE) this.#send();
    else this.#timer ??= setTimeout(() => this.#send(), PATIENCE_MS);
  }

  #send(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const calls = new Map(this.#waiting.splice(0, MAX_ITEMS));
    if (calls.size > 0) void this.#settle(calls);
    this.#next();
  }

  async #settle(calls: Map<Item, Call>): Promise<void> {
    this.#underWay += 1;
    try {
      await this.#work([...calls.keys()], (item, error) => {
        const call = calls.get(item);
        calls.delete(item);
        if (error === undefined) call?.resolve();
        else call?.reject(error);
      });
    } catch (error) {
      for (const call of calls.values()) call.reject(error);
    } finally {
      this.#underWay -= 1;
      this.#next();
    }
  }
}
