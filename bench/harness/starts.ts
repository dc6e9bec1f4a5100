/** What the handlers of a process have seen: how many started, and how long each had waited. */
import { now, type Payload } from "./contestant.ts";

export class Starts {
  #count = 0;
  #waits: number[] = [];
  #needed = Number.POSITIVE_INFINITY;
  #reached: () => void = () => {};

  readonly started = ({ at }: Payload): void => {
    this.#count += 1;
    if (at !== undefined) this.#waits.push(now() - at);
    if (this.#count >= this.#needed) this.#reached();
  };

  get count(): number {
    return this.#count;
  }

  /** In milliseconds, of those that said since when. */
  get waits(): readonly number[] {
    return this.#waits;
  }

  /** Forgets what was. */
  reset(): void {
    this.#count = 0;
    this.#waits = [];
  }

  /** Whether that many have started within the time. */
  async reaches(count: number, withinMs: number): Promise<boolean> {
    if (this.#count >= count) return true;
    this.#needed = count;
    let timer: NodeJS.Timeout | undefined;
    await new Promise<void>((resolve) => {
      this.#reached = resolve;
      timer = setTimeout(resolve, withinMs);
    });
    clearTimeout(timer);
    this.#needed = Number.POSITIVE_INFINITY;
    return this.#count >= count;
  }
}
