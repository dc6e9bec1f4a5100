/** Which times an expression means, above all on the two days a year on which the clocks change. */
import { describe, expect, test } from "@jest/globals";
import { latestTicks, requireTimes, type Timetable, tickAfter } from "../../src/schedules/cron.ts";

function timetable(cron: string, timeZone = "UTC", bounds: Partial<Timetable> = {}): Timetable {
  return { cron, timeZone, startsAt: null, endsAt: null, ...bounds };
}

/** The ticks after one time and up to another, as UTC. */
function ticks(cron: string, timeZone: string, after: string, until: string): string[] {
  const found: string[] = [];
  for (let tick = tickAfter(timetable(cron, timeZone), new Date(after)); tick !== null && tick <= new Date(until); ) {
    found.push(`${tick.toISOString().slice(0, 16)}Z`);
    tick = tickAfter(timetable(cron, timeZone), tick);
  }
  return found;
}

function everyMinutes(minutes: number, after: string, until: string): string[] {
  const first = new Date(after).getTime() + minutes * 60_000;
  const count = (new Date(until).getTime() - first) / (minutes * 60_000) + 1;
  return Array.from(
    { length: count },
    (_, n) => `${new Date(first + n * minutes * 60_000).toISOString().slice(0, 16)}Z`,
  );
}

type Zone = "Europe/Berlin" | "America/New_York" | "Australia/Lord_Howe";
type Period = readonly [after: string, until: string];

/**
 * Berlin: 2026-03-29 02:00 CET -> 03:00 CEST is 01:00Z; 2026-10-25 03:00 CEST -> 02:00 CET is 01:00Z.
 * New York: 2026-03-08 02:00 EST -> 03:00 EDT is 07:00Z; 2026-11-01 02:00 EDT -> 01:00 EST is 06:00Z.
 * Lord Howe: 2026-10-04 02:00 +10:30 -> 02:30 +11 is 2026-10-03 15:30Z; 2026-04-05 02:00 +11 -> 01:30 +10:30 is 2026-04-04 15:00Z.
 */
const spring: Readonly<Record<Zone, Period>> = {
  "Europe/Berlin": ["2026-03-28T12:00Z", "2026-03-30T12:00Z"],
  "America/New_York": ["2026-03-07T18:00Z", "2026-03-09T18:00Z"],
  "Australia/Lord_Howe": ["2026-10-03T06:00Z", "2026-10-05T06:00Z"],
};
const autumn: Readonly<Record<Zone, Period>> = {
  "Europe/Berlin": ["2026-10-24T12:00Z", "2026-10-26T12:00Z"],
  "America/New_York": ["2026-10-31T18:00Z", "2026-11-02T18:00Z"],
  "Australia/Lord_Howe": ["2026-04-04T06:00Z", "2026-04-06T06:00Z"],
};

describe("a fixed time that a change to summer time leaves out happens once, at the next time there is", () => {
  test.each<[Zone, string, string[]]>([
    // 02:30 is missing: 03:00 CEST, and 02:30 CEST the day after.
    ["Europe/Berlin", "30 2 * * *", ["2026-03-29T01:00Z", "2026-03-30T00:30Z"]],
    ["America/New_York", "30 2 * * *", ["2026-03-08T07:00Z", "2026-03-09T06:30Z"]],
    // 02:15 is missing, and 02:30 is the first time there is.
    ["Australia/Lord_Howe", "15 2 * * *", ["2026-10-03T15:30Z", "2026-10-04T15:15Z"]],
    ["Australia/Lord_Howe", "30 2 * * *", ["2026-10-03T15:30Z", "2026-10-04T15:30Z"]],
    // Lists and ranges are fixed times, too; two that are left out happen together, once.
    [
      "Europe/Berlin",
      "30 2,14 * * *",
      ["2026-03-28T13:30Z", "2026-03-29T01:00Z", "2026-03-29T12:30Z", "2026-03-30T00:30Z"],
    ],
    ["Europe/Berlin", "0,30 2 * * *", ["2026-03-29T01:00Z", "2026-03-30T00:00Z", "2026-03-30T00:30Z"]],
    // 02:00 is left out and happens at 03:00, which is a tick already: once.
    ["Europe/Berlin", "0 2-3 * * *", ["2026-03-29T01:00Z", "2026-03-30T00:00Z", "2026-03-30T01:00Z"]],
  ])("%s %s", (zone, cron, expected) => {
    expect(ticks(cron, zone, ...spring[zone])).toEqual(expected);
  });
});

