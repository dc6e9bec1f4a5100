/** The keys that a request for a job may carry (FEATURES F-J3, F-J12): docs/idempotency.md says when to use which. */

/**
 * At most one key of one kind. A key belongs to its kind, the job's type and its organization; it has at most 512 bytes.
 */
export interface JobKeys {
  /** The same key gives the same job, whatever has become of it; another request under it is a conflict. */
  readonly idempotencyKey?: string;
  /** How long the idempotency key is remembered, in seconds from its first use. Default: for ever. */
  readonly idempotencyTtlSeconds?: number;
  /** At most one live job of the key. */
  readonly active?: ActiveJobKey;
  /** Requests that come soon after one another become one job, with the payload of the last. */
  readonly debounce?: Debounce;
  /** At most one job of the key in each window of time. */
  readonly throttle?: Throttle;
}

export interface ActiveJobKey {
  readonly key: string;
  /** Whether the payload of the live job is replaced, and what else the request names, while it is PENDING. Default false. */
  readonly replace?: boolean;
}

export interface Debounce {
  readonly key: string;
  /** How long after the last request the job may start. */
  readonly seconds: number;
  /** How long after the first request it may start at the latest. Default: requests can put it off for ever. */
  readonly maxSeconds?: number;
}

export interface Throttle {
  readonly key: string;
  /** The length of the window, from the enqueue of its job. */
  readonly seconds: number;
}
