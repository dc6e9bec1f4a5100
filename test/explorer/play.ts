/** Plays one schedule: several operations, each in a session of its own, statement by statement. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Outcome, Session } from "./session.ts";
import type { Stage } from "./stage.ts";

/** Longer than any bound of a wait in these tests. */
const PATIENCE_MS = 3_000;

/** What a session does in a schedule. */
export interface Actor {
  readonly name: string;
  run(session: Session): Promise<unknown>;
  /**
   * Stands in the way: its first statement comes before all others, and it goes on only when nobody
   * else can, or when all others have ended.
   */
  readonly obstacle?: "until nobody else can go on" | "until all others have ended";
}

/** A point at which the schedule could go on in more than one way, or in one. */
export interface Decision {
  /** Places of the sessions that ask. */
  readonly options: readonly number[];
  readonly chosen: number;
}

/** A statement that stood still until another session let it go on. */
export interface Wait {
  readonly actor: string;
  readonly statement: string;
  /** How many decisions led there. */
  readonly after: number;
}

export interface Played {
  readonly decisions: readonly Decision[];
  readonly waits: readonly Wait[];
  /** In the order of the actors; null when the schedule was given up. */
  readonly outcomes: readonly Outcome[] | null;
  /** What no schedule may show: deadlocks, and standstills that nobody could end. */
  readonly faults: readonly string[];
  /** The schedule in words. */
  readonly script: readonly string[];
}

/** Chooses among the sessions that ask, knowing all that happened; null gives the schedule up. */
export type Director = (options: readonly number[], situation: () => string, depth: number) => number | null;

export async function play(stage: Stage, actors: readonly Actor[], direct: Director): Promise<Played> {
  const company = await Company.gather(stage, actors);
  await company.raiseObstacles();
  while (await company.goOn(direct));
  return company.played();
}

/** The sessions of one schedule. */
class Company {
  readonly #stage: Stage;
  readonly #actors: readonly Actor[];
  readonly #sessions: readonly Session[];
  readonly #decisions: Decision[] = [];
  readonly #waits: Wait[] = [];
  readonly #faults: string[] = [];
  readonly #script: string[] = [];
  /** In the order in which they came to wait. */
  #waiting: Session[] = [];
  #abandoned = false;