describe("a fixed time that comes twice happens once, the first time", () => {
  test.each<[Zone, string, string[]]>([
    // 02:30 CEST, and not 02:30 CET an hour later.
    ["Europe/Berlin", "30 2 * * *", ["2026-10-25T00:30Z", "2026-10-26T01:30Z"]],
    [
      "Europe/Berlin",
      "30 2,14 * * *",
      ["2026-10-24T12:30Z", "2026-10-25T00:30Z", "2026-10-25T13:30Z", "2026-10-26T01:30Z"],
    ],
    // There the hour from one to two comes twice; 02:30 comes once.
    ["America/New_York", "30 1 * * *", ["2026-11-01T05:30Z", "2026-11-02T06:30Z"]],
    ["America/New_York", "30 2 * * *", ["2026-11-01T07:30Z", "2026-11-02T07:30Z"]],
    // There the half hour from 01:30 to 02:00 comes twice.
    ["Australia/Lord_Howe", "45 1 * * *", ["2026-04-04T14:45Z", "2026-04-05T15:15Z"]],
  ])("%s %s", (zone, cron, expected) => {
    expect(ticks(cron, zone, ...autumn[zone])).toEqual(expected);
  });
});

describe("an interval goes on through the change: every time there is, each once", () => {
  test.each<Zone>(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"])("%s every 15 minutes", (zone) => {
    for (const [after, until] of [spring[zone], autumn[zone]]) {
      expect(ticks("*/15 * * * *", zone, after, until)).toEqual(everyMinutes(15, after, until));
    }
  });

  test.each<Zone>(["Europe/Berlin", "America/New_York"])("%s hourly", (zone) => {
    for (const [after, until] of [spring[zone], autumn[zone]]) {
      expect(ticks("0 * * * *", zone, after, until)).toEqual(everyMinutes(60, after, until));
    }
  });

  test("Australia/Lord_Howe hourly: a full hour is missing in spring, and in autumn one takes 90 minutes", () => {
    // 01:00 +10:30, then 03:00 +11: 02:00 is left out.
    expect(ticks("0 * * * *", "Australia/Lord_Howe", "2026-10-03T14:00Z", "2026-10-03T17:30Z")).toEqual([
      "2026-10-03T14:30Z",
      "2026-10-03T16:00Z",
      "2026-10-03T17:00Z",
    ]);
    // 01:00 +11, then 02:00 +10:30.
    expect(ticks("0 * * * *", "Australia/Lord_Howe", "2026-04-04T13:30Z", "2026-04-04T16:30Z")).toEqual([
      "2026-04-04T14:00Z",
      "2026-04-04T15:30Z",
      "2026-04-04T16:30Z",
    ]);
  });

  test("every two hours: 02:00 is left out in spring and comes twice in autumn", () => {
    expect(ticks("0 */2 * * *", "Europe/Berlin", "2026-03-28T22:30Z", "2026-03-29T04:30Z")).toEqual([
      "2026-03-28T23:00Z",
      "2026-03-29T02:00Z",
      "2026-03-29T04:00Z",
    ]);
    expect(ticks("0 */2 * * *", "Europe/Berlin", "2026-10-24T21:30Z", "2026-10-25T03:30Z")).toEqual([
      "2026-10-24T22:00Z",
      "2026-10-25T00:00Z",
      "2026-10-25T01:00Z",
      "2026-10-25T03:00Z",
    ]);
  });
});

