import { expect, test } from "@jest/globals";
import {
  defineJob,
  type JsonValue,
  type PrerequisiteFailure,
  type PrerequisiteOutputs,
  typed,
} from "../../src/index.ts";
import { Continue, handle, Snooze } from "../../src/worker/index.ts";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** Only compiles when the two types are the same. */
function same<A, B>(yes: Same<A, B>): void {
  expect(yes).toBe(true);
}

const receipt = defineJob("receipt", {
  input: typed<{ orderId: string }>(),
  output: typed<{ messageId: string }>(),
  prerequisites: typed<{ charge: { amount: number } }>(),
});
const bare = defineJob("bare");

test("a definition gives its handler's payload, prerequisites and output", () => {
  handle(receipt, ({ payload, prerequisites }) => {
    same<typeof payload, { orderId: string }>(true);
    same<typeof prerequisites, { charge: { amount: number } }>(true);
    return { messageId: payload.orderId };
  });
  handle(receipt, async ({ payload }) => ({ messageId: payload.orderId }));
});

test("a handler that returns something else does not compile", () => {
  // @ts-expect-error messageId is a string
  handle(receipt, () => ({ messageId: 1 }));
  // @ts-expect-error nothing is returned
  handle(receipt, async () => {});
  // @ts-expect-error messageId is missing
  handle(receipt, async () => ({}));
});

test("a handler of any output may snooze its job or continue it, with one time and not two", () => {
  handle(receipt, async ({ checkpoint }) => {
    if (checkpoint === null) throw new Continue({ checkpoint: { page: 2 }, delaySeconds: 1, output: [] });
    throw new Snooze({ until: new Date(), reason: "later" });
  });
  // @ts-expect-error a time is missing
  new Snooze({ reason: "later" });
  // @ts-expect-error which of the two?
  new Snooze({ seconds: 1, until: new Date() });
});

test("a handler cannot read what its definition does not promise", () => {
  handle(receipt, ({ payload, prerequisites }) => {
    // @ts-expect-error the payload has no such field
    payload.customerId;
    // @ts-expect-error there is no such prerequisite
    prerequisites.refund;
    return { messageId: "" };
  });
});

test("a schema that transforms gives the handler what it makes, not what was enqueued", () => {
  const dated = defineJob("dated", {
    input: {
      "~standard": { version: 1, vendor: "test", validate: (value) => ({ value: new Date(String(value)) }) },
    },
  });
  handle(dated, ({ payload }) => same<typeof payload, Date>(true));
});

test("without types a definition promises nothing and takes any output", () => {
  handle(bare, ({ payload, prerequisites }) => {
    same<typeof payload, unknown>(true);
    same<typeof prerequisites, PrerequisiteOutputs>(true);
    return 1;
  });
});

test("a plain type has a JSON payload", () => {
  handle("plain", ({ payload, prerequisites, failures }) => {
    same<typeof payload, JsonValue>(true);
    same<typeof prerequisites, PrerequisiteOutputs>(true);
    same<typeof failures.any, PrerequisiteFailure | undefined>(true);
  });
  expect(() => handle(" ", () => {})).toThrow(expect.objectContaining({ code: "config.invalid" }));
});
