/** All works, in the order in which they run. */
import type { Sizes } from "../harness/sizes.ts";
import type { Work } from "../harness/work.ts";
import { chains, stepLatency } from "./chain.ts";
import { drain } from "./drain.ts";
import { enqueueBatches, enqueueOneByOne } from "./enqueue.ts";
import { fanOut } from "./fan.ts";
import { idleLatency, loadedLatency } from "./latency.ts";

export function works(sizes: Sizes): Work[] {
  return [
    enqueueOneByOne(sizes, 1),
    enqueueOneByOne(sizes, 16),
    enqueueBatches(sizes),
    drain(sizes, "tuned"),
    drain(sizes, "defaults"),
    idleLatency(sizes, "tuned"),
    idleLatency(sizes, "defaults"),
    loadedLatency(sizes),
    chains(sizes),
    stepLatency(sizes),
    fanOut(sizes.fan, "steps"),
    fanOut(sizes.fan, "child runs"),
    fanOut(sizes.wideFan, "steps"),
    fanOut(sizes.wideFan, "child runs"),
  ];
}
