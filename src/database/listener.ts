/** One LISTEN connection for all subscribers of a process, made when the first comes, ended when the last goes. */

/** What the listener needs of a connection; a `pg.Client` fits. */
export interface ListenConnection {
  connect(): Promise<unknown>;
  query(text: string): Promise<unknown>;
  end(): Promise<unknown>;
  on(event: "notification", handler: (message: { channel: string; payload?: string | undefined }) => void): unknown;
  on(event: "error", handler: (error: Error) => void): unknown;
  on(event: "end", handler: () => void): unknown;
}

/** Makes a connection of its own for LISTEN: never one of a pool, and not through a transaction pooler. */
export type ListenSource = () => ListenConnection;

/**
 * Called with an announcement's payload; with null once the channel is listened to, at first and after a loss:
 * what was announced before has not been heard.
 */
export type NotificationHandler = (payload: string | null) => void;

const FIRST_DELAY_MS = 100;
const MAX_DELAY_MS = 10_000;

/** Connects again after a loss, with growing delays. Who comes to a channel, or comes back to it, is told to look for itself. */
export class Listener {
  readonly #source: ListenSource;
  readonly #onError: (error: unknown) => void;
  readonly #subscriptions = new Map<string, Set<Subscription>>();
  #session: Session | undefined;

  constructor(source: ListenSource, onError: (error: unknown) => void) {
    this.#source = source;
    this.#onError = onError;
  }

  /** Subscribes to a channel (a plain identifier) and returns what ends the subscription. */
  subscribe(channel: string, handler: NotificationHandler): () => void {
    const subscription: Subscription = { handler };
    const subscriptions = this.#subscriptions.get(channel) ?? new Set();
    subscriptions.add(subscription);
    this.#subscriptions.set(channel, subscriptions);
    this.#session ??= new Session(this.#source, this.#deliver, this.#onError);
    // In the next turn, as for those who have to wait: not before the caller knows what it subscribed to.
    if (this.#session.listen(channel)) queueMicrotask(() => this.#tell(channel, subscription, null));
    return () => this.#unsubscribe(channel, subscription);
  }

  /** Whether LISTEN is in force: nothing that is announced now is missed. */
  hears(channel: string): boolean {
    return this.#session?.hears(channel) ?? false;
  }

  readonly #deliver = (channel: string, payload: string | null): void => {
    for (const subscription of [...(this.#subscriptions.get(channel) ?? [])])
      this.#tell(channel, subscription, payload);
  };

  /** Neither the other subscribers nor the connection may suffer from a handler that throws. */
  #tell(channel: string, subscription: Subscription, payload: string | null): void {
    if (!this.#subscriptions.get(channel)?.has(subscription)) return;
    try {
      subscription.handler(payload);
    } catch (error) {
      this.#onError(error);
    }
  }

  #unsubscribe(channel: string, subscription: Subscription): void {
    const subscriptions = this.#subscriptions.get(channel);
    subscriptions?.delete(subscription);
    if (subscriptions?.size === 0) this.#subscriptions.delete(channel);
    if (this.#subscriptions.size > 0) return;
    this.#session?.close();
    this.#session = undefined;
  }
}

/** One call of `subscribe`: the same handler may be in several. */
interface Subscription {
  readonly handler: NotificationHandler;
}

/** The life of the connection from the first subscriber to the last. */
class Session {
  readonly #source: ListenSource;
  readonly #deliver: (channel: string, payload: string | null) => void;
  readonly #onError: (error: unknown) => void;
  readonly #channels = new Set<string>();
  /** Those for which LISTEN is in force. */
  readonly #heard = new Set<string>();
  #connection: ListenConnection | undefined;
  #attempt: Promise<void>;
  #failures = 0;
  #timer: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(
    source: ListenSource,
    deliver: (channel: string, payload: string | null) => void,
    onError: (error: unknown) => void,
  ) {
    this.#source = source;
    this.#deliver = deliver;
    this.#onError = onError;
    // In the next turn, so that the channels of the first subscribers are known.
    this.#attempt = Promise.resolve().then(() => this.#connect());
  }

  /** Returns whether the channel is listened to already. */
  listen(channel: string): boolean {
    if (this.#channels.has(channel)) return this.hears(channel);
    this.#channels.add(channel);
    const connection = this.#connection;
    if (connection) this.#attempt = this.#attempt.then(() => this.#addTo(connection, channel));
    return false;
  }

  hears(channel: string): boolean {
    return this.#heard.has(channel);
  }

  close(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    const connection = this.#connection;
    this.#connection = undefined;
    connection?.end().catch(this.#onError);
  }

  async #connect(): Promise<void> {
    if (this.#closed) return;
    const connection = this.#newConnection();
    if (connection === undefined) return;
    connection.on("notification", ({ channel, payload }) => this.#deliver(channel, payload ?? ""));
    connection.on("error", (error) => this.#lost(connection, error));
    connection.on("end", () => this.#lost(connection, undefined));
    try {
      await connection.connect();
    } catch (error) {
      this.#giveUp(connection, error);
      return;
    }
    if (this.#closed) {
      connection.end().catch(this.#onError);
      return;
    }
    this.#connection = connection;
    for (const channel of [...this.#channels]) await this.#addTo(connection, channel);
    if (connection === this.#connection) this.#failures = 0;
  }

  #newConnection(): ListenConnection | undefined {
    try {
      return this.#source();
    } catch (error) {
      this.#tryLater(error);
      return undefined;
    }
  }

  async #addTo(connection: ListenConnection, channel: string): Promise<void> {
    if (connection !== this.#connection) return;
    await this.#hear(connection, channel).catch((error: unknown) => this.#lost(connection, error));
  }

  async #hear(connection: ListenConnection, channel: string): Promise<void> {
    await connection.query(`listen ${quoted(channel)}`);
    if (connection !== this.#connection) return;
    this.#heard.add(channel);
    this.#deliver(channel, null);
  }

  /** A connection may tell its loss more than once: by events, and by a statement under way. */
  #lost(connection: ListenConnection, error: unknown): void {
    if (connection !== this.#connection) return;
    this.#connection = undefined;
    this.#heard.clear();
    this.#giveUp(connection, error);
  }

  #giveUp(connection: ListenConnection, error: unknown): void {
    connection.end().catch(() => {
      // It is lost already; the error that matters is reported.
    });
    this.#tryLater(error);
  }

  #tryLater(error: unknown): void {
    if (this.#closed) return;
    this.#failures += 1;
    if (error !== undefined) this.#onError(error);
    const delay = Math.min(MAX_DELAY_MS, FIRST_DELAY_MS * 2 ** (this.#failures - 1));
    this.#timer = setTimeout(() => {
      this.#attempt = this.#connect();
    }, delay);
  }
}

function quoted(channel: string): string {
  return `"${channel.replaceAll('"', '""')}"`;
}
