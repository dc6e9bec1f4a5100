/** What must hold after every schedule of some operations (LOCKS.md §3), whichever way it went. */
import { codesIn, type Player } from "./operations.ts";
import { type Actor, type Director, type Played, play, type Wait } from "./play.ts";
import type { Outcome } from "./session.ts";
import type { Reset, Stage } from "./stage.ts";

export interface Scenario {
  readonly reset: Reset;
  readonly players: readonly Player[];
  /** Sessions that only stand in the way. */
  readonly obstacles?: readonly Actor[];
}

/** More than these have too many orders to play them all. */
const MOST_PARTS = 6;
/** Refusals of who came at the wrong moment: nothing was written, and another time it would have been. */
const conflicts = ["workflow.release_conflict", "db.lock_timeout"];

/** Plays schedules of a scenario and throws, with the schedule in words, at the first that breaks a rule. */
export class Proof {
  readonly waits: Wait[] = [];
  readonly #stage: Stage;
  readonly #scenario: Scenario;
  readonly #serial = new Map<string, SerialEnds[]>();

  constructor(stage: Stage, scenario: Scenario) {
    this.#stage = stage;
    this.#scenario = scenario;
  }

  async play(direct: Director): Promise<Played> {
    const { reset, players, obstacles = [] } = this.#scenario;
    await reset();
    const played = await play(this.#stage, [...players, ...obstacles], direct);
    this.waits.push(...played.waits);
    const { outcomes } = played;
    const faults = outcomes === null || played.faults.length > 0 ? played.faults : await this.#faultsOf(outcomes);
    if (faults.length > 0) throw new Error([...faults, "The schedule:", ...played.script].join("\n"));
    return played;
  }

  async #faultsOf(outcomes: readonly Outcome[]): Promise<string[]> {
    const { players } = this.#scenario;
    const { contents } = this.#stage;
    const answers = players.map((_, place) => answerOf(outcomes[place]));
    const unexpected = players.flatMap(({ name, operation }, place) =>
      codesIn(answers[place])
        .filter((code) => !operation.codes?.some((expected) => expected === code))
        .map((code) => `${name} ended in ${code}`),
    );
    const failed = outcomes.flatMap((outcome) => ("error" in outcome ? [String(outcome.error)] : []));
    if (unexpected.length + failed.length > 0) return [...unexpected, ...failed];
    return (await this.#isSerial(answers, contents))
      ? []
      : [`no order of the operations one by one gives ${JSON.stringify(answers)} and ${contents}`];
  }

  /** Whether some order of the operations, one by one, ends in the same; those that met a conflict wrote nothing. */
  async #isSerial(answers: readonly unknown[], contents: string): Promise<boolean> {
    const took = [...answers.keys()].filter(
      (place) => !codesIn(answers[place]).some((code) => conflicts.includes(code)),
    );
    const key = took.join();
    const players = took.flatMap((place) => this.#scenario.players[place] ?? []);
    const known =
      this.#serial.get(key) ??
      [players, apart(players)].map((each) => new SerialEnds(this.#stage, this.#scenario.reset, each));
    this.#serial.set(key, known);
    const given = took.map((place) => answers[place]);
    for (const ends of known) if (await ends.has(given.flat(), contents)) return true;
    return false;
  }
}

function apart(players: readonly Player[]): readonly Player[] {
  const parts = players.flatMap((player) => player.parts ?? [player]);
  return parts.length > MOST_PARTS ? players : parts;
}

/** How the players end one after another, in every order; found out as far as somebody asks. */
class SerialEnds {
  readonly #stage: Stage;
  readonly #reset: Reset;
  readonly #players: readonly Player[];
  readonly #ends = new Set<string>();
  readonly #orders: number[][];

  constructor(stage: Stage, reset: Reset, players: readonly Player[]) {
    this.#stage = stage;
    this.#reset = reset;
    this.#players = players;
    this.#orders = ordersOf([...players.keys()]);
  }

  async has(answers: readonly unknown[], contents: string): Promise<boolean> {
    const end = JSON.stringify([answers, contents]);
    while (!this.#ends.has(end)) {
      const order = this.#orders.shift();
      if (order === undefined) return false;
      await this.#play(order);
    }
    return true;
  }

  async #play(order: readonly number[]): Promise<void> {
    await this.#reset();
    const { outcomes } = await play(
      this.#stage,
      this.#players,
      (options) => order.find((place) => options.includes(place)) ?? null,
    );
    const answers = this.#players.map((_, place) => answerOf(outcomes?.[place]));
    this.#ends.add(JSON.stringify([answers.flat(), this.#stage.contents]));
  }
}

function answerOf(outcome: Outcome | undefined): unknown {
  return outcome !== undefined && "value" in outcome ? outcome.value : null;
}

function ordersOf(items: readonly number[]): number[][] {
  if (items.length <= 1) return [[...items]];
  return items.flatMap((first) => ordersOf(items.filter((item) => item !== first)).map((rest) => [first, ...rest]));
}