describe("the last of the ticks that were missed", () => {
  const expressions = [
    "0 * * * *",
    "30 2 * * *",
    "15 2 * * *",
    "30 1 * * *",
    "*/15 * * * *",
    "30 2,14 * * *",
    "0 */2 * * *",
  ];
  const zones: Zone[] = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe"];

  test.each(zones.flatMap((zone) => expressions.map((cron): [Zone, string] => [zone, cron])))(
    "are those that one after the other would have come: %s %s",
    (zone, cron) => {
      for (const [after, until] of [spring[zone], autumn[zone]]) {
        const all = ticks(cron, zone, after, until);
        const [from = ""] = all;
        for (const count of [1, 2, all.length, all.length + 5]) {
          const last = latestTicks(timetable(cron, zone), new Date(from), new Date(until), count);
          expect(last.map((tick) => `${tick.toISOString().slice(0, 16)}Z`)).toEqual(all.slice(-count));
        }
      }
    },
  );

  test("include one at this very second, and none of a second that is not over", () => {
    const every = timetable("* * * * * *");
    const latest = (until: string) => latestTicks(every, new Date("2026-01-01T00:00:00Z"), new Date(until), 1);

    expect(latest("2026-01-01T12:00:00.000Z")).toEqual([new Date("2026-01-01T12:00:00Z")]);
    expect(latest("2026-01-01T12:00:00.999Z")).toEqual([new Date("2026-01-01T12:00:00Z")]);
  });

  test("take no longer after years than after an hour: no tick in between is looked at", () => {
    const all = latestTicks(
      timetable("* * * * * *"),
      new Date("2001-01-01T00:00:00Z"),
      new Date("2026-01-01T00:00:00Z"),
      2,
    );

    expect(all).toEqual([new Date("2025-12-31T23:59:59Z"), new Date("2026-01-01T00:00:00Z")]);
  });

  test("are before the end", () => {
    const ended = timetable("0 * * * *", "UTC", { endsAt: new Date("2026-01-01T03:00:00Z") });
    const from = new Date("2026-01-01T00:00:00Z");

    expect(latestTicks(ended, from, new Date("2026-01-01T12:00:00Z"), 10)).toEqual([
      from,
      new Date("2026-01-01T01:00:00Z"),
      new Date("2026-01-01T02:00:00Z"),
    ]);
  });
});

describe("bounds", () => {
  const at = (time: string) => new Date(`2026-01-01T${time}Z`);

  test("a start that is a tick is the first, an end that is a tick is none", () => {
    const bounded = timetable("0 * * * *", "UTC", { startsAt: at("10:00:00"), endsAt: at("12:00:00") });

    expect(tickAfter(bounded, at("00:00:00"))).toEqual(at("10:00:00"));
    expect(tickAfter(bounded, at("10:00:00"))).toEqual(at("11:00:00"));
    expect(tickAfter(bounded, at("11:00:00"))).toBeNull();
  });

  test("29 February 2104 comes after the century without one", () => {
    expect(tickAfter(timetable("0 0 29 2 *"), new Date("2096-03-01"))).toEqual(new Date("2104-02-29T00:00:00Z"));
  });

  test("after the year 2999 there is no tick", () => {
    expect(tickAfter(timetable("0 0 1 1 *"), new Date("2998-06-01"))).toEqual(new Date("2999-01-01T00:00:00Z"));
    expect(tickAfter(timetable("0 0 1 1 *"), new Date("2999-06-01"))).toBeNull();
  });
});

describe("accepted", () => {
  test.each([
    "* * * * *",
    "30 * * * * *",
    "0 9 * * MON-FRI",
    "0 0 L * *",
    "0 0 * * 5#2",
    "@daily",
    "0 0 29 2 *",
    "*/5 0-6 1,15 * *",
  ])("%s", (cron) => {
    expect(() => requireTimes(timetable(cron))).not.toThrow();
  });
});

describe("refused with the reason", () => {
  test.each([
    ["61 * * * *", "Invalid value for minute: 61"],
    ["* * * *", "exactly five, six, or seven space separated parts are required"],
    ["* * * * * * *", "requires exactly 5 or 6 parts"],
    ["every day", "space separated parts are required"],
    ["5/15 * * * *", "stepping with numeric prefix"],
    ["0 0 31 2 *", "no date ever fits it"],
    ["0 0 30 2 *", "no date ever fits it"],
    ["2026-01-01T00:00:00", "it is a date, not an expression"],
    ["@reboot", ""],
  ])("%s", (cron, reason) => {
    expect(() => requireTimes(timetable(cron))).toThrow(
      expect.objectContaining({ code: "schedule.cron_invalid", message: expect.stringContaining(reason) }),
    );
  });

  test.each(["Mars/Phobos", "+02:00", "-05", "Berlin"])("the time zone %s", (zone) => {
    expect(() => requireTimes(timetable("* * * * *", zone))).toThrow(
      expect.objectContaining({ code: "schedule.time_zone_invalid", message: expect.stringContaining(zone) }),
    );
  });
});