  static async gather(stage: Stage, actors: readonly Actor[]): Promise<Company> {
    const company = new Company(stage, actors, await stage.sessions(actors.length));
    company.#sessions.forEach((session, place) => {
      session.prepare(actors[place]?.run ?? (async () => {}));
    });
    await company.#standstill();
    return company;
  }

  private constructor(stage: Stage, actors: readonly Actor[], sessions: readonly Session[]) {
    this.#stage = stage;
    this.#actors = actors;
    this.#sessions = sessions;
  }

  async raiseObstacles(): Promise<void> {
    for (const [place, actor] of this.#actors.entries()) if (actor.obstacle !== undefined) await this.#grant(place);
  }

  /** Grants one statement, and returns whether the schedule goes on. */
  async goOn(direct: Director): Promise<boolean> {
    const asking = [...this.#sessions.keys()].filter((place) => this.#sessions[place]?.state === "asking");
    const others = asking.filter((place) => this.#actors[place]?.obstacle === undefined);
    const options = others.length > 0 ? others : asking.filter((place) => this.#mayLeave(place)).slice(0, 1);
    if (options.length === 0) return this.#waitForTheServer();
    const chosen = direct(options, () => this.#situation(), this.#decisions.length);
    if (chosen === null) {
      await this.#abandon();
      return false;
    }
    this.#decisions.push({ options, chosen });
    await this.#grant(chosen);
    return true;
  }

  played(): Played {
    const outcomes = this.#abandoned ? null : this.#sessions.map(({ outcome }) => outcome ?? { value: undefined });
    return {
      decisions: this.#decisions,
      waits: this.#waits,
      outcomes,
      faults: [...this.#faults, ...this.#stage.scene.deadlocks.map((deadlock) => `deadlock in ${deadlock}`)],
      script: this.#script,
    };
  }

  async #grant(place: number): Promise<void> {
    const session = this.#sessions[place];
    if (session === undefined) throw new Error(`there is no session ${place}`);
    const before = session.steps.length;
    const line = this.#script.push("") - 1;
    session.grant();
    await this.#standstill();
    const sent = session.steps.slice(before).map(({ statement }) => statement);
    this.#script[line] = `${this.#nameOf(place)}: ${sent.join(", ")}`;
  }

  #mayLeave(place: number): boolean {
    const stays = this.#actors[place]?.obstacle === "until all others have ended";
    return !stays || this.#sessions.every(({ state }, other) => state === "ended" || this.#actors[other]?.obstacle);
  }

  /** Nobody may go on: all have ended, or each waits for another or for an obstacle that stays. */
  async #waitForTheServer(): Promise<boolean> {
    const waiting = this.#sessions.filter(({ state }) => state === "running");
    if (waiting.length === 0) return false;
    const who = waiting.map((session) => this.#describe(session)).join("; ");
    const stays = this.#sessions.some(({ state }) => state === "asking");
    if (!stays) this.#faults.push(`all wait for each other: ${who}`);
    const change = this.#stage.scene.change().then(() => "change");
    if ((await Promise.race([change, sleep(PATIENCE_MS, "none", { ref: false })])) === "none") {
      this.#faults.push(`nothing ends the wait: ${who}`);
      await this.#abandon();
      return false;
    }
    await this.#standstill();
    return true;
  }

  #describe(session: Session): string {
    const whom = session.blockers.map((pid) => this.#nameOf(this.#sessions.findIndex((other) => other.pid === pid)));
    return `${this.#nameOf(this.#sessions.indexOf(session))} in ${session.statement} for ${whom.join(" and ")}`;
  }

  #nameOf(place: number): string {
    return this.#actors[place]?.name ?? "a stranger";
  }

  /** Waits until each session asks, has ended, or waits for one that does or waits itself. */
  async #standstill(): Promise<void> {
    for (;;) {
      const { scene } = this.#stage;
      if (this.#sessions.some(({ state }) => state === "thinking")) await scene.change();
      else if (this.#unknown().length > 0) await this.#look();
      else break;
    }
    for (const { name, count } of await this.#stage.look()) this.#faults.push(`${name}: ${count}`);
    for (const session of this.#sessions) session.standsStill();
    this.#noteWaits();
  }

  /** Sessions whose statement is on the server, and may or may not be waiting there. */
  #unknown(): Session[] {
    const somebodyReleased = this.#sessions.some(({ released }) => released);
    if (somebodyReleased) {
      for (const session of this.#sessions) {
        session.blockers = [];
        session.released = false;
      }
    }
    return this.#sessions.filter(({ state, blockers }) => state === "running" && blockers.length === 0);
  }

  /** Asks the server twice: a wait that is only passed through is gone the second time. */
  async #look(): Promise<void> {
    const running = this.#sessions.filter(({ state }) => state === "running");
    const changed = this.#stage.scene.change().then(() => undefined);
    // Most statements have been answered by then, and the server need not be asked.
    if ((await Promise.race([changed, sleep(1, "silence")])) !== "silence") return;
    const first = await Promise.race([changed, this.#stage.blockers(running.map(({ pid }) => pid))]);
    if (!this.#explains(first, running)) return;
    const second = await Promise.race([changed, this.#stage.blockers(running.map(({ pid }) => pid))]);
    if (!this.#explains(second, running)) return;
    for (const session of running) session.blockers = second.get(session.pid) ?? [];
  }

  #explains(
    seen: Map<number, readonly number[]> | string | undefined,
    running: readonly Session[],
  ): seen is Map<number, readonly number[]> {
    const ours = new Set(this.#sessions.map(({ pid }) => pid));
    return (
      seen instanceof Map &&
      running.every(({ pid, state }) => state === "running" && seen.get(pid)?.every((blocker) => ours.has(blocker)))
    );
  }

  #noteWaits(): void {
    const waiting = this.#sessions.filter(({ state }) => state === "running");
    for (const session of waiting) {
      if (this.#waiting.includes(session)) continue;
      const actor = this.#nameOf(this.#sessions.indexOf(session));
      this.#waits.push({ actor, statement: session.statement, after: this.#decisions.length });
      this.#script.push(`  ${this.#describe(session)} waits`);
    }
    this.#waiting = [
      ...this.#waiting.filter((session) => waiting.includes(session)),
      ...waiting.filter((session) => !this.#waiting.includes(session)),
    ];
  }

  /** All that decides how things go on: what each did and saw, who waits, what is committed. */
  #situation(): string {
    return JSON.stringify([
      this.#sessions.map((session) => session.situation()),
      this.#waiting.map((session) => this.#sessions.indexOf(session)),
      this.#stage.scene.version,
    ]);
  }

  async #abandon(): Promise<void> {
    this.#abandoned = true;
    await Promise.all(this.#sessions.map((session) => session.abandon()));
  }
}
